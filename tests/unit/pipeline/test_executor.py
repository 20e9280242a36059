"""Members that compute legs for one another have the sums and losses of one that computes all of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_group import FakeGroup
from support.planning import config_of, model_of, view_of
from support.stages import LAYERS, MICRO_BATCHES, Sums, alone, empty_stage, hold, layers_of, same_sums, sums_of
from support.turns import Turns

from elaswave.config import Config, Schedule
from elaswave.errors import ConfigError, DeadlineExceeded, PeerLost
from elaswave.events import Stage as StepStage
from elaswave.pipeline.executor import Executor
from elaswave.pipeline.schedule import Kind, Operation
from elaswave.pipeline.stage import Stage
from elaswave.planner.dataflow import retask
from elaswave.planner.plan import Plan, Task
from elaswave.planner.scheduler import make_plan
from elaswave.runtime.work import Work

COSTS = layers_of().profile()[0]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


reference = cache(alone)


@dataclass
class Crew:
    """All members of a plan in one process.

    Attributes:
        spans: per member what it has computed, in order: `F`, `I` or `W` with micro-batch and first layer.
    """

    plan: Plan
    config: Config
    stages: list[Stage] = field(default_factory=list)
    spans: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        layers = layers_of()
        for member, held in enumerate(self.plan.layers):
            keys = [bucket.units for bucket in self.plan.buckets if member in bucket.members]
            self.stages.append(hold(empty_stage(layers), held, keys))
            self.spans.append([])

    def operations(self, tasks: tuple[Task, ...]) -> list[tuple[Operation, ...]]:
        work = Work(self.plan, tasks)
        return [work.operations(member, self.config.parallelism, COSTS) for member in range(len(self.stages))]

    def compute(
        self,
        tasks: tuple[Task, ...],
        turns: Turns | None = None,
        look_up: Callable[[int, FakeGroup], None] = lambda member, group: group.network.progress(),
    ) -> None:
        """Compute tasks; every look-up between operations delivers what is on its way."""

        def body(member: int, ops: Sequence[Operation]) -> Callable[[FakeGroup], None]:
            def run(group: FakeGroup) -> None:
                Executor(
                    self.stages[member],
                    group,  # type: ignore[arg-type]
                    1,
                    lambda stage, **fields: self._mark(member, stage, **fields),
                    lambda: look_up(member, group),
                ).run(ops)

            return run

        (turns or Turns(len(self.stages))).run([body(*pair) for pair in enumerate(self.operations(tasks))])

    def _mark(
        self, member: int, stage: StepStage, micro_batch: int, layer: int, weights: int = 0
    ) -> AbstractContextManager[None]:
        @contextmanager
        def mark() -> Iterator[None]:
            yield
            kind = "F" if stage is StepStage.FORWARD else "W" if weights else "I"
            self.spans[member].append(f"{kind}{micro_batch}.{layer}")

        return mark()

    def losses(self) -> dict[int, float]:
        found: dict[int, float] = {}
        for stage in self.stages:
            assert not found.keys() & stage.gradients.losses.keys()
            found |= stage.gradients.losses
        return found

    def sums(self) -> Sums:
        return sums_of(self.stages)


def crew_of(ranks: Sequence[int], **parallelism: object) -> Crew:
    config = config_of(MICRO_BATCHES, **parallelism)
    return Crew(make_plan(config, None, view_of(ranks), model_of(COSTS, [(0, LAYERS - 1)])), config)


def listed(ops: Sequence[Operation]) -> list[str]:
    """What is computed, in the order of the list."""
    names = {Kind.FORWARD: "F", Kind.BACKWARD_INPUT: "I", Kind.BACKWARD_WEIGHT: "W"}
    return [f"{names[op.kind]}{op.micro_batch}.{op.start}" for op in ops if op.kind in names]


@settings(deadline=None, max_examples=25)
@given(
    st.sets(st.integers(0, 6), min_size=1, max_size=5),
    st.sampled_from([(2, 1), (3, 1), (2, 2), (5, 1)]),
    st.sampled_from(Schedule),
    st.booleans(),
)
def test_whoever_is_left_of_whatever_grid_has_the_bits_of_one_member(ranks, grid, schedule, fluid):
    stages, virtual_stages = grid
    crew = crew_of(ranks, stages=stages, virtual_stages=virtual_stages, schedule=schedule, fluid=fluid)
    crew.compute(crew.plan.tasks)
    losses, sums = reference()
    assert crew.losses() == losses
    assert same_sums(crew.sums(), sums)
    for stage in crew.stages:
        assert not stage._passes, "nothing is left under way"


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(Schedule),
    st.sampled_from([[0, 1], [0, 1, 2], [0, 1, 3]]),
    st.dictionaries(st.integers(0, MICRO_BATCHES - 1), st.sets(st.integers(0, LAYERS - 1)), max_size=4),
)
def test_a_part_of_a_step_and_the_rest_of_it_make_the_whole(schedule, ranks, part):
    crew = crew_of(ranks, stages=2, schedule=schedule)
    everything = set(range(LAYERS))
    rest = {m: everything - part.get(m, set()) for m in range(MICRO_BATCHES)}
    for missing in part, rest:
        crew.compute(retask(crew.plan, missing, COSTS))
    losses, sums = reference()
    assert crew.losses() == losses
    assert same_sums(crew.sums(), sums)
    recorded = sorted((m, n) for stage in crew.stages for m, layers in stage.gradients.layers.items() for n in layers)
    assert recorded == [(m, n) for m in range(MICRO_BATCHES) for n in range(LAYERS)]


def test_a_member_alone_computes_its_list_as_it_stands():
    crew = crew_of([0], schedule=Schedule.SPLIT)
    crew.compute(crew.plan.tasks)
    assert crew.spans == [listed(ops) for ops in crew.operations(crew.plan.tasks)]


@pytest.mark.parametrize("schedule", [Schedule.GPIPE, Schedule.ONE_F_ONE_B, Schedule.SPLIT])
def test_gradients_of_weights_fill_the_time_of_waiting(schedule):
    """Nothing has arrived when a member gets to a message: what was put off is computed first."""
    crew = crew_of(range(3), stages=3, schedule=schedule)
    crew.compute(crew.plan.tasks)
    orders = [listed(ops) for ops in crew.operations(crew.plan.tasks)]
    pulled = 0
    for found, order in zip(crew.spans, orders, strict=True):
        assert sorted(found) == sorted(order)
        of_inputs = [word for word in order if word[0] != "W"]
        assert [word for word in found if word[0] != "W"] == of_inputs
        weights = [word[1:] for word in found if word[0] == "W"]
        assert weights == [word[1:] for word in of_inputs if word[0] == "I"]
        pulled += any(found.index(word) < order.index(word) for word in found if word[0] == "W")
    assert (pulled > 0) == (schedule is Schedule.SPLIT)
    assert same_sums(crew.sums(), reference()[1])


def test_for_what_has_arrived_nothing_is_pulled_forward():
    """The first member only sends, and runs before the second."""
    crew = crew_of(range(2), stages=2, schedule=Schedule.SPLIT)
    tasks = retask(crew.plan, {m: [LAYERS - 1] for m in range(MICRO_BATCHES)}, COSTS)
    crew.compute(tasks)
    assert crew.spans == [listed(ops) for ops in crew.operations(tasks)]
    assert [word[0] for word in crew.spans[0]] == ["F"] * MICRO_BATCHES
    assert crew.spans[1].count(crew.spans[1][0].replace("F", "W")) == 1


def test_every_member_looks_up_after_every_operation():
    crew, seen = crew_of(range(2), stages=2), [0, 0]

    def look_up(member: int, group: FakeGroup) -> None:
        seen[member] += 1
        group.network.progress()

    crew.compute(crew.plan.tasks, look_up=look_up)
    assert all(count >= len(spans) for count, spans in zip(seen, crew.spans, strict=True))


def test_after_a_loss_sums_and_records_hold_what_was_completed():
    crew = crew_of(range(2), stages=2)

    def look_up(member: int, group: FakeGroup) -> None:
        group.network.progress()
        if member == 1 and len(crew.spans[1]) == 8:
            group.network.lost = {1}
            raise PeerLost(2)

    with pytest.raises(PeerLost):
        crew.compute(crew.plan.tasks, look_up=look_up)
    partial = [{m: sorted(layers) for m, layers in stage.gradients.layers.items()} for stage in crew.stages]
    assert partial[1]
    assert len(partial[1]) < MICRO_BATCHES
    assert set(crew.stages[1].gradients.losses) == set(partial[1])
    done = [
        {n for n in range(LAYERS) for stage in crew.stages if n in stage.gradients.layers.get(m, ())} for m in range(6)
    ]
    for stage in crew.stages:
        stage.drop_passes()
    crew.compute(retask(crew.plan, {m: set(range(LAYERS)) - layers for m, layers in enumerate(done)}, COSTS))
    assert crew.losses() == reference()[0]
    assert same_sums(crew.sums(), reference()[1])


def test_a_message_that_nobody_sends_is_not_waited_for_in_these_tests():
    crew = crew_of(range(2), stages=2)
    half = [crew.operations(crew.plan.tasks)[0], ()]
    crew.operations = lambda tasks: half  # type: ignore[method-assign]
    with pytest.raises(DeadlineExceeded):
        crew.compute(crew.plan.tasks)


def test_an_output_that_cannot_travel_is_refused_by_the_sender():
    crew = crew_of(range(2), stages=2)
    crew.stages[0]._modules[crew.plan.layers[0][-1]].forward = lambda parts: (parts[0].to(torch.complex64), parts[1])  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=r"complex64 of 3 dims.*cannot be of this kind"):
        crew.compute(crew.plan.tasks)
