"""Intervals against hand-derived numbers, pairing by feature, and the shape of comparison.json."""

import math
from dataclasses import replace

import numpy as np
import pytest
from rows import evaluated

from saeexplainer.errors import UserError
from saeexplainer.figures.comparison import METRICS, chain_of, differences_of, summarise
from saeexplainer.figures.intervals import bootstrap_mean, paired_difference, pooled_difference
from saeexplainer.records import EvaluationRow
from tasks import compare_rounds


def test_interval_of_two_values_is_known_by_hand():
    # Resampled means of {0, 1} are 0, 1/2, 1 with chances 1/4, 1/2, 1/4: the 2.5th percentile is 0, the 97.5th is 1.
    interval = bootstrap_mean([0.0, 1.0], resamples=500, seed=0)
    assert (interval.value, interval.low, interval.high, interval.n) == (0.5, 0.0, 1.0, 2)


def test_interval_agrees_with_the_normal_approximation():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    interval = bootstrap_mean(values, resamples=4000, seed=0)
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_seed_decides_the_interval():
    values = np.random.default_rng(1).random(50)
    assert bootstrap_mean(values, 200, 3) == bootstrap_mean(values, 200, 3)
    assert bootstrap_mean(values, 200, 3) != bootstrap_mean(values, 200, 4)


def test_one_value_is_its_own_interval_and_none_is_refused():
    assert bootstrap_mean([0.3], 100, 0).low == bootstrap_mean([0.3], 100, 0).high == 0.3
    for bad in ([], [0.1, math.nan], [math.inf, 1.0]):
        with pytest.raises(ValueError):
            bootstrap_mean(bad, 100, 0)


def test_difference_joins_on_the_feature_not_on_the_place():
    assert paired_difference({"x": 0.75, "y": 0.5}, {"y": 0.25, "x": 1.0}) == {"x": -0.25, "y": 0.25}


def test_different_features_are_refused():
    with pytest.raises(UserError, match=r"2 of 3 .* x first"):
        paired_difference({"x": 1.0, "y": 0.5}, {"y": 0.2, "z": 1.0})


def test_paired_interval_covers_the_true_difference_and_is_narrower_than_an_unpaired_one():
    rng, true, covered, trials = np.random.default_rng(2), 0.05, 0, 200
    for trial in range(trials):
        base = rng.normal(0.6, 0.3, size=100)  # features differ a lot, rounds a little
        after = base + rng.normal(true, 0.1, size=100)
        ids = [str(index) for index in range(100)]
        interval = pooled_difference([(dict(zip(ids, after)), dict(zip(ids, base)))], 300, trial)
        covered += interval.low <= true <= interval.high
        assert interval.high - interval.low < 0.06  # unpaired: 2 * 1.96 * sqrt(2) * 0.3 / 10 = 0.17
    # 200 trials at 0.95 have a standard deviation of 0.015; the percentile interval is slightly short at n = 100.
    assert 0.90 <= covered / trials <= 0.99


def test_pooling_weighs_features_alike_and_keeps_the_seeds_apart():
    few = ({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 0.0})
    many = (dict.fromkeys("abcdef", 0.0), dict.fromkeys("abcdef", 0.0))
    pooled = pooled_difference([few, many], 200, 0)
    # Within each seed the differences are constant, so no resample within a seed can move the mean of (2*1 + 6*0) / 8.
    assert (pooled.value, pooled.low, pooled.high, pooled.n) == (0.25, 0.25, 0.25, 8)


def test_comparison_has_the_shape_everyone_reads():
    evaluations = {
        "open_loop": evaluated([0.25, 0.5, 0.75, 0.0]),
        "sft": evaluated([0.5, 0.5, 0.25, 0.0]),
        "r1": evaluated([0.5, 0.75, 0.5, 0.0]),
        "r2": evaluated([1.0, 0.75, 0.5, 0.25]),
        "best_of_6": evaluated([1.0, 1.0, 1.0, 1.0]),
    }
    comparison = summarise(evaluations, 100, 7, {"r1": "sft", "r2": "r1"})
    assert list(comparison) == ["rounds", "differences", "seed", "subject", "sae"]
    assert (comparison["seed"], comparison["subject"], comparison["sae"]) == (7, "sandbox", "main")
    assert list(comparison["rounds"]) == list(evaluations)
    assert list(comparison["differences"]) == ["r1-sft", "r2-r1", "r2-sft", "r2-open_loop", "r2-best_of_6"]
    metrics = [
        "generative_accuracy", "hallucination_rate", "collision_rate", "mean_activation", "input_accuracy",
        "output_accuracy", "detection_auc", "fuzzing_auc", "predictive_correlation",
    ]  # fmt: skip
    assert list(comparison["rounds"]["r2"]) == list(comparison["differences"]["r2-sft"]) == metrics
    accuracy = comparison["rounds"]["r2"]["generative_accuracy"]
    assert set(accuracy) == {"value", "low", "high", "n"} and (accuracy["value"], accuracy["n"]) == (0.625, 4)
    difference = comparison["differences"]["r2-sft"]["generative_accuracy"]
    assert set(difference) == {"value", "low", "high"} and difference["value"] == 0.3125
    assert comparison["rounds"]["sft"]["hallucination_rate"]["value"] == 0.25
    assert comparison == summarise(evaluations, 100, 7), "r1, r2, ... are rounds by default"
    assert chain_of(comparison) == ["sft", "r1", "r2"]


