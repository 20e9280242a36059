"""Whole nodes under random faults: views stay ordered, agreed, and free of the dead."""

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from support.virtual import World

from elaswave.coordination.coordinator_events import Policy
from elaswave.coordination.delta import apply_delta
from elaswave.coordination.protocol import FullView, ViewDelta

FAULTS = st.sampled_from(
    ["kill", "kill", "hang", "depart", "replace", "replace", "kill_node", "add_node", "cut", "heal", "sleep", "wake"]
)


def inflict(world, fault, pick):
    """Do one thing to a random target."""
    nodes = sorted(world.cores)
    if not nodes:
        return
    name = nodes[pick % len(nodes)]
    workers = world.ids(name)
    match fault:
        case "kill" if workers:
            world.kill(workers[pick % len(workers)])
        case "hang" if workers:
            world.hang(workers[pick % len(workers)])
        case "depart" if workers:
            world.depart(workers[pick % len(workers)])
        case "replace" if world.cores[name].error is None:
            world.worker(name, pick % 2)
        case "kill_node" if len(nodes) > 1:
            world.kill_node(name)
        case "add_node" if len(nodes) < 5:
            world.node(1, host="a")
        case "cut":
            world.partition(nodes[: pick % len(nodes)], nodes[pick % len(nodes) :])
        case "heal":
            world.heal()
        case "sleep":
            world.sleep(name)
        case "wake":
            for sleeper in nodes:
                world.awake(sleeper)


def check_published(world):
    """Views are totally ordered, and each has one worker per rank."""
    epochs = [view.epoch for _, view in world.published]
    assert len(epochs) == len(set(epochs)), "two views have the same epoch"
    for _, view in world.published:
        assert len(set(view.ranks())) == len(view.members)
        assert not view.departed & set(view.worker_ids())


def check_workers(world):
    """What each worker put together from full views and deltas is what was published, in order."""
    published = {view.epoch: view for _, view in world.published}
    for worker in world.workers.values():
        view = None
        for message in worker.messages:
            if isinstance(message, FullView):
                new = message.view
            elif isinstance(message, ViewDelta):
                new = apply_delta(view, message)
            else:
                continue
            assert view is None or new.epoch > view.epoch
            assert new == published[new.epoch]
            assert worker.worker_id in new.worker_ids()
            view = new


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    hosts=st.lists(st.sampled_from(["a", "a", "b", "c"]), min_size=2, max_size=4),
    shared=st.booleans(),
    faults=st.lists(st.tuples(FAULTS, st.integers(0, 7), st.sampled_from([0.0, 0.003, 0.1, 0.7, 2.5])), max_size=8),
)
def test_random_faults(hosts, shared, faults):
    world = World(policy=Policy(min_nodes=len(hosts)), seeds=2, shared_storage=shared)
    for host in hosts:
        world.node(2, host=host)
    world.run_until(lambda: all(world.view(name) is not None for name in world.cores))
    for fault, pick, pause_s in faults:
        inflict(world, fault, pick)
        world.run(pause_s)
        check_published(world)
    world.heal()
    for name in sorted(world.cores):
        world.awake(name)
    world.run(12)
    note(f"published: {[(n, v.epoch, v.reason) for n, v in world.published]}")
    note(f"ended: {world.ended}")
    check_published(world)
    check_workers(world)
    leading = [name for name in world.primaries if world.cores[name].view is not None]
    assert len(leading) <= 1
    for name in leading:
        view = world.view(name)
        alive = {w.worker_id for w in world.workers.values() if not w.dead and not w.hung}
        assert set(view.worker_ids()) <= alive
        for other, core in world.cores.items():
            if core.error is None and any(m.node_id == other for m in view.members):
                assert core.view == view
