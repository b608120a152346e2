"""What evaluations ask about a feature: contexts nobody learned from, and contexts in which it is truly silent."""

from dataclasses import replace

import numpy as np

from saeexplainer.features.probes import ProbeFigures, figures, held_out_contexts, probe_rows, silent_texts
from saeexplainer.records import ContextRow, FeatureRow, ProbeRow, SteeredRow, by_feature

A, B = (FeatureRow(f"subject/main/{index}", "main", index, "test", 2.0, 0.01) for index in (0, 1))


def context(feature: FeatureRow, rank: int) -> ContextRow:
    return ContextRow(feature.feature_id, rank, f"{feature.index}-{rank}", ["x"], [1.0], 0, [])


def test_only_contexts_that_nobody_learned_from_are_asked_about():
    contexts = [context(feature, rank) for feature in (A, B) for rank in range(6)]
    found = held_out_contexts(contexts, [A], first_rank=2, count=3)
    assert [(feature.feature_id, text) for feature, text in found] == [
        (A.feature_id, f"0-{rank}") for rank in (2, 3, 4)
    ]


def test_a_text_that_was_seen_before_is_not_asked_again():
    repeated = [context(A, 0), replace(context(A, 1), text="0-0"), context(A, 2)]
    assert [text for _, text in held_out_contexts(repeated, [A], first_rank=1, count=5)] == ["0-2"]


def test_a_silent_text_leaves_the_feature_silent_and_the_draw_is_the_seeds():
    pool = [f"text {at}" for at in range(8)]
    maxima = np.zeros((8, 2))
    maxima[::2, 0] = 0.1  # A fires, if weakly, in every second text; B in none
    found = silent_texts([A, B], pool, maxima, count=3, seed=1)
    of_a, of_b = ([text for feature, text in found if feature is one] for one in (A, B))
    assert len(set(of_a)) == len(set(of_b)) == 3
    assert set(of_a) <= {"text 1", "text 3", "text 5", "text 7"}
    assert found == silent_texts([A, B], pool, maxima, count=3, seed=1)
    assert len(silent_texts([A], pool, maxima[:, :1], count=9, seed=1)) == 4  # there are no more


def test_activations_are_in_units_of_the_maximum_and_empty_texts_left_out():
    asked = [(A, "a dog"), (A, ""), (B, "a cat")]
    rows = probe_rows(asked, [(["a ", "dog"], [0.0, 1.0]), ([], []), (["a ", "cat"], [0.0, 4.0])])
    assert [(row.text, row.activations) for row in rows] == [("a dog", [0.0, 0.5]), ("a cat", [0.0, 2.0])]
    assert list(by_feature(rows)) == [A.feature_id, B.feature_id]


def test_a_target_is_missed_where_its_divergence_was_not_reached_however_many_texts_it_has():
    contexts = [ProbeRow(A.feature_id, "x", [0.0, 0.5]), ProbeRow(A.feature_id, "y", [0.0])]
    steered = [
        SteeredRow(feature.feature_id, target, 1.0, divergence, text)
        for feature, target, divergence in ((A, 0.5, 0.46), (A, -0.5, 0.54), (B, 0.5, 0.44), (B, -0.5, 0.5))
        for text in ("a", "b", "c")
    ]
    assert figures(contexts, steered) == ProbeFigures(2, 1, 1, 0.25)
