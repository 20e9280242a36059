"""The difference between two views: what travels when the other side already has the older one."""

from elaswave.coordination.protocol import ViewDelta
from elaswave.errors import ProtocolError
from elaswave.topology import View


def delta_between(old: View, new: View) -> ViewDelta:
    """What turns `old` into `new`."""
    before, after = {m.worker_id: m for m in old.members}, {m.worker_id: m for m in new.members}
    moved = {w for w in before.keys() & after.keys() if before[w] != after[w]}
    return ViewDelta(
        base_epoch=old.epoch,
        epoch=new.epoch,
        gone=tuple(sorted((before.keys() - after.keys()) | moved)),
        new=tuple(m for m in new.members if m.worker_id not in before or m.worker_id in moved),
        departed=new.departed - old.departed,
        reason=new.reason,
        paused=new.paused,
        finished=new.finished,
        term=new.term,
    )


def apply_delta(old: View, delta: ViewDelta) -> View:
    """The newer view.

    Raises:
        ProtocolError: `delta` does not start from `old`.
    """
    if delta.base_epoch != old.epoch or delta.epoch <= old.epoch:
        raise ProtocolError(f"a delta from view {delta.base_epoch} to {delta.epoch} does not fit view {old.epoch}")
    gone = set(delta.gone)
    members = [m for m in old.members if m.worker_id not in gone] + list(delta.new)
    return View(
        epoch=delta.epoch,
        members=tuple(sorted(members, key=lambda m: m.rank)),
        reason=delta.reason,
        departed=old.departed | delta.departed,
        paused=delta.paused,
        finished=delta.finished,
        term=delta.term,
    )
