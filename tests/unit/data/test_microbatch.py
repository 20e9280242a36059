"""Every sample comes once per pass through the data, whatever the sizes are."""

from hypothesis import given, settings
from hypothesis import strategies as st

from elaswave.data.microbatch import permute, sample_ids


def ids(step, micro_batch, *, size, batch, samples, seed=1):
    return sample_ids(
        seed=seed,
        step=step,
        micro_batch=micro_batch,
        micro_batch_size=size,
        train_batch_size=batch,
        num_samples=samples,
    )


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 700), st.integers(0, (1 << 64) - 1))
def test_permutation_is_one(size, key):
    assert sorted(permute(index, size, key) for index in range(size)) == list(range(size))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 60), st.integers(-5, 1 << 40))
def test_each_sample_once_per_pass(size, micro_batches, samples, seed):
    batch = size * micro_batches
    steps = -(-3 * samples // batch)
    run = [
        sample
        for step in range(1, steps + 1)
        for micro_batch in range(micro_batches)
        for sample in ids(step, micro_batch, size=size, batch=batch, samples=samples, seed=seed)
    ]
    for start in range(0, 3 * samples, samples):
        assert sorted(run[start : start + samples]) == list(range(samples))


def test_passes_and_seeds_differ_in_order():
    first, second = (ids(step, 0, size=64, batch=64, samples=64) for step in (1, 2))
    other = ids(1, 0, size=64, batch=64, samples=64, seed=2)
    assert len({first, second, other, tuple(range(64))}) == 4


def test_known_answer():
    assert ids(3, 1, size=2, batch=8, samples=1000, seed=7) == (196, 154)
