"""Is a round better than the one before, and by how much: bootstrap intervals over features, paired where it matters.

Two rounds explain the same features, and features differ far more among themselves than rounds do; so a difference is
taken feature by feature and the bootstrap resamples those differences (METHOD section 2). Every interval is a 95 %
percentile interval over features of one seed: it says what other features of this SAE would give, not what another
training run would. `pooled_difference` joins several seeds.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from saeexplainer.errors import UserError
from saeexplainer.records import EvaluationRow

CONFIDENCE_LEVEL = 0.95
# Resamples held in memory at once: 1,000 resamples of 10,000 features are 80 MB.
BOOTSTRAP_BATCH = 1000
# A metric is a number of EvaluationRow; a yes/no field becomes a rate once it is averaged.
METRICS = {
    field.name: {"hallucination": "hallucination_rate", "collision": "collision_rate"}.get(field.name, field.name)
    for field in fields(EvaluationRow)
    if field.type is float and field.name != "log_probability"  # how sure the explainer was, not how right
}
LOWER_IS_BETTER = ("hallucination_rate", "collision_rate")
# NaN is an answer only here; elsewhere it is a fault.
MAY_BE_UNKNOWN = ("truth_agreement", "truth_f1", "judge_agreement")
BASELINE, START = "open_loop", "sft"

Values = Sequence[float] | np.ndarray  # one number a feature


@dataclass(frozen=True)
class Interval:
    """A mean over features with its 95 % interval."""

    value: float  # in the metric's own unit
    low: float  # 2.5th percentile of the resampled means
    high: float  # 97.5th percentile
    n: int  # features


def bootstrap_mean(values: Values, resamples: int, seed: int) -> Interval:
    """The mean of one number a feature and its percentile interval; the same seed gives the same interval.

    A single value has no spread to resample: its interval is the value itself. Raises ValueError on an empty or
    non-finite sequence.
    """
    return pooled_mean([values], resamples, seed)


def bootstrap_rows(statistic: Callable[[np.ndarray], float], rows: int, resamples: int, seed: int) -> Interval:
    """A number that is no mean, with its percentile interval: `statistic` takes the row numbers of a (re)sample.

    Raises ValueError for fewer than two rows, which cannot be resampled.
    """
    if rows < 2:
        raise ValueError(f"{rows} rows: resampling needs at least 2")
    numbers = np.arange(rows)
    value = float(statistic(numbers))
    return Interval(value, *_ends([numbers], statistic, value, resamples, seed, vectorized=False), rows)


def paired_difference(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """a - b for each feature_id, in the order of the ids. Raises UserError if the two hold different features."""
    if a.keys() != b.keys():
        lonely = sorted(a.keys() ^ b.keys())
        raise UserError(
            f"evaluations of different features cannot be paired: {len(lonely)} of {len(a.keys() | b.keys())} are in "
            f"one of the two alone, {lonely[0]} first; rerun `dvc repro` so that both measure the same split"
        )
    return {feature_id: a[feature_id] - b[feature_id] for feature_id in sorted(a)}


def known_difference(a: Mapping[str, float], b: Mapping[str, float], resamples: int, seed: int) -> Interval | None:
    """Mean of a - b over the features for which both are known (not NaN); None if there are none.

    Raises as `paired_difference` does.
    """
    values = _known(paired_difference(a, b))
    return bootstrap_mean(values, resamples, seed) if values else None


def pooled_difference(
    pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], resamples: int, seed: int
) -> Interval:
    """Mean of a - b over the features of several seeds, one (a, b) a seed.

    Ids of different seeds name different features, so pairing and resampling stay inside a seed (a stratified
    bootstrap); each feature weighs the same. Raises as `paired_difference` and `bootstrap_mean` do.
    """
    return pooled_mean([list(paired_difference(a, b).values()) for a, b in pairs], resamples, seed)


def pooled_ratio(
    pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], resamples: int, seed: int
) -> Interval | None:
    """Mean of a over mean of b, one (a, b) a seed: what share of b's mean a reaches.

    A resample draws features, and both means are taken over the same ones. None where b's mean,
    or that of a resample, is 0. Raises as `pooled_difference` does.
    """
    above, below = [], []
    for a, b in pairs:
        order = list(paired_difference(a, b))
        above.append(np.array([a[feature_id] for feature_id in order], dtype=float))
        below.append(np.array([b[feature_id] for feature_id in order], dtype=float))
    n = _count([*above, *below]) // 2

    def ratio(*drawn: np.ndarray, axis: int = -1) -> np.ndarray | np.floating:
        places = [part.astype(int) for part in drawn]
        tops, bottoms = (
            sum(values[place].sum(axis=axis) for values, place in zip(side, places, strict=True))
            for side in (above, below)
        )
        return np.divide(tops, bottoms)

    if not any(values.any() for values in below):
        return None
    samples = [np.arange(values.size) for values in above]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(ratio(*samples))
        low, high = _ends(samples, ratio, value, resamples, seed)
    return Interval(value, low, high, n) if np.isfinite([low, high]).all() else None


def pooled_mean(strata: Sequence[Values], resamples: int, seed: int) -> Interval:
    """Mean over the features of several seeds, one stratum a seed; as in `pooled_difference`."""
    samples = [np.asarray(values, dtype=float) for values in strata]
    n = _count(samples)

    def mean(*drawn: np.ndarray, axis: int = -1) -> np.ndarray | np.floating:
        return sum(part.sum(axis=axis) for part in drawn) / n

    value = float(mean(*samples))
    return Interval(value, *_ends(samples, mean, value, resamples, seed), n)


def _count(samples: Sequence[np.ndarray]) -> int:
    """Values in all strata. Raises ValueError unless each has some and all are finite."""
    if not samples or any(sample.size == 0 for sample in samples):
        raise ValueError("no values to average")
    if not all(np.isfinite(sample).all() for sample in samples):
        raise ValueError("values to average must be finite")
    return sum(sample.size for sample in samples)


def _ends(
    samples: Sequence[np.ndarray], statistic: Callable[..., Any], value: float, resamples: int, seed: int,
    vectorized: bool = True,
) -> tuple[float, float]:  # fmt: skip
    """Percentile interval of a statistic of the strata, each resampled by itself."""
    if any(sample.size == 1 for sample in samples):
        # scipy refuses a sample of one; a stratum of one feature cannot be resampled, so no interval is claimed.
        if len(samples) > 1:
            raise ValueError("a seed with a single feature cannot be resampled")
        return value, value
    from scipy.stats import bootstrap

    interval = bootstrap(
        samples,
        statistic,
        n_resamples=resamples,
        batch=BOOTSTRAP_BATCH,
        vectorized=vectorized,
        method="percentile",
        confidence_level=CONFIDENCE_LEVEL,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def summarise(
    evaluations: Mapping[str, Sequence[EvaluationRow]],
    resamples: int,
    seed: int,
    starts: Mapping[str, str] | None = None,
) -> dict:
    """comparison.json: {"rounds", "differences", "seed", "subject", "sae"}, evaluations in the order given.

    `starts` maps each round to the explainer it starts from; without it, evaluations named r1, r2, ... are the rounds,
    each started from the one before and the first from sft. Metrics that nobody knows are left out. Raises UserError
    on an empty evaluation, a feature measured twice, a NaN where none may be, or features that do not match.
    """
    starts = default_starts(evaluations) if starts is None else starts
    tables = {name: _by_metric(name, rows) for name, rows in evaluations.items()}
    subject, sae = _what_is_explained(evaluations)
    rounds = {
        name: {metric: asdict(_mean(values, resamples, seed)) for metric, values in table.items() if _known(values)}
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


def subtractions(comparison: dict) -> list[tuple[str, str]]:
    """The (a, b) of each key of "differences"; names of evaluations hold no dash (`tasks.params`)."""
    return [(key.partition("-")[0], key.partition("-")[2]) for key in comparison["differences"]]


def chain_of(comparison: dict) -> list[str]:
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
    for metric, values in table.items():
        if metric not in MAY_BE_UNKNOWN and not np.isfinite(list(values.values())).all():
            raise UserError(f"evaluation {name}: {metric} is not a finite number for every feature")
    return table


def _known(values: Mapping[str, float]) -> list[float]:
    return [value for _, value in sorted(values.items()) if not np.isnan(value)]


def _mean(values: Mapping[str, float], resamples: int, seed: int) -> Interval:
    return bootstrap_mean(_known(values), resamples, seed)


def _differences(
    a: Mapping[str, Mapping[str, float]], b: Mapping[str, Mapping[str, float]], resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """metric -> {"value", "low", "high"} of a - b, over the features for which both are known."""
    found = {}
    for metric in a:
        if interval := known_difference(a[metric], b[metric], resamples, seed):
            found[metric] = {"value": interval.value, "low": interval.low, "high": interval.high}
    return found


def _what_is_explained(evaluations: Mapping[str, Sequence[EvaluationRow]]) -> tuple[str, str]:
    """Subject and SAE, from ids of the form subject/sae/index."""
    owners = {tuple(row.feature_id.rsplit("/", 2)[:-1]) for rows in evaluations.values() for row in rows}
    if len(owners) != 1 or len(next(iter(owners))) != 2:
        found = sorted("/".join(owner) for owner in owners)
        raise UserError(f"evaluations must be about one SAE, with ids subject/sae/index; found {found}")
    subject, sae = next(iter(owners))
    return subject, sae
