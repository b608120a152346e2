"""May a round become the champion: it must win on one metric, and lose on none of those that are guarded.

A round that gained on the metric of its own reward may have paid for it elsewhere: with explanations that more features
share, or that no longer tell what the feature does to the output. `tasks.tracking.registry` asks here before it moves
the alias.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from saeexplainer.errors import UserError
from saeexplainer.figures.comparison import LOWER_IS_BETTER, direction, values_of
from saeexplainer.figures.intervals import Interval, known_difference
from saeexplainer.figures.notation import change
from saeexplainer.records import EvaluationRow


@dataclass(frozen=True)
class Verdict:
    """What a comparison of a result's rounds with one opponent says."""

    criterion: str  # the metric to win on
    best: str | None  # the round to promote; None if none may be
    ahead: str  # the round that gains most on the criterion, among those beyond their interval if there are any
    differences: dict[str, Interval]  # round -> its criterion minus the opponent's, paired by feature
    losses: dict[str, dict[str, Interval]]  # round -> guarded metric on which it is worse beyond its interval

    def reason(self, opponent: str) -> str:
        """One line: the promoted round's difference, and what hinders the round that is ahead."""
        ahead = self._against(self.ahead, opponent)
        if self.best is None and _direction(self.criterion, self.differences[self.ahead]) <= 0:
            return f"{ahead}, not {'below' if self.criterion in LOWER_IS_BETTER else 'above'} 0"
        if self.best == self.ahead:
            return ahead
        lost = ", ".join(change(metric, asdict(interval)) for metric, interval in self.losses[self.ahead].items())
        hindered = f"{ahead}, but it loses {lost}"
        return hindered if self.best is None else f"{self._against(self.best, opponent)}; {hindered}"

    def _against(self, name: str, opponent: str) -> str:
        return f"{name} - {opponent}: {change(self.criterion, asdict(self.differences[name]))}"


def judge(
    rounds: Mapping[str, Sequence[EvaluationRow]],
    opponent: Sequence[EvaluationRow],
    criterion: str,
    guarded: Sequence[str],
    resamples: int,
    seed: int,
) -> Verdict:
    """The round with the largest gain among those that gain beyond the interval and lose nothing that is guarded.

    A metric is a value of `comparison.METRICS`; a guarded one that is known of fewer than two features says nothing.
    Raises UserError if the rounds measure other features than the opponent, or if the criterion is such a metric.
    """
    differences: dict[str, Interval] = {}
    for name, rows in rounds.items():
        gained = _difference(rows, opponent, criterion, resamples, seed)
        if gained is None:
            raise UserError(
                f"compare_rounds.criterion: {criterion} is known of fewer than two features of both {name} and what it "
                "is compared with; choose another metric"
            )
        differences[name] = gained
    losses = {
        name: {
            metric: interval
            for metric in guarded
            if (interval := _difference(rows, opponent, metric, resamples, seed)) and _direction(metric, interval) < 0
        }
        for name, rows in rounds.items()
    }
    sign = -1 if criterion in LOWER_IS_BETTER else 1

    def gain(name: str) -> float:
        return sign * differences[name].value

    winners = [name for name, interval in differences.items() if _direction(criterion, interval) > 0]
    best = max((name for name in winners if not losses[name]), key=gain, default=None)
    return Verdict(criterion, best, max(winners or differences, key=gain), differences, losses)


def _difference(
    a: Sequence[EvaluationRow], b: Sequence[EvaluationRow], metric: str, resamples: int, seed: int
) -> Interval | None:
    return known_difference(values_of(a, metric), values_of(b, metric), resamples, seed)


def _direction(metric: str, difference: Interval) -> int:
    return direction(metric, asdict(difference))
