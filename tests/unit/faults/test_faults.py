"""Scenarios are checked when read, and every fault strikes once."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from elaswave.errors import ConfigError
from elaswave.events import Kind, Recorder
from elaswave.faults.claims import claim
from elaswave.faults.nemesis import Nemesis
from elaswave.faults.probe import make_probe
from elaswave.faults.scenario import Fault, Scenario, What, load
from elaswave.runtime.job import Job


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
        ("[[fault", "TOML"),
    ],
)
def test_bad_scenarios(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        load(path)


def test_a_claim_is_granted_once(tmp_path: Path) -> None:
    assert claim(tmp_path, 0, 1)
    assert not claim(tmp_path, 0, 1)
    assert claim(tmp_path, 0, 2)


def test_probe_strikes_at_its_point_only_once(tmp_path: Path) -> None:
    job = cast(Job, None)  # only flips look at it
    memory = Memory()
    fault = Fault(what=What.ERROR, ranks=(1,), step=3, phase="backward")
    probe = make_probe(Scenario(fault=(fault,)), tmp_path, lambda: 1, Recorder((memory,)))
    probe(2, "backward", job)
    probe(3, "forward", job)
    with pytest.raises(RuntimeError, match="injected"):
        probe(3, "backward", job)
    probe(3, "backward", job)
    assert [event["kind"] for event in memory.events] == [Kind.FAULT]


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
