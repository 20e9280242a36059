"""Frames of the control plane: a 4-byte length and a JSON object, after both sides have proved to know the secret."""

import json
from typing import NoReturn

from elaswave.coordination.handshake import MAGIC, Handshake
from elaswave.coordination.protocol import Message, decode, encode
from elaswave.errors import ProtocolError

FRAME_BYTES_MAX = 1 << 20
OUTGOING_BYTES_MAX = 16 << 20
"""A peer that leaves this much unread does not read at all."""

_LENGTH_BYTES = 4


def pack(message: Message) -> bytes:
    """A message as a frame.

    Raises:
        ProtocolError: larger than a frame may be.
    """
    body = json.dumps(encode(message), separators=(",", ":"), allow_nan=False).encode()
    if len(body) > FRAME_BYTES_MAX:
        raise ProtocolError(f"a {type(message).__name__} of {len(body)} bytes is larger than {FRAME_BYTES_MAX}")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def unpack(body: bytes) -> Message:
    """The inverse of `pack`, without the length.

    Raises:
        ProtocolError: not JSON, or not a message.
    """
    try:
        payload = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not a JSON message: {type(error).__name__}") from None
    return decode(payload)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class Channel:
    """One side of a connection as pure state: bytes in, messages out, and the other way round.

    Args:
        secret: of the job.
        initiator: this side opened the connection.
        context: what the connection is for; both sides must mean the same.

    Attributes:
        outgoing: bytes that wait to be sent.
    """

    def __init__(self, secret: bytes, *, initiator: bool, context: bytes) -> None:
        self._handshake = Handshake(secret, initiator=initiator, context=context)
        self._buffer = bytearray()
        self._waiting: list[Message] = []
        self._met = False
        self.outgoing = bytearray(self._handshake.hello())

    @property
    def ready(self) -> bool:
        """Both sides have proved to know the secret."""
        return self._handshake.done

    def send(self, message: Message) -> None:
        """Queue a message; it is held back until the other side has proved itself.

        Raises:
            ProtocolError: the message is too large, or the peer has not read for a long time.
        """
        if not self.ready:
            self._waiting.append(message)
            return
        if len(self.outgoing) > OUTGOING_BYTES_MAX:
            raise ProtocolError("the peer does not read what it is sent")
        self.outgoing += pack(message)

    def receive(self, data: bytes) -> list[Message]:
        """Take in bytes; returns the messages that are complete.

        Raises:
            ProtocolError: what arrived is not in the protocol.
            AuthenticationError: the peer does not know the secret.
        """
        self._buffer += data
        if not self.ready:
            self._shake_hands()
        return self._frames() if self.ready else []

    def _shake_hands(self) -> None:
        if not self._met and not self._looks_right():
            return
        while self._buffer and not self.ready:
            part = bytes(self._buffer[: self._handshake.wanted_bytes])
            del self._buffer[: len(part)]
            answer = self._handshake.receive(part)
            if answer is not None:
                self.outgoing += answer
        if self.ready:
            waiting, self._waiting = self._waiting, []
            for message in waiting:
                self.send(message)

    def _looks_right(self) -> bool:
        """Tell a stranger from somebody with another secret, by its first bytes, once they are there."""
        head = bytes(self._buffer[: len(MAGIC)])
        if not MAGIC.startswith(head):
            raise ProtocolError(f"it said {head!r}")
        self._met = len(head) == len(MAGIC)
        return self._met

    def _frames(self) -> list[Message]:
        messages: list[Message] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH_BYTES:
            size = int.from_bytes(self._buffer[start : start + _LENGTH_BYTES], "big")
            if size > FRAME_BYTES_MAX:
                raise ProtocolError(f"a frame of {size} bytes is larger than {FRAME_BYTES_MAX}")
            end = start + _LENGTH_BYTES + size
            if len(self._buffer) < end:
                break
            messages.append(unpack(bytes(self._buffer[start + _LENGTH_BYTES : end])))
            start = end
        del self._buffer[:start]
        return messages
