"""Whole jobs in miniature for tests: the package's, with a tiny model, and scenarios in short."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from elaswave.bench import miniature
from elaswave.bench.miniature import SECRET, digests, warm_process
from elaswave.bench.zygote import Zygote

__all__ = ["ROOT", "SECRET", "TINY", "MiniJob", "Zygote", "digests", "fault", "make_zygote"]

ROOT = Path(__file__).parents[2]
TINY = """
[model]
layers = 2
width = 32
heads = 2
sequence_length = 16
[training]
steps = {steps}
train_batch_size = 16
micro_batch_size = 2
[optimizer]
warmup_steps = 2
[elasticity]
collective_timeout_s = 20
wait_for_workers_s = 30
"""


def make_zygote() -> Zygote:
    """The warm process; one serves all tests of a session."""
    path = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return warm_process(PYTHONPATH=":".join(path))


class MiniJob(miniature.MiniJob):
    """One job of one node that trains a tiny model for `steps`, unless told a config."""

    def __init__(
        self, zygote: Zygote, folder: Path, *, steps: int = 6, config: str | None = None, **options: object
    ) -> None:
        text = TINY.format(steps=steps) if config is None else config
        super().__init__(zygote, folder, config=text, **options)  # type: ignore[arg-type]


def fault(ranks: Sequence[int], phase: str, step: int = 3, what: str = "kill", **rest: object) -> str:
    """One entry of a scenario."""
    more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in rest.items())
    return f'[[fault]]\nwhat = "{what}"\nranks = {list(ranks)}\nstep = {step}\nphase = "{phase}"\n{more}'
