"""Bring the sharded state into the layout of a new view: agree on a version, verify it, move it, copy it.

The old layout is only read. Until every member has confirmed the new one, a fault goes back to it.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elaswave.block import Scalars
from elaswave.errors import CorruptState, PeerLost, Unrecoverable
from elaswave.runtime.checkpoints import load
from elaswave.runtime.exchange import gather_json, gather_rows, signed, unsigned
from elaswave.runtime.holding import Holding, collect, layout_of, make_holding
from elaswave.snapshot.ring import Decision, Lost, choose
from elaswave.snapshot.ring import Holding as Offer
from elaswave.snapshot.verify import combine, digest
from elaswave.zero.layout import route
from elaswave.zero.remap import Part, Remap

if TYPE_CHECKING:
    from elaswave.runtime.job import Job

FIELDS = ("layout_epoch", "num_shards", "shard", "version", "owner")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What RESTORE leaves for RESUME.

    Attributes:
        held: shard of the new layout, at `version`.
        version: step after which the state was so.
        total: digest of the whole state as it was announced at the commit; None when nobody remembers.
        done: per member the micro-batches of the step after `version` whose contribution it holds.
        bytes_moved: received by this worker.
        origin: where the state comes from.
    """

    held: Holding
    version: int
    total: int | None = None
    done: tuple[tuple[int, ...], ...] = ()
    bytes_moved: int = 0
    origin: str = "the members"


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What all members have told of themselves.

    Attributes:
        offers: by worker id, the shards it holds.
        totals: digest of the whole state at each version that somebody remembers.
        scalars: what is not kept per element, at each version that somebody owns; equal on all shards.
        done: per member its last committed step, and the micro-batches of the next that it has computed.
    """

    offers: Mapping[str, Sequence[Offer]]
    totals: Mapping[int, int]
    scalars: Mapping[int, Scalars]
    done: tuple[tuple[int, tuple[int, ...]], ...]


def restore(job: "Job") -> Restored:
    """Fill this worker's shard of the new layout, and prove with all others that the whole is what was announced.

    Raises:
        PeerLost: a further member was lost.
        Unrecoverable: some shard is held by nobody.
        CorruptState: no good copy of some shard is left.
    """
    assert job.plan is not None
    assert job.optimizer is not None
    held = make_holding(
        config=job.config,
        plan=job.plan,
        worker_id=job.agent.worker_id,
        group=job.world(),
        stage=job.trainee.stage,
        make=job.optimizer.make,
        schema=job.optimizer.schema,
    )
    bad: set[Offer] = set()
    while True:
        survey = _survey(job, bad)
        decision = choose(survey.offers)
        found = set[Offer]()
        if isinstance(decision, Lost):
            restored = _begin(job, held, decision)
        else:
            found = _verify(job, decision) if job.config.snapshot.verify else found
            restored = _move(job, held, decision, survey)
        if _confirm(job, restored, num_bad=len(found)):
            return restored
        bad |= found


def _survey(job: "Job", bad: set[Offer]) -> Survey:
    """Tell what this worker holds, except what is known to be bad, and hear the same of all."""
    own = [offer for held in job.holdings() for offer in held.holdings() if offer not in bad]
    totals = {v: combine(d) for held in job.holdings() for v, d in held.digests.items()}
    row = {
        "worker_id": job.agent.worker_id,
        "offers": [[getattr(offer, name) for name in FIELDS] for offer in own],
        "totals": {str(version): total for version, total in totals.items()},
        "step": job.step,
        "done": sorted(job.trainee.losses),
        "began": job.began,
        "scalars": {
            str(v): held.optimizer.state(v).scalars for held in job.holdings() for v in held.optimizer.versions
        },
    }
    rows: list[dict[str, Any]] = gather_json(job.world(), row)
    job.began = job.began or any(row["began"] for row in rows)
    offers = {
        row["worker_id"]: [Offer(**dict(zip(FIELDS, values, strict=True))) for values in row["offers"]] for row in rows
    }
    known: dict[int, int] = {}
    for one in rows:
        for version, total in one["totals"].items():
            if known.setdefault(int(version), total) != total:
                raise CorruptState(f"members remember different digests of step {version}")
    done = tuple((row["step"], tuple(row["done"])) for row in rows)
    scalars = {int(version): values for row in rows for version, values in row["scalars"].items()}
    return Survey(offers=offers, totals=known, scalars=scalars, done=done)


def _verify(job: "Job", decision: Decision) -> set[Offer]:
    """Own holdings of the decision whose content is not what its owner announced."""
    bad = set()
    for held in job.holdings():
        recorded = held.digests.get(decision.version)
        if held.epoch != decision.layout_epoch or recorded is None:
            continue
        for offer in held.holdings():
            if offer.version != decision.version:
                continue
            if held.digest(offer.shard, offer.version) != recorded[offer.shard]:
                bad.add(offer)
                job.report_corrupt(offer)
    return bad


def _begin(job: "Job", held: Holding, lost: Lost) -> Restored:
    """Nobody has anything: the first step of the job, or its checkpoint, unless it had begun before."""
    if lost.layout_epoch is not None and job.began:
        with contextlib.suppress(PeerLost):  # nobody goes before all have come to the same conclusion
            job.world().barrier()
        raise Unrecoverable(
            f"shards {list(lost.shards)} of step {lost.version} are gone with all their copies; "
            f"more members died at once than snapshot.copies = {job.config.snapshot.copies} can make up for. "
            f"{job.checkpoints.advice()}"
        )
    if job.began:
        raise Unrecoverable(f"every worker that held state is gone. {job.checkpoints.advice()}")
    if job.config.checkpoint.resume:
        found = load(job, held)
        origin = f"checkpoint {job.config.checkpoint.resume}"
        return Restored(held=held, version=found.step, total=int(found.digest, 16), origin=origin)
    stage = job.trainee.stage
    ranges = held.layout.ranges(held.index)
    held.optimizer.initialise(collect(stage.flat[job.trainee.versions.index(0)], ranges))
    return Restored(held=held, version=0)


def _move(job: "Job", held: Holding, decision: Decision, survey: Survey) -> Restored:
    """Fill the new shard from old ones."""
    assert job.plan is not None
    version = decision.version
    old = layout_of(job.config, job.trainee.stage, len(decision.holders))
    plan = route(old, held.layout, decision.holders, job.plan.worker_ids)
    source = next((h for h in job.holdings() if h.epoch == decision.layout_epoch), None)
    parts: dict[int, Part] = {}
    if source is not None:
        shards = {offer.shard for offer in source.holdings() if offer.version == version}
        parts = {shard: source.part(shard, version) for shard in shards}
    target = held.optimizer.staging()
    remap = Remap(job.world(), plan, parts, Part(ranges=held.layout.ranges(held.index), tensors=target.tensors))
    remap.start().finish()
    held.optimizer.adopt(version, survey.scalars[version])
    return Restored(
        held=held,
        version=version,
        total=survey.totals.get(version),
        done=tuple(ids if step == version else () for step, ids in survey.done),
        bytes_moved=remap.bytes_received,
    )


def _confirm(job: "Job", restored: Restored, num_bad: int) -> bool:
    """Prove that shards and parameters are those of the version, and give parameters to who lacks them.

    Args:
        num_bad: holdings of this worker that turned out to be wrong although they were offered.

    Returns:
        False when somebody offered what was wrong: the state has to be restored again without that.

    Raises:
        CorruptState: the new shards together are not the state that was announced.
    """
    held, version, world = restored.held, restored.version, job.world()
    master = held.optimizer.state().tensors["master"]
    weights = digest(held.layout.ranges(held.index), {"master": master})
    own = job.trainee.digest(version)
    mine = [held.digest(held.index, version), weights, own or 0]
    rows = gather_rows(world, [*map(signed, mine), own is not None, num_bad])
    if any(row[4] for row in rows):
        return False
    digests = [unsigned(row[0]) for row in rows]
    total, parameters = combine(digests), combine(unsigned(row[1]) for row in rows)
    if restored.total not in (None, total):
        raise CorruptState(
            f"step {version} was announced as {restored.total:016x}, "
            f"the state restored from {restored.origin} is {total:016x}"
        )
    held.record(version, digests)
    if not all(row[3] and unsigned(row[2]) == parameters for row in rows):
        job.trainee.gather(world, master, held.layout.shards, version)
    return True
