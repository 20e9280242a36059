"""CLASSP does what its formula says, element by element, on any cut, and its memory survives saving."""

import copy
import functools
import math
import pickle

import pytest
import torch
from torch import nn

from elaswave.optim.classp import CLASSP, classp, rule_of
from elaswave.zero.optimizer import ShardedOptimizer
from elaswave.zero.schema import MASTER, discover

STEPS = 12


def gradients(size: int, steps: int = STEPS, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) * 0.1 for _ in range(steps)]


def by_hand(weights, steps, *, lr, threshold, eps, power, first_task_steps=0, later_threshold=None, weight_decay=0.0):
    """The formula, one number after another, in double precision."""
    weights, sums = [float(w) for w in weights], [0.0] * len(weights)
    for number, gradient in enumerate(steps, start=1):
        first = number <= first_task_steps
        limit = threshold if first or later_threshold is None else later_threshold
        for i, g in enumerate(gradient.tolist()):
            g += weight_decay * weights[i]
            if g * g > limit:
                sums[i] += abs(g) ** power
                weights[i] -= lr * g if first else lr * g / (eps + sums[i]) ** (1 / power)
    return torch.tensor(weights), torch.tensor(sums)


def train(parameters, steps, **options) -> CLASSP:
    """Steps whose gradient is cut as the parameters are."""
    optimizer = CLASSP(parameters, **options)
    advance(optimizer, parameters, steps)
    return optimizer


def advance(optimizer, parameters, steps) -> None:
    sizes = [p.numel() for p in parameters]
    for gradient in steps:
        for parameter, part in zip(parameters, gradient.split(sizes), strict=True):
            parameter.grad = part.to(parameter.dtype, copy=True)
        optimizer.step()


def fresh(sizes=(5, 1, 12), dtype=torch.float32) -> list[nn.Parameter]:
    values = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(9))
    return [nn.Parameter(part.to(dtype, copy=True)) for part in values.split(sizes)]


def flat(parameters) -> torch.Tensor:
    return torch.cat([p.detach() for p in parameters])


def sums(optimizer, parameters) -> torch.Tensor:
    return torch.cat([optimizer.state[p]["grad_sum"] for p in parameters])


CASES = {
    "p1": {"power": 1.0, "threshold": 0.0},
    "p1 threshold": {"power": 1.0, "threshold": 4e-3},
    "p2 threshold": {"power": 2.0, "threshold": 4e-3},
    "p3": {"power": 3.0, "threshold": 1e-3},
    "p1.5": {"power": 1.5, "threshold": 0.0},
    "first task": {"power": 1.0, "threshold": 4e-3, "first_task_steps": 5, "later_threshold": 0.0},
    "weight decay": {"power": 2.0, "threshold": 1e-3, "weight_decay": 0.05},
}


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_every_step_is_the_formulas(case, foreach):
    options = {"lr": 0.1, "eps": 0.01, **CASES[case]}
    for steps in (1, 2, STEPS):
        parameters = fresh()
        expected = by_hand(flat(parameters), gradients(18, steps), **options)
        optimizer = train(parameters, gradients(18, steps), foreach=foreach, **options)
        torch.testing.assert_close(flat(parameters), expected[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sums(optimizer, parameters), expected[1], rtol=1e-5, atol=1e-6)


def test_one_step_by_hand():
    parameter = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
    optimizer = CLASSP([parameter], lr=0.5, eps=0.25, power=1.0, threshold=0.25)
    parameter.grad = torch.tensor([0.75, -0.5, -0.25])
    optimizer.step()  # 0.5 * 0.75 / (0.25 + 0.75); the square of -0.5 is not larger than the threshold
    assert parameter.tolist() == [1 - 0.375, 1.0, 1.0]
    assert optimizer.state[parameter]["grad_sum"].tolist() == [0.75, 0.0, 0.0]


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_both_paths_have_the_same_bits(power):
    options = {"lr": 0.1, "eps": 0.01, "power": power, "threshold": 3e-3, "first_task_steps": 3}
    found = []
    for foreach in (True, False, None):
        parameters = fresh((1000, 37))
        optimizer = train(parameters, gradients(1037), foreach=foreach, **options)
        found.append((flat(parameters), sums(optimizer, parameters)))
    for weights, kept in found[1:]:
        assert torch.equal(weights, found[0][0])
        assert torch.equal(kept, found[0][1])


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_any_cut_has_the_same_bits(power):
    options = {"lr": 0.1, "eps": 1e-3, "power": power, "threshold": 1e-6, "weight_decay": 0.01}
    whole, parts = fresh((1003,)), fresh((17, 333, 1, 652))
    kept = sums(train(whole, gradients(1003), **options), whole)
    assert torch.equal(kept, sums(train(parts, gradients(1003), **options), parts))
    assert torch.equal(flat(whole), flat(parts))


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_power_two_without_a_threshold_is_adagrad(weight_decay):
    ours, theirs = fresh(), fresh()
    train(ours, gradients(18, 50), lr=0.1, eps=1e-3, power=2.0, weight_decay=weight_decay)
    adagrad = torch.optim.Adagrad(theirs, 0.1, 0.0, weight_decay, initial_accumulator_value=1e-3, eps=0.0)
    advance(adagrad, theirs, gradients(18, 50))
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=0, atol=1e-6)


