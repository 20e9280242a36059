"""`elaswave launch` and `elaswave demo` with the real trainer: the same bits through a kill, and nothing left behind,
however they end."""

import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.terminal import CTRL_C, HIDES_CURSOR, SHOWS_CURSOR, Terminal
from support.torchrun_job import CONFIG, LOOK_S, ROOT, TrainJob, processes_of

from elaswave.clock import Deadline

pytestmark = pytest.mark.timeout(240)
ELASWAVE = [sys.executable, "-m", "elaswave.cli.main"]
TIMEOUT_S = 90.0
DEMO_FAULTS = """
[[fault]]
ranks = [2]
step = 12
spare_by = 5000
"""


def test_launch_goes_on_through_a_kill(job: TrainJob, unharmed: dict[int, str]):
    command = job.start(
        [*ELASWAVE, "launch", str(job.config), "--workers", "3", "--agents", "2", "--elasticity.spares=0"]
    )
    pids = job.wait_size(3)
    job.wait_running(1, 3)
    since = job.poll()
    os.kill(pids[1], signal.SIGKILL)
    job.wait_members([pids[0], pids[2]], since)
    again = job.wait_size(3, since)
    assert [again[0], again[2]] == [pids[0], pids[2]]
    job.finish(unharmed, [0])
    shown = job.output(command)
    assert "after the loss of rank 1" in shown
    assert "\x1b" not in shown, "plain lines where there is no terminal"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a demo of tiny steps."""
    (tmp_path / "configs/train").mkdir(parents=True)
    (tmp_path / "configs/faults").mkdir()
    (tmp_path / "configs/train/gpt_tiny.toml").write_text(CONFIG)
    (tmp_path / "configs/faults/demo.toml").write_text(DEMO_FAULTS)
    return tmp_path


class Session:
    """Commands on terminals in one folder; afterwards nothing of them may be left."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.hurry = place / "hurry"
        self._terminals: list[Terminal] = []

    def run(self, *words: str, size: tuple[int, int] = (40, 100)) -> Terminal:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ELASWAVE_", "PET_"))}
        environment |= {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "PACED_UNTIL": str(self.hurry),
            "MARK": str(self.place),
        }
        terminal = Terminal([*ELASWAVE, *words], cwd=self.place, env=environment, size=size)
        self._terminals.append(terminal)
        return terminal

    def left_over(self) -> dict[int, str]:
        deadline = Deadline(10.0)
        while (found := processes_of(str(self.place))) and not deadline.passed():
            select.select([], [], [], LOOK_S)
        return found

    def close(self) -> None:
        for terminal in self._terminals:
            terminal.close()


@pytest.fixture
def session(place: Path) -> Iterator[Session]:
    one = Session(place)
    yield one
    one.close()
    assert not one.left_over()


def check_interrupted(session: Session, terminal: Terminal) -> None:
    """The end that a person expects of Ctrl-C."""
    assert terminal.wait_end(TIMEOUT_S) == 128 + signal.SIGINT, terminal.text
    assert "Traceback" not in terminal.text
    assert terminal.raw.rfind(SHOWS_CURSOR) >= terminal.raw.rfind(HIDES_CURSOR)
    assert not session.left_over()
    assert not [path for path in Path("/dev/shm").iterdir() if "elaswave" in path.name]


COMMANDS = {"launch": ["launch", "configs/train/gpt_tiny.toml", "--workers", "3"], "demo": ["demo", "--workers", "3"]}


MOMENTS = {"import": "starting 3 workers", "formation": "view 1: 3 workers", "training": r"step \d\d/"}


@pytest.mark.parametrize("shown", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_ctrl_c_at_any_time_leaves_nothing_behind(session: Session, command: Sequence[str], shown: str):
    terminal = session.run(*command)
    terminal.wait_text(shown, TIMEOUT_S)
    terminal.type(CTRL_C)
    check_interrupted(session, terminal)


def test_a_second_ctrl_c_ends_at_once(session: Session):
    terminal = session.run(*COMMANDS["launch"], "--elasticity.leave_timeout_s=60")
    terminal.wait_text(r"step \d\d/", TIMEOUT_S)
    terminal.type(CTRL_C)
    terminal.wait_text("once more to stop at once", TIMEOUT_S)
    terminal.type(CTRL_C)
    check_interrupted(session, terminal)


@pytest.mark.parametrize(("columns", "turned"), [(120, False), (70, True)])
def test_the_demo_shows_a_recovery_and_equal_bits(session: Session, columns: int, turned: bool):
    terminal = session.run("demo", size=(40, columns))
    terminal.wait_text("fault: kill rank 2", TIMEOUT_S)
    terminal.wait_text("back in", TIMEOUT_S)
    session.hurry.touch()
    assert terminal.wait_end(TIMEOUT_S) == 0, terminal.text
    assert "spare activated" in terminal.text
    end = terminal.text[terminal.text.index("\n3. ") :]
    assert "all 120 steps are equal, bit for bit" in end
    assert "960 trained, 0 lost, 0 twice" in end
    assert "Another process has held rank 2 since step" in end
    assert "Equal, bit for bit" in end
    assert ("\nMTTR ms" in end) == turned
    assert max(map(len, end.partition("steps  ")[0].splitlines()[3:])) <= columns
    assert terminal.raw.rfind(SHOWS_CURSOR) >= terminal.raw.rfind(HIDES_CURSOR)


def test_the_demo_needs_a_rank_to_kill(session: Session):
    terminal = session.run("demo", "--workers", "2")
    assert terminal.wait_end(TIMEOUT_S) == 2
    assert "--workers = 2: give at least 3" in terminal.text
