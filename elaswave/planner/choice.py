"""Who computes what: of several ways to divide the work, the one with which a step ends first."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import accumulate, pairwise

from elaswave.config import Parallelism, Schedule
from elaswave.planner.dataflow import Legs, Way, assign, route, way_through
from elaswave.planner.graph import cut, fluid
from elaswave.planner.plan import Task
from elaswave.planner.teams import Groups, apart, counts, deal, regrouped, together
from elaswave.planner.timetable import finish

Cuts = Sequence[Sequence[int]]
"""Per micro-batch the bounds of its chunks of layers."""


class Kind(IntEnum):
    """How the layers of a team are cut.

    Into whole layers by the members of stages; the same, but of equally good cuts the one with least in late stages;
    into fractions of layers; and equally for all stages, whatever their members.
    """

    WHOLE = 0
    EARLY = 1
    FLUID = 2
    EQUAL = 3


LEGS_SIMULATED_MAX = 4096
"""Larger steps are not simulated to compare plans: a lower bound of their time must do."""
GOOD_ENOUGH = 1.01
"""A plan this close to the best that any could be ends the search."""
WORTH_MOVING = 0.995
"""Workers change their replica only for a step that ends before this share of the time."""
WORTH_TRYING = 1.25
"""In steps of more than `LEGS_FEW`, one team of all is tried only where teams are further than this from the best."""
LEGS_FEW = 384
LEGS_VERY_FEW = 64
ROUNDS_MAX = 2
"""How often micro-batches are shared out anew among teams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Division:
    """What a step consists of, and who does it.

    Attributes:
        teams: per team its members at each stage.
        held: per team and stage the layers that its members hold.
        tasks: of the step.
    """

    teams: tuple[Groups, ...]
    held: tuple[Groups, ...]
    tasks: tuple[Task, ...]


def divide(parallel: Parallelism, costs: Sequence[float], ranks: Sequence[int], num_micro_batches: int) -> Division:
    """Choose the teams, their micro-batches and their cuts.

    Args:
        parallel: number of stages, schedule, and whether cuts may differ.
        costs: of each layer.
        ranks: of the members, ascending.
        num_micro_batches: of a step.
    """
    chooser = _Chooser(parallel, costs, num_micro_batches)
    whole = together(ranks, parallel.stages)
    if not parallel.fluid:
        return chooser.division(whole, (num_micro_batches,))
    teams = apart(ranks, parallel.stages)
    shares, end = chooser.shares(teams)
    for others in regrouped(ranks, parallel.stages):
        if end > chooser.ideal(len(ranks)) * GOOD_ENOUGH and chooser.least(others) < end * WORTH_MOVING:
            other_shares, other_end = chooser.shares(others)
            if other_end < end * WORTH_MOVING:
                teams, shares, end = others, other_shares, other_end
    if end > chooser.ideal(len(ranks)) * GOOD_ENOUGH and len(teams) > 1 and chooser.better(whole[0], end):
        return chooser.division(whole, (num_micro_batches,))
    return chooser.division(teams, shares)


class _Shape:
    """A team without names: how many members it has at each of its stages, and how many micro-batches it gets.

    Attributes:
        pace: time of a micro-batch, if everyone is busy.
        least: the step does not end before.
        legs: how much there is to simulate.
    """

    def __init__(self, sizes: tuple[int, ...], count: int, parallel: Parallelism, costs: Sequence[float]) -> None:
        self._parallel, self._costs = parallel, costs
        self.pace = 3 * sum(costs) / sum(sizes)
        names = iter(range(sum(sizes)))
        self._stages: Groups = tuple(tuple(next(names) for _ in range(number)) for number in sizes)
        found: list[tuple[float, Kind, Cuts, tuple[Task, ...]]] = []
        for kind in _kinds(sizes, count) if parallel.fluid else (Kind.WHOLE,):
            cuts = cuts_of(sizes, count, parallel, costs, kind)
            if not _filled(cuts, sizes) or any(cuts == known for _, _, known, _ in found):
                continue
            tasks = route(cuts[:count], self._stages, costs)
            found.append((_least(tasks, sum(sizes), costs, parallel.schedule), kind, cuts, tasks))
        self._options = sorted(found, key=lambda option: (option[0], option[1]))
        self.least = self._options[0][0]
        self.legs = sum(len(task.legs) for _, _, _, tasks in found for task in tasks)

    @property
    def only(self) -> bool:
        """There is no choice."""
        return len(self._options) == 1

    @cached_property
    def best(self) -> tuple[float, Kind]:
        """When the team ends, and how it is cut; found by simulation."""
        best = (float("inf"), Kind.WHOLE)
        for least, kind, _, tasks in self._options:
            if least < best[0]:
                parallel = self._parallel
                end = finish(tasks, self._stages, self._costs, parallel.schedule, parallel.virtual_stages)
                best = min(best, (end, kind))
        return best

    @property
    def guess(self) -> tuple[float, Kind]:
        """The same without a simulation."""
        return self.least, self._options[0][1]


