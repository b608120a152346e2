"""Texts, responses and reward by hand, with a writer and a subject that answer what a test says."""

import numpy as np
import pytest
from tiny import settings

from saeexplainer.evaluation import metrics, scoring
from saeexplainer.features.neighbours import Neighbourhoods
from saeexplainer.records import FeatureRow, NeighbourRow
from saeexplainer.saes.text_activations import TextActivations

ROWS = [FeatureRow(f"s/main/{index}", "main", index, "test", maximum, 0.1) for index, maximum in ((0, 2.0), (1, 4.0))]
REWARD = settings().score_explanations.reward
FIRED = {"a dog": (2.0, 0.0), "the dog": (0.5, 4.0), "a cat": (1.0, 1.0)}  # texts to the activations of both latents


class Author:
    """Writes what it has, and notes how it was asked."""

    texts = {"dogs": ["a dog", "the dog"], "cats": ["a cat"], "nothing": []}

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def write(self, descriptions):
        self.asked.append(list(descriptions))
        return {one: self.texts[one] for one in descriptions if one}

    def usage(self, descriptions):
        return None

    def notes(self):
        return []


def read(texts):
    assert len(texts) == len(set(texts))
    values = np.array([FIRED[text] for text in texts]).reshape(-1, 2)
    return TextActivations({text: at for at, text in enumerate(texts)}, {"main": {0: 0, 1: 1}}, {"main": values})


def test_an_explanation_is_written_once_and_scored_for_each_feature() -> None:
    author, asked = Author(), [("s/main/0", "dogs"), ("s/main/1", "dogs"), ("s/main/0", "cats"), ("s/main/0", "")]
    found = scoring.try_out(asked, author, Neighbourhoods(ROWS, []), read)
    assert author.asked == [["dogs", "dogs", "cats", ""]]
    assert [one.responses.own for one in found] == [[1.0, 0.25], [0.0, 1.0], [0.5], []]
    assert [one.texts for one in found] == [["a dog", "the dog"], ["a dog", "the dog"], ["a cat"], []]
    assert [one.accuracy for one in found] == [0.5, 0.5, 1.0, 0.0]
    first = REWARD.weight_share * 0.5 + REWARD.weight_any + REWARD.weight_mean * 0.625
    assert found[0].reward(REWARD) == pytest.approx(first - REWARD.weight_words)
    assert found[3].reward(REWARD) == 0.0 and found[3].is_known


def test_what_no_text_was_written_for_is_not_known() -> None:
    (found,) = scoring.try_out([("s/main/0", "nothing")], Author(), Neighbourhoods(ROWS, []), read)
    assert not found.is_known and found.accuracy is None and found.reward(REWARD) is None


def test_neighbours_are_read_where_the_feature_has_any() -> None:
    near = Neighbourhoods(ROWS, [NeighbourRow("s/main/0", 1, 0.5, 0.1)])
    (found,) = scoring.try_out([("s/main/0", "dogs")], Author(), near, read)
    assert found.responses.neighbours == [0.0, 1.0]


@pytest.mark.parametrize(("activations", "expected"), [([0.5], 0.0), ([0.49, 0.1], 1.0), ([], 1.0), ([0.0, 0.9], 0.0)])
def test_a_hallucination_is_an_explanation_none_of_whose_texts_fires(activations, expected) -> None:
    assert metrics.hallucination(activations) == expected
