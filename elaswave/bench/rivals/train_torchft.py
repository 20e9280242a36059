"""One replica group of a torchft job, one worker large: torchft's own training loop on the common workload.

It is the loop of torchft's documentation and its `train_ddp.py`: Manager, DistributedDataParallel, Optimizer and
ProcessGroupGloo; see https://github.com/pytorch/torchft. Micro-batches accumulate under `no_sync`,
so that gradients are reduced once per step, as they are in the other contenders.
"""

import os
import time
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

from elaswave.bench.rivals import variables
from elaswave.coordination import bootstrap

MANAGER_TIMEOUT_S = 30


def main() -> None:
    bootstrap.die_with_parent()
    from elaswave.bench.rivals.workload import Log, Workload, config_from_environment

    slot, slots = int(os.environ[variables.SLOT]), int(os.environ[variables.SLOTS])
    log = Log(slot)
    log.write("boot")
    workload = Workload(config_from_environment())
    manager, model, optimizer = _wrap(workload, slot)
    log.write("ready")
    micro_batches = workload.share(slot, slots)
    while manager.current_step() < workload.config.training.steps:
        begun, before = time.time(), manager.current_step()
        optimizer.zero_grad()
        for number, micro_batch in enumerate(micro_batches, 1):
            with nullcontext() if number == len(micro_batches) else model.no_sync():
                (workload.loss(model, before + 1, micro_batch) / len(micro_batches)).backward()
        optimizer.step()
        if manager.current_step() > before and manager.is_participating():
            log.step(manager.current_step(), begun, manager.num_participants())


def _wrap(workload: Any, slot: int) -> tuple[Any, Any, Any]:
    from torchft import DistributedDataParallel, Manager, Optimizer, ProcessGroupGloo

    state: dict[str, Any] = {}

    def load(values: dict[str, Any]) -> None:
        state["model"].load_state_dict(values["model"])
        state["optimizer"].load_state_dict(values["optimizer"])

    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(milliseconds=int(os.environ[variables.COLLECTIVE_MS]))),
        min_replica_size=1,
        load_state_dict=load,
        state_dict=lambda: {name: part.state_dict() for name, part in state.items()},
        replica_id=f"replica_{slot}",
        timeout=timedelta(seconds=MANAGER_TIMEOUT_S),
        heartbeat_interval=timedelta(milliseconds=int(os.environ[variables.HEARTBEAT_MS])),
        hostname="localhost",
    )
    model = DistributedDataParallel(manager, workload.model)
    optimizer = Optimizer(manager, workload.optimizer(model))
    state |= {"model": model, "optimizer": optimizer}
    return manager, model, optimizer


if __name__ == "__main__":
    main()
