"""Trains all contenders on one stream, and compares them seed by seed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from elaswave.bench.learning.contenders import CLASSP_FREE, Setting, state_multiple, with_control
from elaswave.bench.learning.lanes import Run, train
from elaswave.bench.learning.settings import KNOWN
from elaswave.bench.learning.tuning import tuned
from elaswave.bench.result import Metrics, spread
from elaswave.continual.metrics import Interval, interval, paired, scores
from elaswave.continual.tasks import Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What all contenders have done on one stream.

    Attributes:
        name: of the stream.
        settings: contender -> its setting.
        runs: contender -> a run per seed.
    """

    name: str
    settings: Mapping[str, Setting]
    runs: Mapping[str, Sequence[Run]]

    def accuracies(self, contender: str) -> list[float]:
        """Mean accuracy over tasks at the end, per seed."""
        return [scores(run.matrix, run.untrained).accuracy for run in self.runs[contender]]

    def accuracy(self, contender: str) -> Interval:
        return interval(self.accuracies(contender))

    def difference(self, contender: str, other: str) -> Interval:
        """By how much the first is more accurate, seed by seed."""
        return paired(self.accuracies(contender), self.accuracies(other))

    def state_multiple(self, contender: str) -> int:
        """Numbers kept per weight, besides the weight."""
        return state_multiple(self.settings[contender], len(self.runs[contender][0].matrix))

    def metrics(self) -> dict[str, Metrics]:
        """contender -> metric -> spread over seeds."""
        found: dict[str, Metrics] = {}
        for contender, runs in self.runs.items():
            each = [asdict(scores(run.matrix, run.untrained)) for run in runs]
            found[contender] = {metric: spread([of[metric] for of in each]) for metric in each[0]}
            found[contender]["state_multiple"] = spread([self.state_multiple(contender)])
        return found

    def intervals(self) -> dict[str, dict[str, float]]:
        """contender -> mean accuracy and half the width of its 95 % interval, and the same of CLASSP's lead."""
        found = {}
        for contender in self.runs:
            own, lead = self.accuracy(contender), self.difference(CLASSP_FREE, contender)
            found[contender] = {"mean": own.mean, "half_width": own.half_width}
            found[contender] |= {"classp_ahead": lead.mean, "classp_ahead_half_width": lead.half_width}
        return found

    def lines(self) -> list[str]:
        """What to tell people: means with their intervals, and how far CLASSP is ahead."""
        return [
            f"{self.name}: {contender}: accuracy {self.accuracy(contender)}"
            + (
                ""
                if contender == CLASSP_FREE
                else f"; {CLASSP_FREE} ahead by {self.difference(CLASSP_FREE, contender)}"
            )
            for contender in self.runs
        ]

    def mean_matrices(self) -> dict[str, list[list[float]]]:
        """contender -> (tasks, tasks) mean accuracies over seeds."""
        return {
            contender: [
                [fmean(cell) for cell in zip(*rows, strict=True)]
                for rows in zip(*(run.matrix for run in runs), strict=True)
            ]
            for contender, runs in self.runs.items()
        }


def judge(name: str, stream: Stream, seeds: Sequence[int], draws: int) -> Judged:
    """Train every contender on a stream.

    Args:
        name: of the stream.
        stream: its tasks.
        seeds: to judge on; not those of tuning.
        draws: settings to try beside the known one, on the seeds of tuning; 0: take the known one.
    """
    known = KNOWN[name]
    settings = with_control(tuned(stream, known, draws) if draws else known)
    runs = {contender: train(stream, setting, seeds) for contender, setting in settings.items()}
    return Judged(name=name, settings=settings, runs=runs)
