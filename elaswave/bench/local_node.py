"""A node's service in a process of its own, for measurements whose workers are forked rather than launched."""

import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from elaswave.bench.forked import Lines, fork, kill
from elaswave.coordination.node import NodeService
from elaswave.coordination.secret import VARIABLE, job_secret
from elaswave.coordination.timeouts import Timeouts
from elaswave.errors import BenchError
from elaswave.events import Recorder

START_TIMEOUT_S = 30.0


@contextmanager
def local_node(run_id: str, workers: int, timeouts: Timeouts) -> Iterator[dict[str, str]]:
    """Run the only node of a job until the block ends; yields the environment for its workers.

    Call it before this process has started threads.

    Args:
        run_id: name of the job.
        workers: with so many it forms.
        timeouts: of the control plane.

    Raises:
        BenchError: the service did not start.
    """
    secret = secrets.token_hex(16)
    near, far = socket.socketpair()
    near.settimeout(START_TIMEOUT_S)
    pid = fork(lambda: _serve(far, near, run_id, workers, timeouts, secret))
    far.close()
    try:
        environment = Lines(near).receive()
        if environment is None:
            raise BenchError("the node's service did not start")
        yield {**environment, VARIABLE: secret}
    finally:
        near.close()
        kill(pid)


def _serve(
    link: socket.socket, parents: socket.socket, run_id: str, workers: int, timeouts: Timeouts, secret: str
) -> None:
    """Serve until killed."""
    parents.close()
    os.environ[VARIABLE] = secret
    service = NodeService(
        run_id=run_id,
        secret=job_secret(run_id),
        seeds=[("127.0.0.1", 0)],
        bind="127.0.0.1",
        expected_workers=workers,
        min_nodes=1,
        run_folder=None,
        timeouts=timeouts,
        recorder=Recorder(),
    )
    service.start()
    Lines(link).send(service.worker_env())
    while True:
        signal.pause()
