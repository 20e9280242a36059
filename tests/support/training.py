"""Whole jobs in miniature: a real node service, real workers forked from a warm process, real signals."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elaswave.clock import Deadline
from elaswave.coordination.node import NodeService
from elaswave.coordination.secret import job_secret
from elaswave.coordination.timeouts import Timeouts
from elaswave.events import Recorder
from elaswave.report.facts import History
from elaswave.telemetry.jsonl import JsonlSink
from elaswave.telemetry.runs import read_history

ROOT = Path(__file__).parents[2]
SECRET = "0123456789abcdef0123456789abcdef"
TINY = """
[model]
layers = 2
width = 32
heads = 2
sequence_length = 16
[training]
steps = {steps}
train_batch_size = 16
micro_batch_size = 2
[optimizer]
warmup_steps = 2
[elasticity]
collective_timeout_s = 20
wait_for_workers_s = 30
"""


class Zygote:
    """The warm process; one serves all tests of a session."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "ELASWAVE_SECRET": SECRET}
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/support/zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._started: queue.Queue[int] = queue.Queue()
        self.ended: queue.Queue[tuple[int, int]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._started.get(timeout=90)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            if "ended" in message:
                self.ended.put((message["ended"], message["status"]))
            else:
                self._started.put(message.get("started") or message["ready"])

    def fork(self, env: Mapping[str, str], argv: Sequence[str], log: Path) -> int:
        """Start a worker; returns its pid."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"env": dict(env), "argv": list(argv), "log": str(log)}).encode() + b"\n")
        self._process.stdin.flush()
        return self._started.get(timeout=20)

    def close(self) -> None:
        """Workers die with the process."""
        self._process.kill()
        self._process.wait(20)
        self._reader.join(20)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class MiniJob:
    """One job of one node. Dead workers are replaced by forks, as a launcher would."""

    def __init__(
        self,
        zygote: Zygote,
        folder: Path,
        *,
        workers: int = 4,
        steps: int = 6,
        faults: str = "",
        overrides: Sequence[str] = (),
        replace: bool = True,
        suspicion_s: float = 2.0,
        config: str | None = None,
    ) -> None:
        self._zygote, self.folder, self._workers, self._replace = zygote, folder, workers, replace
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(TINY.format(steps=steps) if config is None else config)
        self._argv = ["--config", str(folder / "config.toml"), "--run.progress", "false", *overrides]
        self._env = {"ELASWAVE_RUN_FOLDER": str(folder), "ELASWAVE_SECRET": SECRET}
        if faults:
            (folder / "faults.toml").write_text(faults)
            self._env["ELASWAVE_FAULTS"] = str(folder / "faults.toml")
        os.environ["ELASWAVE_SECRET"] = SECRET
        self.service = NodeService(
            run_id=folder.name,
            secret=job_secret(folder.name),
            seeds=[("127.0.0.1", 0)],
            bind="127.0.0.1",
            expected_workers=workers,
            min_nodes=1,
            run_folder=folder,
            timeouts=Timeouts(heartbeat_s=0.1, suspicion_s=suspicion_s, grace_s=0.05, wait_for_workers_s=30),
            recorder=Recorder((JsonlSink(folder, node_id="test"),)),
        )
        self.running: dict[int, int] = {}
        self.statuses: list[int] = []

    def start(self) -> None:
        self.service.start()
        for local_rank in range(self._workers):
            self.spawn(local_rank)

    def spawn(self, local_rank: int, **env: str) -> int:
        """Start a worker that joins the job."""
        environment = {**self._env, **self.service.worker_env(), "LOCAL_RANK": str(local_rank), **env}
        pid = self._zygote.fork(environment, self._argv, self.folder / "workers.log")
        self.running[pid] = local_rank
        return pid

    def wait(self, timeout_s: float = 60.0) -> History:
        """Replace the dead until the job is done; returns what the events tell.

        Raises:
            AssertionError: it did not end in time, or a worker failed.
        """
        deadline = Deadline(timeout_s)
        while self.running:
            try:
                pid, status = self._zygote.ended.get(timeout=deadline.left_s() or 0.001)
            except queue.Empty:
                raise AssertionError(f"{self.folder.name}: not done in {timeout_s} s\n{self.log()}") from None
            if pid not in self.running:
                continue
            local_rank = self.running.pop(pid)
            self.statuses.append(status)
            if status < 0 and self._replace and not self.service.finished:
                self.spawn(local_rank)
            elif status > 0:
                raise AssertionError(f"{self.folder.name}: a worker ended with {status}\n{self.log()}")
        return read_history(self.folder)

    def log(self) -> str:
        """What the workers printed."""
        path = self.folder / "workers.log"
        return path.read_text()[-6000:] if path.exists() else ""

    def stop(self) -> None:
        for pid in self.running:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        while self.running:
            pid, _ = self._zygote.ended.get(timeout=20)
            self.running.pop(pid, None)
        self.service.stop()

    def __enter__(self) -> "MiniJob":
        self.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.stop()


def digests(history: History) -> dict[int, str]:
    """Digest of each committed step; all workers must have told the same."""
    found: dict[int, str] = {}
    for commit in history.commits:
        assert found.setdefault(commit.step, commit.digest) == commit.digest, f"step {commit.step}: digests differ"
    return found


def fault(ranks: Sequence[int], phase: str, step: int = 3, what: str = "kill", **rest: object) -> str:
    """One entry of a scenario."""
    more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in rest.items())
    return f'[[fault]]\nwhat = "{what}"\nranks = {list(ranks)}\nstep = {step}\nphase = "{phase}"\n{more}'
