"""The search for the primary: whom to ask, when to lead, when to give up."""

from elaswave.coordination.failover import SILENT_MAX, Dial, Failover, GiveUp, Promote
from elaswave.coordination.protocol import NodeEntry, Roster
from elaswave.coordination.timeouts import Timeouts
from elaswave.errors import AuthenticationError, Fenced, LaunchError, ProtocolError, RefusedError

TIMEOUTS = Timeouts(grace_s=1.0, suspicion_s=1.0, heartbeat_s=0.2, wait_for_workers_s=30)
A, B, C = ("h", 1), ("h", 2), ("h", 3)


def search(own=A, seeds=(A, B, C), seed_index=0, roster=None, node_id="a"):
    return Failover(
        now=0.0, node_id=node_id, own=own, seeds=seeds, seed_index=seed_index, timeouts=TIMEOUTS, roster=roster
    )


def roster(*nodes, primary="a"):
    entries = tuple(
        NodeEntry(node_id=name, host_id="h", pid=1, started_ticks=1, address=address, index=i)
        for i, (name, address) in enumerate(nodes)
    )
    return Roster(lineage="l", primary=primary, nodes=entries, claims=0, vacancies=(), term=0)


def run(failover, now, answers):
    """Play a round: `answers` says what each address does; returns the actions."""
    done = []
    while (action := failover.tick(now)) is not None:
        done.append(action)
        if not isinstance(action, Dial):
            break
        answer = answers.get(action.address, ConnectionRefusedError("refused"))
        if answer == "alive":
            failover.redirected(now, action.address, None)
        elif isinstance(answer, tuple):
            failover.redirected(now, action.address, answer)
        else:
            verdict = failover.failed(now, action.address, answer)
            if verdict is not None:
                return [*done, verdict]
    return done


def test_the_first_seed_leads_after_its_grace_although_others_live():
    failover = search()
    assert run(failover, 0.0, {B: "alive", C: "alive"}) == [Dial(B), Dial(C)]
    assert run(failover, 1.0, {B: "alive", C: "alive"})[-1] == Promote()


def test_a_later_seed_leads_only_when_the_earlier_ones_are_dead():
    failover = search(own=B, seed_index=1)
    assert Promote() not in run(failover, 5.0, {A: "alive"})
    assert run(failover, 10.0, {})[-1] == Promote()


def test_who_is_no_seed_never_starts_a_job_and_gives_up():
    failover = search(own=("h", 9), seed_index=None)
    assert Promote() not in run(failover, 20.0, {})
    error = run(failover, 31.0, {})[-1].error
    assert isinstance(error, LaunchError)
    assert "h:1: refused" in str(error)


def test_a_job_of_one_node_leads_at_once():
    failover = search(own=("h", 77), seeds=(("h", 0),), seed_index=0)
    assert run(failover, 0.0, {})[-1] == Promote()


def test_hints_are_followed():
    failover = search(own=("h", 9), seed_index=None)
    assert run(failover, 0.0, {A: ("h", 5)})[:2] == [Dial(A), Dial(("h", 5))]


def test_the_next_in_the_roster_leads_when_the_primary_is_dead():
    known = roster(("a", A), ("b", B), ("c", C))
    failover = search(own=B, seed_index=None, roster=known, node_id="b")
    failover.settled()
    failover.lost(5.0)
    assert run(failover, 5.0, {}) == [Dial(A), Promote()]


def test_a_dead_process_is_not_even_asked():
    known = roster(("a", A), ("b", B), ("c", C))
    failover = search(own=B, seed_index=None, roster=known, node_id="b")
    failover.settled()
    failover.node_gone("a")
    failover.lost(5.0)
    assert run(failover, 5.0, {}) == [Promote()]


def test_a_later_one_in_the_roster_waits_for_the_earlier_ones():
    known = roster(("a", A), ("b", B), ("c", C))
    failover = search(own=C, seed_index=None, roster=known, node_id="c")
    failover.settled()
    failover.lost(5.0)
    assert run(failover, 5.0, {B: "alive"}) == [Dial(A), Dial(B)]
    assert failover.tick(5.001) is None
    assert run(failover, 6.0, {}) == [Dial(A), Dial(B), Promote()]


def test_a_member_that_finds_nobody_is_fenced():
    known = roster(("a", A), ("b", B), ("c", C))
    failover = search(own=C, seed_index=None, roster=known, node_id="c")
    failover.settled()
    failover.lost(5.0)
    assert isinstance(run(failover, 60.0, {B: "alive"})[-1].error, Fenced)


def test_strangers_at_a_seed_end_the_search_before_the_job_only():
    for error, kind in ((ProtocolError("x"), LaunchError), (AuthenticationError("x"), AuthenticationError)):
        verdict = run(search(), 0.0, {B: error})[-1]
        assert isinstance(verdict, GiveUp)
        assert isinstance(verdict.error, kind)
        assert "h:2" in str(verdict.error)
        assert "--rdzv" in str(verdict.error)
    failover = search()
    failover.settled()
    failover.lost(5.0)
    assert not any(isinstance(a, GiveUp) for a in run(failover, 5.0, {B: ProtocolError("x")}))


def test_a_refusal_ends_the_search_always():
    failover = search()
    failover.settled()
    failover.lost(5.0)
    assert isinstance(run(failover, 5.0, {B: RefusedError("no")})[-1].error, RefusedError)


def test_whoever_stays_silent_is_named():
    failover = search(own=("h", 9), seeds=(A,), seed_index=None)
    for i in range(SILENT_MAX - 1):
        assert not any(isinstance(a, GiveUp) for a in run(failover, float(i), {A: TimeoutError("silent")}))
    assert "silent" in str(run(failover, 10.0, {A: TimeoutError("silent")})[-1].error)


def test_a_claim_is_followed_at_once():
    failover = search()
    run(failover, 0.0, {})
    failover.claimed(0.001, ("h", 8))
    assert failover.tick(0.001) == Dial(("h", 8))
