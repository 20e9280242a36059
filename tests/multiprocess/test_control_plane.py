"""One node with real workers: joining, deaths, hangs, spares, planned leaves, and the end."""

import os
import signal
import threading

import pytest
from support.control import FAST, Cluster

from elaswave.clock import Deadline
from elaswave.coordination.timeouts import Timeouts
from elaswave.errors import DeadlineExceeded, LaunchError


def form(cluster, count, **options):
    service = cluster.node(workers=count, **options)
    workers = [cluster.worker(service, i) for i in range(count)]
    for rank, worker in enumerate(workers):
        worker.wait("joined", rank=rank)
    return service, workers


def wait_for_threads():
    """Until every thread of the control plane has ended."""
    deadline = Deadline(10)
    for thread in threading.enumerate():
        if thread.name.startswith("elaswave"):
            thread.join(deadline.left_s())
            assert not thread.is_alive()


def identity(worker):
    return worker.wait("connected")["worker_id"]


def test_workers_join_in_order_and_finish():
    with Cluster() as cluster:
        service, workers = form(cluster, 2)
        assert service.wait_formed(Deadline(5)).ranks() == (0, 1)
        for worker in workers:
            worker.tell("finish")
            assert worker.exit_code() == 0
        service.wait_finished(Deadline(5))
        assert service.finished
        assert service.view.finished
        assert service.view.departed == {identity(w) for w in workers}


def test_a_killed_worker_is_dropped_and_replaced_in_its_rank():
    with Cluster() as cluster:
        service, workers = form(cluster, 3)
        workers[1].kill()
        for survivor in (workers[0], workers[2]):
            assert survivor.wait("view", ranks=[0, 2])["departed"] == []
        cluster.worker(service, 1).wait("joined", rank=1)
        workers[0].wait("view", ranks=[0, 1, 2], epoch=3)
        death = cluster.sink.wait("death")
        assert (death["rank"], death["pid"]) == (1, workers[1].pid)


def test_several_killed_at_once_share_few_views():
    with Cluster() as cluster:
        _, workers = form(cluster, 4)
        for victim in workers[1:]:
            victim.kill()
        assert workers[0].wait("view", ranks=[0])["epoch"] <= 4


def test_a_spare_takes_the_lost_rank_in_the_same_view():
    with Cluster() as cluster:
        service, workers = form(cluster, 2)
        spare = cluster.spare(service)
        cluster.sink.wait("spare")
        workers[0].kill()
        joined = spare.wait("joined", rank=0)
        workers[1].wait("view", ranks=[0, 1], epoch=2, ids=[joined["worker_id"], identity(workers[1])])
        assert service.spare_pid_for(0) == (spare.pid, joined["worker_id"])
        assert service.spare_pid_for(0) is None


def test_the_launcher_may_ask_for_a_spare():
    with Cluster() as cluster:
        service, workers = form(cluster, 1)
        spare = cluster.spare(service)
        cluster.sink.wait("spare")
        workers[0].kill()
        workers[0].exit_code()
        service.forget(identity(workers[0]))
        assert service.spare_pid_for(0) == (spare.pid, identity(spare))


def test_spares_are_dismissed_at_the_end():
    with Cluster() as cluster:
        service, workers = form(cluster, 1)
        spare = cluster.spare(service)
        cluster.sink.wait("spare")
        workers[0].tell("finish")
        spare.wait("dismissed")
        assert spare.exit_code() == 0
        service.wait_finished(Deadline(5))


def test_a_stopped_worker_is_evicted_and_killed():
    with Cluster() as cluster:
        _, workers = form(cluster, 2)
        workers[1].kill(signal.SIGSTOP)
        assert "state T" in workers[0].wait("view", ranks=[0])["reason"]
        assert workers[1].exit_code() == -signal.SIGKILL


def test_a_stopped_worker_that_nobody_could_kill_is_fenced_when_it_wakes():
    with Cluster() as cluster:
        killed = threading.Event()
        _, workers = form(cluster, 2, on_kill=lambda pid: killed.set())
        workers[1].kill(signal.SIGSTOP)
        workers[0].wait("view", ranks=[0])
        assert killed.wait(5)
        workers[1].kill(signal.SIGCONT)
        workers[1].wait("fenced")
        assert workers[1].exit_code() == 66


def test_a_suspected_stopped_worker_is_evicted_before_its_lease_ends():
    with Cluster(Timeouts(heartbeat_s=0.1, suspicion_s=30, grace_s=0.3)) as cluster:
        _, workers = form(cluster, 2)
        workers[1].kill(signal.SIGSTOP)
        workers[0].tell(f"suspect {identity(workers[1])}")
        workers[0].wait("view", ranks=[0], timeout_s=10)


