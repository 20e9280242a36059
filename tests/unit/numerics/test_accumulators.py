"""Fixed-point sums have the same bits in any order, are closer than float32 sums, and refuse what they cannot hold."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elaswave import numerics
from elaswave.config import Numerics
from elaswave.errors import NumericsError
from elaswave.numerics import BOUND, ExactAccumulator, FastAccumulator, make_accumulator

MICRO_BATCHES = 12
SIZE = 500


def gradients(scale=1e-3):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(SIZE, generator=generator) * scale for _ in range(MICRO_BATCHES)]


def shared_out(owners, order, values):
    """The sum of workers' buffers, each having added its micro-batches in the given order."""
    workers = [ExactAccumulator(SIZE, MICRO_BATCHES) for _ in range(MICRO_BATCHES)]
    for micro_batch in order:
        workers[owners[micro_batch]].add(values[micro_batch], micro_batch)
    return sum((worker.buffer for worker in workers), torch.zeros(SIZE, dtype=torch.int64))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, MICRO_BATCHES - 1), min_size=MICRO_BATCHES, max_size=MICRO_BATCHES),
    st.permutations(range(MICRO_BATCHES)),
    st.sampled_from([1e-9, 1e-3, 10.0]),
)
def test_any_sharing_and_order_gives_the_same_bits(owners, order, scale):
    values = gradients(scale)
    alone = shared_out([0] * MICRO_BATCHES, range(MICRO_BATCHES), values)
    assert torch.equal(shared_out(owners, order, values), alone)


def test_float_sums_do_depend_on_the_order():
    values = gradients()
    forward, backward = FastAccumulator(SIZE), FastAccumulator(SIZE)
    for i in range(MICRO_BATCHES):
        forward.add(values[i], i)
        backward.add(values[-1 - i], i)
    assert not torch.equal(forward.buffer, backward.buffer)


def test_sum_is_closer_than_a_float32_sum():
    values = gradients()
    exact, fast = ExactAccumulator(SIZE, MICRO_BATCHES), FastAccumulator(SIZE)
    for i, value in enumerate(values):
        exact.add(value, i)
        fast.add(value, i)
    wanted = torch.stack(values).double().sum(0)
    error, fast_error = (
        (a.to_float(a.buffer, torch.empty(SIZE)).double() - wanted).norm() / wanted.norm() for a in (exact, fast)
    )
    assert error < 4e-8
    assert error < fast_error


@settings(deadline=None, max_examples=200)
@given(st.floats(-BOUND, BOUND, exclude_min=True, exclude_max=True, width=32))
def test_one_element_becomes_the_nearest_multiple(value):
    accumulator = ExactAccumulator(1)
    accumulator.add(torch.tensor([value]), 0)
    assert accumulator.buffer.item() == round(value * 2**44)


@pytest.mark.parametrize("block", [1, 7, SIZE - 1, SIZE, SIZE + 1])
def test_blocks_do_not_show(monkeypatch, block):
    whole = ExactAccumulator(SIZE, MICRO_BATCHES)
    monkeypatch.setattr(numerics, "BLOCK", block)
    blocks = ExactAccumulator(SIZE, MICRO_BATCHES)
    for i, value in enumerate(gradients()):
        whole.add(value, i)
        blocks.add(value, i)
    assert torch.equal(whole.buffer, blocks.buffer)


@settings(deadline=None, max_examples=200)
@given(st.integers(-(2**63), 2**63 - 1))
def test_a_sum_becomes_the_nearest_float64_and_then_the_nearest_float32(units):
    found = ExactAccumulator(1).to_float(torch.tensor([units]), torch.empty(1))
    assert found.dtype == torch.float32
    assert found.item() == torch.tensor(float(units) * 2.0**-44).float().item()


def test_no_elements():
    accumulator = ExactAccumulator(0)
    accumulator.add(torch.empty(0), 0)
    assert not len(accumulator.buffer)


