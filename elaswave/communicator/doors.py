"""Where links begin: this worker's listeners, dialling others, and strangers until they have introduced themselves."""

import os
import socket
from collections.abc import Mapping

from elaswave.clock import Deadline
from elaswave.config import Transport
from elaswave.errors import LaunchError, ProtocolError

STRANGERS_MAX = 512
STRANGER_TIMEOUT_S = 10.0
BACKLOG = 512
TCP_BUFFER_BYTES = 4 << 20


class Doors:
    """Listeners on one host, over a unix socket and over TCP.

    Args:
        worker_id: of this worker.
        host_id: workers with the same id share memory, unless `transport` is tcp.
        transport: auto, shm or tcp.
        bind: address for links from other hosts.

    Attributes:
        listeners: by file descriptor.
        strangers: connections that are not links yet, by file descriptor, and until when they may stay so.
        address: what other workers need to dial this one; JSON-able.

    Raises:
        LaunchError: `bind` is not an address of this machine.
    """

    def __init__(self, worker_id: str, host_id: str, transport: Transport, bind: str) -> None:
        self._host_id, self._transport = host_id, transport
        self.address: dict[str, object] = {"host_id": host_id}
        self.strangers: dict[int, Deadline] = {}
        listeners = []
        if transport is not Transport.TCP:
            listeners.append(self._listen_here(worker_id))
        if transport is not Transport.SHM:
            listeners.append(self._listen_afar(bind))
        for listener in listeners:
            listener.listen(BACKLOG)
            listener.setblocking(False)
        self.listeners = {listener.fileno(): listener for listener in listeners}

    def _listen_here(self, worker_id: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"\0elaswave-{worker_id}-{os.urandom(6).hex()}")
        self.address["unix"] = listener.getsockname()[1:].decode()
        return listener

    def _listen_afar(self, bind: str) -> socket.socket:
        try:
            listener = socket.create_server((bind, 0), backlog=BACKLOG)
            _widen(listener)
        except OSError as error:
            raise LaunchError(f"elasticity.bind = {bind!r}: {error.strerror}") from error
        self.address["tcp"] = [bind, listener.getsockname()[1]]
        return listener

    def accept(self, fd: int) -> socket.socket | None:
        """A stranger at the listener `fd`; None when it is gone again or there are too many."""
        try:
            sock, _ = self.listeners[fd].accept()
        except OSError:
            return None
        if len(self.strangers) < STRANGERS_MAX:
            return sock
        sock.close()
        return None

    def dial(self, peer: str, address: Mapping[str, object]) -> socket.socket:
        """Begin to connect to a worker, through a unix socket if it is on this host.

        Raises:
            ProtocolError: its address has nothing that can be reached from here.
            OSError: nobody answers there.
        """
        near = self._transport is not Transport.TCP and address.get("host_id") == self._host_id
        unix, tcp = address.get("unix"), address.get("tcp")
        if near and isinstance(unix, str):
            sock, target = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), f"\0{unix}"
        elif isinstance(tcp, list | tuple) and len(tcp) == 2:
            sock, target = socket.socket(socket.AF_INET, socket.SOCK_STREAM), (str(tcp[0]), int(tcp[1]))
            _widen(sock)
        else:
            raise ProtocolError(f"worker {peer} cannot be reached from here: its address is {dict(address)}")
        sock.setblocking(False)
        try:
            sock.connect(target)
        except BlockingIOError:
            pass
        except OSError:
            sock.close()
            raise
        return sock

    def let_in(self, sock: socket.socket) -> None:
        """Give a connection some time to introduce itself."""
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.strangers[sock.fileno()] = Deadline(STRANGER_TIMEOUT_S)

    def overdue(self) -> list[int]:
        """Strangers whose time is over."""
        return [fd for fd, deadline in self.strangers.items() if deadline.passed()]

    def close(self) -> None:
        for listener in self.listeners.values():
            listener.close()


def _widen(sock: socket.socket) -> None:
    """Let the kernel take a whole piece at once; must be called before a connection is made."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, TCP_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, TCP_BUFFER_BYTES)
