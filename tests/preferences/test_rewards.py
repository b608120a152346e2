"""The reward by hand, and the control that permutes it."""

from collections import Counter
from dataclasses import replace

import pytest

from saeexplainer.config import Reward
from saeexplainer.preferences.rewards import reward, shuffled
from saeexplainer.records import ScoreRow

SHARE = Reward(
    threshold=0.5,
    weight_share=1.0,
    weight_any=0.5,
    weight_mean=0.1,
    weight_max=0.0,
    weight_neighbours=0.0,
    weight_words=0.0,
    shuffle=False,
)
REFERENCE = replace(SHARE, weight_share=0.0, weight_any=0.0, weight_mean=0.0, weight_max=1.0)


@pytest.mark.parametrize(
    ("activations", "expected"),
    [
        ([0.5, 0.4, 1.2, 0.0], 1.0 * 2 / 4 + 0.5 + 0.1 * (0.5 + 0.4 + 1.0 + 0.0) / 4),  # the threshold counts; clipped
        ([0.49, 0.0], 0.1 * 0.49 / 2),
        ([2.0], 1.0 + 0.5 + 0.1),
        ([0.0, 0.0], 0.0),
        ([], 0.0),
    ],
)
def test_the_weighted_sum(activations, expected):
    assert reward(activations, activations, SHARE) == pytest.approx(expected)


def test_the_references_reward_is_the_strongest_text():
    assert reward([0.2, 1.7, 0.3], [9.0] * 3, REFERENCE) == 1.7
    assert reward([], [], REFERENCE) == 0.0


def test_words_cost_what_they_are_said_to_cost():
    brief = replace(SHARE, weight_words=0.05)
    assert reward([1.0], [], brief, words=3) == pytest.approx(1.6 - 0.15)
    assert reward([0.0], [], brief, words=3) == reward([], [], brief, words=3) == 0.0, "never below 0"
    assert reward([1.0], [], brief) == reward([1.0], [], SHARE, words=7) == 1.6


def scores(features: int, candidates: int) -> list[ScoreRow]:
    return [
        ScoreRow(
            f"subject/main/{feature}", "dpo", rank, f"the word {rank}", ["a dog"], [0.5], [0.0], 10.0 * feature + rank
        )
        for feature in range(features)
        for rank in range(candidates)
    ]


def test_shuffling_keeps_each_features_rewards_and_nothing_else_changes():
    rows = scores(features=6, candidates=8)
    mixed = shuffled(rows, seed=3)
    for feature in {row.feature_id for row in rows}:
        before, after = ([row.reward for row in table if row.feature_id == feature] for table in (rows, mixed))
        assert Counter(before) == Counter(after)
    assert [replace(row, reward=0.0) for row in mixed] == [replace(row, reward=0.0) for row in rows]
    assert [row.reward for row in mixed] != [row.reward for row in rows]
    assert shuffled(rows, seed=3) == mixed != shuffled(rows, seed=4)


def test_shuffling_gives_no_reward_to_a_candidate_without_one():
    rows = [replace(row, reward=None) if row.rank in (0, 5) else row for row in scores(features=4, candidates=8)]
    mixed = shuffled(rows, seed=3)
    assert [row.reward is None for row in mixed] == [row.reward is None for row in rows] and mixed != rows
    for feature in {row.feature_id for row in rows}:
        before, after = ([row.reward for row in table if row.feature_id == feature] for table in (rows, mixed))
        assert Counter(before) == Counter(after)


DISCRIMINATIVE = replace(SHARE, weight_neighbours=0.5)


def test_neighbours_that_fire_cost_the_discriminative_reward():
    own = [1.0, 0.6]  # 1.0 * 2/2 + 0.5 + 0.1 * 0.8 = 1.58
    assert reward(own, [0.0, 0.0], DISCRIMINATIVE) == reward(own, [5.0, 5.0], SHARE) == pytest.approx(1.58)
    assert reward(own, [0.4, 3.0], DISCRIMINATIVE) == pytest.approx(1.58 - 0.5 * (0.4 + 1.0) / 2)  # clipped at 1


def test_no_reward_is_below_zero():
    assert reward([0.0, 0.1], [1.0, 1.0], DISCRIMINATIVE) == 0.0
