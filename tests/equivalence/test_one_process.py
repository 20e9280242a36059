"""The arithmetic of a job without its processes: workers that come and go between steps leave no trace in a bit.

Simulated workers share out the layers of the micro-batches of each step at random, add their int64 sums, cut norm,
clip and AdamW into shards, and put the weights together again. After every step these are those of one worker.
"""

import itertools
import random
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from elaswave.config import Config, Numerics, ZeroLayout
from elaswave.data.dataset import build_dataset
from elaswave.models.build import build_model
from elaswave.numerics import LIMBS, clip_scale, learning_rate, norm_from_limbs, pin_threads, square_sum_limbs
from elaswave.pipeline.stage import Stage
from elaswave.runtime.build import build_stage, optimizer_maker
from elaswave.zero.layout import Layout, cut

STEPS = 6
SIZES = (4, 3, 7, 2, 5, 1)
"""Workers of each step."""


@pytest.fixture(autouse=True, scope="module")
def _pinned() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    pin_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def config_of(numerics: Numerics = Numerics.EXACT) -> Config:
    return Config.model_validate(
        {
            "model": {"layers": 2, "width": 32, "heads": 2, "sequence_length": 16, "dropout": 0.1},
            "training": {"steps": STEPS, "train_batch_size": 16, "numerics": numerics, "clip_norm": 0.5},
            "optimizer": {"warmup_steps": 2},
        }
    )


