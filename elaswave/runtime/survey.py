"""What all members tell of themselves before the state is restored: what they hold, remember, and have computed.

They also show that they agree on everything that decides the bits from here on: settings and corpus, who computes and
holds what, the samples of a step, and what is drawn for them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elaswave.block import Scalars
from elaswave.errors import CorruptState
from elaswave.pipeline.gradients import Range
from elaswave.pipeline.spent import Spent
from elaswave.rng import Streams
from elaswave.runtime.exchange import gather_json
from elaswave.runtime.identity import config_digest
from elaswave.snapshot.ring import Holding as Offer
from elaswave.snapshot.verify import combine
from elaswave.zero.layout import Bucket

if TYPE_CHECKING:
    from elaswave.runtime.job import Job

FIELDS = ("layout_epoch", "num_shards", "shard", "version", "owner")


def named(offer: Offer) -> str:
    """A holding in words."""
    return f"{'own shard' if offer.owner else 'copy of shard'} {offer.shard} of step {offer.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What one member has computed of the step after its last committed one.

    Attributes:
        step: the last committed one.
        spans: by micro-batch the ranges of layers whose gradients it has added up.
        spent: what it, and members that are lost, have computed of the step, kept or not.
    """

    step: int
    spans: Mapping[int, tuple[Range, ...]]
    spent: Spent


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What all members have told.

    Attributes:
        offers: by worker id, the shards it holds.
        layouts: by number of a layout that somebody holds, its buckets.
        totals: digest of the whole state at each version that somebody remembers.
        scalars: what is not kept per element, at each version that somebody holds; equal on all shards.
        done: per member.
        damaged: what members have found damaged and left out, in words.
    """

    offers: Mapping[str, Sequence[Offer]]
    layouts: Mapping[int, tuple[Bucket, ...]]
    totals: Mapping[int, int]
    scalars: Mapping[int, Scalars]
    done: tuple[Done, ...]
    damaged: tuple[str, ...] = ()


def take(job: "Job", layout: int, bad: set[Offer]) -> Survey:
    """Tell what this worker holds, except what is known to be bad, and hear the same of all.

    Args:
        layout: number of the layout that is made now.
        bad: left out.

    Raises:
        CorruptState: members do not agree on something that decides the bits.
    """
    rows: list[dict[str, Any]] = gather_json(job.world(), _row(job, layout, bad))
    job.began = job.began or any(row["began"] for row in rows)
    compare([row["rank"] for row in rows], [row["same"] for row in rows])
    known = {int(version): total for row in rows for version, total in row["totals"].items()}
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
                spent=Spent.from_json(row["spent"]),
            )
            for row in rows
        ),
        damaged=tuple(text for row in rows for text in row["damaged"]),
    )


def compare(ranks: Sequence[int], told: Sequence[Mapping[str, object]]) -> None:
    """Everything that several members tell is the same.

    Args:
        ranks: of the members, for the message.
        told: per member values by what they are; members need not tell all.

    Raises:
        CorruptState: it is not; names what, and two of those who disagree.
    """
    known: dict[str, tuple[int, object]] = {}
    for rank, values in zip(ranks, told, strict=True):
        for name, value in values.items():
            first, wanted = known.setdefault(name, (rank, value))
            if wanted != value:
                raise CorruptState(f"members disagree about {name}: rank {first} has {wanted}, rank {rank} has {value}")


def _same(job: "Job", layout: int) -> dict[str, object]:
    """What must be equal on all members, and is cheap to tell."""
    assert job.plan is not None
    plan, stage, step = job.plan, job.trainee.stage, job.step + 1
    samples = [stage.samples(step, micro_batch) for micro_batch in (0, job.config.micro_batches - 1)]
    streams = Streams(job.config.training.seed)
    streams.at(step, samples[0][:1])
    return {
        "the settings or the corpus": config_digest(job.config, job.corpus),
        "the number of the new layout": layout,
        "who computes what": _short(plan.tasks),
        "who holds which layers": _short((plan.worker_ids, plan.stages, plan.layers, plan.buckets)),
        f"the samples of step {step}": samples,
        f"the random draws of step {step}": _short(streams.mask(0, 0, (1, 256), 0.5).tolist()),
        **{f"the digest of step {v}": combine(d) for held in job.state.holdings() for v, d in held.digests.items()},
    }


def _short(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _row(job: "Job", layout: int, bad: set[Offer]) -> dict[str, Any]:
    offers = [offer for held in job.state.holdings() for offer in held.holdings() if offer not in bad]
    return {
        "worker_id": job.agent.worker_id,
        "rank": job.agent.rank,
        "same": _same(job, layout),
        "damaged": [f"{named(offer)} at rank {job.agent.rank}" for offer in sorted(bad, key=named)],
        "offers": [[getattr(offer, name) for name in FIELDS] for offer in offers],
        "layouts": {str(held.number): held.layout.buckets for held in job.state.holdings()},
        "totals": {str(version): combine(d) for held in job.state.holdings() for version, d in held.digests.items()},
        "step": job.step,
        "done": {str(micro_batch): spans for micro_batch, spans in job.trainee.stage.gradients.spans().items()},
        "spent": job.spent.to_json(),
        "began": job.began,
        "scalars": {
            str(offer.version): held.state(offer.shard, offer.version).scalars
            for held in job.state.holdings()
            for offer in held.holdings()
        },
    }
