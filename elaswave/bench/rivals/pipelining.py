"""Healthy steps of torch.distributed.pipelining: one stage per rank, the 1F1B schedule, over gloo.

Set up to do well: shapes are given, so that nothing has to be inferred, outputs are not collected, AdamW is fused.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from elaswave.bench.rivals.gloo import connect
from elaswave.bench.rivals.workload import Workload
from elaswave.config import Config
from elaswave.errors import BenchError


class Layers(nn.Module):
    """Some of a model's layers, one behind the other.

    1F1B computes micro-batches in their order, so counting tells which samples are being computed.

    Args:
        layers: of this stage.
        workload: is told whose dropout is drawn.
    """

    def __init__(self, layers: Sequence[nn.Module], workload: Workload) -> None:
        super().__init__()
        self.stack = nn.ModuleList(layers)
        self._workload = workload
        self._step, self._waiting = 0, list[tuple[int, ...]]()

    def begin(self, step: int, samples: Sequence[tuple[int, ...]]) -> None:
        """Micro-batches of these samples come next, in this order."""
        self._step, self._waiting = step, list(samples)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._workload.draw_for(self._step, self._waiting.pop(0))
        for layer in self.stack:
            x = layer(x)
        return x


class Pipelining:
    """One rank, which is one stage.

    Args:
        config: what is trained.
        rank, world: of how many.
    """

    def __init__(self, config: Config, rank: int, world: int) -> None:
        connect(rank, world)
        self._workload = Workload(config)
        self._is_first, self._is_last = rank == 0, rank == world - 1
        layers = self._workload.model.layers()
        start, stop = cuts(len(layers), world)[rank : rank + 2]
        self._layers = Layers(layers[start:stop], self._workload)
        self._parameters = list(self._layers.parameters())
        _forget([*layers[:start], *layers[stop:]], self._parameters)
        self._optimizer = self._workload.optimizer(self._layers, fused=True)
        train = config.training
        self._targets_per_step = train.train_batch_size * config.model.sequence_length
        self._schedule = Schedule1F1B(
            self._stage(rank, world), config.micro_batches, loss_fn=self._loss_of, scale_grads=False
        )
        self._step, self._losses = 0, list[torch.Tensor]()

    def _stage(self, rank: int, world: int) -> PipelineStage:
        model, batch = self._workload.config.model, self._workload.config.training.micro_batch_size
        tokens = torch.empty(batch, model.sequence_length, dtype=torch.int64)
        between = torch.empty(batch, model.sequence_length, model.width, requires_grad=True)
        logits = torch.empty(batch, model.sequence_length, model.vocabulary, requires_grad=True)
        return PipelineStage(
            self._layers,
            rank,
            world,
            torch.device("cpu"),
            input_args=tokens if self._is_first else between,
            output_args=logits if self._is_last else between,
        )

    def _loss_of(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self._workload.model.loss_sum(logits, targets) / self._targets_per_step

    def steps(self, count: int) -> None:
        for _ in range(count):
            self._one()

    def _one(self) -> None:
        self._step += 1
        self._optimizer.zero_grad()
        batches = [self._workload.rows(self._step, number) for number in range(self._workload.config.micro_batches)]
        self._layers.begin(self._step, [ids for _, ids in batches])
        rows = torch.cat([rows for rows, _ in batches])
        inputs = (rows[:, :-1],) if self._is_first else ()
        targets = rows[:, 1:] if self._is_last else None
        self._schedule.step(*inputs, target=targets, losses=self._losses, return_outputs=False)
        self._clip(self._workload.config.training.clip_norm)
        self._optimizer.step()

    def _clip(self, clip_norm: float) -> None:
        """By the norm over all stages."""
        if not clip_norm:
            return
        squares = get_total_norm([p.grad for p in self._parameters if p.grad is not None], foreach=True).square()
        dist.all_reduce(squares)
        clip_grads_with_norm_(self._parameters, clip_norm, squares.sqrt(), foreach=True)

    def figures(self) -> Mapping[str, float | None]:
        return {"loss": math.fsum(loss.item() for loss in self._losses) if self._is_last else None}


def _forget(layers: Sequence[nn.Module], kept: Sequence[nn.Parameter]) -> None:
    """Let the layers of other stages take no memory.

    Raises:
        BenchError: they share weights with this stage, which this pipeline does not know.
    """
    own = {id(parameter) for parameter in kept}
    for layer in layers:
        if any(id(parameter) in own for parameter in layer.parameters()):
            raise BenchError("torch.distributed.pipelining has no weights that stages share; use a model without")
        layer.to("meta")


def cuts(num_layers: int, num_stages: int) -> list[int]:
    """Boundaries of stages of equally many layers, or one more in the earlier ones, since the last layer is light."""
    return [-(-num_layers * stage // num_stages) for stage in range(num_stages + 1)]
