"""Confidence against numbers derived by hand: the fit, expectations that never saw their own row, curve, coverage."""

import math
from dataclasses import replace

import numpy as np
import pytest
from rows import evaluated

from saeexplainer.figures.confidence import (
    Calibration,
    Coverage,
    CurvePoint,
    assess,
    auroc,
    calibrate,
    calibration_error,
    coverage,
    cross_fitted,
    curve,
    is_known,
)
from saeexplainer.figures.intervals import bootstrap_mean, bootstrap_rows

GONE = math.nan  # the log-probability of a missing explanation


def rows(*points):
    """Evaluation rows from (log-probability, generative accuracy)."""
    found = evaluated([accuracy for _, accuracy in points])
    return [replace(row, log_probability=sure) for row, (sure, _) in zip(found, points, strict=True)]


def test_expected_accuracy_rises_with_confidence_and_ends_are_level():
    table = rows((-3.0, 0.2), (-2.0, 0.0), (-1.0, 0.6), (-1.0, 0.8), (0.0, 0.5))
    # By hand: 0.2 and 0.0 pool to 0.1; the two at -1 and the 0.5 after them pool to (0.6 + 0.8 + 0.5) / 3.
    high = 1.9 / 3
    fitted = calibrate(table)
    assert fitted.log_probabilities == [-3.0, -2.0, -1.0, 0.0]
    assert fitted.accuracies == pytest.approx([0.1, 0.1, high, high])
    assert fitted.expected(-9.0) == pytest.approx(0.1) and fitted.expected(5.0) == pytest.approx(high)
    assert fitted.expected(-1.5) == pytest.approx((0.1 + high) / 2)
    assert fitted.expected(math.nan) == 0.0  # a missing explanation has failed
    assert calibrate(evaluated([0.5])) == Calibration([0.0], [0.0])


def test_explanations_whose_texts_failed_are_left_out():
    known = rows((-2.0, 0.0), (-1.0, 1.0), (GONE, 0.0))
    lost = [replace(row, feature_id=f"{row.feature_id}9") for row in rows((-0.5, math.nan), (0.0, math.nan))]
    how = {"folds": 3, "bins": 2, "resamples": 10, "seed": 0}
    assert assess("r1", [*known, *lost], **how) == assess("r1", known, **how)
    assert calibrate([*known, *lost]) == calibrate(known) and not is_known(lost)


def test_no_expectation_saw_its_own_row():
    draw = np.random.default_rng(0)
    table = rows(*((float(sure), float(draw.random())) for sure in draw.normal(size=30)))
    before = cross_fitted(table, folds=5, seed=3)
    for at, row in enumerate(table):
        table[at] = replace(row, generative_accuracy=1.0 - row.generative_accuracy)
        after = cross_fitted(table, folds=5, seed=3)
        table[at] = row
        assert after[at] == before[at] and after != before
    assert before != [calibrate(table).expected(row.log_probability) for row in table]


def test_each_of_two_folds_is_judged_by_the_other():
    # One row a fold: the other row's accuracy is all that a fit can know.
    assert cross_fitted(rows((-1.0, 0.25), (-2.0, 0.75)), folds=5, seed=0) == [0.75, 0.25]
    assert cross_fitted(rows((GONE, 0.0), (-2.0, 0.75)), folds=2, seed=0) == [0.0, 0.0]
    assert cross_fitted(rows((-1.0, 1.0)), folds=5, seed=0) == [0.0]


def test_ranking_by_hand():
    # Successes at -1 and -3, failures at -2 and where nothing was said: 3 of the 4 pairs are in order.
    table = rows((-1.0, 1.0), (-2.0, 0.4), (-3.0, 0.5), (GONE, 0.0))
    found = auroc(table, resamples=200, seed=0)
    assert found.value == 0.75 and found.n == 4 and 0 <= found.low < 0.75 < found.high <= 1
    assert found == auroc(table, resamples=200, seed=0)
    assert auroc(rows((-1.0, 0.5), (-2.0, 1.0)), 50, 0) is None
    assert auroc(rows((-1.0, 0.4), (GONE, 0.0)), 50, 0) is None


