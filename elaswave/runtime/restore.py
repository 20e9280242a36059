"""Bring the sharded state into the layout of a new view: agree on a version, verify it, begin to move it.

The old layout is only read. Until every member has proved that its part of the new one has arrived, a fault goes back
to the old.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from elaswave.block import Scalars
from elaswave.errors import CorruptState, PeerLost, Unrecoverable
from elaswave.runtime import salvage
from elaswave.runtime.checkpoints import load
from elaswave.runtime.exchange import gather_json, signed, unsigned
from elaswave.runtime.holding import Holding, layout_of, make_holding
from elaswave.runtime.migration import Migration
from elaswave.runtime.proofs import prove
from elaswave.runtime.salvage import Salvage
from elaswave.runtime.survey import Survey, take
from elaswave.snapshot.ring import Decision, Lost, choose
from elaswave.snapshot.ring import Holding as Offer
from elaswave.snapshot.verify import combine, digest
from elaswave.zero.layout import Layout, count, intersect, join, route, supply
from elaswave.zero.remap import Part, Remap

if TYPE_CHECKING:
    from elaswave.runtime.job import Job

WEIGHTS_TAG, SUMS_TAG = 0x5A03, 0x5A04


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the state is taken from.

    Attributes:
        version: step after which the state was so.
        layout: in which it is held.
        holders: per shard the workers that have it, owners first.
        servers: per shard the one that speaks for it.
        parts: the shards that are here.
        scalars: what is not kept per element.
        announced: digest of the whole state, as at the commit; None until it is known.
        name: for messages.
        moved: the new layout is filled already.
        calm: it was not looked at, as nobody was lost and nothing is damaged; all members are at this version, and
            have all weights of the layout.
    """

    version: int
    layout: Layout
    holders: Sequence[Sequence[str]]
    servers: Sequence[str]
    parts: Mapping[int, Part]
    scalars: Scalars
    announced: int | None = None
    name: str = "the members"
    moved: bool = False
    calm: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What RESTORE leaves for RESUME.

    Attributes:
        held: the new layout, on its way to be filled.
        version: step after which the state was so.
        digest: of the whole state.
        truth: per unit the digest of its weights.
        migration: what is on its way.
        salvage: what is left to compute of the step after `version`.
        calm: nobody need wait for the others, who come to the same.
    """

    held: Holding
    version: int
    digest: int
    truth: tuple[int, ...]
    migration: Migration
    salvage: Salvage
    calm: bool

    @property
    def bytes_moved(self) -> int:
        """Received by this worker, what is on its way included."""
        return self.migration.weight_bytes + self.migration.bytes_received


def restore(job: "Job", *, calm: bool = False) -> Restored:
    """Get this worker what it needs to go on in the new layout.

    Args:
        calm: nobody was lost and nothing is damaged as far as all members know, who all say so; then the next vote,
            which proves the whole state in any case, does so without digests before it.

    Raises:
        PeerLost: a further member was lost.
        Unrecoverable: some shard is held by nobody.
        CorruptState: no good copy of some shard is left.
    """
    assert job.plan is not None
    assert job.optimizer is not None
    stage = job.trainee.stage
    held = make_holding(
        config=job.config,
        plan=job.plan,
        number=job.state.next_number(job.entered_epoch),
        worker_id=job.agent.worker_id,
        group=job.world(),
        stage=stage,
        make=job.optimizer.make,
        schema=job.optimizer.schema,
        before=next(iter(job.state.holdings()), None),
    )
    survey, origin, truth = _agree(job, held, calm)
    index = job.plan.index_of(job.agent.worker_id)
    spoiled = not origin.calm and _check_weights(job, origin.version, truth)
    left = salvage.plan(job, survey, origin.version, spoiled=spoiled)
    if left.forget:
        stage.gradients.begin()
    stage.hold(
        job.plan.layers[index], [bucket.units for bucket in job.plan.buckets if index in bucket.members], origin.version
    )
    weight_bytes, aside = _fetch_weights(job, origin)
    assert origin.announced is not None
    return Restored(
        held=held,
        version=origin.version,
        digest=origin.announced,
        truth=truth,
        migration=_migrate(job, held, origin, aside, weight_bytes),
        salvage=left,
        calm=origin.calm,
    )


def _agree(job: "Job", held: Holding, calm: bool) -> tuple[Survey, Origin, tuple[int, ...]]:
    """What to restore, and per unit the digest that its weights must have; damaged holdings are found and left out.

    When all is calm nothing is digested anew: what was announced at the last commit is taken for true.

    Raises:
        CorruptState: what the members have is not what was announced, and nobody's part stands out.
    """
    bad: set[Offer] = set()
    while True:
        survey = take(job, held.number, bad)
        decision = choose(survey.offers)
        found = set[Offer]()
        if calm and not isinstance(decision, Lost) and decision.version in survey.totals and _between(survey, decision):
            return survey, replace(_origin(job, decision, survey), calm=True), job.state.truth
        if isinstance(decision, Lost):
            origin = _begin(job, held, decision, survey)
        else:
            found = _verify(job, decision, bad) if job.config.snapshot.verify else found
            origin = _origin(job, decision, survey)
        table = torch.tensor([len(found), *_served_digests(job, origin)], dtype=torch.int64)
        job.world().all_reduce(table)
        num_bad, total, *truth = table.tolist()
        if num_bad:
            bad |= found
            continue
        if origin.announced not in (None, unsigned(total)):
            raise CorruptState(
                f"step {origin.version} was announced as {origin.announced:016x}, "
                f"what is to be restored from {origin.name} is {unsigned(total):016x}"
            )
        return survey, replace(origin, announced=unsigned(total)), tuple(map(unsigned, truth))


def _between(survey: Survey, decision: Decision) -> bool:
    """Whether all members are between two steps, after that of the decision."""
    return all(done.step == decision.version and not done.spans for done in survey.done)


def _verify(job: "Job", decision: Decision, known: set[Offer]) -> set[Offer]:
    """Own holdings of the decision whose content is not what its owner announced, beside those that are known."""
    bad = set()
    for held in job.state.holdings():
        recorded = held.digests.get(decision.version)
        if held.number != decision.layout_epoch or recorded is None:
            continue
        for offer in held.holdings():
            if offer.version != decision.version or offer in known:
                continue
            if held.digest(offer.shard, offer.version) != recorded[offer.shard]:
                bad.add(offer)
                job.report_corrupt(offer)
    return bad


def _begin(job: "Job", held: Holding, lost: Lost, survey: Survey) -> Origin:
    """Nobody has anything: the first step of the job, or its checkpoint, unless it had begun before."""
    assert job.plan is not None
    if lost.layout_epoch is not None and job.began:
        with contextlib.suppress(PeerLost):  # nobody goes before all have come to the same conclusion
            job.world().barrier()
        why = f"more members died at once than snapshot.copies = {job.config.snapshot.copies} can make up for"
        if survey.damaged:
            why = f"and damaged: {', '.join(survey.damaged)}"
        raise Unrecoverable(
            f"shards {list(lost.shards)} of step {lost.version} are gone with all their copies; {why}. "
            f"{job.checkpoints.advice()}"
        )
    if job.began:
        raise Unrecoverable(f"every worker that held state is gone. {job.checkpoints.advice()}")
    version, total, name = 0, None, "the initial weights"
    if job.config.checkpoint.resume:
        found = load(job, held)
        version, total, name = found.step, int(found.digest, 16), f"checkpoint {job.config.checkpoint.resume}"
    else:
        held.optimizer.initialise(_initial(job, held))
    return Origin(
        version=version,
        layout=held.layout,
        holders=[(worker_id,) for worker_id in job.plan.worker_ids],
        servers=job.plan.worker_ids,
        parts={held.index: held.part(held.index, version)},
        scalars=held.optimizer.state(version).scalars,
        announced=total,
        name=name,
        moved=True,
    )


def _initial(job: "Job", held: Holding) -> torch.Tensor:
    """Initial values of the own shard, float32; one layer at a time is built for them."""
    layers, pieces = job.trainee.stage.layers, []
    own = held.layout.ranges(held.index)
    for unit, (start, stop) in enumerate(layers.table.unit_bounds):
        wanted = intersect(own, [(start, stop)])
        if wanted:
            values = layers.initial(unit)
            pieces += [values[a - start : b - start] for a, b in wanted]
    return torch.cat(pieces) if pieces else torch.empty(0)


def _origin(job: "Job", decision: Decision, survey: Survey) -> Origin:
    source = next((held for held in job.state.holdings() if held.number == decision.layout_epoch), None)
    parts: dict[int, Part] = {}
    if source is None:
        layout = layout_of(job.config, job.trainee.stage, survey.layouts[decision.layout_epoch], len(decision.holders))
    else:
        layout = source.layout
        shards = {offer.shard for offer in source.holdings() if offer.version == decision.version}
        parts = {shard: source.part(shard, decision.version) for shard in shards}
    return Origin(
        version=decision.version,
        layout=layout,
        holders=decision.holders,
        servers=decision.servers,
        parts=parts,
        scalars=survey.scalars[decision.version],
        announced=survey.totals.get(decision.version),
    )


# -- weights: needed at once -----------------------------------------------------------------------------------


def _served_digests(job: "Job", origin: Origin) -> list[int]:
    """Of the shards served here the digest of all state, and per unit that of the weights they make.

    Those of all servers add up to the digests of the whole.
    """
    stage = job.trainee.stage
    bounds, dtype = stage.layers.table.unit_bounds, stage.weights.dtype
    proofs = [
        prove(origin.parts[shard], bounds, dtype)
        for shard, server in enumerate(origin.servers)
        if server == job.agent.worker_id
    ]
    units = [combine(proof.units[unit] for proof in proofs) for unit in range(len(bounds))]
    return [signed(value) for value in (combine(proof.state for proof in proofs), *units)]


def _check_weights(job: "Job", version: int, truth: Sequence[int]) -> bool:
    """Give up weights here that are damaged; tells whether any member has found some.

    Whatever was computed with them is spoiled, and in a pipeline what others have computed from that.
    """
    weights = job.trainee.stage.weights
    wrong = weights.damaged(version, truth, digest)
    weights.give_up(wrong, version)
    for unit in wrong:
        job.report_damaged_weights(unit, version)
    total = torch.tensor([len(wrong)])
    job.world().all_reduce(total)
    return bool(total.item())


def _fetch_weights(job: "Job", origin: Origin) -> tuple[int, dict[str, list[int]]]:
    """Give every member the weights that it lacks, from the master weights of the old shards.

    Returns:
        Bytes that came here, and by worker id the units of which it has sums set aside.
    """
    assert job.plan is not None
    stage = job.trainee.stage
    weights, bounds = stage.weights, stage.layers.table.unit_bounds
    weights.active = weights.slot_of(origin.version)
    lacking = weights.lacking(origin.version)
    told = _known(job, origin) if origin.calm else gather_json(job.world(), [lacking, sorted(stage.gradients.aside)])
    rows = dict(zip(job.plan.worker_ids, told, strict=True))
    aside = {worker_id: row[1] for worker_id, row in rows.items()}
    wanted = {worker_id: join(sorted(bounds[unit] for unit in row[0])) for worker_id, row in rows.items()}
    if not any(wanted.values()):
        return 0, aside
    mine = wanted[job.agent.worker_id]
    target = Part(ranges=mine, tensors={"master": torch.empty(count(mine), dtype=weights.dtype)})
    plan = supply(origin.layout, origin.holders, wanted)
    kinds = {"master": weights.dtype}
    remap = Remap(job.world(), plan, origin.parts, target, kinds=kinds, tag=WEIGHTS_TAG)
    remap.start().finish()
    at = 0
    for unit in lacking:
        size = bounds[unit][1] - bounds[unit][0]
        weights.put(unit, target.tensors["master"][at : at + size], origin.version)
        at += size
    return remap.bytes_received, aside


def _known(job: "Job", origin: Origin) -> list[tuple[list[int], list[int]]]:
    """What each member would tell when all is calm: the units that are new to it, and that it has no sums."""
    assert job.plan is not None
    sizes = job.trainee.stage.layers.table.unit_sizes()
    new = [(bucket.units, bucket.members) for bucket in job.plan.buckets]
    found = []
    for member in range(len(job.plan.worker_ids)):
        here, before = (
            {unit for units, members in buckets if member in members for unit in units}
            for buckets in (new, origin.layout.buckets)
        )
        found.append((sorted(unit for unit in here - before if sizes[unit]), list[int]()))
    return found


# -- shards and sums: needed at the end of the step ------------------------------------------------------------


def _migrate(
    job: "Job", held: Holding, origin: Origin, aside: Mapping[str, Sequence[int]], weight_bytes: int
) -> Migration:
    """What fills the new shard, and brings together the sums that members have set aside."""
    assert job.plan is not None
    shards = None
    if not origin.moved:
        plan = route(origin.layout, held.layout, origin.holders, job.plan.worker_ids)
        target = Part(ranges=held.layout.ranges(held.index), tensors=held.optimizer.staging().tensors)
        shards = Remap(job.world(), plan, origin.parts, target)
    sums, extra = salvage.bring_together(job, held, aside, SUMS_TAG)
    return Migration(held, origin.version, origin.scalars, shards, sums, extra, weight_bytes)
