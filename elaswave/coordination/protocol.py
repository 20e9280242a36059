"""Every message of the control plane as a frozen value, and the check that each one passes on its way in.

worker --> node      WorkerHello, Join, Pulse, Suspect, Depart, Finish, Bye
node   --> worker    WorkerWelcome, Activate, FullView, ViewDelta, LeaveSoon, Turned, Fence
node   --> primary   NodeHello, Report, Pulse, Suspect, Resend, Bye
primary --> node     NodeWelcome, Redirect, Roster, FullView, ViewDelta, Fence, Turned, Pulse
primary --> seed     Claim
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, get_args

from elaswave.coordination.codec import from_json, to_json
from elaswave.errors import ElasWaveError, ProtocolError, RefusedError
from elaswave.topology import Member, View

VERSION = 1
"""Both ends of a connection must speak the same version."""
TEXT_MAX = 4096
ADDRESS_KEYS_MAX = 32

_ID = re.compile(r"[0-9a-f]{12}")

Address = tuple[str, int]
"""Host and port."""


def is_id(text: str) -> bool:
    """Whether `text` has the form of a worker or node id: 12 hexadecimal digits."""
    return _ID.fullmatch(text) is not None


class Fate(StrEnum):
    """How a worker ended, as its own node saw it."""

    LOST = "lost"
    DEPARTED = "departed"
    FINISHED = "finished"


class Turn(StrEnum):
    """Why somebody is turned away for good."""

    REFUSED = "refused"  # does not fit this job: starting it again would not help
    DISMISSED = "dismissed"  # the job is done and needs nobody any more
    ENDED = "ended"  # the job gave up


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHello:
    """First message of a worker. The descriptor of its life mutex travels with it."""

    version: int
    worker_id: str
    local_rank: int | None
    spare: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerWelcome:
    node_id: str
    host_id: str
    heartbeat_s: float
    suspicion_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """The worker is ready to be a member; a spare is ready to become one."""

    address: Mapping[str, object]
    config_digest: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Activate:
    """A spare takes the place of the local worker that died."""

    local_rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """Sign of life, in both directions. Workers add how far they are; others leave the fields alone."""

    step: int = -1
    stage: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """Somebody does not hear from `worker_id`."""

    worker_id: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Depart:
    """A planned leave is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The last step is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bye:
    """The connection ends on purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveSoon:
    """Leave at the next step boundary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """This worker (empty: every worker of this node) is no longer a member and must stop."""

    worker_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Turned:
    """Turned away for good. `worker_id` is empty when the whole node is meant."""

    turn: Turn
    reason: str
    worker_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FullView:
    view: View


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewDelta:
    """What turns the view `base_epoch` into the view `epoch`."""

    base_epoch: int
    epoch: int
    gone: tuple[str, ...]
    new: tuple[Member, ...]
    departed: frozenset[str]
    reason: str
    paused: bool
    finished: bool
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """A worker that is alive and ready, as its node reports it.

    Attributes:
        replaces: worker id of the one whose place on the node it took, or empty.
        member: some view has contained it; it must not come back once a later view does not.
    """

    worker_id: str
    pid: int
    local_rank: int
    address: Mapping[str, object]
    config_digest: str
    versions: Mapping[str, str]
    replaces: str
    member: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All a node knows of its workers; replaces whatever it reported before.

    Attributes:
        workers: alive and ready to be members.
        fates: how workers ended that the newest view still contains; pairs of worker id and fate.
        evidence: one line on each of those deaths.
        expected_workers: how many workers the node means to run; 0 once it is leaving.
    """

    workers: tuple[WorkerRecord, ...]
    fates: Mapping[str, Fate]
    evidence: Mapping[str, str]
    expected_workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHello:
    """First message of a node to whom it takes for the primary.

    Attributes:
        pid, started_ticks: its process and that process's start time (field 22 of /proc/pid/stat), so that other
            nodes of the same host can watch it.
        host: where its listener can be reached; empty: where this connection comes from.
        roster: newest roster it has, or null; a node never follows a primary of another lineage.
        view: newest view it has, or null.
    """

    version: int
    node_id: str
    host_id: str
    pid: int
    started_ticks: int
    host: str
    port: int
    report: Report
    roster: "Roster | None"
    view: View | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeWelcome:
    """The primary takes the node in. `index` orders the nodes of the job, `started` is the UTC time it began at."""

    node_id: str
    index: int
    started: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """Not the primary; `hint` is where it may be, or null."""

    hint: Address | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resend:
    """Please send the whole view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEntry:
    """A node as the roster lists it."""

    node_id: str
    host_id: str
    pid: int
    started_ticks: int
    address: Address
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Vacancy:
    """A rank without a worker, and who held it last."""

    rank: int
    worker_id: str
    node_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """What a standby needs besides the view to take over.

    Attributes:
        lineage: made up when the job formed.
        primary: node id of the sender.
        nodes: in the order in which they take over.
        claims: witness files this lineage has taken.
        vacancies: ranks that wait for a replacement.
        term: how often the primary has changed.
    """

    lineage: str
    primary: str
    nodes: tuple[NodeEntry, ...]
    claims: int
    vacancies: tuple[Vacancy, ...]
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A live primary tells a seed who leads."""

    node_id: str
    address: Address
    lineage: str
    epoch: int


Message = (
    WorkerHello
    | WorkerWelcome
    | Join
    | Activate
    | Pulse
    | Suspect
    | Depart
    | Finish
    | Bye
    | LeaveSoon
    | Fence
    | Turned
    | FullView
    | ViewDelta
    | Report
    | NodeHello
    | NodeWelcome
    | Redirect
    | Resend
    | Roster
    | Claim
)

_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in get_args(Message)}


def encode(message: Message) -> dict[str, Any]:
    """A JSON object with the message's kind and fields."""
    return {"kind": type(message).__name__, **to_json(message)}


