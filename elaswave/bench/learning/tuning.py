"""Chooses settings: the best of some that are drawn, by mean accuracy on seeds that are not judged on."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from elaswave.bench.learning.contenders import DRAWS, Setting
from elaswave.bench.learning.lanes import train
from elaswave.continual.metrics import scores
from elaswave.continual.tasks import Stream

TUNING_SEEDS = (0, 1, 2)


def candidate(contender: str, number: int) -> Setting:
    """The setting with this number, from 0; a function of the contender and the number."""
    place = list(DRAWS).index(contender)
    return DRAWS[contender](np.random.default_rng([5, place, number]))


def mean_accuracy(stream: Stream, setting: Setting, seeds: Sequence[int] = TUNING_SEEDS) -> float:
    """Mean over seeds of the mean accuracy over all tasks at the end."""
    return fmean(scores(run.matrix, run.untrained).accuracy for run in train(stream, setting, seeds))


def best(stream: Stream, contender: str, known: Setting | None, draws: int) -> Setting:
    """The best of a known setting and of those drawn.

    Args:
        stream: to tune for.
        contender: one of `DRAWS`.
        known: competes with the others; None: there is none.
        draws: how many are drawn; at least 1 without a known one.
    """
    tried = [] if known is None else [known]
    tried += [candidate(contender, number) for number in range(draws)]
    return max(tried, key=lambda setting: mean_accuracy(stream, setting))


def tuned(stream: Stream, known: Mapping[str, Setting], draws: int) -> dict[str, Setting]:
    """Every contender with its best setting."""
    return {contender: best(stream, contender, known.get(contender), draws) for contender in DRAWS}
