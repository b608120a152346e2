"""What the study and its confirmation were asked to show, each with its verdict, from study.json and confirmation.json.

A target is open while a run is missing. "Beyond the interval" means the 95 % one of all seeds pooled, unless the target
speaks of each seed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from saeexplainer.figures.comparison import ACCURACY, BASELINE, COLLISION, HALLUCINATION, START, direction
from saeexplainer.figures.notation import percent, points, words
from saeexplainer.study.figures import COMPLETE, CONTROL, POOLED, SEEDS, rounds_of

WANTED_GAIN = 0.08  # mean difference in generative accuracy that the study asks of all rounds
# Feedback at inference, or the truth: no trained explainer is asked to beat it.
FEEDBACK = "best_of_"
CEILINGS = (FEEDBACK, "agent", "oracle")
# Nobody's reward: not what the texts do to the feature, but whom the explanation serves otherwise.
UNREWARDED = ("input_accuracy", "output_accuracy", "detection_auc", "fuzzing_auc", "predictive_correlation")
WANTED_UNREWARDED = 2
WANTED_SHARE = 0.9  # of the accuracy of choosing among samples by feedback
FLOOR = "other_feature"
FIRST_ROUND = "r1"  # is only a step; what is asked of the loop is asked of the rounds after it
CHANCE = {"output_accuracy": 1 / 3, "detection_auc": 0.5, "fuzzing_auc": 0.5, "predictive_correlation": 0.0}
AGREEMENT = "judge_agreement"  # says something about the judges, not about the explanations

Intervals = Mapping[
    str, Any
]  # of metrics, or of runs and all POOLED: {"value", "low", "high", "n"}, null where unknown
Holds = Callable[[Mapping[str, float]], bool]  # of one interval


@dataclass(frozen=True)
class Target:
    """One thing that the runs were made to show."""

    target: str  # in words
    reached: bool | None  # None: open
    detail: str  # the figures that it is judged by

    @property
    def line(self) -> str:
        """The verdict."""
        told = {True: "reached", False: "NOT reached", None: "open"}[self.reached]
        return f"{told}: {self.target} ({self.detail})"


def of_study(study: Mapping[str, Any]) -> Iterator[Target]:
    """Is each step better than the one before, in every seed or over all, and does the control stay where it is?"""
    gains = study["differences"][SEEDS]
    last = study["last"]
    accuracy = {key: found[ACCURACY] for key, found in gains.items()}
    hallucination = gains[f"{last}-{START}"][HALLUCINATION]
    yield _in_every_seed(f"{last} is above sft beyond its interval in every seed", accuracy[f"{last}-{START}"], _better)
    yield _over_all_seeds(
        f"{last} is at least {100 * WANTED_GAIN:.0f} points above sft, seeds pooled",
        accuracy[f"{last}-{START}"],
        lambda found: found["value"] >= WANTED_GAIN,
    )
    against_labels = accuracy.get(f"{last}-{BASELINE}", {})
    yield _over_all_seeds(f"{last} is above open_loop beyond the interval, seeds pooled", against_labels, _better)
    yield from _each_step(accuracy)
    yield _over_all_seeds(
        f"hallucination falls from sft to {last} beyond the interval, seeds pooled",
        hallucination,
        lambda found: direction(HALLUCINATION, found) > 0,
    )
    yield _in_every_seed(
        f"hallucination rises from sft to {last} beyond its interval in no seed",
        hallucination,
        lambda found: direction(HALLUCINATION, found) >= 0,
    )
    yield _over_all_seeds(
        f"control: with shuffled rewards {last} is not above sft beyond the interval, pooled",
        study[CONTROL][ACCURACY],
        lambda found: not _better(found),
    )
    yield _above_all_others(accuracy, last)


def _each_step(accuracy: Mapping[str, Intervals]) -> Iterator[Target]:
    """The first round gains, and no later one loses."""
    rounds = rounds_of(key.partition("-")[0] for key in accuracy)
    for start, name in zip([START, *rounds], rounds):
        found = accuracy[f"{name}-{start}"]
        if start == START:
            yield _over_all_seeds(f"{name} is above sft beyond the interval, seeds pooled", found, _better)
        else:
            target = f"{name} is not below {start} beyond the interval, seeds pooled"
            yield _over_all_seeds(target, found, lambda found: direction(ACCURACY, found) >= 0)


def of_confirmation(found: Mapping[str, Any]) -> Iterator[Target]:
    """Is the last round better than its start on more than its reward, near those that ask the feature, and above chance?"""
    complete = bool(found["seeds"]) and all(status == COMPLETE for status in found["seeds"].values())
    for target in _of_pooled_seeds(found):
        yield target if complete else Target(target.target, None, target.detail)


def _of_pooled_seeds(found: Mapping[str, Any]) -> Iterator[Target]:
    """By the runs that there are."""
    last = found["last"]
    for name, gains in found["gains"].items():
        if name != FIRST_ROUND:
            yield from _against_start(name, gains)
    for name, cost in found["costs"].items():
        if name.startswith(FEEDBACK) and cost["reached"]:
            target = f"{last} reaches {100 * WANTED_SHARE:.0f} % of the {words(ACCURACY)} of {name}"
            yield Target(target, cost["reached"]["value"] >= WANTED_SHARE, f"{percent(cost['reached'])} percent")
    if floor := found["evaluations"].get(FLOOR):
        at = {metric: floor[metric] for metric in CHANCE if floor[metric]}
        yield Target(
            f"{FLOOR}, the floor, is not above chance where chance is known",
            bool(at) and all(interval["low"] <= CHANCE[metric] for metric, interval in at.items()),
            ", ".join(f"{words(metric)} {percent(interval)}" for metric, interval in at.items()),
        )


def _against_start(last: str, gains: Intervals) -> Iterator[Target]:
    yield _all_better(f"{last} is above {START} on {words(ACCURACY)}", gains, (ACCURACY,))
    better = [metric for metric in UNREWARDED if direction(metric, gains[metric]) > 0]
    yield Target(
        f"{last} is above {START} on at least {WANTED_UNREWARDED} metrics that were not its reward",
        len(better) >= WANTED_UNREWARDED,
        _told(gains, better) or "none",
    )
    worse = [metric for metric in gains if metric != AGREEMENT and direction(metric, gains[metric]) < 0]
    yield Target(
        f"{last} is worse than {START} on no metric beyond its interval", not worse, _told(gains, worse) or "none"
    )
    yield _all_better(f"hallucination and collisions fall from {START} to {last}", gains, (HALLUCINATION, COLLISION))
    if gains["truth_agreement"]:
        yield _all_better(f"agreement with the truth rises from {START} to {last}", gains, ("truth_agreement",))


def _better(found: Mapping[str, float]) -> bool:
    return direction(ACCURACY, found) > 0


def _all_better(target: str, gains: Intervals, metrics: Iterable[str]) -> Target:
    return Target(target, all(direction(metric, gains[metric]) > 0 for metric in metrics), _told(gains, metrics))


def _told(gains: Intervals, metrics: Iterable[str]) -> str:
    return ", ".join(f"{words(metric)} {points(gains[metric])}" for metric in metrics)


def _in_every_seed(target: str, found: Intervals, holds: Holds) -> Target:
    """One seed that fails settles it; one that is missing leaves it open."""
    by_seed = {name: interval for name, interval in found.items() if name != POOLED}
    reached = _all(None if interval is None else holds(interval) for interval in by_seed.values())
    return Target(target, reached, ", ".join(f"{name} {points(one)}" for name, one in by_seed.items()) or "no seeds")


def _over_all_seeds(target: str, found: Intervals, holds: Holds) -> Target:
    """Open until every variant of the pool has its figures."""
    members = [interval for name, interval in found.items() if name != POOLED]
    there = sum(interval is not None for interval in members)
    pooled = found.get(POOLED)
    missing = f", {there} of {len(members)} runs" if there < len(members) else ""
    reached = holds(pooled) if pooled is not None and not missing else None
    return Target(target, reached, points(pooled) + missing)


def _above_all_others(accuracy: Mapping[str, Intervals], last: str) -> Target:
    """By the mean: a round may be as good as the one before."""
    rivals = {key: found for key, found in accuracy.items() if key.startswith(f"{last}-")}
    rivals = {key: found for key, found in rivals.items() if not key.removeprefix(f"{last}-").startswith(CEILINGS)}
    target = f"{last} has the highest mean of all that have neither feedback at inference nor the truth, seeds pooled"
    judged = {key: _over_all_seeds(target, found, lambda found: found["value"] > 0) for key, found in rivals.items()}
    detail = ", ".join(f"{key} {one.detail}" for key, one in judged.items())
    return Target(target, _all(one.reached for one in judged.values()), detail)


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    """False if one fails, else None if one is open or there is none."""
    known = list(verdicts)
    return False if False in known else None if None in known or not known else True
