"""The dynamic communicator: long-lived links, one epoll, and groups that are edited in place.

Every blocking wait of the process is one epoll over links, listeners and the control channel. A new view that
arrives on the control channel therefore frees any blocked operation, whoever its peer is. After ElasWave,
https://arxiv.org/abs/2510.00606, "in-place communication group edits".
"""

import select
import socket
import zlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from elaswave.clock import SYSTEM
from elaswave.communicator.arena import ARENA_BYTES, Arena, PeerArena
from elaswave.communicator.doors import Doors
from elaswave.communicator.group import Group, GroupSpec
from elaswave.communicator.inbox import Inbox
from elaswave.communicator.link import Introduction, Link
from elaswave.communicator.transfers import Outbox
from elaswave.config import Transport
from elaswave.coordination.handshake import Handshake
from elaswave.errors import DeadlineExceeded, PeerLost

LEFT_BEHIND_S = 1.0
"""A wait that cannot end in this epoch ends after this time, if no view has come that says why."""


class Mesh:
    """One process's links and groups; used by its main thread alone.

    Args:
        worker_id: of this process, 12 characters.
        host_id: workers with the same id share memory, unless `transport` is tcp.
        secret: of the job; every link proves knowledge of it.
        transport: auto, shm or tcp.
        bind: address for links from other hosts.
        timeout_s: longest wait inside one operation.
        on_broken: called with a worker id and a reason when a link to it breaks.

    Attributes:
        address: what other workers need to dial this one; JSON-able.
        links: to the workers that this one is linked with, by worker id.
        inbox, outbox: messages on their way.

    Raises:
        LaunchError: `bind` is not an address of this machine.
    """

    def __init__(
        self,
        *,
        worker_id: str,
        host_id: str,
        secret: bytes,
        transport: Transport = Transport.AUTO,
        bind: str = "127.0.0.1",
        timeout_s: float = 60.0,
        on_broken: Callable[[str, str], None] | None = None,
    ) -> None:
        self.worker_id, self.timeout_s, self.epoch = worker_id, timeout_s, 0
        self.arena, self.inbox = Arena(), Inbox()
        self.links: dict[str, Link] = {}
        self.outbox = Outbox(self.links, self.arena.bytes)
        self.payload_target, self.arrived = self.inbox.payload_target, self.inbox.arrived  # links call these
        self._secret, self._on_broken = secret, on_broken
        self._introduction = Introduction(worker_id, self.arena.fd, ARENA_BYTES)
        self._groups: dict[str, Group] = {}
        self._by_fd: dict[int, Link] = {}
        self._graves: list[Link] = []
        self._broken: dict[str, float] = {}
        self._scratch = np.empty(0, np.uint8)
        self._interrupt = 0
        self._ahead_since_s: float | None = None
        self._known: Mapping[str, object] = {}  # workers of this view; others may have dialled from a later one
        self._control: Callable[[], None] | None = None
        self._control_fd = -1
        self._epoll = select.epoll()
        self._doors = Doors(worker_id, host_id, transport, bind)
        self.address = self._doors.address
        for fd in self._doors.listeners:
            self._epoll.register(fd, select.EPOLLIN)

    # -- what the job calls ------------------------------------------------------------------------------------

    def attach(self, fd: int, on_readable: Callable[[], None]) -> None:
        """Watch the control channel in every wait; `on_readable` may call `interrupt`."""
        self._control, self._control_fd = on_readable, fd
        self._epoll.register(fd, select.EPOLLIN)

    def detach(self) -> None:
        """Stop watching the control channel."""
        if self._control is not None:
            self._epoll.unregister(self._control_fd)
            self._control = None

    def interrupt(self, epoch: int) -> None:
        """Make every wait raise PeerLost until an edit reaches `epoch`."""
        self._interrupt = max(self._interrupt, epoch)

    def poll(self) -> None:
        """Make progress without blocking.

        Raises:
            PeerLost: a newer view interrupts the current epoch.
        """
        self._progress(0.0)
        if self._interrupt > self.epoch:
            raise PeerLost(self._interrupt)
        self._bury()

    def group(self, name: str) -> Group:
        return self._groups[name]

    def scratch(self, num_bytes: int) -> np.ndarray:
        """Memory for one collective, the same every time: pages that are new cost more than what is done with them."""
        if len(self._scratch) < num_bytes:
            self._scratch = np.empty(num_bytes, np.uint8)
        return self._scratch[:num_bytes]

    def close(self) -> None:
        """Close every link and listener; nothing is left open."""
        for link in list(self._by_fd.values()):
            self._drop(link)
        self._bury()
        for group in self._groups.values():
            group.close()
        self._doors.close()
        self._epoll.close()
        self.arena.close()

    # -- edits -------------------------------------------------------------------------------------------------

    def edit(self, epoch: int, addresses: Mapping[str, Mapping[str, object]], groups: Mapping[str, GroupSpec]) -> None:
        """Enter an epoch in place: healthy links stay, others are dropped, missing ones are opened.

        Args:
            epoch: of the view.
            addresses: of every worker in the view, as its mesh announced it.
            groups: this worker's groups, by name; a group that is not named ceases to exist.

        Raises:
            PeerLost: a still newer view interrupts.
            DeadlineExceeded: a member could not be linked within `timeout_s`.
        """
        if self._graves:
            self._bury()
        self.epoch, links = epoch, self.links
        self._ahead_since_s = None
        for peer in links.keys() - addresses.keys():
            if peer in self._known:
                self._set_aside(links[peer])
        self._known = addresses
        self._broken.clear()
        self._edit_groups(epoch, groups)
        members = {peer for group in self._groups.values() for peer in group.peers}
        self.outbox.clear()
        for link in links.values():
            link.abandon()
        self.inbox.enter(epoch, members)
        if not members <= links.keys():
            self.wait(
                lambda: self._linked(members, addresses),
                what=lambda: f"links to {sorted(members - links.keys())}",
                needs=lambda: members - links.keys(),
            )

    def _linked(self, members: set[str], addresses: Mapping[str, Mapping[str, object]]) -> bool:
        """Whether all members are; if not, dial those that are to be dialled: of two, the larger id dials."""
        missing = members - self.links.keys()
        dialled = {link.peer for link in self._by_fd.values()} if missing else set()
        for peer in sorted(missing - dialled):
            if self.worker_id > peer:
                self._dial(peer, addresses[peer])
        return not missing

    def regroup(self, groups: Mapping[str, GroupSpec]) -> None:
        """Have other groups within an epoch; those that stay as they are go on, no link is touched.

        Every member of any group calls it between the same two operations, of which the one before is a collective
        of all: then nothing is under way in a group that ends, and all have what they need of its shared memory. A
        group that begins is first used after a further collective of all, which none passes that still has the
        groups of before.

        Args:
            groups: this worker's, by name; all members are linked already.
        """
        changed = [name for name, group in self._groups.items() if groups.get(name) != group.spec]
        for name in changed:
            self._groups.pop(name).close()
        for name in groups.keys() - self._groups.keys():
            self._groups[name] = Group(self, name, zlib.crc32(name.encode()), self.epoch, groups[name])

    def _edit_groups(self, epoch: int, groups: Mapping[str, GroupSpec]) -> None:
        if self._groups.keys() == groups.keys():
            for name, group in self._groups.items():
                group.edit(epoch, groups[name])
            return
        for name in [name for name in self._groups if name not in groups]:
            self._groups.pop(name).close()
        for name, spec in groups.items():
            if name in self._groups:
                self._groups[name].edit(epoch, spec)
            else:
                self._groups[name] = Group(self, name, zlib.crc32(name.encode()), epoch, spec)
        if len({group.id for group in self._groups.values()}) != len(self._groups):
            raise ValueError(f"two of the groups {sorted(groups)} have the same id; rename one")

    # -- the one place that waits ------------------------------------------------------------------------------

    def wait(
        self,
        done: Callable[[], bool],
        timeout_s: float | None = None,
        what: Callable[[], str] = lambda: "an operation",
        needs: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """Make progress until `done()`.

        Args:
            done: asked after everything that happens.
            timeout_s: by default the mesh's.
            what: names what is waited for, if it does not come.
            needs: workers that are still to be heard.

        Raises:
            PeerLost: a newer view interrupts; or one must be near, because a worker that is needed has closed its
                link, or another member has been in a newer epoch, for `LEFT_BEHIND_S`.
            DeadlineExceeded: after `timeout_s`.
        """
        if done():
            return
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        start, waited_s = SYSTEM.monotonic(), 0.0
        while True:
            if self._interrupt > self.epoch:
                raise PeerLost(self._interrupt)
            if self._left_behind():
                raise PeerLost(self.inbox.ahead)
            if self._broken:
                self._raise_if_broken(needs())
            if waited_s >= limit_s:
                raise DeadlineExceeded(f"waited {limit_s} s for {what()}")
            self._progress(min(limit_s - waited_s, LEFT_BEHIND_S))
            if done():
                return
            waited_s = SYSTEM.monotonic() - start

    def _left_behind(self) -> bool:
        """Whether a member has been in a newer epoch for so long that it will not answer in this one.

        A member that enters the next view at the end of a step is there a little before those which have not read yet
        that the step has been committed.
        """
        if self.inbox.ahead <= self.epoch:
            return False
        now = SYSTEM.monotonic()
        if self._ahead_since_s is None:
            self._ahead_since_s = now
        return now - self._ahead_since_s > LEFT_BEHIND_S

    def _raise_if_broken(self, peers: Iterable[str]) -> None:
        """A link is not opened again within an epoch; the time is for a view that knows better who is lost."""
        latest = SYSTEM.monotonic() - LEFT_BEHIND_S
        if any(self._broken.get(peer, latest) < latest for peer in peers):
            raise PeerLost(self.epoch + 1)

    def _progress(self, timeout_s: float) -> None:
        for fd, mask in self._epoll.poll(timeout_s):
            link = self._by_fd.get(fd)
            if link is not None:
                link.on_event(mask)
            elif fd in self._doors.listeners:
                self._accept(fd)
            elif fd == self._control_fd and self._control is not None:
                self._control()
        if self.outbox:
            self.outbox.push()
        if self._doors.strangers:
            for fd in self._doors.overdue():
                self._drop(self._by_fd[fd])

    # -- links come and go -------------------------------------------------------------------------------------

    def _accept(self, fd: int) -> None:
        sock = self._doors.accept(fd)
        if sock is not None:
            self._adopt(sock, initiator=False)

    def _dial(self, peer: str, address: Mapping[str, object]) -> None:
        try:
            sock = self._doors.dial(peer, address)
        except OSError as error:
            self._suspect(peer, str(error))
            return
        self._adopt(sock, initiator=True).peer = peer

    def _adopt(self, sock: socket.socket, *, initiator: bool) -> Link:
        self._doors.let_in(sock)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        link = Link(self, sock, Handshake(self._secret, initiator=initiator, context=b"link"), self._introduction)
        self._by_fd[link.fd] = link
        link.start()
        return link

    def came_up(self, link: Link) -> None:
        """A link has introduced itself; of two to the same worker the newer is kept."""
        self._doors.strangers.pop(link.fd, None)
        older = self.links.get(link.peer)
        if older is not None:
            self._drop(older)
        self.links[link.peer] = link
        self._broken.pop(link.peer, None)
        if link.arena is not None and (ring := self.arena.take_ring()) is not None:
            link.use_ring(ring)

    def broke(self, link: Link, why: str) -> None:
        """A link is gone; what that means is decided elsewhere."""
        current = self.links.get(link.peer) is link
        self._drop(link)
        if current:
            self._broken[link.peer] = SYSTEM.monotonic()
        if link.up:
            self._suspect(link.peer, why)

    def arena_of(self, peer: str) -> PeerArena | None:
        """Shared memory of a worker that has rung; one that is gone since can still be read until the next poll."""
        link = self.links.get(peer) or next((grave for grave in self._graves if grave.peer == peer), None)
        return None if link is None else link.arena

    def want_write(self, link: Link, wanted: bool) -> None:
        if not link.dead:
            self._epoll.modify(link.fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def _suspect(self, peer: str, why: str) -> None:
        if self._on_broken is not None:
            self._on_broken(peer, why)

    def _drop(self, link: Link) -> None:
        """Forget a link and close its socket."""
        self._set_aside(link)
        link.hang_up()

    def _set_aside(self, link: Link) -> None:
        """Forget a link; its socket and memory, which take long, are let go of off the repair path."""
        if link.dead:
            return
        link.dead = True
        self._by_fd.pop(link.fd, None)
        self._doors.strangers.pop(link.fd, None)
        try:
            self._epoll.unregister(link.fd)
        except OSError:
            pass
        if self.links.get(link.peer) is link:
            del self.links[link.peer]
        self._graves.append(link)

    def _bury(self) -> None:
        while self._graves:
            link = self._graves.pop()
            link.hang_up()
            self.inbox.rescue(link)
            link.let_go()
            if link.ring is not None:
                self.arena.give_ring(link.ring)
