"""The next view as a pure function: ranks, reasons, quorum, pauses, and deltas that equal the whole."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elaswave.coordination.delta import apply_delta, delta_between
from elaswave.coordination.detector import Standing
from elaswave.coordination.membership import (
    NodeState,
    Quorum,
    State,
    Status,
    changes,
    decide_split,
    quorum,
    view_compute,
)
from elaswave.coordination.protocol import Fate, Vacancy, ViewDelta, WorkerRecord
from elaswave.errors import ProtocolError
from elaswave.topology import Member, View


def record(worker_id, local_rank=0, *, replaces="", member=False):
    return WorkerRecord(
        worker_id=worker_id,
        pid=1,
        local_rank=local_rank,
        address={},
        config_digest="c",
        versions={},
        replaces=replaces,
        member=member,
    )


def node(name, workers=(), *, index=0, standing=Standing.LIVE, expected=None, fates=None):
    return NodeState(
        node_id=name,
        host_id=name,
        index=index,
        standing=standing,
        expected_workers=len(workers) if expected is None else expected,
        workers=tuple(
            record(w, i, member=w.startswith("m")) if isinstance(w, str) else w for i, w in enumerate(workers)
        ),
        fates=fates or {},
    )


def member(rank, worker_id, node_id="a"):
    return Member(rank=rank, worker_id=worker_id, node_id=node_id, host_id=node_id, pid=1)


def view(*members, **fields):
    return View(epoch=5, members=members, reason="", **fields)


def state(old, *nodes, **fields):
    return State(view=old, nodes={n.node_id: n for n in nodes}, next_epoch=6, **fields)


def test_forming_orders_by_node_and_local_rank():
    new, reason = view_compute(0, state(None, node("b", ["x", "y"], index=1), node("a", ["z"], index=0)))
    assert [m.worker_id for m in new.members] == ["z", "x", "y"]
    assert reason == "formed with 3 workers on 2 nodes"


@pytest.mark.parametrize(
    ("nodes", "min_nodes", "expected"),
    [
        ([node("a", ["x"])], 2, "1 of 2 nodes"),
        ([node("a", ["x"], expected=2)], 1, "node a: 1 of 2"),
        ([node("a", [], expected=0)], 1, "0 of 1 nodes"),
        ([node("a", ["x"]), node("b", [], index=1, expected=1)], 1, "node b: 0 of 1"),
    ],
)
def test_forming_says_what_is_missing(nodes, min_nodes, expected):
    new, reason = view_compute(0, state(None, *nodes, min_nodes=min_nodes))
    assert new is None
    assert expected in reason


def test_losses_wait_for_each_other_and_joins_longer():
    old = view(member(0, "m0"), member(1, "m1"))
    lost = state(old, node("a", ["m0"]), loss_due=1.0, join_due=9.0)
    assert view_compute(0.9, lost)[0] is None
    assert view_compute(1.0, lost)[0].ranks() == (0,)
    joined = state(old, node("a", ["m0", "m1", "x"]), loss_due=1.0, join_due=9.0)
    assert view_compute(8.9, joined)[0] is None
    assert view_compute(9.0, joined)[0].ranks() == (0, 1, 2)


def test_a_worker_its_node_no_longer_lists_is_lost():
    old = view(member(0, "m0"), member(1, "m1"))
    found = changes(state(old, node("a", ["m1"])))
    assert found.statuses == {"m0": Status.LOST, "m1": Status.ALIVE}


@pytest.mark.parametrize(
    ("standing", "expected"),
    [
        (Standing.GONE, Status.LOST),
        (Standing.UNKNOWN, Status.UNKNOWN),
        (Standing.PENDING, Status.ALIVE),
        (Standing.LIVE, Status.ALIVE),
    ],
)
def test_the_standing_of_a_node_decides_over_its_workers(standing, expected):
    found = changes(state(view(member(0, "m0")), node("a", ["m0"], standing=standing)))
    assert found.statuses == {"m0": expected}


@pytest.mark.parametrize("standing", list(Standing))
def test_a_fate_that_the_node_has_reported_stands(standing):
    found = changes(state(view(member(0, "m0")), node("a", [], standing=standing, fates={"m0": Fate.DEPARTED})))
    assert found.statuses == {"m0": Status.DEPARTED}


def test_members_that_were_dropped_do_not_come_back():
    old = view(member(0, "m0"))
    assert view_compute(0, state(old, node("a", ["m0", "m1"])))[0] is None


def test_departed_and_finished_are_no_losses():
    old = view(member(0, "m0"), member(1, "m1"), member(2, "m2"))
    new, _ = view_compute(
        0, state(old, node("a", ["m2"], fates={"m0": Fate.DEPARTED, "m1": Fate.FINISHED}), min_workers=3)
    )
    assert new.departed == {"m0", "m1"}
    assert new.finished
    assert not new.paused


def test_nobody_joins_a_finished_job():
    old = view(member(0, "m0"), finished=True)
    assert view_compute(0, state(old, node("a", ["m0", "x"])))[0] is None


def ranks_of_joiners(joiners, vacancies, staying=()):
    old = view(*staying)
    nodes = {}
    for worker, owner in joiners:
        nodes.setdefault(owner, []).append(worker)
    for m in staying:
        nodes.setdefault(m.node_id, []).append(record(m.worker_id, member=True))
    found = [node(name, workers, index=i) for i, (name, workers) in enumerate(sorted(nodes.items()))]
    new, _ = view_compute(0, state(old, *found, vacancies=vacancies))
    return {m.worker_id: m.rank for m in new.members if m.worker_id not in {s.worker_id for s in staying}}


def free(*ranks):
    return tuple(Vacancy(rank=rank, worker_id=worker, node_id=owner) for rank, worker, owner in ranks)


def test_a_successor_takes_its_predecessors_rank_first():
    vacancies = free((1, "d1", "a"), (2, "d2", "a"))
    joiners = [(record("x"), "a"), (record("y", 1, replaces="d1"), "a")]
    assert ranks_of_joiners(joiners, vacancies, [member(0, "m0")]) == {"y": 1, "x": 2}


def test_a_newcomer_prefers_ranks_of_its_own_node_then_the_lowest_then_a_new_one():
    vacancies = free((1, "d1", "b"), (2, "d2", "a"))
    joiners = [(record("x"), "a"), (record("y", 1), "a"), (record("z", 2), "a")]
    assert ranks_of_joiners(joiners, vacancies, [member(0, "m0"), member(3, "m3")]) == {"x": 2, "y": 1, "z": 4}


def found_with(alive, lost, unknown):
    statuses = [Status.ALIVE] * alive + [Status.LOST] * lost + [Status.UNKNOWN] * unknown
    return changes(state(view())).__class__(statuses={str(i): s for i, s in enumerate(statuses)}, joiners=())


@pytest.mark.parametrize(
    ("alive", "lost", "unknown", "expected"),
    [
        (3, 0, 0, Quorum.GO),
        (1, 5, 0, Quorum.GO),
        (0, 5, 0, Quorum.GO),
        (2, 0, 1, Quorum.GO),
        (2, 4, 2, Quorum.WITNESS),
        (1, 9, 2, Quorum.STOP),
        (0, 0, 1, Quorum.STOP),
    ],
)
def test_known_deaths_do_not_count(alive, lost, unknown, expected):
    assert quorum(found_with(alive, lost, unknown)) is expected


@pytest.mark.parametrize(
    ("alive", "unknown", "witness", "goes", "took"),
    [
        (2, 0, False, True, False),
        (3, 1, None, True, False),
        (3, 1, True, True, True),
        (3, 1, False, False, False),
        (2, 2, True, True, True),
        (2, 2, None, False, False),
        (2, 2, False, False, False),
        (1, 2, True, False, False),
    ],
)
def test_a_split_job_goes_on_once(alive, unknown, witness, goes, took):
    split = decide_split(found_with(alive, 0, unknown), lambda: witness)
    assert (split.refusal is None) is goes
    assert split.took_witness is took


# -- properties ------------------------------------------------------------------------------------------------

ids = st.sampled_from([f"{i:012x}" for i in range(12)])


@st.composite
def views(draw, epoch):
    workers = draw(st.lists(ids, unique=True, max_size=8))
    ranks = draw(st.lists(st.integers(0, 20), unique=True, min_size=len(workers), max_size=len(workers)))
    members = sorted(
        (member(rank, worker, draw(st.sampled_from(["a", "b"]))) for rank, worker in zip(ranks, workers, strict=True)),
        key=lambda m: m.rank,
    )
    return View(
        epoch=epoch,
        members=tuple(members),
        reason=draw(st.text(max_size=5)),
        departed=frozenset(draw(st.lists(ids, max_size=4))),
        paused=draw(st.booleans()),
        finished=draw(st.booleans()),
        term=draw(st.integers(0, 3)),
    )


@given(old=views(epoch=3), new=views(epoch=9))
def test_a_delta_applied_is_the_new_view(old, new):
    new = replace(new, departed=new.departed | old.departed)
    assert apply_delta(old, delta_between(old, new)) == new


def test_a_delta_that_does_not_fit_is_refused():
    delta = ViewDelta(
        base_epoch=4, epoch=6, gone=(), new=(), departed=frozenset(), reason="", paused=False, finished=False, term=0
    )
    with pytest.raises(ProtocolError, match="does not fit view 5"):
        apply_delta(view(), delta)


@given(
    lost=st.sets(st.integers(0, 5)),
    joined=st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), max_size=6),
    vacant=st.sets(st.integers(0, 8)),
)
def test_any_change_leaves_one_worker_per_rank_and_nobody_dead(lost, joined, vacant):
    old = view(*(member(rank, f"m{rank}", "ab"[rank % 2]) for rank in range(6)))
    vacancies = free(*((rank, f"d{rank}", "a") for rank in vacant - set(range(6))))
    workers = {"a": [], "b": []}
    for m in old.members:
        if m.rank not in lost:
            workers[m.node_id].append(record(m.worker_id, m.rank, member=True))
    for i, (owner, replaces) in enumerate(joined):
        workers[owner].append(record(f"j{i}", i, replaces=f"m{i}" if replaces else ""))
    nodes = [node(name, found, index=i) for i, (name, found) in enumerate(workers.items())]
    new, _ = view_compute(0, state(old, *nodes, vacancies=vacancies))
    if not lost and not joined:
        assert new is None
        return
    assert len(set(new.ranks())) == len(new.ranks())
    assert list(new.ranks()) == sorted(new.ranks())
    assert set(new.worker_ids()) == {w.worker_id for found in workers.values() for w in found}
    for m in old.members:
        if m.rank not in lost:
            assert new.rank_of(m.worker_id) == m.rank
