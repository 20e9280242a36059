"""Real processes for tests of the control plane: workers without torch, and nodes in processes of their own."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from elaswave.coordination.node import NodeService
from elaswave.coordination.timeouts import Timeouts
from elaswave.events import Recorder

HERE = Path(__file__).parent
SECRET = "0123456789abcdef0123456789abcdef"
RUN_ID = "test"
FAST = Timeouts(heartbeat_s=0.1, suspicion_s=1.0, grace_s=0.3, wait_for_workers_s=20, start_timeout_s=20)


class Child:
    """A process that prints JSON lines, and is killed at the end whatever happens."""

    def __init__(self, script, env, arguments=()):
        self.process = subprocess.Popen(
            [sys.executable, script if script == "-c" else str(HERE / script), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.events = []
        self._fresh = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self):
        return self.process.pid

    def _read(self):
        for line in self.process.stdout:
            self._fresh.put(json.loads(line))
        self._fresh.put(None)

    def wait_event(self, accept, timeout_s=20.0, what="event"):
        """The first event, old or new, that `accept` likes."""
        deadline = time.monotonic() + timeout_s
        for event in self.events:
            if accept(event):
                return event
        while True:
            try:
                event = self._fresh.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {what} within {timeout_s} s; saw {self.events}") from None
            if event is None:
                self._fresh.put(None)
                raise AssertionError(f"no {what} before the process ended; saw {self.events}")
            self.events.append(event)
            if accept(event):
                return event

    def wait(self, what, timeout_s=20.0, **fields):
        """The first event of this kind with these fields."""

        def fits(event):
            return event["what"] == what and all(event.get(k) == v for k, v in fields.items())

        return self.wait_event(fits, timeout_s, f"{what} {fields}")

    def tell(self, text):
        self.process.stdin.write((text + "\n").encode())
        self.process.stdin.flush()

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)

    def exit_code(self, timeout_s=20.0):
        return self.process.wait(timeout_s)

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)
        self._reader.join(20)
        self.process.stdin.close()
        self.process.stdout.close()


class Events:
    """A sink that keeps events, for assertions."""

    def __init__(self):
        self.events = []
        self._more = threading.Condition()

    def emit(self, event):
        with self._more:
            self.events.append(dict(event))
            self._more.notify_all()

    def wait(self, kind, timeout_s=20.0):
        """The first event of a kind."""
        with self._more:
            assert self._more.wait_for(lambda: self.of(kind), timeout_s), f"no {kind} within {timeout_s} s"
            return self.of(kind)[0]

    def close(self):
        pass

    def of(self, kind):
        return [e for e in self.events if e["kind"] == kind]


class Cluster:
    """Nodes in this process and workers in their own; everything ends with the `with` block."""

    def __init__(self, timeouts=FAST):
        self.timeouts = timeouts
        self.services, self.children = [], []
        self.sink = Events()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in self.children:
            child.close()
        for service in self.services:
            service.stop()

    def node(self, workers=2, seeds=None, *, min_nodes=1, start=True, **options):
        options.setdefault("timeouts", self.timeouts)
        options.setdefault("secret", secret_key())
        options.setdefault("run_folder", None)
        service = NodeService(
            run_id=RUN_ID,
            seeds=seeds or [("127.0.0.1", 0)],
            bind="127.0.0.1",
            expected_workers=workers,
            min_nodes=min_nodes,
            recorder=Recorder((self.sink,)),
            **options,
        )
        self.services.append(service)
        if start:
            service.start()
        return service

    def worker(self, service, local_rank=0, **env):
        child = Child("control_worker.py", {**worker_env(service), "LOCAL_RANK": str(local_rank), **env})
        self.children.append(child)
        return child

    def process(self, code):
        """Any other process, from Python source."""
        child = Child("-c", {}, [code])
        self.children.append(child)
        return child

    def spare(self, service, **env):
        return self.worker(service, ELASWAVE_SPARE="1", **env)

    def node_process(self, workers, seeds, **options):
        """A node with its own workers, all in other processes; see control_node.py."""
        child = Child(
            "control_node.py",
            {"ELASWAVE_SECRET": SECRET},
            [json.dumps({"workers": workers, "seeds": seeds, **options})],
        )
        self.children.append(child)
        return child


def secret_key(text=SECRET):
    """What `job_secret` makes of it."""
    import hashlib
    import hmac

    return hmac.digest(text.encode(), b"elaswave job " + RUN_ID.encode(), hashlib.sha256)


def worker_env(service):
    return {**service.worker_env(), "ELASWAVE_SECRET": SECRET}
