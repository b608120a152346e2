"""Bootstrap intervals over features: of a mean, of a paired difference, of several seeds pooled, of any statistic.

Two rounds explain the same features, and features differ far more among themselves than rounds do; so a difference is
taken feature by feature and the bootstrap resamples those differences (docs/METHOD.md section 8). Every interval is a
95 % percentile interval over features of one seed: it says what other features of this SAE would give, not what another
training run would. `pooled_difference` joins several seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from saeexplainer.errors import UserError

CONFIDENCE_LEVEL = 0.95
# Resamples held in memory at once: 1,000 resamples of 10,000 features are 80 MB.
BOOTSTRAP_BATCH = 1000

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


def known_mean(values: Mapping[str, float], resamples: int, seed: int) -> Interval | None:
    """Mean over the features for which it is known (not NaN); None if there are none."""
    known = known_values(values)
    return bootstrap_mean(known, resamples, seed) if known else None


def known_values(values: Mapping[str, float]) -> list[float]:
    """What is known (not NaN), in the order of the ids."""
    return [value for _, value in sorted(values.items()) if not np.isnan(value)]


def known_difference(a: Mapping[str, float], b: Mapping[str, float], resamples: int, seed: int) -> Interval | None:
    """As `known_mean`, of a - b over the features for which both are known; None for a single one as well, which has no
    interval and so shows nothing. Raises as `paired_difference` does."""
    found = paired_difference(a, b)
    return known_mean(found, resamples, seed) if len(known_values(found)) > 1 else None


def pooled_difference(
    pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]], resamples: int, seed: int
) -> Interval:
    """Mean of a - b over the features of several seeds, one (a, b) a seed.

    Ids of different seeds name different features, so pairing and resampling stay inside a seed (a stratified
    bootstrap); each feature weighs the same. Raises as `paired_difference` and `bootstrap_mean` do.
    """
    return pooled_mean([list(paired_difference(a, b).values()) for a, b in pairs], resamples, seed)


def pooled_mean(strata: Sequence[Values], resamples: int, seed: int) -> Interval:
    """Mean over the features of several seeds, one stratum a seed; as in `pooled_difference`."""
    samples = [np.asarray(values, dtype=float) for values in strata]
    n = _count(samples)

    def mean(*drawn: np.ndarray, axis: int = -1) -> np.ndarray | np.floating:
        return sum(part.sum(axis=axis) for part in drawn) / n

    value = float(mean(*samples))
    return Interval(value, *_ends(samples, mean, value, resamples, seed), n)


def difference_of_means(a: Values, b: Values, resamples: int, seed: int) -> Interval:
    """Mean of a less mean of b, of different features that nothing pairs, each resampled by itself; n counts both.

    Raises ValueError if one is empty or not finite, or has a single value.
    """
    samples = [np.asarray(a, dtype=float), np.asarray(b, dtype=float)]
    n = _count(samples)

    def difference(*drawn: np.ndarray, axis: int = -1) -> np.ndarray | np.floating:
        return drawn[0].mean(axis=axis) - drawn[1].mean(axis=axis)

    value = float(difference(*samples))
    return Interval(value, *_ends(samples, difference, value, resamples, seed), n)


def _count(samples: Sequence[np.ndarray]) -> int:
    """Values in all strata. Raises ValueError unless each has some and all are finite."""
    if not samples or any(sample.size == 0 for sample in samples):
        raise ValueError("no values to average")
    if not all(np.isfinite(sample).all() for sample in samples):
        raise ValueError("values to average must be finite")
    return sum(sample.size for sample in samples)


def _ends(
    samples: Sequence[np.ndarray],
    statistic: Callable[..., Any],
    value: float,
    resamples: int,
    seed: int,
    vectorized: bool = True,
) -> tuple[float, float]:
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
