"""A node in a process of its own: runs the service, starts workers, prints what happens as JSON lines."""

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

from elaswave.clock import Deadline
from elaswave.coordination.bootstrap import die_with_parent
from elaswave.coordination.node import NodeService
from elaswave.coordination.secret import job_secret
from elaswave.coordination.timeouts import Timeouts
from elaswave.errors import ElasWaveError
from elaswave.events import Recorder

RUN_ID = "test"


class Printer:
    """Events as lines."""

    def emit(self, event):
        say(what=f"event_{event['kind']}", **{k: v for k, v in event.items() if k != "kind"})

    def close(self):
        pass


def say(**fields):
    os.write(1, (json.dumps({"at": time.monotonic(), **fields}) + "\n").encode())


def start_workers(service, count):
    script = Path(__file__).with_name("control_worker.py")
    started = []
    for local_rank in range(count):
        env = {**os.environ, **service.worker_env(), "LOCAL_RANK": str(local_rank)}
        started.append(subprocess.Popen([sys.executable, str(script)], env=env, stdin=subprocess.PIPE))
        service.expect("0" * 11 + str(local_rank), local_rank, started[-1].pid)
    return started


def serve(service, workers):
    """Do what standard input says until the service is out of the job."""
    while service.error is None:
        if 0 not in select.select([0], [], [], 0.05)[0]:
            continue
        command = os.read(0, 100).decode().strip()
        if command == "finish":
            for worker in workers:
                worker.stdin.write(b"finish\n")
                worker.stdin.flush()
            service.wait_finished(Deadline(20))
            say(what="finished")
        elif command == "leave":
            service.leave(Deadline(10))
            say(what="left")
        if command in ("finish", "leave", "stop", ""):
            service.stop()
            return
    raise service.error


def main():
    die_with_parent()
    options = json.loads(sys.argv[1])
    service = NodeService(
        run_id=RUN_ID,
        secret=job_secret(RUN_ID),
        seeds=[tuple(seed) for seed in options["seeds"]],
        bind="127.0.0.1",
        expected_workers=options["workers"],
        min_nodes=options.get("min_nodes", 1),
        run_folder=Path(options["run_folder"]) if "run_folder" in options else None,
        timeouts=Timeouts(
            heartbeat_s=0.1, suspicion_s=1.0, grace_s=0.3, wait_for_workers_s=options.get("wait_s", 20.0)
        ),
        recorder=Recorder((Printer(),)),
    )
    workers = []
    try:
        service.start()
        say(what="started", node_id=service.node_id, pid=os.getpid())
        say(what="index", index=service.node_index)
        workers = start_workers(service, options["workers"])
        serve(service, workers)
        code = 0
    except ElasWaveError as error:
        say(what="error", kind=type(error).__name__, reason=str(error))
        code = 1
    for worker in workers:
        try:
            worker.wait(5)
        except subprocess.TimeoutExpired:
            worker.kill()
    service.stop()
    say(what="stopped", code=code)
    os._exit(code)


if __name__ == "__main__":
    main()
