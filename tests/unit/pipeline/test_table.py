"""Units, flat order and names follow from what each layer says of its parameters."""

import pytest

from elaswave.pipeline.table import Slot, tabulate

EMBED = (Slot("token.weight", (6, 2), "token"), Slot("position.weight", (3, 2), "lonely"))
NORM = (Slot("weight", (2,)), Slot("bias", (2,)))
HEAD = (Slot("norm.weight", (2,)), Slot("logits.weight", (6, 2), "token"), Slot("logits.bias", (6,)))
TABLE = tabulate([EMBED, (), NORM, HEAD], ["embedding", "1", "norm", "head"])


def test_shared_weights_come_after_all_others_as_units_of_their_own():
    assert [parameter.name for parameter in TABLE.parameters] == [
        "embedding.position.weight",
        "norm.weight",
        "norm.bias",
        "head.norm.weight",
        "head.logits.bias",
        "embedding.token.weight",
    ]
    assert TABLE.unit_sizes() == (6, 0, 4, 8, 12)
    assert TABLE.unit_bounds == ((0, 6), (6, 6), (6, 10), (10, 18), (18, 30))
    assert TABLE.users == ((0,), (1,), (2,), (3,), (0, 3))
    assert TABLE.num_layers == 4
    assert TABLE.num_elements == 30


def test_a_layer_finds_its_parameters_in_its_own_order():
    assert TABLE.of_layer(3) == (("norm.weight", 3), ("logits.weight", 5), ("logits.bias", 4))
    assert TABLE.of_layer(0) == (("token.weight", 5), ("position.weight", 0))
    assert TABLE.of_layer(1) == ()
    assert TABLE.parameters[5].uses == ((0, "token.weight"), (3, "logits.weight"))
    assert [parameter.name for parameter in TABLE.of_unit(4)] == ["embedding.token.weight"]
    assert TABLE.of_unit(1) == ()


def test_spans_cover_everything_and_only_matrices_decay():
    spans = TABLE.decay_spans()
    assert [start for start, _, _ in spans] == [0, *(stop for _, stop, _ in spans[:-1])]
    assert [decayed for _, _, decayed in spans] == [True, False, False, False, False, True]
    assert TABLE.named_spans()[-1] == ("embedding.token.weight", 18, 30)
    assert TABLE.shapes()["embedding.token.weight"] == (6, 2)


def test_no_parameters_at_all():
    table = tabulate([(), ()], ["0", "1"])
    assert (table.num_elements, table.parameters, table.unit_bounds) == (0, (), ((0, 0), (0, 0)))


def test_uses_of_one_weight_have_one_shape():
    with pytest.raises(ValueError, match=r"embedding.token.weight is \(6, 2\) and 1.x is \(2, 6\)"):
        tabulate([EMBED, (Slot("x", (2, 6), "token"),)], ["embedding", "1"])
