"""Healthy steps of a DeepSpeed engine with ZeRO stage 1 over gloo.

Set up to do well: torch's fused AdamW, since DeepSpeed's own is no faster on CPU and compiled at first use. Nothing is
compiled: the one operator that DeepSpeed always builds, for collectives in inference, is declared incompatible first.
"""

import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from elaswave.bench.rivals.gloo import connect
from elaswave.bench.rivals.workload import Workload
from elaswave.config import Config

BUILT_AT_START = "deepspeed_shm_comm"
ENVIRONMENT = {"DS_ACCELERATOR": "cpu"}
"""Looked at when DeepSpeed is imported."""


class DeepSpeedZero:
    """One rank.

    Args:
        config: what is trained.
        rank, world: of how many.
    """

    def __init__(self, config: Config, rank: int, world: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        warnings.filterwarnings("ignore", category=FutureWarning)  # of names that newer releases of torch have renamed
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        deepspeed.ops.__compatible_ops__[BUILT_AT_START] = False
        connect(rank, world)
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
        self._workload = Workload(config)
        self._micro_batches = self._workload.share(rank, world)
        self._engine, *_ = deepspeed.initialize(
            model=self._workload.model,
            optimizer=self._workload.optimizer(self._workload.model, fused=True),
            config=settings(config, len(self._micro_batches)),
        )
        self._step, self._loss = 0, torch.zeros(())

    def steps(self, count: int) -> None:
        for _ in range(count):
            self._one()

    def _one(self) -> None:
        self._step += 1
        self._loss = torch.zeros(())
        for micro_batch in self._micro_batches:
            loss = self._workload.loss(self._engine, self._step, micro_batch)
            self._engine.backward(loss)
            self._engine.step()
            self._loss += loss.detach() / len(self._micro_batches)

    def figures(self) -> Mapping[str, float | None]:
        return {"loss": float(self._loss)}


def settings(config: Config, accumulation: int) -> dict[str, Any]:
    """DeepSpeed's config for the same training.

    Args:
        config: of the run.
        accumulation: micro-batches of one rank and step.
    """
    train = config.training
    return {
        "train_batch_size": train.train_batch_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": train.clip_norm,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000_000,
    }
