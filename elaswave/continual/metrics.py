"""What a stream of tasks has done to a learner: averages over the matrix of accuracies, and how sure they are.

Source: Lopez-Paz and Ranzato, https://arxiv.org/abs/1706.08840 (BWT, FWT); Chaudhry et al.,
https://arxiv.org/abs/1801.10112 (forgetting).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

Matrix = Sequence[Sequence[float]]
"""(tasks, tasks): row i, after task i was learned; column j, accuracy on task j; each from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Of one run.

    Attributes:
        accuracy: mean over all tasks at the end.
        backward_transfer: mean change of earlier tasks since each was learned; negative where they are forgotten.
        forgetting: mean fall of earlier tasks from their best value before the end.
        forward_transfer: mean accuracy on a task just before it is learned, less that before anything is learned.
        learning_accuracy: mean accuracy on a task just after it was learned.
    """

    accuracy: float
    backward_transfer: float
    forgetting: float
    forward_transfer: float
    learning_accuracy: float


def scores(matrix: Matrix, untrained: Sequence[float]) -> Scores:
    """The scores of one run; transfers of a single task are 0.

    Args:
        matrix: accuracies.
        untrained: (tasks,) accuracies of the model as it was made.

    Raises:
        ValueError: the matrix is not square, or there is no value of the untrained model for each task.
    """
    tasks = len(matrix)
    if not tasks or any(len(row) != tasks for row in matrix) or len(untrained) != tasks:
        raise ValueError(f"matrix: {[len(row) for row in matrix]} and {len(untrained)} untrained; give tasks x tasks")
    last, earlier = matrix[-1], range(tasks - 1)
    return Scores(
        accuracy=fmean(last),
        backward_transfer=_mean([last[j] - matrix[j][j] for j in earlier]),
        forgetting=_mean([max(matrix[i][j] for i in earlier) - last[j] for j in earlier]),
        forward_transfer=_mean([matrix[j - 1][j] - untrained[j] for j in range(1, tasks)]),
        learning_accuracy=fmean(matrix[j][j] for j in range(tasks)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its two-sided confidence interval.

    Attributes:
        mean: of the values.
        half_width: to both sides; infinite for a single value.
        n: number of values.
    """

    mean: float
    half_width: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} +- {self.half_width:.3f}"


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval of the mean of values that are drawn independently, such as one for each seed.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("values: none; give at least one")
    n = len(values)
    if n == 1:
        return Interval(mean=values[0], half_width=math.inf, n=1)
    width = student_quantile(0.5 + confidence / 2, n - 1) * stdev(values) / math.sqrt(n)
    return Interval(mean=fmean(values), half_width=width, n=n)


def paired(ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95) -> Interval:
    """The interval of the mean difference, seed by seed."""
    return interval([a - b for a, b in zip(ours, theirs, strict=True)], confidence)


def student_quantile(probability: float, freedom: int) -> float:
    """Of Student's distribution, by bisection of its distribution function.

    Args:
        probability: above 0.5 and below 1.
        freedom: degrees of freedom, at least 1.
    """
    low, high = 0.0, 2 * NormalDist().inv_cdf(probability)
    while student_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def student_cdf(t: float, freedom: int) -> float:
    """Probability of a value up to t >= 0, by the finite series for whole degrees of freedom."""
    angle = math.atan2(t, math.sqrt(freedom))
    square, sine = math.cos(angle) ** 2, math.sin(angle)
    odd = freedom % 2
    term = total = (math.cos(angle) if odd else 1.0) if freedom > 1 else 0.0
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    return 0.5 + ((angle + sine * total) / math.pi if odd else sine * total / 2)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
