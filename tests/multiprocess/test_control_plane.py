"""One node with real workers: joining, deaths, hangs, spares, planned leaves, and the end."""

import os
import signal

from support.control import Cluster

from elaswave.clock import Deadline


def form(cluster, count, **options):
    service = cluster.node(workers=count, **options)
    workers = [cluster.worker(service, i) for i in range(count)]
    for rank, worker in enumerate(workers):
        worker.wait("joined", rank=rank)
    return service, workers


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
        assert service.view.departed == {w.events[0]["worker_id"] for w in workers}


def test_a_killed_worker_is_dropped_and_replaced_in_its_rank():
    with Cluster() as cluster:
        service, workers = form(cluster, 3)
        workers[1].kill()
        for survivor in (workers[0], workers[2]):
            assert survivor.wait("view", ranks=[0, 2])["departed"] == []
        replacement = cluster.worker(service, 1)
        replacement.wait("joined", rank=1)
        workers[0].wait("view", ranks=[0, 1, 2], epoch=3)
        assert [e["rank"] for e in cluster.sink.of("death")] == [1]


def test_a_spare_takes_the_lost_rank_in_the_same_view():
    with Cluster() as cluster:
        service, workers = form(cluster, 2)
        spare = cluster.spare(service)
        spare.wait("connected")
        while not cluster.sink.of("spare"):
            assert os.getpid()
        workers[0].kill()
        joined = spare.wait("joined", rank=0)
        workers[1].wait("view", ranks=[0, 1], epoch=2, ids=[joined["worker_id"], workers[1].events[0]["worker_id"]])
        assert service.spare_pid_for(0) == (spare.pid, joined["worker_id"])
        assert service.spare_pid_for(0) is None


def test_a_stopped_worker_is_evicted_and_killed():
    with Cluster() as cluster:
        _, workers = form(cluster, 2)
        workers[1].kill(signal.SIGSTOP)
        workers[0].wait("view", ranks=[0])
        assert workers[1].exit_code() == -signal.SIGKILL