def test_texts_are_no_metric_and_every_number_is_one():
    assert set(METRICS) == {
        "generative_accuracy", "hallucination", "collision", "mean_activation", "input_accuracy", "output_accuracy",
        "detection_auc", "fuzzing_auc", "predictive_correlation", "judge_agreement", "truth_agreement", "truth_f1",
    }  # fmt: skip


def test_truth_counts_only_where_it_is_known():
    known, unknown = evaluated([0.5, 0.5], truth=1.0), evaluated([0.5, 0.5])
    comparison = summarise({"sft": [known[0], unknown[1]], "r1": known}, 100, 0)
    assert comparison["rounds"]["sft"]["truth_agreement"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 1}
    assert comparison["rounds"]["r1"]["truth_f1"]["n"] == 2
    # Of one feature a difference has no interval, and a bold one of no width would pass for a proof.
    assert "truth_agreement" not in comparison["differences"]["r1-sft"]
    assert comparison["differences"]["r1-sft"]["generative_accuracy"]["value"] == 0.0
    assert "truth_f1" not in summarise({"sft": unknown, "r1": known}, 100, 0)["differences"]["r1-sft"]


def lost(count: int) -> list[EvaluationRow]:
    """Features 0, 1, ... whose texts failed: what is measured on texts is unknown."""
    unknown = dict.fromkeys(("hallucination", "collision", "mean_activation", "input_accuracy"), math.nan)
    return [replace(row, texts=[], **unknown) for row in evaluated([math.nan] * count)]


def test_a_feature_whose_texts_failed_is_in_no_figure_of_texts_and_in_no_difference_of_them():
    before = evaluated([0.0, 0.25, 0.5, 1.0], detection_auc=[0.5] * 4)
    after = [*lost(1), *evaluated([0.0, 0.75, 1.0, 1.0], detection_auc=[0.7] * 4)[1:]]
    found = summarise({"sft": before, "r1": after}, 100, 0)
    rounds, difference = found["rounds"], found["differences"]["r1-sft"]
    assert (rounds["sft"]["generative_accuracy"]["n"], rounds["r1"]["generative_accuracy"]["n"]) == (4, 3)
    assert rounds["r1"]["generative_accuracy"]["value"] == pytest.approx(2.75 / 3)
    assert difference["generative_accuracy"]["value"] == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    assert rounds["r1"]["hallucination_rate"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 3}
    assert rounds["r1"]["detection_auc"]["n"] == 4  # no text is needed for it; that of the failed one is 0 here
    assert difference["detection_auc"]["value"] == pytest.approx((3 * 0.2 - 0.5) / 4)


def test_two_rounds_that_share_no_measured_feature_are_told_apart_in_a_line(tmp_path):
    """Features 0 and 1 failed in one of them, 2 and 3 in the other."""
    failed = lost(4)
    before, after = evaluated([0.5] * 4), evaluated([1.0] * 4)
    found = summarise({"sft": [*before[:2], *failed[2:]], "r1": [*failed[:2], *after[2:]], "r2": after}, 100, 0)
    assert "generative_accuracy" not in found["differences"]["r1-sft"]
    assert "detection_auc" in found["differences"]["r1-sft"]
    assert compare_rounds._lines(found) == [
        "r1 - sft: fewer than two features were measured for both",
        "r2 - r1: generative accuracy +0.0 points (+0.0 to +0.0)",
        "r2 - sft: generative accuracy +50.0 points (+50.0 to +50.0)",
    ]
    compare_rounds.write(found, tmp_path)
    cells = (tmp_path / "results.md").read_text().split("| difference |")[1].splitlines()[2].split("|")
    assert [cell.strip() for cell in cells[1:3]] == ["generative accuracy ↑", "–"]


@pytest.mark.parametrize(
    ("evaluations", "message"),
    [
        ({"sft": []}, "sft: no rows"),
        ({"sft": evaluated([0.1]) * 2}, "measured twice"),
        ({"sft": evaluated([math.nan])}, "generative_accuracy is not a finite number"),
        ({"sft": lost(2)}, "the writer failed for every feature"),
        ({"sft": [*lost(1), *evaluated([0.5] * 2, detection_auc=[0.5, math.nan])[1:]]}, "detection_auc is not a"),
        ({"sft": evaluated([0.1]), "r1": evaluated([0.1], sae="other")}, "one SAE"),
        ({"sft": evaluated([0.1]), "r1": evaluated([0.1, 0.2])}, "cannot be paired"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(evaluations, message):
    with pytest.raises(UserError, match=message):
        summarise(evaluations, 100, 0)


def test_a_round_is_compared_with_its_own_start():
    starts = {"a": "sft", "b": "a", "c": "sft"}
    assert differences_of(["sft", "a", "b", "c"], starts) == [("a", "sft"), ("b", "a"), ("c", "sft")]
    assert differences_of(["a", "c", "oracle"], starts) == [("c", "oracle")], "what was not evaluated is not subtracted"


def test_intervals_cover_the_truth_as_often_as_they_claim():
    """The share of 95 % intervals that hold the true mean, over yes/no metrics and accuracies of ten texts."""
    draw = np.random.default_rng(0)
    held = []
    for trial in range(1500):
        chance = 0.3 if trial % 2 else 0.5
        values = draw.binomial(10, chance, 120) / 10 if trial % 3 else draw.binomial(1, chance, 120).astype(float)
        interval = bootstrap_mean(values, 400, trial)
        held.append(interval.low <= chance <= interval.high)
    assert 0.93 <= np.mean(held) <= 0.97
