"""What the confirmation was asked to show, each with its verdict, from the figures of confirmation.json alone.

A target is open while a run is missing. Where a target speaks of an interval, it is the 95 % one of all seeds pooled.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from saeexplainer.comparison import START
from saeexplainer.study_figures import ACCURACY, COMPLETE, direction, percent, points, words

# Nobody's reward: not what the texts do to the feature, but whom the explanation serves otherwise.
UNREWARDED = ("input_accuracy", "output_accuracy", "detection_auc", "fuzzing_auc", "predictive_correlation")
WANTED_UNREWARDED = 2
WANTED_SHARE = 0.9  # of the accuracy of choosing among samples by feedback
CHANCE = {"output_accuracy": 1 / 3, "detection_auc": 0.5, "fuzzing_auc": 0.5, "predictive_correlation": 0.0}
AGREEMENT = "judge_agreement"  # says something about the judges, not about the explanations
FALL = ("hallucination_rate", "collision_rate")
FEEDBACK, FLOOR = "best_of_", "other_feature"

Intervals = Mapping[str, Any]  # metric -> {"value", "low", "high", "n"}, or null where nobody knows it


def lines(found: Mapping[str, Any]) -> list[str]:
    """The verdicts, one a line."""
    complete = bool(found["seeds"]) and all(status == COMPLETE for status in found["seeds"].values())
    told = {True: "reached", False: "NOT reached"}
    return [f"{told[holds] if complete else 'open'}: {target} ({detail})" for target, holds, detail in _all(found)]


def _all(found: Mapping[str, Any]) -> Iterator[tuple[str, bool, str]]:
    """(target, whether it holds by the runs there are, the figures)."""
    last, gains = found["last"], found["differences"].get(START)
    if gains:
        yield _moved(f"{last} is above {START} on {words(ACCURACY)}", gains, (ACCURACY,))
        better = [metric for metric in UNREWARDED if direction(metric, gains[metric]) > 0]
        yield (
            f"{last} is above {START} on at least {WANTED_UNREWARDED} metrics that were not its reward",
            len(better) >= WANTED_UNREWARDED,
            ", ".join(f"{words(metric)} {points(gains[metric])}" for metric in better) or "none",
        )
        worse = [metric for metric in gains if metric != AGREEMENT and direction(metric, gains[metric]) < 0]
        yield (
            f"{last} is worse than {START} on no metric beyond its interval",
            not worse,
            ", ".join(f"{words(metric)} {points(gains[metric])}" for metric in worse) or "none",
        )
        yield _moved(f"hallucination and collisions fall from {START} to {last}", gains, FALL)
        if gains["truth_agreement"]:
            yield _moved(f"agreement with the truth rises from {START} to {last}", gains, ("truth_agreement",))
    for name, cost in found["costs"].items():
        if name.startswith(FEEDBACK) and cost["reached"]:
            target = f"{last} reaches {100 * WANTED_SHARE:.0f} % of the {words(ACCURACY)} of {name}"
            yield target, cost["reached"]["value"] >= WANTED_SHARE, f"{percent(cost['reached'])} percent"
    if floor := found["evaluations"].get(FLOOR):
        at = {metric: floor[metric] for metric in CHANCE if floor[metric]}
        yield (
            f"{FLOOR}, the floor, is not above chance where chance is known",
            bool(at) and all(interval["low"] <= CHANCE[metric] for metric, interval in at.items()),
            ", ".join(f"{words(metric)} {percent(interval)}" for metric, interval in at.items()),
        )


def _moved(target: str, gains: Intervals, metrics: tuple[str, ...]) -> tuple[str, bool, str]:
    """All of the metrics are better beyond their intervals."""
    detail = ", ".join(f"{words(metric)} {points(gains[metric])}" for metric in metrics)
    return target, all(direction(metric, gains[metric]) > 0 for metric in metrics), detail
