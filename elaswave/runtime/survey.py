"""What all members tell of themselves before the state is restored: what they hold, remember, and have computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elaswave.block import Scalars
from elaswave.errors import CorruptState
from elaswave.pipeline.gradients import Range
from elaswave.runtime.exchange import gather_json
from elaswave.snapshot.ring import Holding as Offer
from elaswave.snapshot.verify import combine
from elaswave.zero.layout import Bucket

if TYPE_CHECKING:
    from elaswave.runtime.job import Job

FIELDS = ("layout_epoch", "num_shards", "shard", "version", "owner")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What one member has computed of the step after its last committed one.

    Attributes:
        step: the last committed one.
        spans: by micro-batch the ranges of layers whose gradients it has added up.
        begun: micro-batches that it, or a member that is lost, was to compute.
    """

    step: int
    spans: Mapping[int, tuple[Range, ...]]
    begun: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What all members have told.

    Attributes:
        offers: by worker id, the shards it holds.
        layouts: by number of a layout that somebody holds, its buckets.
        totals: digest of the whole state at each version that somebody remembers.
        scalars: what is not kept per element, at each version that somebody owns; equal on all shards.
        done: per member.
        newest_layout: largest number of a layout that any member has entered.
    """

    offers: Mapping[str, Sequence[Offer]]
    layouts: Mapping[int, tuple[Bucket, ...]]
    totals: Mapping[int, int]
    scalars: Mapping[int, Scalars]
    done: tuple[Done, ...]


def take(job: "Job", bad: set[Offer]) -> Survey:
    """Tell what this worker holds, except what is known to be bad, and hear the same of all.

    Raises:
        CorruptState: members remember different digests of one step.
    """
    rows: list[dict[str, Any]] = gather_json(job.world(), _row(job, bad))
    job.began = job.began or any(row["began"] for row in rows)
    known: dict[int, int] = {}
    for row in rows:
        for version, total in row["totals"].items():
            if known.setdefault(int(version), total) != total:
                raise CorruptState(f"members remember different digests of step {version}")
    return Survey(
        offers={
            row["worker_id"]: [Offer(**dict(zip(FIELDS, values, strict=True))) for values in row["offers"]]
            for row in rows
        },
        layouts={
            int(number): tuple((tuple(units), tuple(members)) for units, members in buckets)
            for row in rows
            for number, buckets in row["layouts"].items()
        },
        totals=known,
        scalars={int(version): values for row in rows for version, values in row["scalars"].items()},
        done=tuple(
            Done(
                step=row["step"],
                spans={int(m): tuple((start, stop) for start, stop in spans) for m, spans in row["done"].items()},
                begun=tuple(row["begun"]),
            )
            for row in rows
        ),
    )


def _row(job: "Job", bad: set[Offer]) -> dict[str, Any]:
    offers = [offer for held in job.holdings() for offer in held.holdings() if offer not in bad]
    return {
        "worker_id": job.agent.worker_id,
        "offers": [[getattr(offer, name) for name in FIELDS] for offer in offers],
        "layouts": {str(held.number): held.layout.buckets for held in job.holdings()},
        "totals": {str(version): combine(d) for held in job.holdings() for version, d in held.digests.items()},
        "step": job.step,
        "done": {str(micro_batch): spans for micro_batch, spans in job.trainee.stage.gradients.spans().items()},
        "begun": job.begun(),
        "began": job.began,
        "scalars": {
            str(v): held.optimizer.state(v).scalars for held in job.holdings() for v in held.optimizer.versions
        },
    }