class Trial:
    """A run in which the state of all workers lies in one place, and is cut anew for every step."""

    def __init__(self, config: Config, num_stages: int = 1) -> None:
        self.config = config
        self.workers = [self._worker() for _ in range(num_stages)]
        layers = self.workers[0].layers
        self.table, self.num_layers = layers.table, layers.num_layers
        self.master = torch.cat([layers.initial(unit) for unit in range(len(self.table.unit_bounds))])
        self.moments = {name: torch.zeros_like(self.master) for name in ("exp_avg", "exp_avg_sq")}
        self.norms: list[float] = []

    def _worker(self) -> Stage:
        """A worker that holds all layers, so that it may be given any."""
        stage = build_stage(self.config, build_model(self.config.model, 7), build_dataset(self.config))
        units = tuple(range(len(stage.layers.table.unit_bounds)))
        stage.hold(range(stage.layers.num_layers), [units], 0)
        return stage

    def step(self, step: int, routes: list[list[tuple[int, int, int]]], layout: Layout) -> torch.Tensor:
        """Run a step: micro-batch i takes the legs (worker, start, stop) of `routes[i]`; returns the new weights."""
        self._give_weights(step)
        gradient = self._gradient(step, routes)
        shards = [layout.ranges(shard) for shard in range(len(layout.shards))]
        limbs = [0] * LIMBS
        for ranges in shards:
            limbs = [a + b for a, b in zip(limbs, square_sum_limbs(_gather(gradient, ranges), ranges), strict=True)]
        self.norms.append(norm_from_limbs(limbs))
        scale = clip_scale(self.norms[-1], self.config.training.clip_norm)
        old = self.master.clone()
        for ranges in shards:
            self._update(step, old, gradient, ranges, scale)
        return self.master.clone()

    def _give_weights(self, step: int) -> None:
        for stage in self.workers:
            for unit, (start, stop) in enumerate(self.table.unit_bounds):
                stage.weights.put(unit, self.master[start:stop], step - 1)
            stage.select(step - 1)
            stage.gradients.begin()

    def _gradient(self, step: int, routes: list[list[tuple[int, int, int]]]) -> torch.Tensor:
        whole = ((0, self.num_layers),)
        for micro_batch, legs in enumerate(routes):
            outputs: tuple[torch.Tensor, ...] = ()
            for worker, start, stop in legs:
                received = tuple(x.detach().clone() for x in outputs)
                flags = [x.requires_grad for x in outputs]
                outputs = self.workers[worker].forward(step, micro_batch, start, stop, received, flags, whole)
            gradients: tuple[torch.Tensor, ...] = ()
            for worker, start, stop in reversed(legs):
                gradients = self.workers[worker].backward_input(step, micro_batch, start, stop, gradients)
                self.workers[worker].backward_weight(micro_batch, start, stop)
        sums = [accumulator.buffer for stage in self.workers for accumulator in stage.gradients.sums.values()]
        total = torch.stack(sums).sum(0)
        return self.workers[0].gradients.to_float(total, torch.empty(len(total)))

    def _update(
        self, step: int, old: torch.Tensor, gradient: torch.Tensor, ranges: tuple[tuple[int, int], ...], scale: float
    ) -> None:
        """AdamW on one shard of the old weights, into the new ones."""
        groups: dict[bool, list[tuple[int, int, nn.Parameter]]] = {True: [], False: []}
        for start, stop, decayed in self.table.decay_spans():
            for low, high in ranges:
                a, b = max(start, low), min(stop, high)
                if a < b:
                    parameter = nn.Parameter(old[a:b].clone())
                    parameter.grad = gradient[a:b] * scale
                    groups[decayed].append((a, b, parameter))
        pieces = [*groups[True], *groups[False]]
        if not pieces:
            return
        decayed, plain = ([p for *_, p in groups[flag]] for flag in (True, False))
        optimizer = optimizer_maker(self.config.optimizer)(
            [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config.optimizer, STEPS)
        for a, b, parameter in pieces:
            moments = {name: whole[a:b].clone() for name, whole in self.moments.items()}
            optimizer.state[parameter] = {"step": torch.tensor(float(step - 1)), **moments}
        optimizer.step()
        for a, b, parameter in pieces:
            self.master[a:b] = parameter.detach()
            for name, whole in self.moments.items():
                whole[a:b] = optimizer.state[parameter][name]


def _gather(flat: torch.Tensor, ranges: tuple[tuple[int, int], ...]) -> torch.Tensor:
    return torch.cat([flat[start:stop] for start, stop in ranges]) if ranges else flat[:0]


def routes_of(draw: random.Random, trial: Trial) -> list[list[tuple[int, int, int]]]:
    """Any worker may compute any layers of any micro-batch."""
    routes = []
    for _ in range(trial.config.micro_batches):
        inner = sorted(draw.sample(range(1, trial.num_layers), draw.randint(0, trial.num_layers - 1)))
        bounds = [0, *inner, trial.num_layers]
        routes.append([(draw.randrange(len(trial.workers)), a, b) for a, b in itertools.pairwise(bounds)])
    return routes


def alone(config: Config) -> tuple[list[torch.Tensor], Trial]:
    """Weights after each step of one worker, in order."""
    trial = Trial(config)
    whole = cut(trial.table.unit_sizes(), 1, ZeroLayout.INTERLEAVED)
    routes = [[(0, 0, trial.num_layers)]] * config.micro_batches
    return [trial.step(step, routes, whole) for step in range(1, STEPS + 1)], trial


def together(config: Config, seed: int, kind: ZeroLayout) -> tuple[list[torch.Tensor], Trial]:
    """Weights after each step of workers whose number changes."""
    draw, trial = random.Random(seed), Trial(config, num_stages=3)
    found = []
    for step, size in enumerate(SIZES, start=1):
        layout = cut(trial.table.unit_sizes(), size, kind)
        found.append(trial.step(step, routes_of(draw, trial), layout))
    return found, trial


@pytest.fixture(scope="module")
def reference(_pinned: None) -> tuple[list[torch.Tensor], Trial]:
    return alone(config_of())


@pytest.mark.parametrize("kind", list(ZeroLayout))
@pytest.mark.parametrize("seed", [1, 2])
def test_workers_that_come_and_go_leave_no_trace(
    reference: tuple[list[torch.Tensor], Trial], seed: int, kind: ZeroLayout
) -> None:
    wanted, one = reference
    found, many = together(config_of(), seed, kind)
    assert many.norms == one.norms
    for step, (a, b) in enumerate(zip(found, wanted, strict=True), start=1):
        assert torch.equal(a, b), f"seed {seed}: step {step} differs in {int((a != b).sum())} elements"
    for name, moments in one.moments.items():
        assert torch.equal(many.moments[name], moments), name


def test_clipping_and_every_step_are_in_force(reference: tuple[list[torch.Tensor], Trial]) -> None:
    wanted, one = reference
    assert max(one.norms) > one.config.training.clip_norm
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(wanted))


def test_plain_float_sums_do_leave_one() -> None:
    """What the other tests compare is not equal by itself."""
    config = config_of(Numerics.FAST)
    wanted, _ = alone(config)
    found, _ = together(config, 1, ZeroLayout.INTERLEAVED)
    assert not torch.equal(found[-1], wanted[-1])
    torch.testing.assert_close(found[-1], wanted[-1], rtol=0.0, atol=0.05)
