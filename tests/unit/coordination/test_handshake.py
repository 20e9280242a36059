"""Only who knows the secret, means the same connection and speaks now gets through."""

import pytest

from elaswave.coordination.handshake import HELLO_BYTES, Handshake
from elaswave.errors import AuthenticationError

SECRET = b"s" * 32


def shake(left: Handshake, right: Handshake) -> None:
    """Run both sides to the end."""
    tag_right = right.receive(left.hello())
    tag_left = left.receive(right.hello())
    assert tag_left is not None
    assert tag_right is not None
    right.receive(tag_left)
    left.receive(tag_right)


def pair(secret: bytes = SECRET, context: bytes = b"a") -> tuple[Handshake, Handshake]:
    return Handshake(SECRET, initiator=True, context=b"a"), Handshake(secret, initiator=False, context=context)


def test_both_know_the_secret() -> None:
    left, right = pair()
    shake(left, right)
    assert left.done
    assert right.done


@pytest.mark.parametrize("right", [{"secret": b"t" * 32}, {"context": b"b"}])
def test_other_secret_or_context(right: dict) -> None:
    with pytest.raises(AuthenticationError, match="secret"):
        shake(*pair(**right))


def test_reflection_is_refused() -> None:
    left = Handshake(SECRET, initiator=True, context=b"a")
    tag = left.receive(left.hello())
    assert tag is not None
    with pytest.raises(AuthenticationError):
        left.receive(tag)


def test_replay_is_refused() -> None:
    left, right = pair()
    right.receive(left.hello())
    old = left.receive(right.hello())
    again = Handshake(SECRET, initiator=False, context=b"a")
    again.receive(left.hello())
    assert old is not None
    with pytest.raises(AuthenticationError):
        again.receive(old)


def test_another_protocol() -> None:
    with pytest.raises(AuthenticationError, match="protocol"):
        pair()[0].receive(b"GET / HTTP/1.1\r\n".ljust(HELLO_BYTES))


def test_bytes_may_come_one_by_one() -> None:
    left, right = pair()
    answers = [right.receive(bytes([b])) for b in left.hello()]
    assert answers[-1] is not None
    assert not any(answers[:-1])


def test_too_many_bytes() -> None:
    with pytest.raises(AuthenticationError, match="more bytes"):
        pair()[0].receive(b"x" * (HELLO_BYTES + 1))
