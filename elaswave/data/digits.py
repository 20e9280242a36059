"""Images of handwritten digits, 8 by 8 pixels, as scikit-learn brings them along; real data without a download."""

import hashlib
from importlib import import_module

import numpy as np
import torch

from elaswave.config import Config
from elaswave.errors import ConfigError

PIXELS = 64
CLASSES = 10
_WHITEST = 16


class Digits:
    """1797 images, each with its digit.

    Args:
        config: its model is for images of this kind.

    Raises:
        ConfigError: the model is for others, or scikit-learn is not installed.
    """

    def __init__(self, config: Config) -> None:
        model = config.model
        if model.sequence_length != PIXELS:
            raise ConfigError("model.sequence_length", model.sequence_length, f"digits have {PIXELS} pixels")
        if model.classes < CLASSES:
            raise ConfigError("model.classes", model.classes, f"digits are of {CLASSES} classes")
        try:
            images, digits = import_module("sklearn.datasets").load_digits(return_X_y=True)
        except ImportError as error:
            raise ConfigError(
                "data.source", "digits", f"needs scikit-learn (pip install scikit-learn): {error}"
            ) from error
        grey = (images * ((model.vocabulary - 1) // _WHITEST)).astype(np.int64)
        self._rows = torch.from_numpy(np.concatenate([grey, digits[:, None].astype(np.int64)], axis=1))

    def __len__(self) -> int:
        return len(self._rows)

    def sample(self, index: int) -> torch.Tensor:
        """Image `index` as int64, (pixels + 1,): grey values below model.vocabulary, and the digit."""
        return self._rows[index]

    def inputs_and_targets(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, pixels + 1) -> images (batch, pixels) and digits (batch, 1)."""
        return rows[:, :PIXELS], rows[:, PIXELS:]

    def identity(self) -> str:
        """Digest of the content, the same on every worker."""
        return hashlib.sha256(self._rows.numpy().tobytes()).hexdigest()[:16]
