"""Mutual proof that both ends of a connection know the job's secret, before anything else is read from it.

Both send a nonce, then both send HMAC-SHA256(secret, direction, context, both nonces). A tag cannot be replayed
(fresh nonces) nor sent back to its maker (direction).
"""

import hashlib
import hmac
import secrets

from elaswave.errors import AuthenticationError

MAGIC = b"ElasWav1"
NONCE_BYTES = 16
HELLO_BYTES = len(MAGIC) + NONCE_BYTES
TAG_BYTES = 32


class Handshake:
    """One side of the exchange; holds no socket.

    Send `hello()`, pass everything that arrives to `receive`, send what it returns, until `done`.

    Args:
        secret: of the job.
        initiator: this side opened the connection.
        context: what the connection is for; both sides must mean the same.
    """

    def __init__(self, secret: bytes, *, initiator: bool, context: bytes) -> None:
        self._secret, self._initiator, self._context = secret, initiator, context
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._peer_nonce: bytes | None = None
        self._buffer = bytearray()
        self.done = False

    def hello(self) -> bytes:
        """The first message, `HELLO_BYTES` long."""
        return MAGIC + self._nonce

    @property
    def wanted_bytes(self) -> int:
        """How many more bytes of the peer belong to the handshake."""
        if self.done:
            return 0
        return (HELLO_BYTES if self._peer_nonce is None else TAG_BYTES) - len(self._buffer)

    def receive(self, data: bytes) -> bytes | None:
        """Take bytes from the peer, at most `wanted_bytes`; returns what to send in answer, if anything.

        Raises:
            AuthenticationError: the peer speaks another protocol or does not know the secret.
        """
        if len(data) > self.wanted_bytes:
            raise AuthenticationError("more bytes than the handshake has")
        self._buffer += data
        if self.wanted_bytes:
            return None
        message = bytes(self._buffer)
        self._buffer.clear()
        if self._peer_nonce is None:
            return self._meet(message)
        if not hmac.compare_digest(message, self._tag(not self._initiator)):
            raise AuthenticationError("the peer does not know the job's secret")
        self.done = True
        return None

    def _meet(self, message: bytes) -> bytes:
        if not message.startswith(MAGIC):
            raise AuthenticationError("the peer does not speak this protocol or version")
        self._peer_nonce = message[len(MAGIC) :]
        return self._tag(self._initiator)

    def _tag(self, by_initiator: bool) -> bytes:
        """The proof that the initiator (or the other side) sends."""
        assert self._peer_nonce is not None
        first, second = self._nonce, self._peer_nonce
        if not self._initiator:
            first, second = second, first
        direction = b"i" if by_initiator else b"r"
        size = len(self._context).to_bytes(4, "big")
        return hmac.digest(self._secret, direction + size + self._context + first + second, hashlib.sha256)
