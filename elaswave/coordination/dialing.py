"""Everything about TCP connections that may block: names, listeners, connecting. Runs outside the service's loop."""

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Sequence

from elaswave.clock import Deadline
from elaswave.coordination.protocol import Address, Message
from elaswave.coordination.stream import RECEIVE_BYTES, tune_tcp
from elaswave.coordination.wire import Channel
from elaswave.errors import LaunchError

CONTEXT = b"node"
BACKLOG = 1024
_NOT_OURS = frozenset({errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EACCES})


def listen(host: str, port: int) -> socket.socket:
    """A non-blocking TCP listener. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listener.setblocking(False)
    return listener


def listen_on_seed(seed: Address) -> socket.socket | None:
    """A listener at a seed's address; None when it is not on this host, or taken."""
    host, port = seed
    try:
        listener = listen(host, port)
    except socket.gaierror:
        return None
    except OSError as error:
        if error.errno in _NOT_OURS:
            return None
        raise
    if not _resolved_to_loopback(host, listener):
        return listener
    listener.close()  # /etc/hosts may map the host's own name to loopback, where no other host can reach it
    with contextlib.suppress(OSError):
        return listen("0.0.0.0", port)
    return None


def _resolved_to_loopback(host: str, listener: socket.socket) -> bool:
    if host == "localhost":
        return False
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return False
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def open_listener(seeds: Sequence[Address], bind: str) -> tuple[socket.socket, Address, int | None]:
    """Listen on the first seed that is free on this host, else on any port of `bind`.

    Returns:
        The listener, the address under which others reach it, and the seed's index.

    Raises:
        LaunchError: `bind` is no address of this host.
    """
    for index, seed in enumerate(seeds):
        listener = listen_on_seed(seed)
        if listener is not None:
            return listener, (seed[0], listener.getsockname()[1]), index
    try:
        listener = listen(bind, 0)
    except OSError as error:
        raise LaunchError(
            f"cannot listen on {bind}: {error.strerror or error}; set elasticity.bind to an address of this host"
        ) from error
    return listener, (_reachable(bind, seeds[0]), listener.getsockname()[1]), None


def _reachable(bind: str, seed: Address) -> str:
    """The address that stands for `bind`: for all interfaces, that of the one which leads to the seed."""
    if bind not in ("", "0.0.0.0", "::"):
        return bind
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(seed)  # sends nothing, only asks the routing table
        return str(probe.getsockname()[0])
    return socket.gethostname()


def dial(address: Address, timeout_s: float) -> socket.socket:
    """Connect. Raises OSError."""
    sock = socket.create_connection(address, timeout_s)
    tune_tcp(sock, timeout_s)
    return sock


def tell(address: Address, secret: bytes, message: Message, timeout_s: float) -> None:
    """Connect, prove to know the secret, and deliver one message. Raises OSError or ProtocolError."""
    deadline = Deadline(timeout_s)
    channel = Channel(secret, initiator=True, context=CONTEXT)
    channel.send(message)
    with dial(address, timeout_s) as sock:
        while not channel.ready or channel.outgoing:
            sock.settimeout(max(0.001, deadline.left_s()))
            sock.sendall(channel.outgoing)
            channel.outgoing.clear()
            if channel.ready:
                break
            data = sock.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError("it closed the connection")
            channel.receive(data)
