"""A reward that is a sum over features: what was planted is found, and every reward is its terms."""

from dataclasses import replace

import numpy as np
import pytest
from pairs_by_hand import pair

from saeexplainer.preferences import attribution


def test_the_latent_that_decides_is_found_and_the_rest_is_not():
    draw = np.random.default_rng(0)
    chosen, rejected = draw.random((400, 6)) * 5, draw.random((400, 6)) * 5
    chosen[:, 2] += 4  # preferred for latent 2, and against latent 4
    rejected[:, 4] += 4
    weights = attribution.fit(chosen[:300], rejected[:300])
    assert np.argmax(weights) == 2 and np.argmin(weights) == 4
    assert np.abs(np.delete(weights, [2, 4])).max() < 0.25 * weights[2]
    assert attribution.ranked(weights, chosen[300:], rejected[300:]).mean() > 0.95
    swapped = attribution.fit(rejected[:300], chosen[:300])
    assert swapped == pytest.approx(-weights, rel=1e-3, abs=1e-4), "no side is favoured"


def test_pairs_without_a_rule_are_ranked_at_chance():
    draw = np.random.default_rng(1)
    chosen, rejected = draw.random((600, 6)), draw.random((600, 6))
    weights = attribution.fit(chosen[:300], rejected[:300])
    assert attribution.ranked(weights, chosen[300:], rejected[300:]).mean() == pytest.approx(0.5, abs=0.1)


def test_by_hand():
    weights = np.array([2.0, -1.0, 0.5, 3.0])
    chosen, rejected = np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]]), np.zeros((3, 4))
    rejected[2, 2] = 1.0
    assert attribution.ranked(weights, chosen, rejected).tolist() == [1, 0, 0.5]
    assert attribution.parts(weights, np.array([1.0, 4.0, 2.0, 0.0])) == {1: -4.0, 0: 2.0, 2: 1.0}
    assert list(attribution.parts(weights, np.array([1.0, 4.0, 2.0, 0.0]))) == [1, 0, 2]


def test_the_reward_of_a_sentence_is_between_zero_and_one_and_says_nothing_of_an_empty_one():
    seen = {"a dog": [3.0, 0.0], "a cat": [0.0, 3.0], "": [0.0, 0.0], "a fox": [0.0, 0.0]}
    pairs = 20 * [replace(pair(), chosen_explanation="a dog", rejected_explanation="a cat")]
    model = attribution.SentenceReward(pairs, lambda sentences: np.array([seen[each] for each in sentences]))
    dog, fox, cat, nothing = model.rewards(["a dog", "a fox", "a cat", ""])
    assert 1 > dog > fox == 0.5 > cat > nothing == 0.0
    assert dog == pytest.approx(1 / (1 + np.exp(-3 * model.weights[0]))) == pytest.approx(1 - cat)
