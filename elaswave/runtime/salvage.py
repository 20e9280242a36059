"""What is kept of an interrupted step: survivors keep what they have added up, and only the rest is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch

from elaswave.errors import CorruptState
from elaswave.pipeline.spent import KINDS, Spent, again, everything
from elaswave.planner.dataflow import retask
from elaswave.planner.plan import Task
from elaswave.runtime.holding import Holding
from elaswave.runtime.survey import Survey
from elaswave.zero.layout import addends, join
from elaswave.zero.remap import Part, Remap

if TYPE_CHECKING:
    from elaswave.runtime.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvage:
    """What is left to do of the step after the restored version.

    Attributes:
        tasks: to compute, over all members.
        forget: nothing in this worker's sums counts: they are of a step that has been taken back, or is over.
        recomputed: micro-batches computed again, in whole or in part, of which this worker does the first part.
        recomputed_share: work that is done a second time, as a share of the work of a step; what lost members were to
            do counts as done, as nobody knows how far they came.
        spent: what all members together have computed of the step, kept or not.
    """

    tasks: tuple[Task, ...]
    forget: bool
    recomputed: int
    recomputed_share: float
    spent: Spent


def plan(job: "Job", survey: Survey, version: int, *, spoiled: bool) -> Salvage:
    """Share out what no survivor has added up.

    Args:
        survey: what all members have told.
        version: restored.
        spoiled: the step was computed with damaged weights, so that nothing of it can be kept.

    Raises:
        CorruptState: two members have the same contribution.
    """
    assert job.plan is not None
    num_layers = job.trainee.stage.layers.num_layers
    me = job.plan.index_of(job.agent.worker_id)
    kept: dict[int, set[int]] = {task.micro_batch: set() for task in job.plan.tasks}
    for done in survey.done:
        for micro_batch, spans in done.spans.items() if done.step == version and not spoiled else ():
            layers = set(chain.from_iterable(range(start, stop) for start, stop in spans))
            if kept[micro_batch] & layers:
                raise CorruptState(f"layers {sorted(kept[micro_batch] & layers)} of {micro_batch} are held twice")
            kept[micro_batch] |= layers
    whole = set(range(num_layers))
    missing = {micro_batch: whole - layers for micro_batch, layers in kept.items() if layers != whole}
    tasks = retask(job.plan, missing, job.costs) if any(kept.values()) else job.plan.tasks
    spent, ahead = Spent(), Spent()
    for done in survey.done:
        (spent if done.step == version else ahead).merge(done.spent if done.step >= version else Spent())
    twice = 0.0
    if any(done.step > version for done in survey.done):
        spent = everything(kept, num_layers)  # a whole step is taken back, and what was done of the next is lost
        twice = sum(again(job.plan.tasks, ahead, job.costs).values())
    rows = again(tasks, spent, job.costs)
    return Salvage(
        tasks=tasks,
        forget=survey.done[me].step != version or spoiled or not any(survey.done[me].spans.values()),
        recomputed=sum(task.legs[0].member == me for task in tasks if task.micro_batch in rows),
        recomputed_share=(twice + sum(rows.values())) / (KINDS * sum(job.costs) * len(job.plan.tasks)),
        spent=spent,
    )


def bring_together(
    job: "Job", held: Holding, aside: Mapping[str, Sequence[int]], tag: int
) -> tuple[Remap | None, torch.Tensor | None]:
    """Begin to add up, at the new owners, the sums that members have set aside.

    Args:
        held: the new layout.
        aside: by worker id the units of which it has such sums.
        tag: of the messages.

    Returns:
        What is on its way, and where it arrives; None when nobody has any.
    """
    assert job.plan is not None
    if not any(aside.values()):
        return None, None
    gradients, bounds = job.trainee.stage.gradients, job.trainee.stage.layers.table.unit_bounds
    ranges = {worker_id: join(sorted(bounds[unit] for unit in units)) for worker_id, units in aside.items()}
    wanted = {worker_id: held.layout.ranges(i) for i, worker_id in enumerate(job.plan.worker_ids)}
    own = sorted(gradients.aside)
    parts = [gradients.aside[unit] for unit in own]
    source = torch.cat(parts) if parts else torch.empty(0, dtype=gradients.dtype)
    extra = torch.zeros(held.layout.size(held.index), dtype=gradients.dtype)
    remap = Remap(
        job.world(),
        addends(ranges, wanted),
        {0: Part(ranges=ranges[job.agent.worker_id], tensors={"sum": source})},
        Part(ranges=held.layout.ranges(held.index), tensors={"sum": extra}),
        tag=tag,
        add=True,
    )
    return remap.start(), extra
