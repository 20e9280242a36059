"""Whole nodes in virtual time: forming, losing, joining, failing over, and stopping when cut off."""

import pytest
from support.virtual import World

from elaswave.coordination.coordinator_events import Policy
from elaswave.coordination.delta import apply_delta
from elaswave.coordination.protocol import Activate, Fence, FullView, LeaveSoon, Turned
from elaswave.errors import Fenced, LaunchError


def formed(nodes=2, workers=2, *, hosts=None, spares=0, **options):
    """A world with a formed job."""
    options.setdefault("policy", Policy(min_nodes=nodes))
    world = World(**options)
    names = [world.node(workers, host=hosts[i] if hosts else None, spares=spares) for i in range(nodes)]
    world.run_until(lambda: all(world.view(name) is not None for name in names))
    return world, names


def seen_by(world, worker_id):
    """The last view of a worker, from the messages it got."""
    view = None
    for message in world.workers[worker_id].messages:
        if isinstance(message, FullView):
            view = message.view
        elif hasattr(message, "base_epoch"):
            view = apply_delta(view, message)
    return view


def test_nodes_meet_at_the_seed_and_form():
    world, (first, second) = formed()
    assert world.primaries == [first]
    view = world.view(second)
    assert view == world.view(first)
    assert view.ranks() == (0, 1, 2, 3)
    assert [m.node_id for m in view.members] == [first, first, second, second]
    assert all(seen_by(world, w) == view for w in view.worker_ids())


def test_a_job_does_not_form_before_all_expected_workers_are_there():
    world = World(policy=Policy(min_nodes=2))
    world.node(2)
    world.run(5)
    assert world.published == []
    world.node(2)
    world.run(1)
    assert len(world.published) == 1


def test_a_job_that_does_not_form_in_time_ends_with_what_was_missing():
    world = World(policy=Policy(min_nodes=2))
    name = world.node(2)
    world.run_until(lambda: name in world.ended, limit_s=200)
    assert isinstance(world.ended[name], LaunchError)
    assert "1 of 2 nodes" in str(world.ended[name])


def test_a_loss_is_published_within_milliseconds():
    world, (first, second) = formed()
    victim = world.ids(second)[0]
    world.kill(victim)
    taken_s = world.run_until(lambda: world.view(first).epoch == 2)
    assert taken_s < 0.02
    assert world.view(first).ranks() == (0, 1, 3)
    assert "lost rank 2" in world.view(first).reason
    assert victim not in world.view(first).departed


def test_two_losses_at_once_share_a_view():
    world, (first, second) = formed()
    world.kill(world.ids(first)[1])
    world.kill(world.ids(second)[1])
    world.run(0.5)
    assert world.view(first).epoch == 2
    assert world.view(second).ranks() == (0, 2)


def test_a_replacement_takes_the_rank_of_the_one_it_replaces():
    world, (first, second) = formed(nodes=2, workers=3)
    world.kill(world.ids(second)[0])
    world.kill(world.ids(second)[0])
    world.run(0.2)
    later = world.worker(second, 1)
    world.run(0.2)
    assert world.view(first).rank_of(later) == 4
    last = world.worker(second, 0)
    world.run(0.2)
    assert world.view(first).rank_of(last) == 3


def test_scale_out_appends_ranks():
    world, (first, _) = formed()
    third = world.node(2)
    world.run_until(lambda: len(world.view(first).members) == 6)
    assert world.view(first).ranks() == (0, 1, 2, 3, 4, 5)
    world.run(0.1)
    assert world.view(third) == world.view(first)
    assert world.view(third).epoch == 2


def test_a_spare_takes_the_lost_rank_in_the_view_that_reports_the_loss():
    world, (first, second) = formed(spares=1)
    world.kill(world.ids(second)[0])
    world.run(0.1)
    view = world.view(first)
    assert view.epoch == 2
    assert view.ranks() == (0, 1, 2, 3)
    spare = view.members[2].worker_id
    assert world.workers[spare].saw(Activate)
    assert seen_by(world, spare) == view
    assert world.cores[second].workers.spare_for(world.now, 0) == (view.members[2].pid, spare)


def test_a_planned_leave_interrupts_nobody():
    world, (first, second) = formed()
    world.cores[second].workers.leave(world.now)
    world.run(0.1)
    leavers = world.ids(second)
    assert all(world.workers[w].saw(LeaveSoon) for w in leavers)
    assert world.view(first).epoch == 1
    for worker in leavers:
        world.depart(worker)
    world.run(0.2)
    assert world.view(first).ranks() == (0, 1)
    assert world.view(first).departed == set(leavers)
    assert world.cores[second].workers.left


