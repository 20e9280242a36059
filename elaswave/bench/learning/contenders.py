"""Who learns: optimizers and penalties with their settings, and how settings are drawn when they are tuned."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from elaswave.continual.fisher import Kind
from elaswave.optim.classp import CLASSP


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One contender with all that it was tuned for.

    Attributes:
        optimizer: "sgd", "adam", "adagrad" or "classp".
        lr: learning rate.
        power: of CLASSP.
        threshold: of CLASSP.
        eps: of CLASSP.
        free_first: CLASSP's first task is without decay.
        forgetful: the optimizer's state is lost at each switch of tasks.
        strength: of elastic weights; None: without them.
        online: elastic weights are held by one spring.
        fisher: how elastic weights are estimated.
    """

    optimizer: str
    lr: float
    power: float = 1.0
    threshold: float = 0.0
    eps: float = 1e-5
    free_first: bool = False
    forgetful: bool = False
    strength: float | None = None
    online: bool = False
    fisher: Kind = Kind.EXACT


def make_optimizer(
    setting: Setting, parameters: Iterable[torch.nn.Parameter], first_task_steps: int
) -> torch.optim.Optimizer:
    """The optimizer of a setting.

    Args:
        setting: of the contender.
        parameters: to train.
        first_task_steps: length of the first task, for CLASSP's schedule.
    """
    if setting.optimizer == "classp":
        return CLASSP(
            parameters,
            lr=setting.lr,
            power=setting.power,
            threshold=setting.threshold,
            eps=setting.eps,
            first_task_steps=first_task_steps if setting.free_first else 0,
        )
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}
    return kinds[setting.optimizer](parameters, lr=setting.lr)


def state_multiple(setting: Setting, tasks: int) -> int:
    """Numbers kept per weight, besides the weight.

    Separate elastic weights are counted as the paper keeps them, a Fisher and an anchor per earlier task. Springs that
    are collapsed into one, as here, need 2 for any number of tasks.
    """
    own = {"sgd": 0, "adam": 2, "adagrad": 1, "classp": 1}[setting.optimizer]
    if setting.strength is None:
        return own
    return own + (2 if setting.online else 2 * (tasks - 1))


Draw = Callable[[np.random.Generator], Setting]


def _log(low: float, high: float) -> Callable[[np.random.Generator], float]:
    return lambda generator: float(np.exp(generator.uniform(np.log(low), np.log(high))))


def _plain(optimizer: str, low: float, high: float) -> Draw:
    lr = _log(low, high)
    return lambda generator: Setting(optimizer=optimizer, lr=lr(generator))


def _classp(power: float, lr: tuple[float, float], eps: tuple[float, float], *, threshold: bool) -> Draw:
    rate, room, limit = _log(*lr), _log(*eps), _log(1e-8, 1e-3)

    def draw(generator: np.random.Generator) -> Setting:
        return Setting(
            optimizer="classp",
            lr=rate(generator),
            power=power,
            eps=room(generator),
            threshold=limit(generator) if threshold else 0.0,
            free_first=bool(generator.random() < 0.5),
        )

    return draw


def _elastic(optimizer: str, low: float, high: float, kind: Kind = Kind.EXACT, *, online: bool = False) -> Draw:
    lr, strength = _log(low, high), _log(1, 1e3)

    def draw(generator: np.random.Generator) -> Setting:
        setting = Setting(optimizer=optimizer, lr=lr(generator), strength=strength(generator))
        return replace(setting, online=online, fisher=kind)

    return draw


SGD, ADAM, ADAGRAD = "SGD", "Adam", "AdaGrad"
CLASSP_1, CLASSP_2, CLASSP_FREE = "CLASSP, p = 1", "CLASSP, p = 2", "CLASSP, p = 1, threshold 0"
EWC_SEPARATE, EWC_ADAM, EWC_ONLINE = "EWC, separate", "EWC, separate, Adam", "EWC, online"
EWC_BATCH = "EWC, separate, batch-mean Fisher"
FORGETFUL = "CLASSP, sums lost at each switch"

DRAWS: Mapping[str, Draw] = {
    SGD: _plain("sgd", 0.01, 1.0),
    ADAM: _plain("adam", 1e-4, 1e-2),
    ADAGRAD: _plain("adagrad", 1e-3, 0.2),
    CLASSP_1: _classp(1.0, (0.02, 1.0), (1e-6, 1.0), threshold=True),
    CLASSP_FREE: _classp(1.0, (0.02, 1.0), (1e-6, 1.0), threshold=False),
    CLASSP_2: _classp(2.0, (0.002, 0.2), (1e-10, 1e-2), threshold=True),
    EWC_SEPARATE: _elastic("sgd", 0.01, 0.5),
    EWC_ADAM: _elastic("adam", 3e-4, 1e-2),
    EWC_ONLINE: _elastic("sgd", 0.01, 0.5, online=True),
    EWC_BATCH: _elastic("sgd", 0.01, 0.5, Kind.BATCH_MEAN),
}


def with_control(settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """The settings, and CLASSP once more with its sums lost at each switch of tasks."""
    return {**settings, FORGETFUL: replace(settings[CLASSP_FREE], forgetful=True)}