class _Chooser:
    """Knows the time of every shape of team that it was asked for."""

    def __init__(self, parallel: Parallelism, costs: Sequence[float], num_micro_batches: int) -> None:
        self._parallel, self._costs, self._num_micro_batches = parallel, costs, num_micro_batches
        self._shapes: dict[tuple[tuple[int, ...], int], _Shape] = {}
        self._times: dict[tuple[tuple[int, ...], int], tuple[float, Kind]] = {}
        self._simulated = 0

    def ideal(self, num_members: int) -> float:
        """The time of a step in which everyone is busy but for filling and draining the pipeline."""
        total, depth = sum(self._costs), self._parallel.stages * self._parallel.virtual_stages
        turns = 1 if self._parallel.schedule is Schedule.SPLIT else 3
        return 3 * total * self._num_micro_batches / num_members + turns * total * (depth - 1) / depth**2

    def shares(self, teams: Sequence[Groups]) -> tuple[tuple[int, ...], float]:
        """Micro-batches of each team, and when the last one ends.

        First in proportion to members; then each team has shown how long it takes beside, to fill and to drain.
        """
        sizes = [_sizes(team) for team in teams]
        paces = [3 * sum(self._costs) / sum(each) for each in sizes]
        shares = counts(self._num_micro_batches, paces, [0.0] * len(teams))
        best = (shares, self._end(sizes, shares))
        for _ in range(ROUNDS_MAX):
            if best[1] <= self.ideal(sum(map(sum, sizes))) * GOOD_ENOUGH:
                break
            ends = [self._time(each, count)[0] for each, count in zip(sizes, shares, strict=True)]
            starts = [end - pace * count for end, pace, count in zip(ends, paces, shares, strict=True)]
            shares = counts(self._num_micro_batches, paces, starts)
            end = self._end(sizes, shares)
            if end >= best[1]:
                break
            best = (shares, end)
        return best

    def least(self, teams: Sequence[Groups]) -> float:
        """No step with these teams ends before."""
        sizes = [_sizes(team) for team in teams]
        paces = [3 * sum(self._costs) / sum(each) for each in sizes]
        shares = counts(self._num_micro_batches, paces, [0.0] * len(teams))
        return max(share * pace for share, pace in zip(shares, paces, strict=True))

    def better(self, team: Groups, end: float) -> bool:
        """Whether one team of all ends before; a step that is too long to be simulated is not cut that way."""
        sizes = _sizes(team)
        many = self._num_micro_batches * len(sizes) > LEGS_FEW
        if many and end <= self.ideal(sum(sizes)) * WORTH_TRYING:
            return False
        shape = self._shape(sizes, self._num_micro_batches)
        return shape.least < end and self._fits(shape) and shape.best[0] < end

    def division(self, teams: tuple[Groups, ...], shares: Sequence[int]) -> Division:
        """The whole division for these teams."""
        mine: list[list[int]] = [[] for _ in teams]
        for micro_batch, team in enumerate(deal([1.0] * self._num_micro_batches, shares)):
            mine[team].append(micro_batch)
        whole = ((0, len(self._costs)),)
        known: Legs = {}
        tasks: list[Task] = []
        layers: list[Groups] = []
        cut_before: dict[tuple[tuple[int, ...], int], tuple[list[Way], Groups]] = {}
        for team, ids in zip(teams, mine, strict=True):
            key = (tuple(map(len, team)), len(ids))
            if key not in cut_before:
                shape = self._shape(_sizes(team), len(ids))
                kind = Kind.WHOLE if shape.only else self._time(_sizes(team), len(ids))[1]
                cuts = cuts_of(key[0], len(ids), self._parallel, self._costs, kind)
                cut_before[key] = ([way_through(bounds, len(team)) for bounds in cuts], held(cuts, len(team)))
            ways, mine_held = cut_before[key]
            tasks += assign(
                ((i, way, whole) for i, way in zip(ids, ways, strict=False)), team, self._costs, known=known
            )
            layers.append(mine_held)
        tasks.sort(key=lambda task: task.micro_batch)
        return Division(teams=teams, held=tuple(layers), tasks=tuple(tasks))

    def _end(self, sizes: Sequence[tuple[int, ...]], shares: Sequence[int]) -> float:
        return max(self._time(each, count)[0] for each, count in set(zip(sizes, shares, strict=True)))

    def _shape(self, sizes: tuple[int, ...], count: int) -> _Shape:
        if (sizes, count) not in self._shapes:
            self._shapes[sizes, count] = _Shape(sizes, count, self._parallel, self._costs)
        return self._shapes[sizes, count]

    def _time(self, sizes: tuple[int, ...], count: int) -> tuple[float, Kind]:
        """When such a team ends, and how it is cut."""
        key = (sizes, count)
        if key not in self._times:
            shape = self._shape(sizes, count)
            self._times[key] = shape.best if self._fits(shape) else shape.guess
        return self._times[key]

    def _fits(self, shape: _Shape) -> bool:
        """Whether there is time to simulate one more."""
        self._simulated += shape.legs
        return self._simulated <= LEGS_SIMULATED_MAX