def test_too_few_workers_pause_the_job_until_others_come():
    world, (first, second) = formed(policy=Policy(min_nodes=2, min_workers=4))
    world.kill(world.ids(second)[0])
    world.run(0.2)
    assert world.view(first).paused
    world.worker(second, 0)
    world.run(0.2)
    assert not world.view(first).paused
    world.run(200)
    assert not world.ended


def test_a_paused_job_ends_after_the_wait():
    world, (first, second) = formed(policy=Policy(min_nodes=2, min_workers=4))
    world.kill(world.ids(second)[0])
    world.run_until(lambda: len(world.ended) == 2, limit_s=200)
    assert "3 workers are left, 4 are needed" in str(world.ended[second])
    assert world.workers[world.view(first).members[0].worker_id].saw(Turned)


def test_finishing_empties_the_view_and_dismisses_spares():
    world, (first, second) = formed(spares=1)
    members = world.view(first).worker_ids()
    for worker in members:
        world.finish(worker)
    world.run(0.5)
    assert world.cores[first].finished
    assert world.cores[second].finished
    assert world.view(second).departed == set(members)
    spares = [w for w in world.workers.values() if w.worker_id not in members]
    assert all(spare.saw(Turned) for spare in spares)


def test_nobody_is_replaced_once_somebody_has_finished():
    world, (first, second) = formed()
    world.finish(world.ids(first)[0])
    world.run(0.2)
    assert world.view(second).finished
    late = world.worker(second, 5)
    world.run(0.2)
    assert world.view(second).rank_of(late) is None
    assert "last step" in world.workers[late].saw(Turned)[0].reason


def test_a_hung_worker_is_dropped_within_the_lease():
    world, (first, second) = formed()
    victim = world.ids(second)[1]
    world.hang(victim)
    taken_s = world.run_until(lambda: world.view(first).epoch == 2)
    assert taken_s <= world.timeouts.suspicion_s + 0.1
    assert world.view(first).rank_of(victim) is None
    assert world.workers[victim].saw(Fence)
    assert world.workers[victim].dead


def test_a_standby_takes_over_when_the_primary_is_killed():
    world, (first, second, third) = formed(nodes=3, hosts=["a", "a", "a"])
    world.kill_node(first)
    taken_s = world.run_until(lambda: world.view(third).epoch > 1)
    assert taken_s < 0.2
    assert world.primaries == [second]
    assert world.view(third) == world.view(second)
    assert world.view(third).ranks() == (2, 3, 4, 5)
    assert world.view(third).term == 1
    assert not world.ended


def test_two_nodes_of_one_host_survive_the_primary():
    world, (first, second) = formed(hosts=["a", "a"])
    world.kill_node(first)
    taken_s = world.run_until(lambda: world.view(second).epoch > 1)
    assert taken_s < 0.2
    assert world.view(second).ranks() == (2, 3)


def test_the_next_standby_takes_over_from_the_second_primary():
    world, (first, second, third) = formed(nodes=3, hosts=["a", "a", "a"])
    world.kill_node(first)
    world.run(1)
    world.kill_node(second)
    world.run(1)
    assert world.primaries == [third]
    assert world.view(third).ranks() == (4, 5)
    assert world.view(third).term == 2


def test_a_takeover_that_changes_no_membership_changes_no_view():
    world = World(policy=Policy(min_nodes=2))
    first, second, third = world.node(0, host="a"), world.node(2, host="a"), world.node(2, host="a")
    world.run_until(lambda: world.view(third) is not None)
    world.kill_node(first)
    world.run(200)
    assert world.primaries == [second]
    assert world.view(third).epoch == 1
    assert not world.ended


def test_the_members_decide_which_configuration_is_right_after_a_takeover():
    world, (first, second, third) = formed(nodes=3, hosts=["a", "a", "a"])
    world.kill(world.ids(second)[0])
    world.run(0.2)
    world.kill_node(first)
    wrong = world.worker(second, 0, digest="d")
    world.run(1)
    assert world.workers[wrong].saw(Turned)
    assert world.view(third).ranks() == (3, 4, 5)
    assert world.ids(third) == [m.worker_id for m in world.view(third).members if m.node_id == third]


def test_a_death_during_the_takeover_is_not_lost():
    world, (first, second, third) = formed(nodes=3, hosts=["a", "a", "a"])
    world.kill_node(first)
    world.kill(world.ids(third)[0])
    world.run(2)
    assert world.view(second).ranks() == (2, 3, 5)