def test_a_threshold_below_one_is_no_empty_word():
    """It holds for each element; a tensor with one large gradient does not open the way for its small ones."""
    parameters = [nn.Parameter(torch.zeros(2))]
    optimizer = train(parameters, [torch.tensor([1.0, 0.5])], lr=1.0, eps=1.0, threshold=0.5)
    assert flat(parameters).tolist() == [-0.5, 0.0]
    assert sums(optimizer, parameters).tolist() == [1.0, 0.0]


def test_the_first_task_moves_freely_and_is_remembered():
    first = gradients(18, 6)
    parameters, plain = fresh(), fresh()
    optimizer = train(parameters, first, lr=0.1, first_task_steps=6)
    advance(torch.optim.SGD(plain, lr=0.1), plain, first)
    assert torch.equal(flat(parameters), flat(plain))
    torch.testing.assert_close(sums(optimizer, parameters), torch.stack(first).abs().sum(0))
    before, gradient = flat(parameters), gradients(18, 1, seed=5)[0]
    advance(optimizer, parameters, [gradient])
    expected = before - 0.1 * gradient / (sums(optimizer, parameters) + 1e-5)
    torch.testing.assert_close(flat(parameters), expected)


def test_decay_may_be_set_by_hand_and_per_group():
    parameters = fresh()
    optimizer = CLASSP(
        [{"params": parameters[:1], "apply_decay": False}, {"params": parameters[1:], "lr": 0.0}], lr=0.1
    )
    before = flat(parameters)
    advance(optimizer, parameters, gradients(18, 1))
    assert torch.equal(parameters[0], before[:5] - 0.1 * gradients(18, 1)[0][:5])
    assert torch.equal(flat(parameters[1:]), before[5:])
    assert (sums(optimizer, parameters) > 0).all()


def test_rules_follow_the_step():
    group = {"lr": 1.0, "threshold": 0.5, "eps": 1.0, "power": 1.0, "apply_decay": True}
    group |= {"first_task_steps": 2, "later_threshold": 0.0}
    rules = [rule_of(group, step) for step in (1, 2, 3)]
    assert [(rule.decayed, rule.threshold) for rule in rules] == [(False, 0.5), (False, 0.5), (True, 0.0)]


@pytest.mark.parametrize("foreach", [True, False])
def test_what_is_not_a_number_is_not_hidden_by_the_threshold(foreach):
    parameters = [nn.Parameter(torch.zeros(3))]
    train(parameters, [torch.tensor([math.nan, 1.0, 0.0])], threshold=0.1, foreach=foreach)
    assert torch.isnan(parameters[0]).tolist() == [True, False, False]


def test_a_parameter_without_a_gradient_rests_and_catches_up_with_its_own_first_task():
    parameters = fresh((4, 4))
    optimizer = CLASSP(parameters, lr=0.1, first_task_steps=1)
    parameters[0].grad = torch.ones(4)
    before = flat(parameters)
    optimizer.step()
    assert torch.equal(parameters[1], before[4:])
    parameters[1].grad = torch.ones(4)
    optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in parameters] == [2, 1]
    torch.testing.assert_close(parameters[1].detach(), before[4:] - 0.1)


