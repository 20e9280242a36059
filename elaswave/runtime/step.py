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
from elaswave.runtime.vote import Vote, ballot, count

if TYPE_CHECKING:
    from elaswave.runtime.job import Job


def commit_step(job: "Job") -> None:
    """Finish the step whose micro-batches have been computed.

    Raises:
        PeerLost: a member was lost before the commit.
    """
    config, step, held = job.config, job.step + 1, job.holding
    with job.stage(Stage.REDUCE):
        gradient = _reduce(job)
    held.pool.finish()
    with job.stage(Stage.VOTE):
        vote = _vote(job, gradient)
    norm = norm_from_limbs(vote.limbs)
    scale = clip_scale(norm, config.training.clip_norm)
    lr = learning_rate(step, config.optimizer, config.training.steps)
    job.pending = (vote, norm, lr)
    with job.stage(Stage.STEP):
        state = held.optimizer.step(gradient, lr, scale)
    with job.stage(Stage.GATHER):
        job.trainee.gather(job.world(), state.tensors["master"], held.layout.shards, step)
    with job.stage(Stage.COMMIT):
        own = signed(held.digest(held.index, step))
        rows = gather_rows(job.world(), [own, job.newest_epoch(), job.agent.leaving, job.checkpoints.busy])
    job.commit(rows)


def _reduce(job: "Job") -> torch.Tensor:
    """This member's shard of the summed gradient, float32."""
    held, accumulator = job.holding, job.trainee.stage.accumulator
    job.world().reduce_scatter(accumulator.buffer, held.reduced, held.layout.shards)
    return accumulator.to_float(held.reduced)


def _vote(job: "Job", gradient: torch.Tensor) -> Vote:
    held, losses = job.holding, job.trainee.losses
    limbs = square_sum_limbs(gradient, held.layout.ranges(held.index))
    num_micro_batches, num_layers = job.config.micro_batches, len(held.layout.unit_sizes)
    whole = dict.fromkeys(losses, ((0, num_layers),))
    own = held.digests[job.step][held.index]
    total = ballot(losses, whole, num_micro_batches, num_layers, limbs, own)
    job.world().all_reduce(total)
    return count(total, num_micro_batches, num_layers)
