"""Peers that do not belong: other secrets, other protocols, garbage, oversize messages; each a clear error."""

import socket
import threading

import pytest
from support.control import SECRET, Cluster, secret_key

from elaswave.clock import Deadline
from elaswave.coordination import dialing
from elaswave.coordination.launch_settings import free_port
from elaswave.coordination.protocol import NodeHello, Report
from elaswave.coordination.timeouts import Timeouts
from elaswave.coordination.wire import Channel, pack
from elaswave.errors import AuthenticationError, LaunchError

OTHER = "another secret, of the right length"


class Stranger:
    """A server that is not ours: answers each connection with some bytes."""

    def __init__(self, answer):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self._answer = answer
        self._kept = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self._kept.append(sock)
            if self._answer:
                sock.sendall(self._answer)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join(5)
        for sock in self._kept:
            sock.close()


def shake_hands(sock, channel):
    while not channel.ready or channel.outgoing:
        sock.sendall(channel.outgoing)
        channel.outgoing.clear()
        if not channel.ready:
            channel.receive(sock.recv(4096))


def closed_by_peer(sock):
    """Whether the other side ends the connection, after whatever it still had to say."""
    sock.settimeout(10)
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


def test_a_node_with_another_secret_is_told_so():
    with Cluster() as cluster:
        first = cluster.node(workers=0)
        second = cluster.node(workers=1, seeds=[first.address], secret=secret_key(OTHER))
        with pytest.raises(AuthenticationError, match="does not know this job's secret"):
            second.wait_formed(Deadline(10))


def test_a_worker_with_another_secret_is_told_so():
    with Cluster() as cluster:
        service = cluster.node(workers=1)
        worker = cluster.worker(service, 0, ELASWAVE_SECRET=OTHER)
        worker.wait("error", kind="AuthenticationError")
        cluster.worker(service, 0, ELASWAVE_SECRET=SECRET).wait("joined")


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\0" * 64, b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_port_in_use_by_something_else_is_named(answer):
    with Stranger(answer) as stranger, Cluster() as cluster:
        service = cluster.node(workers=1, seeds=[("127.0.0.1", stranger.port)])
        with pytest.raises(LaunchError, match=rf"127.0.0.1:{stranger.port} is in use by something"):
            service.wait_formed(Deadline(10))


def test_a_port_in_use_by_something_silent_is_named():
    timeouts = Timeouts(heartbeat_s=0.05, suspicion_s=0.1, grace_s=0.1, wait_for_workers_s=60)
    with Stranger(b"") as stranger, Cluster(timeouts) as cluster:
        service = cluster.node(workers=1, seeds=[("127.0.0.1", stranger.port)])
        with pytest.raises(LaunchError, match="does not answer"):
            service.wait_formed(Deadline(20))


def test_nobody_at_the_seeds_ends_the_search():
    timeouts = Timeouts(heartbeat_s=0.1, suspicion_s=1.0, grace_s=0.1, wait_for_workers_s=1.0)
    with Cluster(timeouts) as cluster:
        service = cluster.node(workers=1, seeds=[("192.0.2.1", free_port())])
        with pytest.raises(LaunchError, match="no primary answered"):
            service.wait_formed(Deadline(15))


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096, b"ElasWav1" + b"\0" * 4096])
def test_garbage_on_either_listener_hurts_nobody(noise):
    with Cluster() as cluster:
        service = cluster.node(workers=1)
        with socket.create_connection(service.address, 5) as sock:
            sock.sendall(noise)
            assert closed_by_peer(sock)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect("\0" + service.worker_env()["ELASWAVE_NODE_SOCKET"][1:])
            sock.sendall(noise)
            assert closed_by_peer(sock)
        cluster.worker(service, 0).wait("joined")


@pytest.mark.parametrize(
    "frame",
    [
        (2**31).to_bytes(4, "big"),
        b"\0\0\0\x04nope",
        b"\0\0\0\x02{}",
        b"\0\0\0\x02[]",
        b'\0\0\0\x11{"kind":"Unknown"}'[:21],
        b"\0\0\x40\0" + b"[" * 0x4000,
    ],
)
def test_bad_frames_from_somebody_who_knows_the_secret_close_only_that_connection(frame):
    with Cluster() as cluster:
        service = cluster.node(workers=1)
        with socket.create_connection(service.address, 5) as sock:
            sock.settimeout(10)
            channel = Channel(secret_key(), initiator=True, context=dialing.CONTEXT)
            shake_hands(sock, channel)
            sock.sendall(frame)
            assert closed_by_peer(sock)
        cluster.worker(service, 0).wait("joined")


def test_a_node_of_another_version_is_refused():
    with Cluster() as cluster:
        service = cluster.node(workers=1)
        service.node_index  # noqa: B018
        hello = NodeHello(
            version=99,
            node_id="0" * 12,
            host_id="h",
            pid=1,
            started_ticks=1,
            host="127.0.0.1",
            port=1,
            report=Report(workers=(), fates={}, evidence={}, expected_workers=0),
            roster=None,
            view=None,
        )
        with socket.create_connection(service.address, 5) as sock:
            sock.settimeout(10)
            channel = Channel(secret_key(), initiator=True, context=dialing.CONTEXT)
            shake_hands(sock, channel)
            sock.sendall(pack(hello))
            answer = channel.receive(sock.recv(4096))
        assert "version 99" in answer[0].reason
