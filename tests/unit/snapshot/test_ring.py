"""Copies are spread evenly over other failure domains, and the newest complete set is chosen."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elaswave.snapshot.ring import Decision, Holding, Lost, choose, holders

domain_lists = st.lists(st.sampled_from("abcd"), min_size=1, max_size=12)


@given(domain_lists, st.integers(0, 4))
def test_everybody_keeps_the_same_number_of_copies_of_others(domains, copies):
    found = holders(domains, copies)
    each = min(copies, len(domains) - 1)
    assert all(len(set(row)) == each and owner not in row for owner, row in enumerate(found))
    assert set(Counter(holder for row in found for holder in row).values()) <= {each}
    assert found == holders(domains, copies)


@given(domain_lists)
def test_one_copy_leaves_its_domain_wherever_it_can(domains):
    inside = sum(domains[owner] == domains[row[0]] for owner, row in enumerate(holders(domains, 1)) if row)
    largest = max(Counter(domains).values())
    assert inside == max(0, 2 * largest - len(domains)) - (len(domains) == 1)


@given(st.integers(2, 5), st.integers(1, 5), st.data())
def test_equal_nodes_get_every_copy_on_another_node(nodes, workers, data):
    copies = data.draw(st.integers(1, nodes - 1))
    domains = data.draw(st.permutations([f"n{i}" for i in range(nodes) for _ in range(workers)]))
    for owner, row in enumerate(holders(domains, copies)):
        assert len({domains[owner], *(domains[holder] for holder in row)}) == copies + 1


@pytest.mark.parametrize("domains", [["one"] * 5, ["a", "b", "c", "d", "e"]])
def test_neighbours_in_rank_keep_the_copies_where_domains_do_not_matter(domains):
    assert holders(domains, 2) == tuple(((i + 1) % 5, (i - 1) % 5) for i in range(5))


def test_thousands_of_members():
    domains = [f"n{i // 8}" for i in range(10_000)]
    for owner, row in enumerate(holders(domains, 2)):
        assert len({domains[owner], domains[row[0]], domains[row[1]]}) == 3


def test_a_single_member_has_no_holder():
    assert holders(["a"], 2) == ((),)
    assert holders([], 2) == ()


@st.composite
def staged(draw: st.DrawFn) -> tuple[list[str], list[int]]:
    """Any members with domains and stages."""
    domains = draw(domain_lists)
    return domains, draw(st.lists(st.integers(0, 3), min_size=len(domains), max_size=len(domains)))


@given(staged(), st.integers(0, 4))
def test_stages_leave_everybody_the_same_number_of_copies_of_others(members, copies):
    domains, stages = members
    found = holders(domains, copies, stages)
    each = min(copies, len(domains) - 1)
    assert all(len(set(row)) == each and owner not in row for owner, row in enumerate(found))
    assert set(Counter(holder for row in found for holder in row).values()) <= {each}
    assert found == holders(domains, copies, stages)


@given(staged())
def test_stages_keep_no_copy_in_its_domain(members):
    domains, stages = members
    inside = [
        sum(domains[owner] == domains[row[0]] for owner, row in enumerate(table) if row)
        for table in (holders(domains, 1), holders(domains, 1, stages))
    ]
    assert inside[0] == inside[1]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12))
def test_one_copy_leaves_its_stage_wherever_it_can(stages):
    inside = sum(stages[owner] == stages[row[0]] for owner, row in enumerate(holders(["one"] * len(stages), 1, stages)))
    assert inside == max(0, 2 * max(Counter(stages).values()) - len(stages))


@pytest.mark.parametrize("num_nodes", [1, 2, 3])
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("num_pipelines", [1, 2, 3, 4])
def test_no_copy_of_whole_pipelines_lies_on_its_node_or_in_its_stage(num_nodes, num_stages, num_pipelines):
    each = num_stages * num_pipelines
    domains = [f"n{node}" for node in range(num_nodes) for _ in range(each)]
    stages = [rank % num_stages for rank in range(len(domains))]
    for owner, row in enumerate(holders(domains, 1, stages)):
        for holder in row:
            assert num_nodes == 1 or domains[holder] != domains[owner]
            assert num_stages == 1 or stages[holder] != stages[owner]


@given(staged(), st.integers(1, 3))
def test_a_stage_may_be_lost_whole_as_long_as_another_can_hold_its_copies(members, copies):
    stages = members[1]
    if 2 * max(Counter(stages).values()) > len(stages):
        return
    table = holders(["one"] * len(stages), copies, stages)
    assert all(any(stages[holder] != stages[owner] for holder in row) for owner, row in enumerate(table))


def test_thousands_of_members_in_stages():
    domains, stages = [f"n{i // 8}" for i in range(10_000)], [i % 8 for i in range(10_000)]
    for owner, row in enumerate(holders(domains, 2, stages)):
        assert len({domains[owner], domains[row[0]], domains[row[1]]}) == 3
        assert stages[owner] not in (stages[row[0]], stages[row[1]])


def holding(shard, version, *, epoch=1, num_shards=3, owner=True) -> Holding:
    return Holding(layout_epoch=epoch, num_shards=num_shards, shard=shard, version=version, owner=owner)


def test_the_newest_complete_version_is_chosen_and_owners_serve():
    offers = {
        "a": [holding(0, 7), holding(0, 6), holding(1, 6, owner=False), holding(1, 5, owner=False)],
        "c": [holding(2, 7), holding(2, 6), holding(0, 6, owner=False)],
    }
    assert choose(offers) == Decision(
        layout_epoch=1, version=6, holders=(("a", "c"), ("a",), ("c",)), servers=("a", "a", "c")
    )


def test_a_copy_of_the_newest_version_saves_the_step():
    offers = {
        "a": [holding(0, 7), holding(0, 6), holding(1, 7, owner=False), holding(1, 6, owner=False)],
        "c": [holding(2, 7), holding(2, 6)],
    }
    decision = choose(offers)
    assert isinstance(decision, Decision)
    assert (decision.version, decision.servers) == (7, ("a", "a", "c"))


def test_of_two_layouts_at_the_same_version_the_newer_is_chosen_if_it_is_complete():
    old = {"a": [holding(0, 7), holding(1, 7, owner=False)], "c": [holding(2, 7)]}
    half = {"a": [*old["a"], holding(0, 7, epoch=2, num_shards=2)], "c": old["c"]}
    assert choose(half).layout_epoch == 1
    both = {"a": half["a"], "c": [*old["c"], holding(1, 7, epoch=2, num_shards=2)]}
    assert choose(both).layout_epoch == 2


def test_orphans_are_spread_over_their_holders():
    offers = {
        "a": [holding(0, 1, num_shards=4), *(holding(i, 1, num_shards=4, owner=False) for i in (2, 3))],
        "b": [holding(1, 1, num_shards=4), *(holding(i, 1, num_shards=4, owner=False) for i in (2, 3))],
    }
    decision = choose(offers)
    assert isinstance(decision, Decision)
    assert sorted(decision.servers[2:]) == ["a", "b"]


def test_what_nobody_has_is_named():
    offers = {"a": [holding(0, 7), holding(0, 6)], "b": [holding(1, 7), holding(1, 6)]}
    assert choose(offers) == Lost(layout_epoch=1, version=7, shards=(2,))
    assert choose({}) == Lost(layout_epoch=None, version=None, shards=())


@given(domain_lists, st.integers(1, 3), st.data())
def test_as_many_members_as_there_are_copies_may_be_lost(domains, copies, data):
    size = len(domains)
    table = holders(domains, copies)
    lost = data.draw(st.sets(st.integers(0, size - 1), max_size=min(copies, size - 1)))
    offers: dict[str, list[Holding]] = {f"w{i}": [] for i in range(size) if i not in lost}
    for shard in range(size):
        for member in (shard, *table[shard]):
            if member not in lost:
                offers[f"w{member}"].append(holding(shard, 4, num_shards=size, owner=member == shard))
    decision = choose(offers)
    assert isinstance(decision, Decision)
    for shard in range(size):
        assert {int(w[1:]) for w in decision.holders[shard]} == {shard, *table[shard]} - lost
        if shard not in lost:
            assert decision.servers[shard] == f"w{shard}"
