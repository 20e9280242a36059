"""Samples overlap by one token, and data that cannot be used is refused with key, value and remedy."""

import numpy as np
import pytest
import torch

from elaswave.config import Config
from elaswave.data import dataset as dataset_module
from elaswave.data.dataset import TokenDataset, build_dataset, stdlib_text
from elaswave.errors import ConfigError


def config(source="stdlib", path="", **model):
    model = {"sequence_length": 8, **model}
    return Config.model_validate(
        {
            "model": model,
            "data": {"source": source, "path": str(path)},
            "training": {"train_batch_size": 4, "micro_batch_size": 2},
        }
    )


def write_tokens(path, values):
    np.array(values, np.uint16).tofile(path)
    return path


def test_samples_overlap_by_the_predicted_token():
    data = TokenDataset(np.arange(25, dtype=np.uint16), 8, 256)
    assert len(data) == 3
    assert data.sample(1).tolist() == list(range(8, 17))
    assert data.sample(2)[-1] == 24
    assert data.sample(0).dtype == torch.int64


def test_standard_library_is_real_text_and_bounded(monkeypatch):
    data = build_dataset(config())
    assert len(data) > 10_000
    assert data.identity() == build_dataset(config()).identity()
    monkeypatch.setattr(dataset_module, "STDLIB_BYTES_MAX", 5000)
    assert len(stdlib_text()) == 5000


def test_text_is_a_file_or_a_folder_in_order_of_path(tmp_path):
    (tmp_path / "b.md").write_bytes(b"b" * 40)
    (tmp_path / "a.txt").write_bytes(b"a" * 40)
    (tmp_path / "c.bin").write_bytes(b"\0" * 40)
    assert bytes(build_dataset(config("text", tmp_path)).sample(4).tolist()) == b"a" * 8 + b"\n"
    assert len(build_dataset(config("text", tmp_path))) == 10
    assert len(build_dataset(config("text", tmp_path / "a.txt"))) == 4


def test_tokens_are_mapped(tmp_path):
    path = write_tokens(tmp_path / "t.bin", np.arange(40) + 900)
    assert build_dataset(config("tokens", path, vocabulary=1000)).sample(0).tolist() == list(range(900, 909))


def test_token_beyond_the_vocabulary_is_found_before_or_when_used(tmp_path, monkeypatch):
    path = write_tokens(tmp_path / "t.bin", [1] * 39 + [300])
    with pytest.raises(ConfigError, match="the data has token 300") as caught:
        build_dataset(config("tokens", path))
    assert caught.value.key == "model.vocabulary"
    monkeypatch.setattr(dataset_module, "SCAN_TOKENS", 8)
    path = write_tokens(tmp_path / "t.bin", [1] * 36 + [300] + [1] * 10)
    data = build_dataset(config("tokens", path))
    data.sample(0)
    with pytest.raises(ConfigError, match="300"):
        data.sample(4)


def test_identity_sees_content_and_length():
    def identity(values):
        return TokenDataset(np.array(values, np.uint16), 2, 256).identity()

    assert identity([1, 2, 3]) == identity([1, 2, 3])
    assert len({identity([1, 2, 3]), identity([1, 2, 4]), identity([1, 2, 3, 0])}) == 3


def test_identity_of_large_data_reads_blocks_of_it(monkeypatch):
    monkeypatch.setattr(dataset_module, "DIGEST_BLOCKS", 4)
    monkeypatch.setattr(dataset_module, "DIGEST_BLOCK_TOKENS", 2)
    tokens = np.zeros(40, np.uint16)
    before = TokenDataset(tokens, 2, 256).identity()
    tokens[5] = 1
    assert TokenDataset(tokens, 2, 256).identity() == before
    tokens[10] = 1
    assert TokenDataset(tokens, 2, 256).identity() != before


@pytest.mark.parametrize("source", ["text", "tokens"])
def test_unreadable_path(tmp_path, source):
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        build_dataset(config(source, tmp_path / "absent"))
    assert caught.value.key == "data.path"


@pytest.mark.parametrize("content", [b"", b"odd"])
def test_broken_token_file(tmp_path, content):
    (tmp_path / "t.bin").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        build_dataset(config("tokens", tmp_path / "t.bin"))


def test_too_little_data(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 32)
    with pytest.raises(ConfigError, match=r"32 tokens.* 3 samples of 8.*train_batch_size = 4.*smaller batch"):
        build_dataset(config("text", tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_bytes(b"x" * 33)
    assert len(build_dataset(config("text", tmp_path / "a.txt"))) == 4


class Mine:
    def __init__(self, config):
        self.length = config.model.sequence_length

    def __len__(self):
        return 5

    def sample(self, index):
        return torch.full((self.length + 1,), index)

    def identity(self):
        return "mine"


class Demanding(Mine):
    def __init__(self, config, more):
        super().__init__(config)


class Lacking:
    def __init__(self, config):
        pass

    def __len__(self):
        return 99


def test_a_class_of_ones_own():
    data = build_dataset(config(f"{__name__}:Mine"))
    assert isinstance(data, Mine)
    assert data.sample(4).tolist() == [4] * 9


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no.such.module:Mine", "cannot be imported"),
        (f"{__name__}:Nothing", "cannot be imported"),
        (f"{__name__}:Demanding", r"must take \(config\)"),
        (f"{__name__}:Lacking", "lacks sample and identity"),
    ],
)
def test_what_cannot_be_data_is_refused(name, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        build_dataset(config(name))
    assert caught.value.key == "data.source"


def test_too_little_data_of_ones_own(monkeypatch):
    monkeypatch.setattr(Mine, "__len__", lambda self: 3)
    with pytest.raises(ConfigError, match=r"Mine'?: has 3 samples; one step needs training.train_batch_size = 4"):
        build_dataset(config(f"{__name__}:Mine"))
