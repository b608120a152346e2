"""Is an explanation worth trusting: how far the explainer's own confidence says so, and how to ask for the sure ones.

Confidence is the mean log-probability that the explainer gives its own explanation; it costs one forward pass and no
text. Here it is put on the scale of generative accuracy (an isotonic fit, which is what `saeexplainer.serving` stores),
and it is asked how good that is: does it rank the explanations that succeed above those that fail (AUROC), does the
expected accuracy come true (calibration), and what is gained by answering only where the explainer is sure (coverage).

An isotonic fit follows its own data closely, so every expectation that is judged here comes from a fit over other
features (k-fold cross-fitting). A missing explanation has no log-probability: it is the least sure of all, its
expectation is 0, and it counts as failure, as in every other metric. One whose texts failed has no accuracy to
judge by: it is left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from saeexplainer.evaluation.metrics import auc
from saeexplainer.figures.intervals import Interval, bootstrap_mean, bootstrap_rows
from saeexplainer.records import EvaluationRow

SUCCESS = 0.5  # generative accuracy from which an explanation counts as a success: half of its texts
COVERAGE = (0.25, 0.5, 0.75, 1.0)  # shares of the features that are answered, the surest first


@dataclass(frozen=True)
class Calibration:
    """Knots of a rising line from mean log-probability to expected generative accuracy."""

    log_probabilities: list[float]  # rising
    accuracies: list[float]  # never falling

    def expected(self, log_probability: float) -> float:
        """Between knots by interpolation, beyond them as at the last; 0 for NaN, an explanation that is missing."""
        if math.isnan(log_probability):
            return 0.0
        return float(np.interp(log_probability, self.log_probabilities, self.accuracies))


def calibrate(rows: Sequence[EvaluationRow]) -> Calibration:
    """The isotonic fit over the explanations that are there and were measured; without one, every expectation is 0."""
    from scipy.optimize import isotonic_regression

    known = [row for row in _measured(rows) if not math.isnan(row.log_probability)]
    if not known:
        return Calibration([0.0], [0.0])
    x, where, count = np.unique([row.log_probability for row in known], return_inverse=True, return_counts=True)
    mean = np.bincount(where, weights=[row.generative_accuracy for row in known]) / count
    y = isotonic_regression(mean, weights=count).x
    # Only the ends of a level stretch bend the line.
    bends = [at for at in range(len(y)) if at in (0, len(y) - 1) or not y[at - 1] == y[at] == y[at + 1]]
    return Calibration([float(x[at]) for at in bends], [float(y[at]) for at in bends])


@dataclass(frozen=True)
class CurvePoint:
    """One bin of a calibration curve, and a line of reports/confidence.csv; bins hold equally many features."""

    evaluation: str
    features: int  # in the bin
    predicted: float  # mean expected generative accuracy, by fits over other features
    measured: float  # mean generative accuracy
    low: float  # ends of the 95 % interval of measured
    high: float


@dataclass(frozen=True)
class Coverage:
    """What is had by answering only for the surest features."""

    share: float  # of all features, the surest first
    min_expected: float  # expected accuracy of the least sure of them, by the fit over all: what is asked for
    answered: float  # share of the features of which that much is expected
    accuracy: Interval  # mean generative accuracy
    hallucination: Interval  # share of them none of whose texts fires


@dataclass(frozen=True)
class Confidence:
    """How much the explainer's confidence in an evaluation's explanations says about them."""

    auroc: Interval | None  # chance that a success is surer than a failure; None where all or none succeed
    calibration_error: float  # mean over features of |predicted - measured| of their bin; chance alone makes it above 0
    curve: list[CurvePoint]  # predictions rising
    coverage: list[Coverage]  # shares rising


def is_known(rows: Sequence[EvaluationRow]) -> bool:
    """Whether an explainer said how sure it is of any of these explanations that was measured."""
    return any(not math.isnan(row.log_probability) for row in _measured(rows))


def _measured(rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """Those with an accuracy."""
    return [row for row in rows if not math.isnan(row.generative_accuracy)]


def assess(name: str, rows: Sequence[EvaluationRow], *, folds: int, bins: int, resamples: int, seed: int) -> Confidence:
    """Judge the confidence of one evaluation; the same seed gives the same folds and intervals.

    Raises ValueError if no row has an accuracy.
    """
    rows = _measured(rows)
    if not rows:
        raise ValueError("no rows to judge")
    points = curve(name, rows, cross_fitted(rows, folds, seed), bins, resamples, seed)
    return Confidence(auroc(rows, resamples, seed), calibration_error(points), points, coverage(rows, resamples, seed))


def cross_fitted(rows: Sequence[EvaluationRow], folds: int, seed: int) -> list[float]:
    """The expected accuracy of each row by a fit over the rows of the other folds, which are drawn at random."""
    expected = np.zeros(len(rows))
    for held_out in np.array_split(np.random.default_rng(seed).permutation(len(rows)), min(folds, len(rows))):
        fit = calibrate([rows[at] for at in np.setdiff1d(np.arange(len(rows)), held_out)])
        expected[held_out] = [fit.expected(rows[at].log_probability) for at in held_out]
    return expected.tolist()


def auroc(rows: Sequence[EvaluationRow], resamples: int, seed: int) -> Interval | None:
    """Area under the curve of confidence against success, with its interval; None where all or none succeed."""
    sure = _sureness(rows)
    success = np.array([row.generative_accuracy >= SUCCESS for row in rows])
    if success.all() or not success.any():
        return None
    return bootstrap_rows(lambda at: auc(sure[at].tolist(), success[at].tolist()), len(rows), resamples, seed)


def curve(
    name: str, rows: Sequence[EvaluationRow], predicted: Sequence[float], bins: int, resamples: int, seed: int
) -> list[CurvePoint]:
    """Predicted against measured accuracy in `bins` bins of equally many features (give or take one)."""
    order = np.lexsort(
        (_sureness(rows), np.asarray(predicted))
    )  # by prediction; a fit has level stretches, the surer ones later
    points = []
    for members in np.array_split(order, min(bins, len(rows))):
        measured = bootstrap_mean([rows[at].generative_accuracy for at in members], resamples, seed)
        mean = float(np.mean([predicted[at] for at in members]))
        points.append(CurvePoint(name, measured.n, mean, measured.value, measured.low, measured.high))
    return points


def calibration_error(points: Sequence[CurvePoint]) -> float:
    """Expected calibration error: the mean over features of how far their bin's prediction is off, 0 to 1."""
    features = sum(point.features for point in points)
    return sum(point.features * abs(point.predicted - point.measured) for point in points) / features


def coverage(rows: Sequence[EvaluationRow], resamples: int, seed: int) -> list[Coverage]:
    """Those that come back when as much is expected as of the last of the surest share, for each share of COVERAGE.

    A fit has level stretches, so that may be more than the share.
    """
    fit, surest = calibrate(rows), np.argsort(-_sureness(rows), kind="stable")
    found = []
    for share in COVERAGE:
        last = rows[surest[max(1, round(share * len(rows))) - 1]]
        least = fit.expected(last.log_probability)
        chosen = [row for row in rows if fit.expected(row.log_probability) >= least]
        accuracy = bootstrap_mean([row.generative_accuracy for row in chosen], resamples, seed)
        hallucination = bootstrap_mean([row.hallucination for row in chosen], resamples, seed)
        found.append(Coverage(share, least, len(chosen) / len(rows), accuracy, hallucination))
    return found


def _sureness(rows: Sequence[EvaluationRow]) -> np.ndarray:
    """Log-probabilities, the missing ones below all others."""
    values = np.array([row.log_probability for row in rows], dtype=float)
    return np.where(np.isnan(values), -np.inf, values)
