"""Where samples come from: the standard library's own source text, text files, token ids, or a class."""

import hashlib
import inspect
import sysconfig
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from elaswave.config import FILE_SOURCES, SOURCES, Config, Model
from elaswave.data.digits import Digits
from elaswave.data.masked import MaskedDataset
from elaswave.errors import ConfigError
from elaswave.plugins import named

STDLIB_BYTES_MAX = 4 << 20
SCAN_TOKENS = 1 << 22
"""How many tokens are looked at in advance; the others are checked when they are used."""
DIGEST_BLOCKS = 256
DIGEST_BLOCK_TOKENS = 1 << 16
TEXT_SUFFIXES = (".txt", ".md", ".py", ".rst", ".json")


class Dataset(Protocol):
    """Samples by number.

    A method `inputs_and_targets(rows)` takes a stack of samples apart; without it, each token predicts the next.
    """

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def sample(self, index: int) -> torch.Tensor:
        """Sample `index`, such as int64 tokens, (sequence_length + 1,); all of one shape and dtype."""
        ...

    def identity(self) -> str:
        """Digest of the content, the same on every worker."""
        ...


class TokenDataset:
    """A stream of tokens cut into samples that overlap by the one token that is only predicted.

    Args:
        tokens: flat array of any unsigned integer type.
        sequence_length: tokens per sample.
        vocabulary: every token must be smaller.
    """

    def __init__(self, tokens: np.ndarray, sequence_length: int, vocabulary: int) -> None:
        self._tokens, self.num_tokens = tokens, len(tokens)
        self.sequence_length, self._vocabulary = sequence_length, vocabulary
        self._check(tokens[:SCAN_TOKENS])

    def __len__(self) -> int:
        return max(0, (len(self._tokens) - 1) // self.sequence_length)

    def sample(self, index: int) -> torch.Tensor:
        """Sample `index` as int64 tokens, (sequence_length + 1,).

        Raises:
            ConfigError: it has a token beyond the vocabulary.
        """
        start = index * self.sequence_length
        tokens = self._tokens[start : start + self.sequence_length + 1].astype(np.int64)
        self._check(tokens)
        return torch.from_numpy(tokens)

    def identity(self) -> str:
        """Digest of the length and of blocks spread evenly; of everything unless it is large."""
        digest = hashlib.sha256(f"{self._tokens.dtype} {len(self._tokens)}".encode())
        stride = max(DIGEST_BLOCK_TOKENS, -(-len(self._tokens) // DIGEST_BLOCKS))
        for start in range(0, len(self._tokens), stride):
            digest.update(np.ascontiguousarray(self._tokens[start : start + DIGEST_BLOCK_TOKENS]).data)
        return digest.hexdigest()[:16]

    def _check(self, tokens: np.ndarray) -> None:
        if len(tokens) and (largest := int(tokens.max())) >= self._vocabulary:
            raise ConfigError("model.vocabulary", self._vocabulary, f"the data has token {largest}; raise it")


def build_dataset(config: Config) -> Dataset:
    """Open the data that `config.data` names.

    Raises:
        ConfigError: there is no such data, it cannot be read, does not suit the model, or is too small for one step.
    """
    data = config.data
    if ":" in data.source:
        dataset = _own(config)
    elif data.source == "digits":
        dataset = Digits(config)
    elif data.source == "masked":
        dataset = _masked(config.model)
    else:
        tokens = _tokens(data.source, Path(data.path))
        dataset = TokenDataset(tokens, config.model.sequence_length, config.model.vocabulary)
    if len(dataset) < config.training.train_batch_size:
        key, value = ("data.path", data.path) if data.source in FILE_SOURCES else ("data.source", data.source)
        raise ConfigError(
            key,
            value,
            f"has {_told(dataset)}; one step needs training.train_batch_size = {config.training.train_batch_size}; "
            "use more data or a smaller batch",
        )
    return dataset


def _own(config: Config) -> Dataset:
    """Data of a class that the config names."""
    source = config.data.source
    make = named("data.source", source, SOURCES)
    try:
        inspect.signature(make).bind(config)
    except (TypeError, ValueError) as error:
        raise ConfigError("data.source", source, f"must take (config): {error}") from error
    dataset = make(config)
    if missing := [method for method in ("__len__", "sample", "identity") if not hasattr(dataset, method)]:
        raise ConfigError("data.source", source, f"lacks {' and '.join(missing)}")
    return dataset


def _masked(model: Model) -> Dataset:
    if model.sequence_length < 2:
        raise ConfigError("model.sequence_length", model.sequence_length, "masked data needs 2, so that one is seen")
    tokens = _tokens("stdlib", Path())
    return MaskedDataset(TokenDataset(tokens, model.sequence_length, model.vocabulary), model.sequence_length)


def _told(dataset: Dataset) -> str:
    """How much there is, in words."""
    if isinstance(dataset, TokenDataset):
        return f"{dataset.num_tokens} tokens, that is {len(dataset)} samples of {dataset.sequence_length}"
    return f"{len(dataset)} samples"


def _tokens(source: str, path: Path) -> np.ndarray:
    try:
        if source == "stdlib":
            return np.frombuffer(stdlib_text(), np.uint8)
        if source == "tokens":
            return np.memmap(path, np.uint16, mode="r")
        return np.frombuffer(_text(path), np.uint8)
    except (OSError, ValueError) as error:
        raise ConfigError("data.path", str(path), f"cannot be read: {error}") from error


def stdlib_text() -> bytes:
    """Source text of the standard library's top-level modules, in order of name, up to a bound."""
    parts, room = [], STDLIB_BYTES_MAX
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        parts.append(file.read_bytes()[:room])
        room -= len(parts[-1])
        if not room:
            break
    return b"".join(parts)


def _text(path: Path) -> bytes:
    """A file, or all text files below a folder in order of path."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix in TEXT_SUFFIXES and file.is_file()]
        return b"\n".join(file.read_bytes() for file in files)
    return path.read_bytes()
