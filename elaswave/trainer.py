"""The training loop, readable aloud: join, build, and offer every step until it is committed."""

from elaswave.config import Config
from elaswave.data.dataset import build_dataset
from elaswave.events import Recorder
from elaswave.models.build import build_model
from elaswave.runtime.build import optimizer_maker
from elaswave.runtime.job import Probe, join


def train(config: Config, *, recorder: Recorder | None = None, probe: Probe | None = None) -> float:
    """Train to the last step; returns its loss.

    Args:
        config: the whole run; the same on every worker.
        recorder, probe: see `runtime.job.join`.
    """
    with join(config, recorder=recorder, probe=probe) as job:
        dataset = build_dataset(config)
        model = job.pipeline(build_model(config.model, config.training.seed), dataset)
        optimizer = job.shard(optimizer_maker(config.optimizer), model)
        for attempt in job.attempts():
            with attempt:
                model.forward_backward(attempt.micro_batches)
                optimizer.step()
        return job.loss
