"""A whole job as a user runs it: stock torchrun agents, the real trainer, and the events of the run folder."""

import os
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from support.training import digests

from elaswave.clock import Deadline
from elaswave.coordination.launch_settings import free_port
from elaswave.report.facts import History
from elaswave.telemetry.follower import Follower
from elaswave.telemetry.runs import read_history

Event = dict[str, Any]
ROOT = Path(__file__).parents[2]
TORCHRUN = [str(Path(sys.executable).with_name("torchrun"))]
TIMEOUT_S = 80.0
LOOK_S = 0.02
STEPS = 120
MICRO_BATCHES = 8
CONFIG = f"""
[model]
layers = 1
width = 16
heads = 2
sequence_length = 8
[training]
steps = {STEPS}
train_batch_size = {MICRO_BATCHES}
micro_batch_size = 1
[optimizer]
name = "support.paced:AdamW"
warmup_steps = 2
[elasticity]
collective_timeout_s = 30
wait_for_workers_s = 60
suspicion_s = 1.0
heartbeat_s = 0.1
"""


class TrainJob:
    """Agents, what they print, and the events of their workers.

    Args:
        folder: for config, output and run folders.
        environment: variables for all agents.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None, config: str = CONFIG) -> None:
        self.folder, self.port, self.run_id = folder, free_port(), f"train-{secrets.token_hex(4)}"
        folder.mkdir(exist_ok=True)
        self.config = folder / "config.toml"
        self.config.write_text(config)
        self.events: list[Event] = []
        self.agents: list[subprocess.Popen[bytes]] = []
        self._pidfds: dict[int, int] = {}
        self._follower = Follower(folder / "runs" / "latest")
        self._hurry = folder / "hurry"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ELASWAVE_", "PET_"))},
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "OMP_NUM_THREADS": "1",
            "PACED_UNTIL": str(self._hurry),
            "ELASWAVE_SECRET": secrets.token_hex(16),
            "ELASWAVE_SPARES": "0",
            "ELASWAVE_SPARE_DELAY_S": "0.1",
            "ELASWAVE_GRACE_S": "0.2",
            **(environment or {}),
        }

    # -- agents -----------------------------------------------------------------------------------------------

    def torchrun(
        self,
        workers: int,
        nodes: str = "1",
        *,
        options: Sequence[str] = (),
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start one agent with the options of the command line."""
        given = [
            "--rdzv-backend=elaswave",
            f"--rdzv-endpoint=127.0.0.1:{self.port}",
            f"--rdzv-id={self.run_id}",
            f"--nnodes={nodes}",
            f"--nproc-per-node={workers}",
            "--max-restarts=100",
            "--monitor-interval=0.05",
            *options,
        ]
        return self.start([*TORCHRUN, *given, *(self.command() if command is None else command)], environment)

    def command(self, *overrides: str) -> list[str]:
        """What every worker runs."""
        return ["-m", "elaswave.train", "--config", str(self.config), *overrides]

    def start(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start any command as an agent of this job; what it shows goes to a file."""
        with (self.folder / f"agent{len(self.agents)}.out").open("wb") as output:
            agent = subprocess.Popen(
                command,
                env={**self.environment, **(environment or {})},
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.agents.append(agent)
        return agent

    def output(self, agent: subprocess.Popen[bytes]) -> str:
        return (self.folder / f"agent{self.agents.index(agent)}.out").read_text(errors="replace")

    def wait_output(self, agent: subprocess.Popen[bytes], text: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until the agent or one of its workers has shown `text`."""
        self._until(lambda: text in self.output(agent), timeout_s, f"{text!r} on the terminal")

    def ended(self, agent: subprocess.Popen[bytes], timeout_s: float = TIMEOUT_S) -> int:
        """Exit status of an agent."""
        self._until(lambda: agent.poll() is not None, timeout_s, "the end of an agent")
        return agent.returncode

    def hurry(self) -> None:
        """From now on steps take no longer than they must."""
        self._hurry.touch()

    # -- events -----------------------------------------------------------------------------------------------

    def poll(self) -> int:
        """Take in new events; returns the number of all."""
        for event in self._follower.poll():
            self.events.append(event)
            if event["kind"] == "joined":
                self._watch(event["pid"])
        return len(self.events)

    def _watch(self, pid: int) -> None:
        if pid not in self._pidfds:
            try:
                self._pidfds[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                return

    def _until(self, done: Callable[[], Any], timeout_s: float, what: str) -> Any:
        deadline = Deadline(timeout_s)
        while True:
            over = bool(self.agents) and all(agent.poll() is not None for agent in self.agents)
            self.poll()
            if found := done():
                return found
            assert not over, f"{what}: not seen before the last agent ended:\n{self.story()}"
            assert not deadline.passed(), f"{what}: not seen within {timeout_s} s:\n{self.story()}"
            select.select([], [], [], LOOK_S)

    def wait(self, kind: str, since: int = 0, timeout_s: float = TIMEOUT_S, **fields: Any) -> Event:
        """The first event after number `since`, past or to come, of a kind and with these fields."""

        def find() -> Event | None:
            for event in self.events[since:]:
                if event["kind"] == kind and all(event.get(name) == value for name, value in fields.items()):
                    return event
            return None

        return self._until(find, timeout_s, f"{kind} {fields}")

    def wait_members(self, pids: Sequence[int], since: int = 0) -> Event:
        """Wait for a view of exactly these processes."""
        wanted = sorted(pids)

        def find() -> Event | None:
            for event in self.events[since:]:
                if event["kind"] == "view" and sorted(pid for _, _, pid in event["members"]) == wanted:
                    return event
            return None

        return self._until(find, TIMEOUT_S, f"a view of {wanted}")

    def wait_size(self, size: int, since: int = 0) -> dict[int, int]:
        """Wait for a view with so many members; returns rank -> pid."""

        def find() -> Event | None:
            return next((e for e in self.events[since:] if e["kind"] == "view" and len(e["members"]) == size), None)

        return {rank: pid for rank, _, pid in self._until(find, TIMEOUT_S, f"a view of {size}")["members"]}

    def wait_running(self, epoch: int, size: int, since: int = 0) -> int:
        """Wait until as many workers have committed a step in a view of at least this epoch; returns the step."""

        def find() -> int:
            found: dict[int, set[str]] = {}
            for event in self.events[since:]:
                if event["kind"] == "step_committed" and event["epoch"] >= epoch:
                    found.setdefault(event["step"], set()).add(event["worker_id"])
            return next((step for step, workers in sorted(found.items()) if len(workers) >= size), 0)

        return self._until(find, TIMEOUT_S, f"a step of {size} in view {epoch}")

    def micro_batches(self) -> list[tuple[int, ...]]:
        """What each worker computed for each step."""
        return [commit.micro_batches for commit in self.history().commits]

    def history(self) -> History:
        return read_history(self._follower.run_folder)

    def finish(self, reference: Mapping[int, str], statuses: Sequence[int | None]) -> None:
        """Run to the end: exit statuses, bits, samples, and nothing left over."""
        self.hurry()
        for agent, status in zip(self.agents, statuses, strict=True):
            assert self.ended(agent) == status, self.story()
        check_run(self, reference)
        self.check_clean()
        assert "Traceback" not in "".join(self.output(agent) for agent in self.agents), self.story()

    def check_clean(self) -> None:
        """No process of the job, no shared memory and no socket is left."""
        assert not self.left_over()
        assert not [path for path in Path("/dev/shm").iterdir() if "elaswave" in path.name]
        assert not listeners(self.port)

    # -- processes --------------------------------------------------------------------------------------------

    def parent(self, pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    def agent_of(self, pid: int) -> subprocess.Popen[bytes]:
        return next(agent for agent in self.agents if agent.pid == self.parent(pid))

    def wait_dead(self, pid: int) -> None:
        """Wait until a worker that had joined is gone."""
        fd = self._pidfds.get(pid)
        if fd is not None:
            assert select.select([fd], [], [], TIMEOUT_S)[0], f"process {pid} is still there:\n{self.story()}"

    def workers_of(self, pids: Mapping[int, int], agent: int) -> list[int]:
        """Those of the workers in rank -> pid that this agent has started."""
        return [pid for pid in pids.values() if self.parent(pid) == self.agents[agent].pid]

    def left_over(self) -> dict[int, str]:
        """Processes on this machine that belong to the job: pid -> command line."""
        return processes_of(self.run_id) | processes_of(str(self.folder))

    def close(self) -> None:
        """End everything; fails when a process of the job outlives its agents."""
        try:
            for agent in self.agents:
                if agent.poll() is None:
                    agent.send_signal(signal.SIGCONT)
                    agent.kill()
                    agent.wait()
            self.poll()
            for fd in self._pidfds.values():
                select.select([fd], [], [], 10)
            deadline = Deadline(10)
            while (orphans := self.left_over()) and not deadline.passed():
                select.select([], [], [], LOOK_S)
        finally:
            for fd in self._pidfds.values():
                if not select.select([fd], [], [], 0)[0]:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                os.close(fd)
        assert not orphans, f"processes outlived their agents: {orphans}"

    def story(self) -> str:
        """What is known, for whoever reads a failure."""
        told = [event for event in self.events if event["kind"] not in ("span", "step_committed", "run")]
        shown = "\n".join(f"--- agent {n}\n{self.output(agent)[-4000:]}" for n, agent in enumerate(self.agents))
        steps = max((event["step"] for event in self.events if event["kind"] == "step_committed"), default=0)
        return "\n".join(str(event) for event in told[-40:]) + f"\nstep {steps}\n{shown}"


def processes_of(word: str) -> dict[int, str]:
    """Processes on this machine that have `word` in their command line or environment: pid -> command line."""
    found: dict[int, str] = {}
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            command = (path / "cmdline").read_bytes()
            known = (path / "environ").read_bytes() + command
        except OSError:
            continue
        if command and word.encode() in known:
            found[int(path.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def listeners(port: int) -> list[str]:
    """Lines of the kernel's table about TCP sockets that listen on this port."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return [line for line in lines if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"]


def check_run(job: TrainJob, reference: Mapping[int, str]) -> History:
    """Every step of the job has the bits of the unharmed one, and every sample was trained once."""
    history = job.history()
    assert digests(history) == reference, job.story()
    check_samples(history, max(reference))
    return history


def check_samples(history: History, steps: int) -> None:
    """Every micro-batch of every step counts once; of a step that was taken back, what was done in the newest view."""
    per_step: dict[int, dict[int, dict[str, tuple[int, ...]]]] = {}
    for commit in history.commits:
        per_step.setdefault(commit.step, {}).setdefault(commit.epoch, {})[commit.worker_id] = commit.micro_batches
        assert commit.counted == MICRO_BATCHES
    assert sorted(per_step) == list(range(1, steps + 1))
    for step, by_epoch in per_step.items():
        newest = by_epoch[max(by_epoch)]
        again = sum(map(len, newest.values())) == MICRO_BATCHES
        of = (
            newest
            if again
            else {worker: ids for _, ids_of in sorted(by_epoch.items()) for worker, ids in ids_of.items()}
        )
        ids = [one for mine in of.values() for one in mine]
        assert len(ids) == len(set(ids)), f"step {step}: a micro-batch counts twice"
