"""Members hear every other's value, whatever its size; most of them in one round."""

import pytest
import torch

from elaswave.errors import ProtocolError
from elaswave.runtime import exchange
from elaswave.runtime.exchange import ROW_BYTES_MAX, gather_json


class Several:
    """A group whose members all tell what this one does, and counts rounds."""

    def __init__(self, size: int) -> None:
        self.size, self.rounds = size, 0

    def all_gather(self, x: torch.Tensor, out: torch.Tensor, spans: object = None) -> None:
        out.copy_(x.repeat(self.size))
        self.rounds += 1


@pytest.mark.parametrize(("size", "length", "rounds"), [(8, 100, 1), (8, 5000, 2), (1, 0, 1), (5000, 10, 2)])
def test_a_value_of_any_size_arrives(size, length, rounds):
    group, value = Several(size), {"text": "\u00fc" * length, "numbers": [1, None]}
    assert gather_json(group, value) == [value] * size
    assert group.rounds == rounds


def test_a_value_that_fills_its_room_takes_one_round(monkeypatch):
    monkeypatch.setattr(exchange, "TOGETHER_BYTES_MAX", 2 * (exchange.SIZE_BYTES + len('"four"')))
    group = Several(2)
    assert gather_json(group, "four") == ["four"] * 2
    assert group.rounds == 1


def test_too_large_a_value_is_refused():
    with pytest.raises(ProtocolError, match="the bound is"):
        gather_json(Several(2), "x" * ROW_BYTES_MAX)
