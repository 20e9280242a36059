"""Streams of small classification tasks from data that is on every machine: handwritten digits, and source text.

The digits are scikit-learn's (1797 images of 8 by 8 pixels); all draws are functions of the seed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elaswave.continual.text import DOMAINS, SYMBOLS, windows
from elaswave.errors import ConfigError

TEST_SAMPLES = 597
TEXT_TRAIN, TEXT_TEST = 2000, 1000
CLASSES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task of a stream, whose tasks share one head.

    Attributes:
        train_x: (samples, features) float32, about from 0 to 1.
        train_y: (samples,) int64.
        test_x: (test samples, features).
        test_y: (test samples,).
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def permuted_digits(seed: int, tasks: int = 5) -> list[Task]:
    """The same digits, their pixels in another order for each task; the first task has them in their own."""
    base, generator = _digits(seed), np.random.default_rng([1, seed])
    orders = [torch.arange(base.train_x.shape[1])]
    orders += [torch.from_numpy(generator.permutation(base.train_x.shape[1])) for _ in range(tasks - 1)]
    return [
        Task(train_x=base.train_x[:, o], train_y=base.train_y, test_x=base.test_x[:, o], test_y=base.test_y)
        for o in orders
    ]


def split_digits(seed: int) -> list[Task]:
    """Two digits per task, in a drawn order; which of all ten is asked."""
    return [_only(_digits(seed), pair, relabel=False) for pair in _pairs(seed)]


def split_digits_by_domain(seed: int) -> list[Task]:
    """Two digits per task, in a drawn order; whether it is the second of the two is asked, whatever the two are."""
    return [_only(_digits(seed), pair, relabel=True) for pair in _pairs(seed)]


def two_domains(seed: int) -> list[Task]:
    """Digits, and then ten clusters in as many dimensions that have nothing to do with them."""
    make = _sklearn("datasets").make_classification
    x, y = make(
        1797,
        64,
        n_informative=24,
        n_redundant=16,
        n_classes=10,
        n_clusters_per_class=1,
        class_sep=2.0,
        random_state=seed,
    )
    x = (x - x.min(0)) / (x.max(0) - x.min(0))
    return [_digits(seed), _split(x, y, seed)]


def text_domains(seed: int) -> list[Task]:
    """Which character comes next: in prose, then in code, then in tables; all from the standard library's sources."""
    tasks = []
    for number, domain in enumerate(DOMAINS):
        x, y = windows(domain, TEXT_TRAIN + TEXT_TEST, np.random.default_rng([2, seed, number]))
        tasks.append(Task(train_x=x[:TEXT_TRAIN], train_y=y[:TEXT_TRAIN], test_x=x[TEXT_TRAIN:], test_y=y[TEXT_TRAIN:]))
    return tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A kind of stream.

    Attributes:
        make: seed -> tasks.
        epochs: over each task's samples.
        classes: of the shared head.
    """

    make: Callable[[int], list[Task]]
    epochs: int = 10
    classes: int = CLASSES


STREAMS: Mapping[str, Stream] = {
    "two domains": Stream(make=two_domains),
    "permuted digits": Stream(make=permuted_digits),
    "split digits": Stream(make=split_digits),
    "split digits, by domain": Stream(make=split_digits_by_domain, classes=2),
    "text": Stream(make=text_domains, epochs=5, classes=len(SYMBOLS)),
}


def _digits(seed: int) -> Task:
    images, digits = _sklearn("datasets").load_digits(return_X_y=True)
    return _split(images / 16, digits, seed)


def _split(x: np.ndarray, y: np.ndarray, seed: int) -> Task:
    """Train and test samples, with the same share of each class."""
    split = _sklearn("model_selection").train_test_split
    train_x, test_x, train_y, test_y = split(x, y, test_size=TEST_SAMPLES, random_state=seed, stratify=y)
    return Task(
        train_x=torch.from_numpy(train_x).float(),
        train_y=torch.from_numpy(train_y).long(),
        test_x=torch.from_numpy(test_x).float(),
        test_y=torch.from_numpy(test_y).long(),
    )


def _pairs(seed: int) -> np.ndarray:
    return np.random.default_rng([3, seed]).permutation(CLASSES).reshape(-1, 2)


def _only(task: Task, pair: np.ndarray, *, relabel: bool) -> Task:
    def kept(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        chosen = (y == int(pair[0])) | (y == int(pair[1]))
        return x[chosen], (y[chosen] == int(pair[1])).long() if relabel else y[chosen]

    (train_x, train_y), (test_x, test_y) = kept(task.train_x, task.train_y), kept(task.test_x, task.test_y)
    return Task(train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)


def _sklearn(module: str) -> Any:
    try:
        return import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ConfigError("digits", "sklearn", f"needs scikit-learn (pip install scikit-learn): {error}") from error