def test_zero_forgets():
    accumulator = ExactAccumulator(SIZE)
    accumulator.add(gradients()[0], 0)
    accumulator.zero()
    assert not accumulator.buffer.any()


@pytest.mark.parametrize("bad", [BOUND, -BOUND, 1e30, math.inf, -math.inf, math.nan])
def test_out_of_range_names_micro_batch_value_and_remedy(bad):
    accumulator = ExactAccumulator(SIZE)
    gradient = gradients()[0]
    gradient[77] = bad
    with pytest.raises(NumericsError, match=re.escape(f"micro-batch 5 has a gradient of {abs(bad):g};")):
        accumulator.add(gradient, 5)
    assert not accumulator.buffer.any()


def test_many_micro_batches_cannot_wrap_around():
    count = 1 << 14
    accumulator = ExactAccumulator(1, count)
    largest = torch.nextafter(torch.tensor([accumulator.bound]), torch.zeros(1))
    accumulator.add(largest, 0)
    assert accumulator.buffer.item() * count < 1 << 63
    assert ExactAccumulator(1, 4096).bound == BOUND


def test_config_chooses():
    assert isinstance(make_accumulator(Numerics.EXACT, 4, 2), ExactAccumulator)
    fast = make_accumulator(Numerics.FAST, 4, 2)
    assert fast.buffer.dtype == torch.float32
    part = fast.buffer[1:3]
    assert fast.to_float(part, torch.empty(2)) is part


@pytest.mark.parametrize("numerics", Numerics)
def test_parts_add_up_to_the_whole_whatever_was_there_before(numerics):
    value = gradients()[0]
    whole, parts, again = (make_accumulator(numerics, SIZE, MICRO_BATCHES) for _ in range(3))
    for accumulator in (whole, parts, again):
        accumulator.add(value, 0)
        accumulator.zero()
    whole.add(value, 1)
    parts.add(value[100:], 1, 100)
    parts.add(value[:90], 1)
    parts.add(value[90:100], 1, 90)
    again.add(value[50:100], 1, 50)
    again.add(torch.cat([value[:50], torch.zeros(50), value[100:]]), 1)
    assert torch.equal(whole.buffer, parts.buffer)
    assert torch.equal(whole.buffer, again.buffer)
    again.zero()
    again.add(value[7:9], 2, 7)
    assert again.buffer[7:9].all()
    assert not again.buffer[:7].any()
    assert not again.buffer[9:].any()
    assert again.resize(SIZE + 3)
    assert not again.buffer.any()


@pytest.mark.parametrize("numerics", Numerics)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_added_as_the_gradient_that_it_is(numerics, dtype):
    generator = torch.Generator().manual_seed(4)
    rows, columns = (torch.randn(5, size, generator=generator).to(dtype) for size in (3, 4))
    found, wanted = (make_accumulator(numerics, 20, MICRO_BATCHES) for _ in range(2))
    for micro_batch in range(2):
        found.add_product(rows, columns, torch.float32, micro_batch, 8)
        wanted.add((rows.t() @ columns).float().view(-1), micro_batch, 8)
    torch.testing.assert_close(found.buffer, wanted.buffer)
    assert not found.buffer[:8].any()


@pytest.mark.parametrize("kind", [ExactAccumulator, FastAccumulator])
def test_a_sum_of_another_size_is_zero_and_in_the_same_memory(kind):
    accumulator = kind(400)
    memory = accumulator.buffer.data_ptr()
    accumulator.add(torch.ones(400), 0)
    assert accumulator.resize(300)
    assert (len(accumulator.buffer), bool(accumulator.buffer.any())) == (300, False)
    accumulator.add(torch.ones(200), 1, at=100)
    assert accumulator.resize(500)
    assert (len(accumulator.buffer), bool(accumulator.buffer.any())) == (500, False)
    assert accumulator.buffer.data_ptr() == memory
    assert not accumulator.resize(501)
    assert len(accumulator.buffer) == 500
