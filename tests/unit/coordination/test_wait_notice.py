"""When a user hears that the job stands still."""

from elaswave.coordination.wait_notice import FORMING_S, PAUSED_S, WaitNotice
from elaswave.topology import Member, View


def view(workers: int, *, paused: bool, finished: bool = False) -> View:
    members = tuple(
        Member(rank=rank, worker_id=f"{rank:012x}", node_id="n", host_id="h", pid=rank + 1, address={})
        for rank in range(workers)
    )
    return View(epoch=1, members=members, reason="", paused=paused, finished=finished)


def test_a_job_that_does_not_form_says_so_once():
    notice = WaitNotice(0.0, 2, 60.0)
    assert notice.look(FORMING_S - 1, None) is None
    assert "waits 60 s for its nodes and workers" in (notice.look(FORMING_S, None) or "")
    assert notice.look(FORMING_S + 1, None) is None
    assert notice.look(FORMING_S + 2, view(2, paused=False)) is None


def test_a_pause_is_told_when_it_lasts_changes_and_ends():
    notice = WaitNotice(0.0, 3, 60.0)
    assert notice.look(1.0, view(1, paused=True)) is None
    assert "1 are here, elasticity.min_workers = 3" in (notice.look(1.0 + PAUSED_S, view(1, paused=True)) or "")
    assert notice.look(2.5, view(1, paused=True)) is None
    assert "2 are here" in (notice.look(3.0, view(2, paused=True)) or "")
    assert notice.look(4.0, view(3, paused=False)) == "the job goes on with 3 workers"
    assert notice.look(5.0, view(3, paused=False)) is None


def test_a_pause_that_is_made_up_for_at_once_is_not_told():
    notice = WaitNotice(0.0, 3, 60.0)
    assert notice.look(1.0, view(2, paused=True)) is None
    assert notice.look(1.1, view(3, paused=False)) is None
    assert notice.look(9.0, view(2, paused=True)) is None


def test_the_end_of_a_paused_job_is_no_news():
    notice = WaitNotice(0.0, 3, 60.0)
    notice.look(1.0, view(1, paused=True))
    assert notice.look(1.0 + PAUSED_S, view(1, paused=True)) is not None
    assert notice.look(4.0, view(0, paused=False, finished=True)) is None
