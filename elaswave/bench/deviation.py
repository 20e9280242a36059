"""How far the losses of a wounded job come to lie from an unharmed one's when it goes on as other systems do.

One process does the arithmetic of all replicas. After every change of their number it behaves in one of three ways,
all else being exact and the same:

- rank-keyed RNG: dropout draws from one generator per rank by call count, as torch's own does.
- dropped batch: a lost replica's micro-batches are not computed, and gradients are averaged over the rest, as TorchFT
  does (https://github.com/meta-pytorch/torchft).
- float ring: gradients are float32 sums in the order of a ring of the replicas that are alive.

Losses are of the whole global batch of a step with the same dropout for all, so that only what the parameters have
become counts, not that other samples are looked at; that flatters the dropped batch.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum

import torch

from elaswave.config import Config
from elaswave.data.dataset import build_dataset
from elaswave.models.build import build_model
from elaswave.models.dropout import MaskSource, connect
from elaswave.numerics import clip_scale, learning_rate, pin_threads
from elaswave.pipeline.layers import Layers
from elaswave.pipeline.whole import Whole
from elaswave.rng import Streams
from elaswave.runtime.build import MicroBatches, optimizer_maker
from elaswave.zero.schema import groups_of


class Behaviour(StrEnum):
    """What a job does about a change of its replicas."""

    RANK_RNG = "rank-keyed RNG"
    DROPPED_BATCH = "dropped batch"
    FLOAT_RING = "float32 ring"


def deviation(behaviour: Behaviour, config: Config, replicas: Mapping[int, int], full: int) -> float:
    """Mean |loss - loss of the unharmed job| over the steps after the first change of replicas.

    Args:
        behaviour: of both jobs.
        config: what they train, float32.
        replicas: of the wounded job at each step, from 1 on without a gap.
        full: replicas of the unharmed job.
    """
    counts = [min(full, replicas[step]) for step in sorted(replicas)]
    changed = next((at for at, count in enumerate(counts) if count != full), None)
    if changed is None:
        return 0.0
    wounded = Emulation(config, behaviour, full).run(counts)
    unharmed = Emulation(config, behaviour, full).run([full] * len(counts))
    return mean_difference(wounded[changed + 1 :], unharmed[changed + 1 :])


def mean_difference(a: Sequence[float], b: Sequence[float]) -> float:
    """Mean of |a - b|; 0 of nothing."""
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / max(1, len(a))


class RankStreams:
    """Dropout masks of one generator per rank, each going on from where its rank's last draw left it.

    Args:
        seed: of rank 0; a rank's own is that much higher.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[int, torch.Generator] = {}
        self.rank = 0

    def resize(self, ranks: int) -> None:
        """Ranks that are lost take their generators with them; those who come begin with fresh ones."""
        kept = {rank: generator for rank, generator in self._generators.items() if rank < ranks}
        fresh = {rank: torch.Generator().manual_seed(self._seed + rank) for rank in range(ranks) if rank not in kept}
        self._generators = kept | fresh

    def mask(self, layer: int, site: int, shape: tuple[int, ...], keep: float) -> torch.Tensor:
        """Bool mask of `shape`, true with probability `keep`; where it is used does not matter."""
        return torch.rand(shape, generator=self._generators[self.rank]) < keep


class Emulation:
    """A job of replicas that compute in turns.

    Args:
        config: what they train, float32.
        behaviour: on a change of replicas.
        full: replicas that share all micro-batches between them.
    """

    def __init__(self, config: Config, behaviour: Behaviour, full: int) -> None:
        pin_threads(config.training.threads)
        self._config, self._behaviour, self._full = config, behaviour, full
        seed = config.training.seed
        self._source = MicroBatches(config.training, build_dataset(config))
        self._model = Whole(Layers(build_model(config.model, seed), seed=seed)).train()
        self._parameters = list(self._model.parameters())
        matrices = [p for p in self._parameters if p.dim() > 1]
        vectors = [p for p in self._parameters if p.dim() <= 1]
        self._optimizer = optimizer_maker(config.optimizer)(groups_of(matrices, vectors))
        self._tokens = config.training.train_batch_size * self._source.targets_per_sample
        self._keyed, self._ranked = Streams(seed), RankStreams(seed)

    def run(self, replicas: Sequence[int]) -> list[float]:
        """Train a step for each number of replicas; returns the loss before each update."""
        losses = []
        for step, count in enumerate(replicas, start=1):
            self._ranked.resize(count)
            losses.append(self._loss_before(step))
            self._update(step, self._gradient(step, count))
        return losses

    def _loss_before(self, step: int) -> float:
        with torch.no_grad():
            return sum(self._loss(step, one, self._keyed).item() for one in range(self._config.micro_batches))

    def _loss(self, step: int, micro_batch: int, streams: MaskSource) -> torch.Tensor:
        """A micro-batch's part of the mean loss per token."""
        ids = self._source.ids(step, micro_batch)
        self._keyed.at(step, ids)
        connect(self._model, streams)
        inputs, targets = self._source.batch(ids)
        return self._model.loss_sum(self._model(inputs), targets) / self._tokens

    def _gradient(self, step: int, count: int) -> torch.Tensor:
        """Flat gradient of a step that `count` replicas share, (parameters,) float32."""
        if self._behaviour is Behaviour.DROPPED_BATCH:
            return self._of_the_rest(step, count)
        parts = [self._share(step, rank, range(rank, self._config.micro_batches, count)) for rank in range(count)]
        if self._behaviour is Behaviour.FLOAT_RING:
            return ring_sum(parts)
        return torch.stack(parts).double().sum(0).float()

    def _of_the_rest(self, step: int, count: int) -> torch.Tensor:
        total = self._config.micro_batches
        kept = [one for rank in range(count) for one in range(rank, total, self._full)]
        return self._share(step, 0, kept) * (total / len(kept))

    def _share(self, step: int, rank: int, micro_batches: Sequence[int]) -> torch.Tensor:
        """Sum of one replica's gradients."""
        self._ranked.rank = rank
        streams = self._ranked if self._behaviour is Behaviour.RANK_RNG else self._keyed
        found = torch.zeros(sum(p.numel() for p in self._parameters))
        for one in micro_batches:
            gradients = torch.autograd.grad(self._loss(step, one, streams), self._parameters)
            found += torch.cat([gradient.reshape(-1) for gradient in gradients])
        return found

    def _update(self, step: int, gradient: torch.Tensor) -> None:
        train = self._config.training
        scale = clip_scale(float(gradient.double().norm()), train.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(step, self._config.optimizer, train.steps)
        at = 0
        for parameter in self._parameters:
            parameter.grad = (gradient[at : at + parameter.numel()] * scale).view_as(parameter)
            at += parameter.numel()
        self._optimizer.step()


def ring_sum(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum as a ring reduce-scatter adds: chunk c begins at the replica behind the c-th, and goes round once."""
    size = len(parts)
    chunks = [part.tensor_split(size) for part in parts]
    sums = []
    for chunk in range(size):
        total = chunks[(chunk + 1) % size][chunk].clone()
        for step in range(2, size + 1):
            total += chunks[(chunk + step) % size][chunk]
        sums.append(total)
    return torch.cat(sums)