def decode(payload: object) -> Message:
    """The inverse of `encode`.

    Raises:
        ProtocolError: not an object, of an unknown kind, or a field is wrong; the error names it.
    """
    if not isinstance(payload, dict) or not isinstance(payload.get("kind"), str):
        raise ProtocolError("a message must be an object with a kind")
    kind = _KINDS.get(payload["kind"])
    if kind is None:
        raise ProtocolError(f"unknown message kind {payload['kind'][:40]!r}")
    message = from_json(kind, {key: value for key, value in payload.items() if key != "kind"})
    _check(message)
    return message


def _check(message: Message) -> None:
    """Bounds that types do not express."""
    match message:
        case WorkerHello() | NodeHello():
            identity = message.worker_id if isinstance(message, WorkerHello) else message.node_id
            if not is_id(identity):
                raise ProtocolError(f"{type(message).__name__}: {identity[:40]!r} is not an id of 12 hex digits")
        case Join():
            if len(message.address) > ADDRESS_KEYS_MAX or len(str(message.address)) > TEXT_MAX:
                raise ProtocolError(f"Join.address: larger than {TEXT_MAX} characters")
        case Suspect(why=text) | Fence(reason=text) | Turned(reason=text):
            if len(text) > TEXT_MAX:
                raise ProtocolError(f"{type(message).__name__}: text longer than {TEXT_MAX} characters")
        case _:
            pass


def check_version(version: int, peer: str) -> None:
    """Raise RefusedError when the other side speaks another version of this protocol."""
    if version != VERSION:
        raise RefusedError(
            f"{peer} speaks version {version} of the control protocol, this node version {VERSION}; "
            "install the same elaswave on all hosts"
        )


def raise_turned(turned: Turned, errors: Mapping[Turn, type[ElasWaveError]]) -> None:
    """Raise the error that stands for being turned away."""
    raise errors[turned.turn](turned.reason)
