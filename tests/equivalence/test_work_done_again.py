"""What survivors have computed of an interrupted step counts: only the victim's part is computed again, and told so."""

from pathlib import Path

import pytest
from support.training import MiniJob, Zygote, digests, fault

from elaswave.report.mttr import recoveries
from elaswave.report.steps import ledger

VICTIMS_SHARE = 1 / 4
"""Of a step, that each of four equal workers does."""
PASSES = 3
"""Forward, backward for inputs, backward for weights."""
MICRO_BATCHES = 8
UNDER_WAY = 2
"""Micro-batches' worth of work that a pipeline of two stages may have done and not yet added up."""


def share(zygote: Zygote, folder: Path, reference: dict[int, str], faults: str, *overrides: str) -> float:
    """Work that was done a second time, as a share of a step."""
    with MiniJob(zygote, folder, faults=faults, overrides=overrides, replace=False) as job:
        history = job.wait()
    assert digests(history) == reference
    account = ledger(history)
    assert (account.samples_lost, account.duplicate_samples, account.unconfirmed_samples) == (0, 0, 0)
    (one,) = recoveries(history)
    assert one.recomputed <= MICRO_BATCHES
    return one.recomputed_share


@pytest.mark.parametrize(
    ("phase", "nth"), [("forward", 1), ("forward", 2), ("backward", 2), ("reduce", 1), ("vote", 1)]
)
def test_of_equal_workers_only_the_victims_share_is_computed_again(
    zygote: Zygote, folder: Path, reference: dict[int, str], phase: str, nth: int
) -> None:
    found = share(zygote, folder, reference, fault([2], phase, 3, nth=nth))
    assert found == pytest.approx(VICTIMS_SHARE)


@pytest.mark.parametrize("schedule", ["1f1b", "1f1b-split", "gpipe"])
@pytest.mark.parametrize(("phase", "nth"), [("backward", 4), ("reduce", 1)])
@pytest.mark.parametrize("victim", [0, 1])
def test_in_a_pipeline_its_neighbours_fill_it_again(
    zygote: Zygote, folder: Path, reference: dict[int, str], schedule: str, phase: str, nth: int, victim: int
) -> None:
    """Forward to the victim's layers, and back to them from the loss; no gradient of other layers twice."""
    overrides = ("--parallelism.stages", "2", "--parallelism.schedule", schedule)
    found = share(zygote, folder, reference, fault([victim], phase, 3, nth=nth), *overrides)
    # half of the micro-batches pass the victim; its neighbour does forward, and backward for inputs, at most
    refill = 1 / 2 * 1 / 2 * (2 if victim == 0 else 1) / PASSES
    # the other pipeline is interrupted wherever it is
    under_way = UNDER_WAY / MICRO_BATCHES
    assert VICTIMS_SHARE * 0.9 <= found <= VICTIMS_SHARE * 1.25 + refill * 1.25 + under_way
