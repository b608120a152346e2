"""May a round become the champion: it must win on one metric, and lose on none of those that are guarded.

A round that gained on the metric of its own reward may have paid for it elsewhere: with explanations that more features
share, or that no longer tell what the feature does to the output. `tasks.registry` asks here before it moves the alias.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saeexplainer.comparison import LOWER_IS_BETTER, Interval, known_difference, values_of
from saeexplainer.errors import UserError
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
        if self.best is None and not is_better(self.criterion, self.differences[self.ahead]):
            return f"{ahead}, not {'below' if self.criterion in LOWER_IS_BETTER else 'above'} 0"
        if self.best == self.ahead:
            return ahead
        lost = ", ".join(points(metric, interval) for metric, interval in self.losses[self.ahead].items())
        hindered = f"{ahead}, but it loses {lost}"
        return hindered if self.best is None else f"{self._against(self.best, opponent)}; {hindered}"

    def _against(self, name: str, opponent: str) -> str:
        return f"{name} - {opponent}: {points(self.criterion, self.differences[name])}"


def judge(
    rounds: Mapping[str, Sequence[EvaluationRow]], opponent: Sequence[EvaluationRow], criterion: str,
    guarded: Sequence[str], resamples: int, seed: int,
) -> Verdict:  # fmt: skip
    """The round with the largest gain among those that gain beyond the interval and lose nothing that is guarded.

    A metric is a value of `comparison.METRICS`; a guarded one that nobody knows says nothing. Raises UserError if the
    rounds measure other features than the opponent, or if the criterion is known of none of them.
    """
    differences = {name: _difference(rows, opponent, criterion, resamples, seed) for name, rows in rounds.items()}
    for name, interval in differences.items():
        if interval is None:
            raise UserError(
                f"compare_rounds.criterion: {criterion} is known of no feature of {name}; choose another metric"
            )
    losses = {
        name: {
            metric: interval
            for metric in guarded
            if (interval := _difference(rows, opponent, metric, resamples, seed)) and is_worse(metric, interval)
        }
        for name, rows in rounds.items()
    }
    sign = -1 if criterion in LOWER_IS_BETTER else 1

    def gain(name: str) -> float:
        return sign * differences[name].value

    winners = [name for name, interval in differences.items() if is_better(criterion, interval)]
    best = max((name for name in winners if not losses[name]), key=gain, default=None)
    return Verdict(criterion, best, max(winners or differences, key=gain), differences, losses)


def _difference(
    a: Sequence[EvaluationRow], b: Sequence[EvaluationRow], metric: str, resamples: int, seed: int
) -> Interval | None:
    return known_difference(values_of(a, metric), values_of(b, metric), resamples, seed)


def is_better(metric: str, difference: Interval) -> bool:
    """Whether all of the interval lies on the good side of 0."""
    return difference.high < 0 if metric in LOWER_IS_BETTER else difference.low > 0


def is_worse(metric: str, difference: Interval) -> bool:
    """Whether all of the interval lies on the bad side of 0."""
    return difference.low > 0 if metric in LOWER_IS_BETTER else difference.high < 0


def points(metric: str, difference: Interval) -> str:
    """Text such as "generative accuracy +31.7 points (+26.7 to +37.1)"; a point is a hundredth of the metric's unit."""
    value, low, high = (f"{100 * number:+.1f}" for number in (difference.value, difference.low, difference.high))
    return f"{metric.replace('_', ' ')} {value} points ({low} to {high})"
