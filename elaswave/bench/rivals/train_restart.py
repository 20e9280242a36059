"""One worker of a plain torchrun job: DistributedDataParallel over gloo, and a checkpoint on disk every K steps.

After a death torchrun ends all workers and starts them again; each loads the newest checkpoint.
"""

import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from elaswave.bench.rivals import variables
from elaswave.coordination import bootstrap


def main() -> None:
    bootstrap.die_with_parent()
    from elaswave.bench.rivals.workload import Log, Workload, config_from_environment

    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    log = Log(rank)
    log.write("boot")
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo")
    workload = Workload(config_from_environment())
    model = DistributedDataParallel(workload.model)
    optimizer = workload.optimizer(model)
    path, every_steps = Path(os.environ[variables.LOG]) / "checkpoint.pt", int(os.environ[variables.CHECKPOINT_STEPS])
    step = _load(path, model, optimizer)
    log.write("ready", step=step)
    micro_batches = workload.share(rank, world)
    while step < workload.config.training.steps:
        begun = time.time()
        optimizer.zero_grad()
        for number, micro_batch in enumerate(micro_batches, 1):
            with nullcontext() if number == len(micro_batches) else model.no_sync():
                (workload.loss(model, step + 1, micro_batch) / len(micro_batches)).backward()
        optimizer.step()
        step += 1
        log.step(step, begun, world)
        if rank == 0 and step % every_steps == 0:
            _save(path, model, optimizer, step)


def _load(path: Path, model: Any, optimizer: Any) -> int:
    """Load the newest checkpoint, if there is one; returns its step."""
    import torch

    if not path.exists():
        return 0
    values = torch.load(path, weights_only=True)
    model.module.load_state_dict(values["model"])
    optimizer.load_state_dict(values["optimizer"])
    return int(values["step"])


def _save(path: Path, model: Any, optimizer: Any, step: int) -> None:
    """Replace the checkpoint as a whole; not forced to the disk, which only helps this contender."""
    import torch

    aside = path.with_suffix(".new")
    torch.save({"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, aside)
    aside.replace(path)


if __name__ == "__main__":
    main()
