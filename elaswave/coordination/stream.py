"""A non-blocking socket that speaks the control protocol: never blocks, sends what it can, keeps the rest."""

import os
import socket
import struct
from typing import NamedTuple

from elaswave.coordination.protocol import Message
from elaswave.coordination.wire import Channel

RECEIVE_BYTES = 1 << 16
TCP_USER_TIMEOUT = 18
"""Linux: unacknowledged data for this long breaks the connection."""


class Credentials(NamedTuple):
    """Who is at the other end of a unix socket, by the kernel's word."""

    pid: int
    uid: int
    gid: int


class Closed(Exception):
    """The other side closed the connection, or it broke."""


class Stream:
    """A connection.

    Args:
        sock: connected; becomes non-blocking and is owned by this object.
        channel: its protocol state.
        takes_descriptors: descriptors may come with the data (unix sockets); they are collected in `descriptors`.
    """

    def __init__(self, sock: socket.socket, channel: Channel, *, takes_descriptors: bool = False) -> None:
        sock.setblocking(False)
        self.socket, self.channel = sock, channel
        self.descriptors: list[int] = []
        self._takes_descriptors = takes_descriptors

    def fileno(self) -> int:
        return self.socket.fileno()

    @property
    def unsent(self) -> bool:
        return bool(self.channel.outgoing)

    def receive(self) -> list[Message]:
        """Everything that has arrived, up to a bound, so that one peer cannot keep us busy.

        Raises:
            Closed: nothing more will come.
            ProtocolError: what came is not in the protocol.
        """
        try:
            data = self._read()
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as error:
            raise Closed(error.strerror or str(error)) from None
        if not data:
            raise Closed("it closed the connection")
        return self.channel.receive(data)

    def _read(self) -> bytes:
        if not self._takes_descriptors:
            return self.socket.recv(RECEIVE_BYTES)
        data, descriptors, _, _ = socket.recv_fds(self.socket, RECEIVE_BYTES, 4, socket.MSG_CMSG_CLOEXEC)
        self.descriptors += descriptors
        while len(self.descriptors) > 1:
            os.close(self.descriptors.pop())
        return data

    def send(self, message: Message) -> None:
        """Queue a message and send as much as possible.

        Raises:
            Closed: the connection broke.
            ProtocolError: see `Channel.send`.
        """
        self.channel.send(message)
        self.flush()

    def flush(self) -> None:
        """Send what is queued, as far as the socket takes it."""
        outgoing = self.channel.outgoing
        while outgoing:
            try:
                sent = self.socket.send(outgoing, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise Closed(error.strerror or str(error)) from None
            del outgoing[:sent]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors.clear()
        self.socket.close()


def tune_tcp(sock: socket.socket, timeout_s: float) -> None:
    """No delay for small messages, and an end to connections whose peer does not acknowledge."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, TCP_USER_TIMEOUT, max(1, int(timeout_s * 1000)))


def credentials(sock: socket.socket) -> Credentials:
    """Who connected to this unix socket."""
    size = struct.calcsize("3i")
    return Credentials(*struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)))
