"""Scenarios are checked when read, and every fault strikes once."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from elaswave.clock import Deadline
from elaswave.errors import ConfigError
from elaswave.events import Kind, Recorder
from elaswave.faults.claims import claim
from elaswave.faults.nemesis import Nemesis
from elaswave.faults.probe import let_go, make_probe
from elaswave.faults.scenario import Fault, Scenario, What, load
from elaswave.runtime.job import Job
from elaswave.runtime.marker import mark_begun


class Memory:
    def __init__(self) -> None:
        self.events: list[dict] = []

    def emit(self, event: dict) -> None:
        self.events.append(dict(event))

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "fault"),
        ("[[fault]]\nranks=[]\nstep=1", "ranks"),
        ("[[fault]]\nranks=[1]\nstep=1\nphase='lunch'", "use one of"),
        ("[[fault]]\nranks=[1]\nstep=1\nwhen=3", "when"),
        ("[[fault]]\nranks=[1]\nstep=1\nwhat='error'", "name a phase"),
        ("[[fault]]\nranks=[1]\nstep=1\nwhat='flip'", "name a phase"),
        ("[[fault]]\nranks=[1]\nstep=1\nnth=2", "name a phase"),
        ("[[fault]]\nranks=[1]\nstep=1\ntarget='copy'", "goes with what"),
        ("[[fault]]\nranks=[1]\nstep=1\nphase='vote'\nwhat='flip'\nshard=1", "goes with target"),
        ("[[fault]]\nranks=[1]\nstep=1\nphase='vote'\nwhat='flip'\ntarget='disk'", "shard"),
        ("[[fault]]\nranks=[1]\nstep=5\nspare_by=4", "not before"),
        ("[[fault]]\nranks=[1]\nstep=1\nspare_by=4\nphase='vote'", "no phase"),
        ("[[fault]]\nranks=[1]\nstep=1\nwhat='hold'", "name a phase"),
        ("[[fault]]\nranks=[1]\nstep=5\nuntil=4\nphase='vote'", "not before"),
        ("[[fault]]\nranks=[1]\nstep=5\nuntil=6", "a phase"),
        ("[[fault]]\nranks=[1]\nstep=5\nphase='vote'\nnewcomer=true", "recovery"),
        ("[[fault", "TOML"),
    ],
)
def test_bad_scenarios(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        load(path)


JOB = cast(Job, None)
"""Only flips look at it."""


def test_a_claim_is_granted_once(tmp_path: Path) -> None:
    assert claim(tmp_path, 0, 1)
    assert not claim(tmp_path, 0, 1)
    assert claim(tmp_path, 0, 2)


def test_probe_strikes_at_its_point_only_once(tmp_path: Path) -> None:
    memory = Memory()
    fault = Fault(what=What.ERROR, ranks=(1,), step=3, phase="backward")
    probe = make_probe(Scenario(fault=(fault,)), tmp_path, lambda: 1, Recorder((memory,)))
    probe(2, "backward", JOB)
    probe(3, "forward", JOB)
    with pytest.raises(RuntimeError, match="injected"):
        probe(3, "backward", JOB)
    probe(3, "backward", JOB)
    assert [event["kind"] for event in memory.events] == [Kind.FAULT]


def test_a_fault_has_a_last_step(tmp_path: Path) -> None:
    fault = Fault(what=What.ERROR, ranks=(1,), step=3, until=4, phase="backward")
    late = make_probe(Scenario(fault=(fault,)), tmp_path, lambda: 1, Recorder())
    late(5, "backward", JOB)
    with pytest.raises(RuntimeError, match="injected"):
        late(4, "backward", JOB)


def test_a_newcomer_is_hurt_before_it_has_a_step(tmp_path: Path) -> None:
    fault = Fault(what=What.ERROR, ranks=(1,), step=7, phase="restore", newcomer=True)
    scenario = Scenario(fault=(fault,))
    first = make_probe(scenario, tmp_path, lambda: 1, Recorder())
    mark_begun(tmp_path)
    for step in (1, 7, 8):
        first(step, "restore", JOB)
    late = make_probe(scenario, tmp_path, lambda: 1, Recorder())
    late(8, "restore", JOB)
    with pytest.raises(RuntimeError, match="injected"):
        late(1, "restore", JOB)


def test_who_is_held_goes_on_when_let_go(tmp_path: Path) -> None:
    memory = Memory()
    fault = Fault(what=What.HOLD, ranks=(1,), step=3, phase="backward")
    probe = make_probe(Scenario(fault=(fault,)), tmp_path, lambda: 1, Recorder((memory,)))
    held = threading.Thread(target=probe, args=(3, "backward", JOB))
    held.start()
    deadline = Deadline(20.0)
    while not memory.events:
        assert not deadline.passed()
    assert held.is_alive()
    let_go(tmp_path, 0)
    held.join(20.0)
    assert not held.is_alive()


@pytest.fixture
def victim() -> Iterator[int]:
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    yield child
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def committed(step: int) -> dict[str, object]:
    return {"kind": Kind.STEP_COMMITTED, "step": step}


def test_nemesis_signals_the_process_that_holds_the_rank(tmp_path: Path, victim: int) -> None:
    memory = Memory()
    nemesis = Nemesis(Scenario(fault=(Fault(ranks=(1,), step=3),)), tmp_path, Recorder((memory,)))
    nemesis.observe([{"kind": Kind.JOINED, "rank": 1, "pid": victim}, committed(1)])
    assert memory.events == []
    nemesis.observe([committed(2)])
    assert os.WTERMSIG(os.waitpid(victim, 0)[1]) == signal.SIGKILL
    assert memory.events[0]["target_pid"] == victim


@pytest.mark.parametrize(("events", "strikes"), [([], 8), ([{"kind": Kind.SPARE, "what": "ready"}], 3)])
def test_nemesis_waits_for_a_spare_but_not_forever(
    tmp_path: Path, victim: int, events: list[dict[str, object]], strikes: int
) -> None:
    memory = Memory()
    nemesis = Nemesis(Scenario(fault=(Fault(ranks=(1,), step=3, spare_by=8),)), tmp_path, Recorder((memory,)))
    nemesis.observe([{"kind": Kind.JOINED, "rank": 1, "pid": victim}, committed(2)])
    assert memory.events == []
    nemesis.observe(events)
    for step in range(3, 10):
        nemesis.observe([committed(step)])
    assert [event["step"] for event in memory.events] == [strikes]