def test_the_closure_is_called_with_gradients_and_maximize_goes_up():
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = CLASSP([parameter], lr=0.1, eps=1.0, apply_decay=False, maximize=True)

    def closure():
        loss = (parameter * 3).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 6.0
    assert parameter.item() == pytest.approx(2.3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_state_survives_saving_bit_by_bit(dtype, tmp_path):
    options = {"lr": 0.1, "eps": 0.01, "threshold": 1e-4, "first_task_steps": 3}
    parameters = fresh(dtype=dtype)
    optimizer = train(parameters, gradients(18, 5), **options)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    copies = [nn.Parameter(p.detach().clone()) for p in parameters]
    resumed = CLASSP(copies, lr=7.0)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert sums(resumed, copies).dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(sums(resumed, copies), sums(optimizer, parameters))
    later = gradients(18, 4, seed=3)
    advance(optimizer, parameters, later)
    advance(resumed, copies, later)
    assert torch.equal(flat(parameters), flat(copies))
    assert torch.equal(sums(resumed, copies), sums(optimizer, parameters))
    assert {int(resumed.state[p]["step"]) for p in copies} == {9}


def test_a_loaded_state_is_nobody_elses():
    parameters, copies = fresh(), fresh()
    optimizer = train(parameters, gradients(18, 2))
    resumed = CLASSP(copies)
    resumed.load_state_dict(optimizer.state_dict())
    kept = sums(optimizer, parameters)
    advance(resumed, copies, gradients(18, 1))
    assert torch.equal(sums(optimizer, parameters), kept)


def test_sums_of_low_precision_weights_go_on_growing():
    parameters = [nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))]
    optimizer = train(parameters, [torch.full((4,), 0.01)] * 3000)
    exact = 3000 * torch.tensor(0.01, dtype=torch.bfloat16).double().item()
    assert sums(optimizer, parameters)[0].item() == pytest.approx(exact, rel=1e-4)


def test_state_is_there_before_the_first_step_and_after_pickling():
    parameters = fresh()
    optimizer = CLASSP(parameters)
    assert all(set(optimizer.state[p]) == {"step", "grad_sum"} for p in parameters)
    optimizer.add_param_group({"params": fresh((3,)), "eps": 1.0})
    again = pickle.loads(pickle.dumps(optimizer))
    assert [group["eps"] for group in again.param_groups] == [1e-5, 1.0]
    again.step()


def test_a_group_saved_without_later_options_has_their_defaults():
    parameters = fresh()
    old = copy.deepcopy(train(parameters, gradients(18, 2)).state_dict())
    for name in ("first_task_steps", "later_threshold", "foreach"):
        del old["param_groups"][0][name]
    optimizer = CLASSP(parameters)
    optimizer.load_state_dict(old)
    advance(optimizer, parameters, gradients(18, 1))
    assert optimizer.param_groups[0]["first_task_steps"] == 0


def test_zero_gradients_change_nothing_but_the_step():
    parameters = fresh()
    optimizer = train(parameters, gradients(18, 1))
    weights, kept = flat(parameters), sums(optimizer, parameters)
    advance(optimizer, parameters, [torch.zeros(18)])
    assert torch.equal(flat(parameters), weights)
    assert torch.equal(sums(optimizer, parameters), kept)


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", -1.0), ("threshold", -1e-9), ("threshold", math.nan), ("eps", 0.0), ("power", 0.0), ("weight_decay", -1)],
)
def test_options_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} = "):
        CLASSP(fresh(), **{name: value})


def test_kinds_of_parameters_that_it_cannot_update_are_refused():
    with pytest.raises(TypeError, match="view_as_real"):
        CLASSP([nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="sparse=False"):
        CLASSP(embedding.parameters()).step()


def test_a_shard_has_the_bits_of_the_whole_and_its_schedule_moves_with_it():
    make = functools.partial(CLASSP, lr=0.1, eps=0.1, first_task_steps=4)
    schema = discover(make)
    assert dict(schema.kinds) == {MASTER: torch.float32, "grad_sum": torch.float32}
    assert set(schema.scalars) == {"step"}
    whole = fresh((200,))
    steps = gradients(200, 8)
    train(whole, steps, lr=0.1, eps=0.1, first_task_steps=4)
    before = ShardedOptimizer(make, ((0, 200),), ((0, 100),), schema)
    before.initialise(flat(fresh((200,))))
    for gradient in steps[:3]:
        before.step(gradient, 0.1)
        before.commit()
    after = ShardedOptimizer(make, ((30, 90), (120, 151)), ((0, 100),), schema)
    for kind, tensor in after.staging().tensors.items():
        tensor.copy_(torch.cat([before.state().tensors[kind][a:b] for a, b in after.ranges]))
    after.adopt(3, before.state().scalars)
    for gradient in steps[3:]:
        after.step(torch.cat([gradient[a:b] for a, b in after.ranges]), 0.1)
        after.commit()
    expected = torch.cat([flat(whole)[a:b] for a, b in after.ranges])
    assert torch.equal(after.state().tensors[MASTER], expected)


def test_the_function_alone_updates_in_place():
    weight, kept = torch.zeros(2), torch.zeros(2)
    rule = rule_of(CLASSP([weight], lr=1.0, eps=1.0).param_groups[0], 1)
    classp(weight, torch.tensor([1.0, -3.0]), kept, rule)
    assert (weight.tolist(), kept.tolist()) == ([-0.5, 0.75], [1.0, 3.0])
