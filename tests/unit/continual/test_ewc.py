"""Springs of many tasks are one spring, whole or in shards, and their pull is the penalty's gradient."""

import pytest
import torch
from torch import nn

from elaswave.continual.ewc import EWC

NAMES = {"a": (3, 2), "b": (4,)}


def draw(seed: int, positive: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in NAMES.items()}
    return {name: value.square() for name, value in drawn.items()} if positive else drawn


def fisher(task: int) -> dict[str, torch.Tensor]:
    found = draw(100 + task, positive=True)
    found["b"][0] = 0.0  # never matters
    if task == 0:
        found["b"][1] = 0.0  # matters later
    return found


def after(tasks: int, **options) -> EWC:
    ewc = EWC(3.0, **options)
    for task in range(tasks):
        ewc.consolidate(fisher(task), draw(task))
    return ewc


def separate(weights, tasks: int) -> torch.Tensor:
    """As the paper writes it: a penalty for each task."""
    return sum(
        1.5 * (fisher(task)[name] * (weights[name] - draw(task)[name]).square()).sum()
        for task in range(tasks)
        for name in NAMES
    )


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_collapsed_springs_are_the_separate_ones(tasks):
    weights = draw(50)
    ewc = after(tasks)
    torch.testing.assert_close(ewc.penalty(weights), separate(weights, tasks))
    kept = sum(value.numel() for spring in ewc.state_dict().values() for value in spring.values() if value.dim())
    assert kept == 2 * 10


@pytest.mark.parametrize("options", [{}, {"online": True, "decay": 0.5}])
def test_the_pull_is_the_penaltys_gradient(options):
    ewc = after(3, **options)
    parameters = {name: nn.Parameter(value) for name, value in draw(50).items()}
    ewc.penalty(parameters).backward()
    expected = {name: p.grad.clone() + 1 for name, p in parameters.items()}
    for p in parameters.values():
        p.grad = torch.ones_like(p)
    ewc.pull(parameters)
    torch.testing.assert_close({name: p.grad for name, p in parameters.items()}, expected)


def test_online_holds_where_the_last_task_ended():
    ewc = after(3, online=True, decay=0.5)
    weights = draw(50)
    importance = {name: 0.25 * fisher(0)[name] + 0.5 * fisher(1)[name] + fisher(2)[name] for name in NAMES}
    expected = sum(1.5 * (importance[n] * (weights[n] - draw(2)[n]).square()).sum() for n in NAMES)
    torch.testing.assert_close(ewc.penalty(weights), expected)
    assert float(ewc.penalty(draw(2))) == 0


def test_a_shard_pulls_as_the_whole_does_bit_by_bit():
    whole, parts = EWC(3.0), EWC(3.0)
    cut = [slice(0, 1), slice(1, 4)]
    for task in range(3):
        importance, weights = fisher(task)["b"], draw(task)["b"]
        whole.consolidate({"b": importance}, {"b": weights})
        parts.consolidate(*({f"{i}": t[s] for i, s in enumerate(cut)} for t in (importance, weights)))
    ours = nn.Parameter(draw(50)["b"])
    shards = {f"{i}": nn.Parameter(ours.detach()[s].clone()) for i, s in enumerate(cut)}
    for p in (ours, *shards.values()):
        p.grad = torch.zeros_like(p)
    whole.pull({"b": ours})
    parts.pull(shards)
    assert torch.equal(torch.cat([p.grad for p in shards.values()]), ours.grad)
    torch.testing.assert_close(parts.penalty(shards), whole.penalty({"b": ours}))


def test_state_survives_saving(tmp_path):
    ewc, resumed = after(2), EWC(3.0)
    torch.save(ewc.state_dict(), tmp_path / "springs.pt")
    resumed.load_state_dict(torch.load(tmp_path / "springs.pt"))
    for held in (ewc, resumed):
        held.consolidate(fisher(2), draw(2))
    assert torch.equal(ewc.penalty(draw(50)), resumed.penalty(draw(50)))


def test_before_the_first_task_has_ended_nothing_pulls():
    ewc, parameter = EWC(3.0), nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    ewc.pull({"a": parameter})
    assert (float(ewc.penalty({"a": parameter})), parameter.grad.tolist()) == (0.0, [1.0, 1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -1.0}, "strength = -1"),
        ({"strength": 1.0, "online": True, "decay": 1.5}, "decay = 1.5"),
        ({"strength": 1.0, "decay": 0.5}, "online=True"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EWC(**options)


def test_tasks_of_other_weights_are_refused():
    ewc = after(1)
    with pytest.raises(ValueError, match="'b'"):
        ewc.consolidate({"a": fisher(1)["a"]}, draw(1))
    with pytest.raises(ValueError, match="its weight"):
        ewc.consolidate({**fisher(1), "a": torch.ones(2)}, draw(1))
    with pytest.raises(ValueError, match="call backward"):
        ewc.pull({name: nn.Parameter(value) for name, value in draw(0).items()})
