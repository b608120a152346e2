"""F1 over tokens, by hand."""

import numpy as np
import pytest

from saeexplainer.features import truth

CONCEPTS = ["word:dog", "category:animal", "context:question", "word:unused"]
# Six tokens; feature 0 fires on 0 and 1, feature 1 on 0 to 3, feature 2 on none.
HOLDS = [
    ("word:dog", "category:animal"), ("category:animal", "context:question"), ("category:animal",),
    ("word:dog", "context:question"), (), ("context:question",),
]  # fmt: skip
FIRING = [np.array([0, 1]), np.array([0, 1, 2, 3]), np.array([], dtype=np.int64)]


@pytest.fixture
def table() -> truth.TruthTable:
    return truth.build(CONCEPTS, HOLDS, FIRING)


def test_f1_of_two_sets():
    # 2 of 3 predicted are right, 2 of 4 actual are found: 2 * 2 / (3 + 4)
    assert truth.f1(np.array([1, 2, 9]), np.array([1, 2, 3, 4])) == pytest.approx(4 / 7)
    assert truth.f1(np.array([1, 2]), np.array([1, 2])) == 1.0
    assert truth.f1(np.array([1]), np.array([2])) == 0.0
    nothing = np.array([], dtype=int)
    assert truth.f1(nothing, np.array([2])) == truth.f1(nothing, nothing) == 0.0


def test_f1_of_every_concept_with_every_feature(table):
    expected = [
        # dog holds at 0, 3; animal at 0, 1, 2; question at 1, 3, 5
        [2 * 1 / (2 + 2), 2 * 2 / (2 + 3), 2 * 1 / (2 + 3), 0.0],
        [2 * 2 / (4 + 2), 2 * 3 / (4 + 3), 2 * 2 / (4 + 3), 0.0],
        [0.0, 0.0, 0.0, 0.0],
    ]
    np.testing.assert_allclose(truth.f1_of_all(table), expected)


def test_tokens_of_several_concepts_are_those_at_which_all_hold(table):
    assert truth.tokens_of(table, ["category:animal"]).tolist() == [0, 1, 2]
    assert truth.tokens_of(table, ["category:animal", "word:dog"]).tolist() == [0]
    assert truth.tokens_of(table, ["word:dog", "context:question"]).tolist() == [3]
    assert truth.tokens_of(table, ["word:unused", "word:dog"]).tolist() == []
    assert truth.tokens_of(table, []).tolist() == truth.tokens_of(table, ["word:cat"]).tolist() == []


def test_firing_tokens(table):
    assert [truth.firing_tokens(table, feature).tolist() for feature in range(3)] == [[0, 1], [0, 1, 2, 3], []]


def test_a_concept_named_twice_at_a_token_counts_once():
    table = truth.build(["a"], [("a", "a"), ()], [np.array([0])])
    np.testing.assert_allclose(truth.f1_of_all(table), [[1.0]])


def test_round_trip(table, tmp_path):
    truth.save(tmp_path / "truth.safetensors", table)
    loaded = truth.load(tmp_path / "truth.safetensors", CONCEPTS)
    assert loaded.concepts == table.concepts
    assert (loaded.holds != table.holds).nnz == (loaded.fires != table.fires).nnz == 0
    np.testing.assert_allclose(truth.f1_of_all(loaded), truth.f1_of_all(table))
