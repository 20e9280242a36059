"""Put the parts of the training side together as the config says."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from elaswave.config import Config, Optimizer
from elaswave.data.dataset import Dataset
from elaswave.data.microbatch import sample_ids
from elaswave.errors import ConfigError
from elaswave.models.dropout import connect
from elaswave.models.spec import LayeredModel
from elaswave.numerics import make_accumulator
from elaswave.pipeline.layers import Layers
from elaswave.pipeline.stage import Batch, Stage
from elaswave.pipeline.whole import Whole
from elaswave.rng import Streams
from elaswave.zero.schema import Make

TakeApart = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def _next_token(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, sequence + 1) tokens -> inputs and, one further, targets; each (batch, sequence)."""
    return rows[:, :-1], rows[:, 1:]


def build_stage(config: Config, model: LayeredModel, dataset: Dataset) -> Stage:
    """The whole model as one stage, fed by `dataset`, drawing from streams keyed by sample."""
    train = config.training
    streams = Streams(train.seed)
    whole = Whole(Layers(model, seed=train.seed))
    connect(whole, streams)
    take_apart: TakeApart = getattr(dataset, "inputs_and_targets", _next_token)
    targets_per_sample = take_apart(dataset.sample(0)[None])[1].numel()

    def batch(step: int, micro_batch: int) -> Batch:
        ids = sample_ids(
            seed=train.seed,
            step=step,
            micro_batch=micro_batch,
            micro_batch_size=train.micro_batch_size,
            train_batch_size=train.train_batch_size,
            num_samples=len(dataset),
        )
        inputs, targets = take_apart(torch.stack([dataset.sample(index) for index in ids]))
        return inputs, targets, ids

    return Stage(
        whole,
        make_accumulator=partial(make_accumulator, train.numerics, num_micro_batches=config.micro_batches),
        streams=streams,
        batch=batch,
        tokens_per_step=train.train_batch_size * targets_per_sample,
    )


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
    module, colon, name = config.name.partition(":")
    if not colon:
        raise ConfigError("optimizer.name", config.name, "use adamw, or package.module:Class")
    try:
        kind: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError("optimizer.name", config.name, f"cannot be imported: {error}") from error
    return partial(kind, lr=config.lr)
