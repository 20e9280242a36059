"""Streams of tasks are functions of their seed, and each kind asks what it says."""

import sys

import numpy as np
import pytest
import torch

from elaswave.continual import tasks, text
from elaswave.errors import ConfigError


@pytest.fixture(autouse=True)
def _scikit_learn():
    pytest.importorskip("sklearn")


@pytest.mark.parametrize("name", tasks.STREAMS)
def test_streams_are_functions_of_their_seed_with_one_head(name):
    stream = tasks.STREAMS[name]
    first, again, other = stream.make(3), stream.make(3), stream.make(4)
    for task, same in zip(first, again, strict=True):
        assert torch.equal(task.train_x, same.train_x)
        assert torch.equal(task.test_y, same.test_y)
        assert (task.train_x.dtype, task.train_y.dtype) == (torch.float32, torch.int64)
        assert 0 <= task.train_x.min() <= task.train_x.max() <= 1
        assert task.train_y.max() < stream.classes
    assert len({task.train_x.shape[1] for task in first}) == 1
    assert any(t.train_y.tolist() != o.train_y.tolist() for t, o in zip(first, other, strict=True))


def test_permuted_digits_are_the_same_pixels_in_another_order():
    stream = tasks.permuted_digits(0, tasks=3)
    for task in stream:
        assert torch.equal(task.train_y, stream[0].train_y)
        assert torch.equal(task.train_x.sort(1).values, stream[0].train_x.sort(1).values)
    assert not torch.equal(stream[1].train_x, stream[0].train_x)
    assert not torch.equal(stream[1].train_x, stream[2].train_x)


def test_split_digits_share_out_all_ten():
    stream = tasks.split_digits(1)
    assert sorted(digit for task in stream for digit in task.train_y.unique().tolist()) == list(range(10))
    assert [len(task.train_y.unique()) for task in stream] == [2] * 5
    for task, asked in zip(stream, tasks.split_digits_by_domain(1), strict=True):
        assert torch.equal(task.train_x, asked.train_x)
        assert asked.train_y.unique().tolist() == [0, 1]


def test_train_and_test_images_are_not_the_same_ones():
    task = tasks.permuted_digits(0, tasks=1)[0]
    assert (len(task.train_y), len(task.test_y)) == (1200, 597)


def test_text_is_told_from_the_characters_before():
    x, y = text.windows("code", 50, np.random.default_rng(0))
    letters = x.view(50, text.CONTEXT, len(text.SYMBOLS)).argmax(-1)
    source = text.domain_text("code")
    for row, following in zip(letters.tolist(), y.tolist(), strict=True):
        assert "".join(text.SYMBOLS[i] for i in [*row, following]) in source


def test_domains_differ_and_have_one_alphabet():
    texts = [text.domain_text(domain) for domain in text.DOMAINS]
    assert all(set(found) <= set(text.SYMBOLS) and "  " not in found for found in texts)
    for domain, mark in zip(range(3), (" the ", "self.", " 0x00"), strict=True):
        counts = [found.count(mark) for found in texts]
        assert counts[domain] > 3 * max(counts[:domain] + counts[domain + 1 :])
    with pytest.raises(ValueError, match="use one of prose, code, tables"):
        text.domain_text("poems")


def test_plain_text():
    assert text.plain("Def F(x):\n\treturn 12 + x\n") == "def f(x) return 00 x "


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match="pip install scikit-learn"):
        tasks.permuted_digits(0)
