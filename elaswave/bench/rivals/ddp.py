"""Healthy steps of DistributedDataParallel over gloo, with AdamW on every rank or cut by ZeroRedundancyOptimizer.

Set up to do well: gradients live in the buckets, are reduced once per step, and AdamW is fused.
"""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from elaswave.bench.rivals.gloo import connect
from elaswave.bench.rivals.workload import Workload
from elaswave.config import Config


class Ddp:
    """One rank.

    Args:
        config: what is trained.
        rank, world: of how many.
        sharded: cut the optimizer's state over the ranks.
    """

    def __init__(self, config: Config, rank: int, world: int, *, sharded: bool) -> None:
        connect(rank, world)
        self._workload = Workload(config)
        self._model = DistributedDataParallel(self._workload.model, gradient_as_bucket_view=True)
        self._optimizer = self._sharded() if sharded else self._workload.optimizer(self._model, fused=True)
        self._parameters = list(self._model.parameters())
        self._micro_batches = self._workload.share(rank, world)
        self._step, self._loss = 0, torch.zeros(())

    def _sharded(self) -> torch.optim.Optimizer:
        settings = self._workload.config.optimizer
        return ZeroRedundancyOptimizer(
            self._model.parameters(),
            optimizer_class=torch.optim.AdamW,
            parameters_as_bucket_view=True,
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def steps(self, count: int) -> None:
        for _ in range(count):
            self._one()

    def _one(self) -> None:
        self._step += 1
        self._optimizer.zero_grad()
        self._loss, parts = torch.zeros(()), len(self._micro_batches)
        for number, micro_batch in enumerate(self._micro_batches, 1):
            with nullcontext() if number == parts else self._model.no_sync():
                loss = self._workload.loss(self._model, self._step, micro_batch) / parts
                loss.backward()
            self._loss += loss.detach()
        if clip_norm := self._workload.config.training.clip_norm:
            clip_grad_norm_(self._parameters, clip_norm, foreach=True)
        self._optimizer.step()

    def figures(self) -> Mapping[str, float | None]:
        return {"loss": float(self._loss)}