def test_a_promoted_primary_of_a_healthy_majority_goes_on_after_the_lease():
    world, (first, second, third) = formed(nodes=3)
    world.kill_node(first)
    world.run_until(lambda: world.view(third).epoch > 1, limit_s=5)
    assert world.view(second).ranks() == (2, 3, 4, 5)
    assert "cut off rank 0" in world.view(second).reason


def test_a_minority_stops_and_the_majority_goes_on():
    world, (first, second, third) = formed(nodes=3)
    world.partition([first], [second, third])
    world.run(10)
    assert isinstance(world.ended[first], Fenced)
    assert world.ids(first) == []
    assert world.view(second) == world.view(third)
    assert world.view(second).ranks() == (2, 3, 4, 5)
    assert len(world.primaries) == 1


@pytest.mark.parametrize("shared", [True, False])
def test_of_two_halves_only_the_one_with_the_witness_goes_on(shared):
    world, (first, second) = formed(shared_storage=shared)
    world.partition([first], [second])
    world.run(10)
    alive = [name for name in (first, second) if world.ids(name)]
    assert len(alive) == int(shared)
    for name in {first, second} - set(alive):
        assert isinstance(world.ended[name], Fenced)
    if not shared:
        assert "witness" in str(world.ended[first])


def test_a_short_cut_changes_nothing():
    world, (first, second) = formed()
    world.partition([first], [second])
    world.run(0.5)
    world.heal()
    world.run(3)
    assert world.view(second).epoch == 1
    assert not world.ended


def test_a_death_while_the_new_primary_has_not_answered_is_reported_afterwards():
    world, (first, second, third) = formed(nodes=3, hosts=["a", "a", "a"])
    world.kill_node(first)
    world.run_until(lambda: world.cores[second].coordinator is not None)
    world.partition([second], [third])
    victim = world.ids(third)[0]
    world.kill(victim)
    world.run(0.3)
    world.heal()
    world.run(1)
    assert world.view(second).rank_of(victim) is None
    assert world.view(third) == world.view(second)


def test_a_late_node_finds_the_primary_that_has_moved():
    world, (first, second, third) = formed(nodes=3, hosts=["a", "a", "a"], seeds=3)
    world.kill_node(first)
    world.run(1)
    late = world.node(2)
    world.run_until(lambda: len(world.view(third).members) == 6)
    world.run(0.1)
    assert world.view(late) == world.view(second) == world.view(third)


def test_the_last_seed_starts_the_job_when_it_is_alone():
    world = World(seeds=3, policy=Policy(min_nodes=1))
    first, second, third = world.node(1), world.node(1), world.node(1)
    for name in (first, second):
        world.kill_node(name)
    world.run_until(lambda: world.view(third) is not None)


def test_a_worker_with_another_configuration_is_refused_and_the_job_stays():
    world, (first, second) = formed()
    world.kill(world.ids(second)[0])
    other = world.worker(second, 0, digest="d")
    world.run(0.5)
    turned = world.workers[other].saw(Turned)[0]
    assert "another configuration" in turned.reason
    assert turned.worker_id == other
    assert world.view(first).rank_of(other) is None
    old = world.worker(second, 0, torch="2.6")
    world.run(0.5)
    assert "torch 2.6" in world.workers[old].saw(Turned)[0].reason


def test_a_stopped_primary_is_followed_up_and_gives_way_when_it_wakes():
    world, (first, second, _) = formed(nodes=3)
    world.sleep(first)
    world.run(5)
    assert world.view(second).ranks() == (2, 3, 4, 5)
    world.awake(first)
    world.run(5)
    assert world.ids(first) == []
    assert world.primaries == [second]


def test_a_node_that_slept_forgives_everybody():
    world, (first, second, third) = formed(nodes=3)
    for name in (first, second, third):
        world.sleep(name)
    world.run(10)
    for name in (first, second, third):
        world.awake(name)
    world.run(5)
    assert world.view(third).epoch == 1
    assert not world.ended
    assert all(len(world.ids(name)) == 2 for name in (first, second, third))


def test_nodes_of_a_finished_job_do_not_mind_the_end_of_the_primary():
    world, (first, second) = formed()
    for worker in world.view(first).worker_ids():
        world.finish(worker)
    world.run(0.5)
    world.kill_node(first)
    world.run(60)
    assert world.cores[second].finished
    assert not world.ended


def test_epochs_rise_over_everything():
    world, (first, second, third) = formed(nodes=3, hosts=["a", "a", "a"], spares=1)
    for name in (second, first, third):
        world.kill(world.ids(name)[0])
        world.run(0.3)
    world.kill_node(first)
    world.run(1)
    world.kill(world.ids(third)[0])
    world.run(1)
    epochs = [view.epoch for _, view in world.published]
    assert epochs == sorted(set(epochs))