def test_a_worker_that_holds_the_interpreter_lock_is_not_dead():
    with Cluster() as cluster:
        service, workers = form(cluster, 2)
        workers[1].tell("hold_gil 1.5")
        workers[1].wait("released", timeout_s=10)
        workers[0].tell("finish")
        workers[0].wait("exit")
        workers[1].wait("view", finished=True)
        assert service.view.rank_of(identity(workers[1])) == 1
        assert cluster.sink.of("death") == []


def test_a_planned_leave_departs_all_workers():
    with Cluster() as cluster:
        service, workers = form(cluster, 2)
        service.leave(Deadline(10))
        assert [w.exit_code() for w in workers] == [0, 0]
        assert service.view.members == ()
        assert not service.view.finished
        assert cluster.sink.of("death") == []


def test_a_leave_that_takes_too_long_ends_with_a_kill():
    with Cluster() as cluster:
        service, workers = form(cluster, 1)
        workers[0].tell("hold_gil 1.9")
        workers[0].wait("holding")
        service.leave(Deadline(0.2))
        assert workers[0].exit_code() == -signal.SIGKILL


def test_a_process_that_never_connects_is_killed():
    with Cluster(Timeouts(heartbeat_s=0.1, suspicion_s=1.0, grace_s=0.3, start_timeout_s=0.5)) as cluster:
        service = cluster.node(workers=1)
        stranger = cluster.process("import sys; sys.stdin.read()")
        service.expect("00000000000a", 0, stranger.pid)
        assert stranger.exit_code() == -signal.SIGKILL
        assert "start timeout" in cluster.sink.wait("death")["evidence"]


def test_a_process_that_is_stopped_before_it_connects_is_killed():
    with Cluster() as cluster:
        service = cluster.node(workers=1)
        stranger = cluster.process("import sys; sys.stdin.read()")
        stranger.kill(signal.SIGSTOP)
        service.expect("00000000000a", 0, stranger.pid)
        assert stranger.exit_code() == -signal.SIGKILL


def test_too_few_workers_pause_and_end_the_job():
    with Cluster() as cluster:
        timeouts = Timeouts(heartbeat_s=0.1, suspicion_s=1.0, grace_s=0.3, wait_for_workers_s=1.5)
        service, workers = form(cluster, 2, min_workers=2, timeouts=timeouts)
        workers[0].kill()
        workers[1].wait("view", paused=True, ranks=[1])
        assert "1 workers are left, 2 are needed" in workers[1].wait("error", kind="LaunchError")["reason"]
        with pytest.raises(LaunchError, match="2 are needed"):
            service.wait_finished(Deadline(5))


def test_a_worker_with_another_configuration_is_refused():
    with Cluster() as cluster:
        service, workers = form(cluster, 2)
        workers[1].kill()
        workers[0].wait("view", ranks=[0])
        other = cluster.worker(service, 1, TEST_CONFIG_DIGEST="other")
        assert "another configuration" in other.wait("refused")["reason"]
        assert other.exit_code() == 65
        old = cluster.worker(service, 1, TEST_TORCH="2.6.0")
        assert "torch 2.6.0" in old.wait("refused")["reason"]
        cluster.worker(service, 1).wait("joined", rank=1)


def test_a_worker_id_cannot_be_used_twice():
    with Cluster() as cluster:
        service, workers = form(cluster, 1)
        twin = cluster.worker(service, 0, ELASWAVE_WORKER_ID=identity(workers[0]))
        assert "already" in twin.wait("refused")["reason"]
        assert twin.exit_code() == 65


def test_stopping_the_service_fences_workers_and_leaves_nothing_behind():
    wait_for_threads()
    descriptors = len(os.listdir("/proc/self/fd"))
    with Cluster(FAST) as cluster:
        service, workers = form(cluster, 2)
        service.stop()
        assert [w.exit_code() for w in workers] == [66, 66]
        with pytest.raises((LaunchError, DeadlineExceeded)):
            service.wait_finished(Deadline(0.1))
    wait_for_threads()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_death_is_noticed_although_the_victim_has_much_memory():
    with Cluster() as cluster:
        service = cluster.node(workers=2)
        survivor = cluster.worker(service, 0)
        victim = cluster.worker(service, 1, TEST_RESIDENT_BYTES=str(1 << 29))
        victim.wait("joined")
        victim.kill()
        survivor.wait("view", ranks=[0])
        assert "mutex" in cluster.sink.wait("death")["evidence"]
