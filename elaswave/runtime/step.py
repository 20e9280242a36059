"""The second half of a step: reduce, vote, update, gather, commit.

Two phases make it atomic. The vote is a sum to which every member adds its part when its shard of the gradient is
whole and the copies of the step before are; who has its result knows that of all. From then on any survivor can finish
the step or take it back, until the next vote.
"""

from typing import TYPE_CHECKING

import torch

from elaswave.events import Stage
from elaswave.numerics import clip_scale, learning_rate, norm_from_limbs, square_sum_limbs
from elaswave.runtime.exchange import gather_rows, signed
from elaswave.runtime.holding import collect, spread
from elaswave.runtime.vote import Vote, ballot, count

if TYPE_CHECKING:
    from elaswave.runtime.job import Job


def commit_step(job: "Job") -> None:
    """Finish the step whose micro-batches have been computed.

    Raises:
        PeerLost: a member was lost before the commit.
        Damaged: the state that the step begins from, or the weights it was computed with, are not what was committed.
    """
    config, step, held = job.config, job.step + 1, job.holding
    with job.stage(Stage.REDUCE):
        _reduce(job)
    job.migration.finish()
    held.pool.finish()  # from here on nobody reads the gradient of the step before
    gradient = job.trainee.stage.gradients.to_float(held.reduced, held.optimizer.gradient)
    with job.stage(Stage.VOTE):
        vote = _vote(job, gradient)
        job.state.check_vote(job.step, vote)
    norm = norm_from_limbs(vote.limbs)
    scale = clip_scale(norm, config.training.clip_norm)
    lr = learning_rate(step, config.optimizer, config.training.steps)
    job.pending = (vote, norm, lr)
    with job.stage(Stage.STEP):
        state = held.optimizer.step(gradient, lr, scale)
        # at once: what happens to the new version from here on is found by its digest
        proof = held.prove(step, job.trainee.stage) if config.snapshot.verify_weights else None
        own = proof.state if proof is not None else held.digest(held.index, step)
        # what it was made from was whole at the vote, but need not have been when it was read
        spoiled = config.snapshot.verify and held.digest(held.index, job.step) != held.digests[job.step][held.index]
        if spoiled:
            held.optimizer.discard(step)
    with job.stage(Stage.GATHER):
        gather_weights(job, state.tensors["master"], step)
    with job.stage(Stage.COMMIT):
        told = [signed(own), job.newest_epoch(), job.agent.leaving, job.checkpoints.busy, spoiled]
        rows = gather_rows(job.world(), [*told, *(map(signed, proof.units) if proof is not None else ())])
        job.state.check_commit(job.step, rows)
    job.commit(rows)


def _reduce(job: "Job") -> None:
    """Bring this member's shard of the summed gradient to `Holding.reduced`."""
    held, gradients = job.holding, job.trainee.stage.gradients
    pieces = dict(held.layout.pieces(held.index))
    for number, key, group in job.buckets():
        part = collect(held.reduced, pieces[number])
        group.reduce_scatter(gradients.sums[key].buffer, part, held.layout.spans(number))
        spread(part, pieces[number], held.reduced)
    job.migration.add_sums(held.reduced)


def gather_weights(job: "Job", master: torch.Tensor, version: int) -> None:
    """Collect everyone's new weights in the slot that is not in use.

    Args:
        master: this worker's shard of them.
        version: step after which the weights are so.
    """
    held, weights = job.holding, job.trainee.stage.weights
    pieces = dict(held.layout.pieces(held.index))
    aside = weights.begin(weights.buckets.keys)
    for number, key, group in job.buckets():
        part = collect(master, pieces[number]).to(weights.dtype)
        group.all_gather(part, weights.flat(key, aside), held.layout.spans(number))
        weights.filled(key, aside, version)


def _vote(job: "Job", gradient: torch.Tensor) -> Vote:
    held, gradients, weights = job.holding, job.trainee.stage.gradients, job.trainee.stage.weights
    limbs = square_sum_limbs(gradient, held.layout.ranges(held.index))
    sizes = (job.config.micro_batches, job.trainee.stage.layers.num_layers)
    digests, damages = {held.index: job.state.digest(job.step)}, job.state.damages(job.step, weights)
    total = ballot(gradients.losses, gradients.spans(), limbs, digests, *sizes, held.layout.num_shards, damages)
    job.world().all_reduce(total)
    return count(total, *sizes)
