"""comparison.json: every evaluation beside the others, and which is subtracted from which. Is a round better than the
one before, and by how much? Intervals are those of `saeexplainer.figures.intervals`, differences are paired by feature.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields

import numpy as np

from saeexplainer.errors import UserError
from saeexplainer.figures.intervals import known_difference, known_mean
from saeexplainer.records import EvaluationRow, FeatureId, unwritten

# A metric is a number of EvaluationRow; a yes/no field becomes a rate once it is averaged.
METRICS = {
    field.name: {"hallucination": "hallucination_rate", "collision": "collision_rate"}.get(field.name, field.name)
    for field in fields(EvaluationRow)
    if field.type is float and field.name != "log_probability"  # how sure the explainer was, not how right
}
ACCURACY, HALLUCINATION, COLLISION = "generative_accuracy", "hallucination_rate", "collision_rate"
LOWER_IS_BETTER = (HALLUCINATION, COLLISION)
# NaN is an answer only here, and in what is measured on texts where these are unwritten; elsewhere it is a fault.
MAY_BE_UNKNOWN = ("truth_agreement", "truth_f1", "judge_agreement")
OF_TEXTS = (ACCURACY, HALLUCINATION, COLLISION, "mean_activation", "input_accuracy")
# What a first look needs: what was rewarded, how often it fails, and two metrics that were no reward.
HEADLINE = (ACCURACY, HALLUCINATION, "input_accuracy", "truth_agreement")
BASELINE, START = "open_loop", "sft"


def direction(metric: str, difference: Mapping[str, float] | None) -> int:
    """1 if a difference is for the better beyond its interval, -1 if for the worse, 0 if neither is shown."""
    if difference is None or difference["low"] <= 0 <= difference["high"]:
        return 0
    return 1 if (difference["low"] > 0) != (metric in LOWER_IS_BETTER) else -1


def summarise(
    evaluations: Mapping[str, Sequence[EvaluationRow]],
    resamples: int,
    seed: int,
    starts: Mapping[str, str] | None = None,
) -> dict:
    """comparison.json: {"rounds", "differences", "seed", "subject", "sae"}, evaluations in the order given.

    `starts` maps each round to the explainer it starts from; without it, evaluations named r1, r2, ... are the rounds,
    each started from the one before and the first from sft. Unknown metrics are left out. Raises UserError
    on an empty evaluation, a feature measured twice, a NaN where none may be, or features that do not match.
    """
    starts = default_starts(evaluations) if starts is None else starts
    tables = {name: _by_metric(name, rows) for name, rows in evaluations.items()}
    subject, sae = _what_is_explained(evaluations)
    rounds = {
        name: {
            metric: asdict(interval)
            for metric, values in table.items()
            if (interval := known_mean(values, resamples, seed))
        }
        for name, table in tables.items()
    }
    differences = {
        f"{a}-{b}": _differences(tables[a], tables[b], resamples, seed) for a, b in differences_of(evaluations, starts)
    }
    return {"rounds": rounds, "differences": differences, "seed": seed, "subject": subject, "sae": sae}


def default_starts(names: Mapping[str, object] | Sequence[str]) -> dict[str, str]:
    """{"r1": "sft", "r2": "r1", ...} for the names that look like rounds, in number order."""
    rounds = sorted((name for name in names if re.fullmatch(r"r\d+", name)), key=lambda name: int(name[1:]))
    return dict(zip(rounds, [START, *rounds], strict=False))


def differences_of(names: Mapping[str, object] | Sequence[str], starts: Mapping[str, str]) -> list[tuple[str, str]]:
    """The (a, b) worth subtracting: each round and its start, then the last round and every other evaluation.

    Of the evaluations that are no round, sft and open_loop come first.
    """
    rounds = [name for name in starts if name in names]
    pairs = [(name, starts[name]) for name in rounds if starts[name] in names]
    others = [name for name in (START, BASELINE, *names) if name in names and name not in starts]
    pairs += [(rounds[-1], other) for other in others] if rounds else []
    return list(dict.fromkeys(pairs))


def metrics_of(comparison: Mapping) -> list[str]:
    """Every metric of some evaluation, in order of first appearance."""
    return list(dict.fromkeys(metric for found in comparison["rounds"].values() for metric in found))


def subtractions(comparison: Mapping) -> list[tuple[str, str]]:
    """The (a, b) of each key of "differences"; names of evaluations hold no dash (`tasks.settings.params`)."""
    return [(key.partition("-")[0], key.partition("-")[2]) for key in comparison["differences"]]


def chain_of(comparison: Mapping) -> list[str]:
    """What training went through, in order: what the first round started from, then every round.

    Read back from a comparison alone: only rounds are ever subtracted from.
    """
    found = subtractions(comparison)
    rounds = {a for a, _ in found}
    return [b for _, b in found[:1]] + [name for name in comparison["rounds"] if name in rounds]


def values_of(rows: Sequence[EvaluationRow], metric: str) -> dict[str, float]:
    """feature_id -> one metric, a value of METRICS."""
    field = next(field for field, name in METRICS.items() if name == metric)
    return {row.feature_id: getattr(row, field) for row in rows}


def _by_metric(name: str, rows: Sequence[EvaluationRow]) -> dict[str, dict[str, float]]:
    """metric -> feature_id -> value."""
    if not rows:
        raise UserError(f"evaluation {name}: no rows; lower what removes its features or rerun `dvc repro evaluate`")
    if len({row.feature_id for row in rows}) != len(rows):
        raise UserError(f"evaluation {name}: a feature is measured twice; rerun `dvc repro evaluate@{name}`")
    table = {metric: values_of(rows, metric) for metric in METRICS.values()}
    failed = {row.feature_id for row in rows if unwritten(row.explanation, row.texts)}
    for metric, values in table.items():
        asked = [value for feature, value in values.items() if metric not in OF_TEXTS or feature not in failed]
        if metric not in MAY_BE_UNKNOWN and not np.isfinite(asked).all():
            raise UserError(f"evaluation {name}: {metric} is not a finite number for every feature")
    if not np.isfinite(list(table[ACCURACY].values())).any():
        raise UserError(f"evaluation {name}: the writer failed for every feature; run `dvc repro -f evaluate@{name}`")
    return table


def _differences(
    a: Mapping[str, Mapping[str, float]], b: Mapping[str, Mapping[str, float]], resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """metric -> {"value", "low", "high"} of a - b, over the features for which both are known, if two or more are."""
    found = {}
    for metric in a:
        if interval := known_difference(a[metric], b[metric], resamples, seed):
            found[metric] = {"value": interval.value, "low": interval.low, "high": interval.high}
    return found


def _what_is_explained(evaluations: Mapping[str, Sequence[EvaluationRow]]) -> tuple[str, str]:
    """The one subject and SAE that all evaluations are about."""
    try:
        ids = [FeatureId.parse(row.feature_id) for rows in evaluations.values() for row in rows]
    except ValueError as error:
        raise UserError(f"evaluations: {error}") from None
    owners = {(one.subject, one.sae) for one in ids}
    if len(owners) != 1:
        raise UserError(f"evaluations must be about one SAE; they are about {sorted({one.owner for one in ids})}")
    return owners.pop()
