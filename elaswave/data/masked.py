"""Tokens to restore: a few of every sample are masked, and which ones is a pure function of the sample's number."""

from typing import TYPE_CHECKING

import torch

from elaswave.data.microbatch import mix, permute
from elaswave.models.encoder import MASK

if TYPE_CHECKING:
    from elaswave.data.dataset import Dataset

SHARE = 0.15
"""Of the tokens of a sample that are masked, as in BERT."""


class MaskedDataset:
    """Samples of another data set, with as many tokens masked in each.

    Args:
        tokens: gives sequence_length + 1 tokens per sample, of which the last is left out.
        sequence_length: at least 2, so that something is seen.
    """

    def __init__(self, tokens: "Dataset", sequence_length: int) -> None:
        self._tokens, self._length = tokens, sequence_length
        self._masked = max(1, round(SHARE * sequence_length))

    def __len__(self) -> int:
        return len(self._tokens)

    def sample(self, index: int) -> torch.Tensor:
        """Sample `index` as int64: its tokens, partly masked, and then what was masked, in order of place."""
        tokens = self._tokens.sample(index)[: self._length]
        places = torch.tensor(self._places(index))
        return torch.cat([tokens.index_fill(0, places, MASK), tokens[places]])

    def inputs_and_targets(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, sequence + masked) -> tokens (batch, sequence) and what was masked (batch, masked)."""
        return rows[:, : self._length], rows[:, self._length :]

    def identity(self) -> str:
        """Digest of the content, the same on every worker."""
        return f"{self._tokens.identity()}-masked-{self._masked}"

    def _places(self, index: int) -> list[int]:
        return sorted(permute(place, self._length, mix(index)) for place in range(self._masked))
