"""What every contender trains: the same model, data, micro-batches, dropout and optimizer, taken from one config."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from elaswave.bench.rivals import variables
from elaswave.config import Config, from_mapping
from elaswave.data.dataset import build_dataset
from elaswave.data.microbatch import sample_ids
from elaswave.models.build import build_model
from elaswave.models.dropout import connect
from elaswave.pipeline.layers import Layers
from elaswave.pipeline.whole import Whole
from elaswave.rng import Streams


class Workload:
    """Computes micro-batches of the config's training run.

    Attributes:
        model: with the initial weights that every contender starts from.
    """

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(config.training.threads)
        self.config = config
        self.dataset = build_dataset(config)
        seed = config.training.seed
        self.model = Whole(Layers(build_model(config.model, seed), seed=seed))
        self._streams = Streams(config.training.seed)
        connect(self.model, self._streams)

    def optimizer(self, model: nn.Module, *, fused: bool = False) -> torch.optim.Optimizer:
        """AdamW with the config's settings; the schedule costs nothing and is left out."""
        settings = self.config.optimizer
        return torch.optim.AdamW(
            model.parameters(),
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=fused,
        )

    def share(self, index: int, of: int) -> list[int]:
        """Micro-batches of replica `index` when `of` replicas share a step."""
        return list(range(index, self.config.micro_batches, of))

    def loss(self, wrapped: nn.Module, step: int, micro_batch: int) -> torch.Tensor:
        """Mean loss per token of one micro-batch, computed through `wrapped`."""
        rows, ids = self.rows(step, micro_batch)
        self.draw_for(step, ids)
        targets = rows[:, 1:]
        return self.model.loss_sum(wrapped(rows[:, :-1]), targets) / targets.numel()

    def rows(self, step: int, micro_batch: int) -> tuple[torch.Tensor, tuple[int, ...]]:
        """Tokens of a micro-batch, (micro_batch_size, sequence + 1) int64, and the ids of its samples."""
        train = self.config.training
        ids = sample_ids(
            seed=train.seed,
            step=step,
            micro_batch=micro_batch,
            micro_batch_size=train.micro_batch_size,
            train_batch_size=train.train_batch_size,
            num_samples=len(self.dataset),
        )
        return torch.stack([self.dataset.sample(index) for index in ids]), ids

    def draw_for(self, step: int, ids: Sequence[int]) -> None:
        """Dropout of what is computed next belongs to these samples."""
        self._streams.at(step, ids)


def config_from_environment() -> Config:
    return from_mapping(json.loads(os.environ[variables.CONFIG]))


class Log:
    """One JSON object per line and write, so that SIGKILL loses nothing that was written before.

    Args:
        slot: of this worker in the job.
    """

    def __init__(self, slot: int) -> None:
        path = Path(os.environ[variables.LOG]) / f"slot-{slot}.jsonl"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._identity = {"slot": slot, "pid": os.getpid()}

    def write(self, event: str, **fields: object) -> None:
        line = json.dumps({"event": event, "t": time.time(), **self._identity, **fields})
        os.write(self._fd, line.encode() + b"\n")

    def step(self, step: int, begun: float, members: int) -> None:
        """A step is committed here.

        Args:
            step: its number.
            begun: wall seconds at which this attempt at it began.
            members: replicas whose gradients are in it.
        """
        self.write("step", step=step, begun=begun, members=members)
