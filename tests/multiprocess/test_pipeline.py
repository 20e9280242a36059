"""Real processes: pipelines over a mesh have the bits of one process, on either transport and in any schedule."""

from contextlib import nullcontext

import pytest
import torch
from support.planning import config_of, model_of, view_of
from support.ranks import Rank, start
from support.stages import LAYERS, MICRO_BATCHES, alone, empty_stage, hold, layers_of, sums_of

from elaswave.pipeline.executor import Executor
from elaswave.planner.scheduler import make_plan
from elaswave.runtime.work import Work

STEPS = 2


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def body(stages: int, schedule: str):
    """What a rank does: two steps of its part, then it tells its losses and sums."""

    def run(me: Rank) -> dict:
        group = me.enter()
        config, layers = config_of(MICRO_BATCHES, stages=stages, schedule=schedule), layers_of()
        costs = layers.profile()[0]
        plan = make_plan(config, None, view_of(range(me.size)), model_of(costs, [(0, LAYERS - 1)]))
        keys = [bucket.units for bucket in plan.buckets if me.rank in bucket.members]
        stage = hold(empty_stage(layers), plan.layers[me.rank], keys)
        operations = Work(plan, plan.tasks).operations(me.rank, config.parallelism, costs)
        for step in range(1, STEPS + 1):
            stage.gradients.begin()
            Executor(stage, group, step, lambda stage, **fields: nullcontext(), me.mesh.poll).run(operations)
        sums = {str(unit): part.tolist() for unit, part in sums_of([stage]).items()}
        return {"losses": [[m, loss.hex()] for m, loss in stage.gradients.losses.items()], "sums": sums}

    return run


@pytest.mark.parametrize(
    ("size", "stages", "schedule", "transport"),
    [(2, 2, "1f1b-split", "shm"), (3, 3, "1f1b", "tcp"), (3, 2, "1f1b-split", "mixed"), (5, 5, "gpipe", "shm")],
)
def test_legs_on_several_ranks_add_up_to_one(size: int, stages: int, schedule: str, transport: str) -> None:
    with start(size, body(stages, schedule), transport=transport) as ranks:
        ranks.view(range(size))
        told = [ranks.result(rank) for rank in range(size)]
    losses, sums = alone(step=STEPS)
    assert {m: float.fromhex(loss) for one in told for m, loss in one["losses"]} == losses
    for unit, wanted in sums.items():
        parts = [torch.tensor(one["sums"][str(unit)], dtype=torch.int64) for one in told if str(unit) in one["sums"]]
        assert torch.equal(sum(parts), wanted), unit
