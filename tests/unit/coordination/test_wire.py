"""Frames and messages: what goes in comes out, and nothing else gets in."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elaswave.coordination import protocol
from elaswave.coordination.protocol import (
    Fate,
    Fence,
    FullView,
    Join,
    NodeHello,
    Pulse,
    Redirect,
    Report,
    Roster,
    Turn,
    Turned,
    Vacancy,
    WorkerHello,
    WorkerRecord,
    decode,
    encode,
)
from elaswave.coordination.wire import FRAME_BYTES_MAX, OUTGOING_BYTES_MAX, Channel, pack, unpack
from elaswave.errors import AuthenticationError, ProtocolError
from elaswave.topology import Member, View

SECRET = b"s" * 32
MEMBER = Member(rank=0, worker_id="a" * 12, node_id="b" * 12, host_id="h", pid=7, address={"port": 1, "host": "x"})
RECORD = WorkerRecord(
    worker_id="a" * 12,
    pid=1,
    local_rank=0,
    address={"at": [1, 2]},
    config_digest="c",
    versions={"torch": "2.13"},
    replaces="",
    member=True,
)
HELLO = NodeHello(
    version=1,
    node_id="b" * 12,
    host_id="h",
    pid=1,
    started_ticks=2,
    host="",
    port=3,
    report=Report(workers=(RECORD,), fates={"a" * 12: Fate.LOST}, evidence={}, expected_workers=1),
    roster=Roster(
        lineage="l", primary="p", nodes=(), claims=0, vacancies=(Vacancy(rank=1, worker_id="w", node_id="n"),), term=2
    ),
    view=View(epoch=1, members=(MEMBER,), reason="r", departed=frozenset({"x", "y"})),
)


@pytest.mark.parametrize(
    "message",
    [
        HELLO,
        FullView(view=HELLO.view),
        Redirect(hint=("h", 1)),
        Redirect(hint=None),
        Pulse(step=3, stage="forward"),
        Turned(turn=Turn.REFUSED, reason="no"),
        WorkerHello(version=1, worker_id="a" * 12, local_rank=None, spare=True),
    ],
)
def test_messages_survive_the_wire(message):
    assert unpack(pack(message)[4:]) == message


def test_the_address_of_a_member_survives_the_wire():
    assert unpack(pack(FullView(view=HELLO.view))[4:]).view.members[0].address == MEMBER.address


def broken(change):
    payload = encode(HELLO)
    change(payload)
    return payload


@pytest.mark.parametrize(
    ("payload", "names"),
    [
        ([], "object with a kind"),
        ({}, "object with a kind"),
        ({"kind": 3}, "object with a kind"),
        ({"kind": "Nothing"}, "unknown message kind"),
        ({"kind": "Pulse", "step": 1}, "stage"),
        ({"kind": "Pulse", "step": 1, "stage": "", "more": 1}, "more"),
        ({"kind": "Pulse", "step": True, "stage": ""}, "step"),
        ({"kind": "Pulse", "step": 1.5, "stage": ""}, "step"),
        ({"kind": "Pulse", "step": 2**70, "stage": ""}, "out of range"),
        ({"kind": "Turned", "turn": "x", "reason": "", "worker_id": ""}, "turn"),
        ({"kind": "Redirect", "hint": ["h"]}, "2 items"),
        (broken(lambda p: p.update(node_id="../../etc")), "12 hex digits"),
        (broken(lambda p: p["report"].update(workers={})), "report.workers"),
        (broken(lambda p: p["view"]["members"][0].update(pid="1")), r"members\[0\].pid"),
        (encode(Join(address={"a": "x" * 5000}, config_digest="", versions={})), "larger than"),
        (encode(Join(address={str(i): 1 for i in range(50)}, config_digest="", versions={})), "larger than"),
        (encode(Fence(worker_id="", reason="x" * 5000)), "longer than"),
    ],
)
def test_a_wrong_field_is_named(payload, names):
    with pytest.raises(ProtocolError, match=names):
        decode(json.loads(json.dumps(payload)))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(
    kind=st.sampled_from([k.__name__ for k in protocol.Message.__args__]), payload=st.dictionaries(st.text(), anything)
)
def test_any_json_is_decoded_or_refused(kind, payload):
    try:
        decode({**payload, "kind": kind})
    except ProtocolError:
        pass


@given(st.binary(max_size=64))
def test_any_bytes_are_a_message_or_refused(body):
    with pytest.raises(ProtocolError):
        unpack(body)


@pytest.mark.parametrize("body", [b'{"kind":"Pulse","step":NaN,"stage":""}', b"[" * 100_000, b"1" * 5000, b"\xff"])
def test_hostile_json_is_refused(body):
    with pytest.raises(ProtocolError):
        unpack(body)


# -- channels --------------------------------------------------------------------------------------------------


def pair(left=SECRET, right=SECRET, contexts=(b"node", b"node")):
    return (
        Channel(left, initiator=True, context=contexts[0]),
        Channel(right, initiator=False, context=contexts[1]),
    )


def exchange(one, other, chunk=1 << 16):
    """Carry bytes to and fro until nothing moves; returns what each received."""
    got = ([], [])
    while one.outgoing or other.outgoing:
        for source, target, box in ((one, other, got[1]), (other, one, got[0])):
            data = bytes(source.outgoing)
            source.outgoing.clear()
            for start in range(0, len(data), chunk):
                box += target.receive(data[start : start + chunk])
    return got


@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
def test_messages_arrive_in_order_however_the_bytes_are_cut(chunk):
    one, other = pair()
    one.send(Pulse(step=1))
    one.send(HELLO)
    other.send(Pulse(step=2))
    assert exchange(one, other, chunk) == ([Pulse(step=2)], [Pulse(step=1), HELLO])


@pytest.mark.parametrize(
    "options", [{"right": b"t" * 32}, {"contexts": (b"node", b"worker")}], ids=["secret", "context"]
)
def test_another_secret_or_purpose_is_refused(options):
    one, other = pair(**options)
    with pytest.raises(AuthenticationError):
        exchange(one, other)
    assert not one.ready or not other.ready


def test_a_reflected_handshake_is_refused():
    one = Channel(SECRET, initiator=True, context=b"node")
    hello = bytes(one.outgoing)
    one.outgoing.clear()
    one.receive(hello)
    with pytest.raises(AuthenticationError):
        one.receive(bytes(one.outgoing))


def test_a_stranger_is_told_by_its_first_bytes():
    one, _ = pair()
    with pytest.raises(ProtocolError, match=r"it said b'SSH-2\.0") as caught:
        one.receive(b"SSH-2.0-OpenSSH")
    assert not isinstance(caught.value, AuthenticationError)


def test_nothing_is_sent_before_the_other_side_has_proved_itself():
    one, _ = pair()
    before = len(one.outgoing)
    one.send(HELLO)
    assert len(one.outgoing) == before


def test_oversize_frames_are_refused_both_ways():
    one, other = pair()
    exchange(one, other)
    with pytest.raises(ProtocolError, match="larger than"):
        one.receive((FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
    with pytest.raises(ProtocolError, match="larger than"):
        one.send(Fence(worker_id="", reason="x" * FRAME_BYTES_MAX))


def test_a_peer_that_does_not_read_is_dropped():
    one, other = pair()
    exchange(one, other)
    big = Fence(worker_id="", reason="x" * (FRAME_BYTES_MAX // 2))
    for _ in range(OUTGOING_BYTES_MAX // (FRAME_BYTES_MAX // 2)):
        one.send(big)
    with pytest.raises(ProtocolError, match="does not read"):
        one.send(big)