def cuts_of(sizes: Sequence[int], count: int, parallel: Parallelism, costs: Sequence[float], kind: Kind) -> Cuts:
    """The cuts of each of a team's micro-batches, one at least."""
    if kind is Kind.FLUID:
        return fluid(costs, [*sizes] * parallel.virtual_stages, count)
    if kind is Kind.EARLY:
        mirrored = cut(costs[::-1], [*sizes[::-1]] * parallel.virtual_stages)
        return (tuple(len(costs) - bound for bound in reversed(mirrored)),) * count
    capacities = [*sizes] if kind is Kind.WHOLE else [min(number, 1) for number in sizes]
    return (cut(costs, capacities * parallel.virtual_stages),) * max(count, 1)


def _kinds(sizes: Sequence[int], count: int) -> list[Kind]:
    """The kinds of cuts worth a look; early ones matter where filling and draining take much of a step."""
    kinds = [Kind.WHOLE]
    if 0 < count * len(sizes) <= LEGS_VERY_FEW:
        kinds.append(Kind.EARLY)
    if count:
        kinds.append(Kind.FLUID)
    if count and len(set(sizes)) > 1:
        kinds.append(Kind.EQUAL)
    return kinds


def _sizes(team: Groups) -> tuple[int, ...]:
    """Members at each stage that has any: it takes as long without the others."""
    return tuple(len(members) for members in team if members)


def _filled(cuts: Cuts, sizes: Sequence[int]) -> bool:
    """No stage is without layers, as one may be whose share is less than one."""
    return all(bool(layers) == bool(number) for layers, number in zip(held(cuts, len(sizes)), sizes, strict=True))


def held(cuts: Cuts, num_stages: int) -> Groups:
    """The layers that each stage computes of any micro-batch."""
    found: list[set[int]] = [set() for _ in range(num_stages)]
    for bounds in set(map(tuple, cuts)):
        for chunk, (start, stop) in enumerate(pairwise(bounds)):
            found[chunk % num_stages].update(range(start, stop))
    return tuple(tuple(sorted(layers)) for layers in found)


def _least(tasks: Sequence[Task], members: int, costs: Sequence[float], schedule: Schedule) -> float:
    """No step of these tasks ends before: the first activations reach a member, it does its work, the rest drains."""
    total = list(accumulate(costs, initial=0.0))
    loads, first, rest = [0.0] * members, [float("inf")] * members, [float("inf")] * members
    back = 0 if schedule is Schedule.SPLIT else 2
    for task in tasks:
        for leg in task.legs:
            loads[leg.member] += 3 * (total[leg.stop] - total[leg.start])
            first[leg.member] = min(first[leg.member], total[leg.start])
            rest[leg.member] = min(rest[leg.member], back * total[leg.start])
    busy = [begin + load + end for begin, load, end in zip(first, loads, rest, strict=True) if load]
    return max([*busy, 3 * total[-1] if tasks else 0.0])
