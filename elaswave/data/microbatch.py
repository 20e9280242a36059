"""Which samples a micro-batch has: a pure function of seed, step and id, so there is no loader state to lose.

The samples of an epoch of data are visited in the order of a keyed permutation: a Feistel network over the next power
of four, walked until it lands inside (Black and Rogaway, https://doi.org/10.1007/3-540-45760-7_9).
"""

_MASK = (1 << 64) - 1
ROUNDS = 4


def sample_ids(
    *, seed: int, step: int, micro_batch: int, micro_batch_size: int, train_batch_size: int, num_samples: int
) -> tuple[int, ...]:
    """Samples of one micro-batch, in order.

    Args:
        seed: of the data order.
        step: from 1.
        micro_batch: id within the step.
        micro_batch_size: samples per micro-batch.
        train_batch_size: samples per step.
        num_samples: in the data set; every one comes once before any comes again.
    """
    first = (step - 1) * train_batch_size + micro_batch * micro_batch_size
    found = []
    for position in range(first, first + micro_batch_size):
        round_of_data, index = divmod(position, num_samples)
        found.append(permute(index, num_samples, mix(mix(seed) ^ round_of_data)))
    return tuple(found)


def permute(index: int, size: int, key: int) -> int:
    """Where a keyed permutation of range(size) sends `index`."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    while True:
        index = _feistel(index, half_bits, key)
        if index < size:
            return index


def _feistel(value: int, half_bits: int, key: int) -> int:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for number in range(ROUNDS):
        left, right = right, left ^ (mix(key ^ (number << 56) ^ right) & mask)
    return left << half_bits | right


def mix(value: int) -> int:
    """splitmix64, https://doi.org/10.1145/2714064.2660195."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
