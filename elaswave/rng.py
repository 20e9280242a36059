"""Random streams that belong to samples: a draw depends on (seed, step, sample, layer, site) and the element.

Counter-based generators (Philox; Salmon et al., https://doi.org/10.1145/2063384.2063405) make that cheap: the key is
the identity of the draw, and nothing has to be kept, moved or replayed when the layout changes. Only the CPU path
has been run.
"""

from collections.abc import Sequence

import numpy as np
import torch

_MASK = (1 << 64) - 1
_SCALE = 1 << 16


class Streams:
    """Masks for the samples that are being computed.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._step = 0
        self._samples: tuple[int, ...] = ()
        self._philox = np.random.Philox(key=0)
        self._state = self._philox.state

    def at(self, step: int, samples: Sequence[int]) -> None:
        """Everything drawn from now on belongs to `samples` of `step`."""
        self._step, self._samples = step, tuple(samples)

    def mask(self, layer: int, site: int, shape: tuple[int, ...], keep: float) -> torch.Tensor:
        """Bool mask of `shape`, true with probability `keep` (to 16 bits); row i belongs to sample i."""
        if shape[0] != len(self._samples):
            raise ValueError(f"{shape[0]} rows for {len(self._samples)} samples")
        size = int(np.prod(shape[1:]))
        out = np.empty((shape[0], size), np.bool_)
        threshold = round(keep * _SCALE)
        for row, sample in zip(out, self._samples, strict=True):
            words = self._raw(key_of(self._seed, self._step, sample, layer, site), -(-size // 4))
            np.less(words.view(np.uint16)[:size], threshold, out=row)
        return torch.from_numpy(out).view(shape)

    def _raw(self, key: int, num_words: int) -> np.ndarray:
        """The first uint64 words of the stream with this key; setting the state is cheaper than a new generator."""
        self._state["state"]["key"][:] = (key, 0)
        self._state["state"]["counter"][:] = 0
        self._state["buffer_pos"] = 4
        self._philox.state = self._state
        return self._philox.random_raw(num_words)


def key_of(*parts: int) -> int:
    """64 bits from a sequence of integers, by a chain of splitmix64 (https://doi.org/10.1145/2714064.2660195)."""
    key = 0x243F6A8885A308D3
    for part in parts:
        key = _splitmix(key ^ (part & _MASK))
    return key


def _splitmix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
