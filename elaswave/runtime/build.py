"""Put the parts of the training side together as the config says."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from elaswave.config import Config, Optimizer, Precision, Training
from elaswave.data.dataset import Dataset
from elaswave.data.microbatch import sample_ids
from elaswave.models.dropout import connect
from elaswave.numerics import make_accumulator
from elaswave.pipeline.layers import Layers, LossSum
from elaswave.pipeline.stage import Stage
from elaswave.planner.profile import Profile
from elaswave.plugins import named
from elaswave.rng import Streams
from elaswave.zero.schema import Make

TakeApart = Callable[[torch.Tensor], tuple[Any, torch.Tensor]]
DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}


def _next_token(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, sequence + 1) tokens -> inputs and, one further, targets; each (batch, sequence)."""
    return rows[:, :-1], rows[:, 1:]


class MicroBatches:
    """Samples of a micro-batch, and what they are made of.

    Args:
        training: seed and sizes.
        dataset: of samples; may say with `inputs_and_targets` how a stack of them is taken apart.
    """

    def __init__(self, training: Training, dataset: Dataset) -> None:
        self._training, self._dataset = training, dataset
        self._take_apart: TakeApart = getattr(dataset, "inputs_and_targets", _next_token)
        self._last: tuple[tuple[int, ...], tuple[Any, torch.Tensor]] | None = None

    @property
    def targets_per_sample(self) -> int:
        """Values that are predicted for one sample."""
        return self._take_apart(self._dataset.sample(0)[None])[1].numel()

    def ids(self, step: int, micro_batch: int) -> tuple[int, ...]:
        """Samples of a micro-batch, in order."""
        return sample_ids(
            seed=self._training.seed,
            step=step,
            micro_batch=micro_batch,
            micro_batch_size=self._training.micro_batch_size,
            train_batch_size=self._training.train_batch_size,
            num_samples=len(self._dataset),
        )

    def batch(self, ids: Sequence[int]) -> tuple[Any, torch.Tensor]:
        """Inputs and targets of these samples."""
        if self._last is None or self._last[0] != tuple(ids):
            rows = torch.stack([self._dataset.sample(index) for index in ids])
            self._last = (tuple(ids), self._take_apart(rows))
        return self._last[1]


def build_stage(config: Config, model: object, dataset: Dataset, loss: LossSum | None = None) -> Stage:
    """The model's layers, of which none is held yet, fed by `dataset`, drawing from streams keyed by sample."""
    train = config.training
    streams, source = Streams(train.seed), MicroBatches(train, dataset)
    return Stage(
        Layers(model, seed=train.seed, loss=loss),
        source,
        streams,
        make_accumulator=partial(make_accumulator, train.numerics, num_micro_batches=config.micro_batches),
        connect=lambda module: connect(module, streams),
        dtype=DTYPES[train.precision],
        tokens_per_step=train.train_batch_size * source.targets_per_sample,
        checkpointing=train.activation_checkpointing,
    )


def profile_of(stage: Stage) -> Profile:
    """What the planner is told of a model."""
    costs, unit_elements, users = stage.layers.profile()
    return Profile(costs=costs, unit_elements=unit_elements, users=users)


def optimizer_maker(config: Optimizer) -> Make:
    """Parameter groups -> optimizer, as the config names it.

    Raises:
        ConfigError: there is no such optimizer.
    """
    if config.name == "adamw":
        return partial(
            torch.optim.AdamW,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
    kind = named("optimizer.name", config.name, ("adamw",))
    return partial(kind, lr=config.lr)
