"""Many small perceptrons side by side, one per seed, trained on a stream of tasks by one optimizer at once.

The optimizers are elementwise, so each lane computes what it would compute alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from elaswave.bench.learning.contenders import Setting, make_optimizer
from elaswave.continual.ewc import EWC
from elaswave.continual.fisher import Kind, diagonal
from elaswave.continual.tasks import Stream, Task

BATCH = 32
HIDDEN = 64
FISHER_SAMPLES = 600
"""At most so many of a task's samples are used for its Fisher information where there are many classes."""
MANY_CLASSES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one seed has done.

    Attributes:
        matrix: (tasks, tasks) accuracies after each task on each.
        untrained: (tasks,) accuracies before any.
    """

    matrix: list[list[float]]
    untrained: list[float]


def train(stream: Stream, setting: Setting, seeds: Sequence[int]) -> list[Run]:
    """Train one contender on a stream for several seeds.

    Returns:
        One run per seed, in their order.
    """
    streams = [stream.make(seed) for seed in seeds]
    weights = initial(seeds, (streams[0][0].train_x.shape[1], HIDDEN, stream.classes))
    orders = [np.random.default_rng([4, seed]) for seed in seeds]
    tasks = [_stacked(at) for at in zip(*streams, strict=True)]
    steps = [stream.epochs * (task.train_x.shape[1] // BATCH) for task in tasks]
    optimizer = make_optimizer(setting, weights.values(), steps[0])
    springs = None if setting.strength is None else EWC(setting.strength, online=setting.online)
    untrained = [_accuracies(weights, task) for task in tasks]
    rows = []
    for number, task in enumerate(tasks):
        for _ in range(stream.epochs):
            _epoch(weights, task, optimizer, springs, orders)
        if springs is not None and number + 1 < len(tasks):
            springs.consolidate(_fisher(weights, task, stream.classes, setting.fisher), weights)
        if setting.forgetful:
            optimizer = make_optimizer(setting, weights.values(), 0)
        rows.append([_accuracies(weights, other) for other in tasks])
    return [
        Run(matrix=[[float(cell[lane]) for cell in row] for row in rows], untrained=[float(u[lane]) for u in untrained])
        for lane in range(len(seeds))
    ]


def initial(seeds: Sequence[int], widths: Sequence[int]) -> dict[str, nn.Parameter]:
    """name -> (lanes, ...) initial weights, each lane's a function of its seed."""
    layers: dict[str, list[Tensor]] = {}
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for layer, (inner, outer) in enumerate(pairwise(widths)):
            bound = 1 / math.sqrt(inner)
            for name, shape in ((f"weight_{layer}", (inner, outer)), (f"bias_{layer}", (1, outer))):
                drawn = torch.empty(shape).uniform_(-bound, bound, generator=generator)
                layers.setdefault(name, []).append(drawn)
    return {name: nn.Parameter(torch.stack(lanes)) for name, lanes in layers.items()}


def logits(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """(..., samples, features) -> (..., samples, classes), with weights of as many lanes as there are in front."""
    depth = len(weights) // 2
    for layer in range(depth):
        weight, bias = weights[f"weight_{layer}"], weights[f"bias_{layer}"]
        x = torch.baddbmm(bias, x, weight) if x.dim() == 3 else x @ weight + bias
        if layer + 1 < depth:
            x = x.relu()
    return x


def _stacked(tasks: Sequence[Task]) -> Task:
    """The same task of all seeds as one, (lanes, samples, ...), each as long as the shortest."""
    train, test = (min(len(getattr(task, name)) for task in tasks) for name in ("train_y", "test_y"))
    return Task(
        train_x=torch.stack([task.train_x[:train] for task in tasks]),
        train_y=torch.stack([task.train_y[:train] for task in tasks]),
        test_x=torch.stack([task.test_x[:test] for task in tasks]),
        test_y=torch.stack([task.test_y[:test] for task in tasks]),
    )


def _epoch(
    weights: Mapping[str, nn.Parameter],
    task: Task,
    optimizer: torch.optim.Optimizer,
    springs: EWC | None,
    orders: Sequence[np.random.Generator],
) -> None:
    lanes, samples = task.train_y.shape
    order = torch.from_numpy(np.stack([generator.permutation(samples) for generator in orders]))
    each = torch.arange(lanes)[:, None]
    for picked in order[:, : samples - samples % BATCH].split(BATCH, dim=1):
        found = logits(weights, task.train_x[each, picked])
        loss = functional.cross_entropy(found.flatten(0, 1), task.train_y[each, picked].flatten(), reduction="sum")
        optimizer.zero_grad()
        (loss / BATCH).backward()  # the mean of each lane, summed over lanes
        if springs is not None:
            springs.pull(weights)
        optimizer.step()


def _fisher(weights: Mapping[str, Tensor], task: Task, classes: int, kind: Kind) -> dict[str, Tensor]:
    """name -> (lanes, ...), taken lane by lane."""
    most = FISHER_SAMPLES if classes > MANY_CLASSES else task.train_x.shape[1]
    lanes = []
    for lane in range(task.train_x.shape[0]):
        own = {name: weight.detach()[lane] for name, weight in weights.items()}
        x, y = task.train_x[lane, :most], task.train_y[lane, :most]
        lanes.append(diagonal(logits, own, x, y, kind, batch_size=BATCH if kind is Kind.BATCH_MEAN else 100))
    return {name: torch.stack([found[name] for found in lanes]) for name in weights}


@torch.no_grad()
def _accuracies(weights: Mapping[str, Tensor], task: Task) -> Tensor:
    """(lanes,)"""
    return (logits(weights, task.test_x).argmax(-1) == task.test_y).float().mean(1)
