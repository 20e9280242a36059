"""What is not a model's profile is refused, with what is wrong."""

import pytest

from elaswave.planner.profile import Profile

GOOD = {"costs": (1.0, 2.0), "unit_elements": (3, 0, 5), "users": ((0,), (1,), (0, 1))}


def test_a_tie_is_a_unit_of_its_own():
    assert Profile(**GOOD).num_layers == 2


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"costs": ()}, "positive"),
        ({"costs": (1.0, 0.0)}, "positive"),
        ({"costs": (1.0, float("inf"))}, "positive"),
        ({"unit_elements": (3, 0)}, "both per unit"),
        ({"unit_elements": (3, 0, -1)}, "both per unit"),
        ({"users": ((1,), (0,), (0, 1))}, "one layer each"),
        ({"users": ((0,), (1,), (1, 0))}, "ascending layers below 2"),
        ({"users": ((0,), (1,), (0, 2))}, "ascending layers below 2"),
        ({"users": ((0,), (1,), ())}, "ascending layers below 2"),
    ],
)
def test_what_is_no_model_is_refused(changes: dict, what: str):
    with pytest.raises(ValueError, match=what):
        Profile(**{**GOOD, **changes})
