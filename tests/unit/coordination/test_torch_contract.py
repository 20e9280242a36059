"""The torch internals that the launcher uses are there, and their absence is told in words."""

import pytest

from elaswave.coordination import torch_contract
from elaswave.coordination.torch_contract import Requirement


def test_installed_torch_keeps_the_contract():
    assert torch_contract.problems() == []


def test_handler_is_built_before_the_agent_class_is_looked_up():
    from torch.distributed.launcher import api

    names = api.launch_agent.__code__.co_names
    assert names.index("get_rendezvous_handler") < names.index("LocalElasticAgent")


@pytest.mark.parametrize(
    ("requirement", "complaint"),
    [
        (Requirement("torch.distributed.launcher.api", "Nothing"), "Nothing is gone"),
        (Requirement("torch.distributed.nowhere", "Nothing"), "Nothing is gone"),
        (
            Requirement("torch.distributed.launcher.api", "launch_agent", ("config", "colour")),
            "no longer takes colour",
        ),
        (
            Requirement("torch.distributed.launcher.api", "launch_agent", source=("get_colour",)),
            "no longer uses get_colour",
        ),
    ],
)
def test_a_mismatch_names_what_broke_and_the_version(requirement: Requirement, complaint: str):
    (line,) = torch_contract.problems((requirement,))
    assert complaint in line
    assert line.startswith("torch 2.")


def test_supervisors_can_be_forced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(torch_contract.FORCE_SUPERVISE, "1")
    assert torch_contract.problems() == ["ELASWAVE_FORCE_SUPERVISE=1"]


def test_an_old_torch_is_refused_in_words(monkeypatch: pytest.MonkeyPatch):
    assert torch_contract.too_old() is None
    monkeypatch.setattr(torch_contract.torch, "__version__", "2.4.1+cpu")
    assert "2.4.1+cpu is too old" in (torch_contract.too_old() or "")
