"""Which of the views received is the next to apply, so that all members take the same path through them.

Views are totally ordered but reach the workers at different times. Two workers meet in the same view if each
walks the same chain: from the view it has applied, to the first later view that makes it impossible.
"""

from collections.abc import Sequence

from elaswave.topology import View, absent_from, lost_between


def interrupting(applied: View, seen: Sequence[View], *, settled: bool) -> View | None:
    """The first view that ends what a worker is doing in `applied`, or None.

    Args:
        applied: the view the worker is in.
        seen: views received, in order of epoch.
        settled: the worker has finished the recovery into `applied` and is computing steps. Then only a death
            interrupts: it knows that everyone else is settled too, and a join or a planned leave waits for the
            step boundary. Before that any departure does, and so does a change of coordinator, after which
            views that others have seen may never arrive.
    """
    for view in seen:
        if view.epoch <= applied.epoch:
            continue
        if lost_between(applied, view):
            return view
        if not settled and (absent_from(applied, view) or view.term != applied.term or applied.paused):
            return view
    return None


def chain(start: View, seen: Sequence[View]) -> View:
    """Follow interruptions from `start` until a view that nothing seen so far makes impossible."""
    target = start
    while (later := interrupting(target, seen, settled=False)) is not None:
        target = later
    return target


def at_boundary(applied: View, seen: Sequence[View], agreed_epoch: int) -> View | None:
    """The view to enter at a step boundary, or None to stay.

    Args:
        applied: the view everyone is in.
        seen: views received, in order of epoch.
        agreed_epoch: the smallest newest epoch over all members: everybody has received that far.
    """
    coming = next((view for view in seen if applied.epoch < view.epoch <= agreed_epoch), None)
    return None if coming is None else chain(coming, seen)
