"""The metrics that were not the reward: by hand, and against independent implementations."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import pearsonr
from sklearn.metrics import roc_auc_score

from saeexplainer.evaluation import metrics, rows
from saeexplainer.records import ProbeRow

SCORES = st.lists(st.tuples(st.integers(-3, 3).map(float), st.booleans()), min_size=1, max_size=30)


@given(SCORES)
def test_auc_is_scikit_learns(pairs):
    scores, labels = [score for score, _ in pairs], [label for _, label in pairs]
    expected = roc_auc_score(labels, scores) if len(set(labels)) == 2 else 0.5
    assert metrics.auc(scores, labels) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30))
def test_correlation_is_scipys_and_a_constant_predicts_nothing(pairs):
    a, b = (list(map(float, column)) for column in zip(*pairs))
    expected = pearsonr(a, b).statistic if len(set(a)) > 1 and len(set(b)) > 1 else 0.0
    assert metrics.correlation(a, b) == pytest.approx(expected, abs=1e-9)


def test_input_accuracy_by_hand():
    assert metrics.input_accuracy([0.0, 0.9], [0.4, 0.4]) == 1.0
    assert metrics.input_accuracy([0.4, 0.4], [0.0, 0.8]) == 0.0  # a tie fails
    assert metrics.input_accuracy([], [0.1]) == metrics.input_accuracy([0.1], []) == 0.0


def test_only_the_right_one_alone_at_the_top_is_picked():
    assert metrics.picked([0.1, 2.0, -3.0], 1) == 1.0
    assert metrics.picked([2.0, 2.0, -3.0], 1) == 0.0
    assert metrics.picked([0.1, 2.0, -3.0], 0) == 0.0


FIRES, SILENT = ProbeRow("s/m/1", "the dog", [0.0, 0.8]), ProbeRow("s/m/1", "a cat", [0.0, 0.0])


def test_detection_by_hand():
    # The firing context scores higher; inside it the firing token does.
    assert rows.detection([FIRES, SILENT], [1.0, 0.5], [[-1.0, 2.0], [0.5, 0.0]])[:2] == (1.0, 1.0)
    assert rows.detection([FIRES, SILENT], [1.0, 2.0], [[2.0, -1.0], [2.0, 0.0]])[:2] == (0.0, 0.0)
    # A context's score is the judge's own, whatever its tokens add up to.
    assert rows.detection([FIRES, SILENT], [0.0, 0.5], [[-1.0, 2.0], [0.5, 0.0]])[:2] == (0.0, 1.0)
    found = rows.detection([FIRES, SILENT], [1.0, 0.5], [[-1.0, 2.0], [0.5, 0.0]])[2]
    assert found == pytest.approx(pearsonr([-1.0, 2.0, 0.5, 0.0], [0.0, 0.8, 0.0, 0.0]).statistic)


def test_a_missing_explanation_is_at_chance():
    assert rows.detection([FIRES, SILENT], [0.0, 0.0], [[0.0, 0.0], [0.0, 0.0]]) == (0.5, 0.5, 0.0)


def test_agreement_is_of_ranks_and_unknown_without_spread():
    up, flat = [1.0, 2.0, 3.0], [5.0, 5.0, 5.0]
    assert rows.agreement(up, [[10.0, 200.0, 3000.0]]) == pytest.approx(1.0)
    assert rows.agreement(up, [up, up[::-1], flat]) == pytest.approx(0.0)  # the constant one has no say
    assert rows.agreement(up, [[1.0, 3.0, 2.0]]) == pytest.approx(0.5)  # 1 - 6 * 2 / (3 * 8)
    for first, others in ((up, []), (up, [flat]), (flat, [up])):
        assert math.isnan(rows.agreement(first, others))


def test_negatives_are_other_explanations_and_the_same_each_time():
    named = ["a", "b", "a", "", "c"]
    found = rows.other_explanations(named, 2, seed=1)
    assert found == rows.other_explanations(named, 2, seed=1)
    for own, others in zip(named, found):
        assert len(set(others)) == len(others) == 2
        assert own not in {named[at] for at in others} and "" not in {named[at] for at in others}
    assert rows.other_explanations(["a", "a"], 2, seed=1) == [[], []]


def test_three_bundles_hold_the_right_one_once_in_any_place():
    found = rows.bundles_of_three(200, seed=3)
    assert all(len(set(three)) == 3 and three[right] == own for own, (three, right) in enumerate(found))
    places = np.bincount([right for _, right in found], minlength=3)
    assert places.min() > 40  # chance 1/3 each
    with pytest.raises(ValueError, match="at least 3"):
        rows.bundles_of_three(2, seed=3)


def test_a_judge_that_knows_nothing_is_at_chance():
    """What the floor baseline is held against: 1/3 of the bundles, half of the pairs of contexts and of tokens."""
    draw = np.random.default_rng(0)
    probes = [ProbeRow("s/m/1", "the dog sleeps", [0.0, 0.9, 0.0])] * 4 + [ProbeRow("s/m/1", "a cat", [0.0, 0.0])] * 4
    found = [
        rows.detection(
            probes,
            draw.normal(size=8).tolist(),
            [draw.normal(size=len(probe.activations)).tolist() for probe in probes],
        )
        for _ in range(1500)
    ]
    assert np.mean(found, axis=0) == pytest.approx([0.5, 0.5, 0.0], abs=0.02)
    picks = [metrics.picked(draw.normal(size=3).tolist(), int(draw.integers(3))) for _ in range(3000)]
    assert np.mean(picks) == pytest.approx(1 / 3, abs=0.03)
