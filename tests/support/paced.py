"""An optimizer that takes its time, so that a job of tiny steps is still at work when something happens to it.

The longer the job, the longer a step, up to a bound; once the file that PACED_UNTIL names exists, no step waits. The
numbers are those of `torch.optim.AdamW`.
"""

import os
import time
from pathlib import Path
from typing import Any

import torch

FREE_STEPS = 6
FIRST_S = 0.03
GROWTH = 1.03
MAX_S = 0.7
LOOK_S = 0.01


class AdamW(torch.optim.AdamW):
    def step(self, closure: Any = None) -> Any:
        pause(int(max((float(state["step"]) for state in self.state.values()), default=0.0)))
        return super().step(closure)


def pause(step: int) -> None:
    """Be slow after `step` steps, unless told to hurry."""
    until = os.environ.get("PACED_UNTIL")
    if until is None or step < FREE_STEPS:
        return
    end_s = time.monotonic() + min(MAX_S, FIRST_S * GROWTH**step)
    while not Path(until).exists() and time.monotonic() < end_s:
        time.sleep(LOOK_S)
