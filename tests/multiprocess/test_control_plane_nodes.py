"""Several nodes as real processes: forming, the death of the primary, cuts, leaving, and moving seeds."""

import os
import signal

from support.control import Cluster

from elaswave.coordination.launch_settings import free_port


def two_nodes(cluster, **options):
    """Two nodes with two workers each; the first is the primary."""
    seeds = [["127.0.0.1", free_port()]]
    first = cluster.node_process(2, seeds, min_nodes=2, **options)
    first.wait("index", index=0)
    second = cluster.node_process(2, seeds, min_nodes=2, **options)
    second.wait("index", index=1)
    first.wait("joined")
    second.wait("joined", rank=3)
    second.wait("joined", rank=2)
    return seeds, first, second


def test_two_nodes_form_and_finish():
    with Cluster() as cluster:
        _, first, second = two_nodes(cluster)
        first.tell("finish")
        second.tell("finish")
        assert first.exit_code() == 0
        assert second.exit_code() == 0
        second.wait("finished")


def test_the_job_survives_the_death_of_the_primary():
    with Cluster() as cluster:
        _, first, second = two_nodes(cluster)
        pids = [e["pid"] for e in second.events if e["what"] == "connected"]
        first.kill()
        view = second.wait("view", ranks=[2, 3])
        assert view["departed"] == []
        assert view["term"] == 1
        second.tell("finish")
        second.wait("finished")
        assert second.exit_code() == 0
        assert [e["pid"] for e in second.events if e["what"] == "connected"] == pids


def test_a_new_node_finds_the_primary_at_the_seed_that_the_dead_one_left():
    with Cluster() as cluster:
        seeds, first, second = two_nodes(cluster)
        first.kill()
        second.wait("view", ranks=[2, 3])
        third = cluster.node_process(2, seeds)
        third.wait("joined", rank=0)
        third.wait("joined", rank=1)
        second.wait("view", ranks=[0, 1, 2, 3])


def test_a_worker_killed_on_the_other_node_is_reported_to_all():
    with Cluster() as cluster:
        _, first, second = two_nodes(cluster)
        victim = next(e for e in second.events if e["what"] == "connected")
        os.kill(victim["pid"], signal.SIGKILL)
        view = first.wait_event(lambda e: e["what"] == "view" and e["epoch"] == 2)
        assert victim["worker_id"] not in view["ids"]


def test_a_node_that_leaves_hands_the_job_over():
    with Cluster() as cluster:
        _, first, second = two_nodes(cluster)
        first.tell("leave")
        assert first.exit_code() == 0
        view = second.wait("view", ranks=[2, 3])
        assert len(view["departed"]) == 2
        second.tell("finish")
        assert second.exit_code() == 0


def test_a_stopped_standby_is_dropped_and_its_workers_are_fenced_when_it_wakes(tmp_path):
    with Cluster() as cluster:
        _, first, second = two_nodes(cluster, run_folder=str(tmp_path))
        second.kill(signal.SIGSTOP)
        first.wait("view", ranks=[0, 1], timeout_s=10)
        second.kill(signal.SIGCONT)
        second.wait("fenced")
        first.tell("finish")
        first.wait("finished")
        assert first.exit_code() == 0


def test_half_of_the_workers_without_a_witness_stop():
    with Cluster() as cluster:
        _, first, second = two_nodes(cluster)
        second.kill(signal.SIGSTOP)
        error = first.wait("error", timeout_s=10)
        assert error["kind"] == "Fenced"
        assert "witness" in error["reason"]
        assert first.exit_code() == 1