def test_resampled_rows_give_the_interval_of_resampled_values():
    values = np.random.default_rng(1).random(50)
    found = bootstrap_rows(lambda at: float(values[at].mean()), len(values), resamples=200, seed=3)
    expected = bootstrap_mean(values, resamples=200, seed=3)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap_rows(lambda at: 0.0, 1, resamples=10, seed=0)


def test_curve_and_its_error_by_hand():
    table = rows((-4.0, 0.0), (-3.0, 0.5), (-2.0, 0.5), (-1.0, 0.5), (GONE, 0.0))
    points = curve("r1", table, [0.2, 0.2, 0.6, 0.8, 0.0], bins=2, resamples=50, seed=0)
    # Five features in two bins: the missing one and the two at 0.2, then 0.6 and 0.8.
    assert [(point.features, point.predicted, point.measured) for point in points] == [
        (3, pytest.approx(0.4 / 3), pytest.approx(0.5 / 3)), (2, pytest.approx(0.7), 0.5),
    ]  # fmt: skip
    assert (points[1].low, points[1].high, points[1].evaluation) == (0.5, 0.5, "r1")
    assert calibration_error(points) == pytest.approx((3 * 0.1 / 3 + 2 * 0.2) / 5)
    assert calibration_error([CurvePoint("r1", 4, 0.5, 0.5, 0.4, 0.6)]) == 0.0
    assert len(curve("r1", table, [0.0] * 5, bins=10, resamples=50, seed=0)) == 5, "a bin a feature at most"


def test_answering_only_where_it_is_sure_by_hand():
    table = rows((-4.0, 0.0), (-1.0, 1.0), (GONE, 0.0), (-2.0, 0.5))
    quarter, half, three, everything = coverage(table, resamples=50, seed=0)
    assert isinstance(quarter, Coverage) and quarter.min_expected == 1.0
    assert [each.min_expected for each in (half, three, everything)] == [0.5, 0.0, 0.0]
    # Of the third and of the missing one nothing is expected: whoever asks for nothing gets both.
    assert [each.answered for each in (quarter, half, three, everything)] == [0.25, 0.5, 1.0, 1.0]
    assert [each.accuracy.value for each in (quarter, half, three, everything)] == [1.0, 0.75, 0.375, 0.375]
    assert [each.hallucination.value for each in (quarter, half, three, everything)] == [0.0, 0.0, 0.5, 0.5]


def test_an_honest_explainer_is_calibrated_and_a_random_one_ranks_nothing():
    draw = np.random.default_rng(4)
    right = draw.random(600)
    honest = rows(*((math.log(chance), float(draw.random() < chance)) for chance in right))
    found = assess("honest", honest, folds=5, bins=10, resamples=100, seed=0)
    # A bin of 60 yes-or-no outcomes is off by about sqrt(2 / pi * 0.2 / 60) = 0.046 by chance alone.
    assert found.calibration_error < 0.1 and found.auroc.low > 0.75
    assert sum(point.low <= point.predicted <= point.high for point in found.curve) >= 7
    accuracies = [each.accuracy.value for each in found.coverage]
    assert accuracies == sorted(accuracies, reverse=True) and [each.share for each in found.coverage][-1] == 1.0
    random = [replace(row, log_probability=float(draw.normal())) for row in honest]
    blind = assess("random", random, folds=5, bins=10, resamples=100, seed=0)
    assert blind.auroc.low < 0.5 < blind.auroc.high


def test_explanations_that_nobody_wrote_with_a_model_have_no_confidence():
    assert not is_known(evaluated([0.5, 0.25])) and is_known(rows((GONE, 0.0), (-1.0, 0.5)))
    with pytest.raises(ValueError, match="no rows"):
        assess("r1", [], folds=5, bins=10, resamples=10, seed=0)
