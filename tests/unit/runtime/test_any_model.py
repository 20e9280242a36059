"""However a model lists its layers, a job of one process trains it to the same weights."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from elaswave.config import Config
from elaswave.errors import ConfigError
from elaswave.models.spec import LayerSpec
from elaswave.runtime.job import join

CONFIG = Config.model_validate(
    {"training": {"steps": 4, "train_batch_size": 8, "micro_batch_size": 2}, "optimizer": {"warmup_steps": 0}}
)


class Points:
    """Samples of eight numbers and a class."""

    def __len__(self) -> int:
        return 64

    def sample(self, index: int) -> torch.Tensor:
        return torch.randint(0, 4, (9,), generator=torch.Generator().manual_seed(index))

    def inputs_and_targets(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rows[:, :8].float(), rows[:, 8]

    def identity(self) -> str:
        return "points"


class Listed:
    """An object of one's own."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self._layers = layers

    def layers(self) -> list[nn.Module]:
        return self._layers

    def loss_sum(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return loss(output, targets)


def loss(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(output, targets, reduction="sum")


def modules() -> list[nn.Module]:
    torch.manual_seed(5)
    return [nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)]


def train(model: object, **options: object) -> float:
    with join(CONFIG) as job:
        trainee = job.pipeline(model, Points(), **options)  # type: ignore[arg-type]
        optimizer = job.shard(partial(torch.optim.AdamW, lr=1e-2), trainee)
        for attempt in job.attempts():
            with attempt:
                trainee.forward_backward(attempt.micro_batches)
                optimizer.step()
        return job.loss


def test_a_sequence_a_list_and_an_object_are_the_same() -> None:
    one = train(nn.Sequential(*modules()), loss=loss)
    assert one == train(modules(), loss=loss) == train(Listed(modules()))


def test_layers_may_be_made_where_they_are_needed() -> None:
    specs = [LayerSpec(partial(nn.Linear, 8, 16)), LayerSpec(nn.Tanh), LayerSpec(partial(nn.Linear, 16, 4))]
    assert train(specs, loss=loss) == train(specs, loss=loss)


def test_other_micro_batches_than_those_on_offer_are_refused() -> None:
    with join(CONFIG) as job:
        trainee = job.pipeline(modules(), Points(), loss=loss)
        job.shard(partial(torch.optim.AdamW, lr=1e-2), trainee)
        attempt = next(job.attempts())
        with pytest.raises(ValueError, match="the attempt offers"), attempt:
            trainee.forward_backward([0])


def test_a_list_without_a_loss_is_refused() -> None:
    with join(CONFIG) as job, pytest.raises(ConfigError, match="loss"):
        job.pipeline(modules(), Points())
