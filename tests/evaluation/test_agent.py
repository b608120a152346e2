"""The agent: what it proposes first, how a test changes its mind, what it answers, and what a model is asked for it."""

import pytest

from saeexplainer.config.parts import AgentPrompts
from saeexplainer.domains.sandbox.world import World
from saeexplainer.evaluation import agent
from saeexplainer.evaluation.agent import Hypothesis, Observation, Reading, best, from_reading, hypotheses

WORLD = World(0)
FIRED = [Observation(frozenset({"word:dog", "category:animal"}), True)] * 3


def silent(*concepts: str) -> Observation:
    return Observation(frozenset(concepts), False)


def test_the_rarer_of_two_equally_likely_readings_is_tried_first():
    assert hypotheses(FIRED, [], WORLD, {"word:dog": 3, "category:animal": 40}, 2) == ["the word dog", "any animal"]
    assert hypotheses(FIRED, [], WORLD, {"word:dog": 40, "category:animal": 3}, 1) == ["any animal"]


def test_a_text_that_leaves_the_feature_silent_speaks_against_what_it_holds():
    seen = [*FIRED, silent("word:dog", "category:animal"), silent("word:dog")]
    # F1 of dog 2 * 3 / (5 + 3), of animal 2 * 3 / (4 + 3).
    assert hypotheses(seen, [], WORLD, {"word:dog": 3, "category:animal": 40}, 2) == ["any animal", "the word dog"]


def test_what_was_tested_is_not_proposed_again_and_the_best_is_made_narrower():
    seen = [Observation(frozenset({"word:dog", "category:animal", "context:question"}), True)]
    tested = [Hypothesis("the word dog", 0.4, False), Hypothesis("any animal", 0.1, False)]
    found = hypotheses(seen, tested, WORLD, {"context:question": 5}, 5)
    assert found[0] == "the word dog in a question"
    assert not {"the word dog", "any animal"} & set(found)
    nothing = [Hypothesis("the word dog", 0.0, False)]
    assert "the word dog in a question" not in hypotheses(seen, nothing, WORLD, {}, 5)


def test_the_best_rewarded_is_the_answer_and_the_first_of_equals():
    assert best([Hypothesis("a", 0.2, False), Hypothesis("b", 0.7, False), Hypothesis("c", 0.7, True)]) == "b"
    assert best([]) == ""


def test_a_hypothesis_whose_texts_failed_is_neither_the_best_nor_asked_again_nor_made_narrower():
    seen = [Observation(frozenset({"word:dog", "category:animal", "context:question"}), True)]
    lost = Hypothesis("the word dog", None, False)
    assert best([lost, Hypothesis("any animal", 0.1, False)]) == "any animal"
    assert best([lost, Hypothesis("any animal", 0.0, False)]) == best([lost]) == "the word dog"  # the likeliest
    found = hypotheses(seen, [lost], WORLD, {}, 5)
    assert "the word dog" not in found and not any(text.startswith("the word dog in") for text in found)


def test_a_text_of_its_own_is_read_at_its_strongest_token_or_as_a_whole():
    tokens = ["the ", "dog ", "sleeps ", "."]
    text = "".join(tokens)
    fired = from_reading(Reading(text, tokens, [0.0, 0.9, 0.2, 0.0], 0.5), WORLD)
    assert fired.fired and "word:dog" in fired.concepts and "word:sleeps" not in fired.concepts
    weak = from_reading(Reading(text, tokens, [0.0, 0.3, 0.2, 0.0], 0.5), WORLD)
    assert not weak.fired and fired.concepts < weak.concepts
    assert from_reading(Reading("", [], [], 0.5), WORLD) == agent.Observation(frozenset(), False)


PROMPTS = AgentPrompts(first="What?\n{contexts}", next="{contexts}\nSo far:\n{tested}")


def reading(text: str, strongest: str, activation: float) -> Reading:
    tokens = text.split(" ")
    parts = [f"{token} " for token in tokens[:-1]] + tokens[-1:]
    return Reading(text, parts, [activation if token == strongest else 0.0 for token in tokens], 0.5)


def test_a_model_is_told_which_texts_fired_and_where_and_which_were_silent():
    read = [reading(f"the {word} sleeps", word, value) for word, value in (("cat", 0.0), ("dog", 0.9), ("dogs", 0.5))]
    tested = [
        Hypothesis("any animal", 0.4, False, (*read, reading("a\nhorse", "horse", 0.1))),
        Hypothesis("the word fox", None, False),
    ]
    told = agent.told(tested, ["the word dog"], 3)
    assert told.splitlines() == [
        "Guess: any animal", "It holds in 2 of 4 texts.", "- holds: the <<dog>> sleeps", "- holds: the <<dogs>> sleeps",
        "- fails: the cat sleeps", "Guess: the word fox", "No text was written for it.", "Guess: the word dog",
        "It was not tested yet.",
    ]  # fmt: skip
    assert agent.told(tested[:1], [], 9).count("\n- ") == 4 and "- fails: a horse" in agent.told(tested[:1], [], 9)
    assert agent.question(PROMPTS, "- a <<dog>>", [], [], 3).text() == "What?\n- a <<dog>>"
    assert agent.question(PROMPTS, "- a <<dog>>", [], ["x"], 3).text() == (
        "- a <<dog>>\nSo far:\nGuess: x\nIt was not tested yet."
    )


@pytest.mark.parametrize(
    ("answer", "found"),
    [("the word dog", "the word dog"), ('"The word dog."', "The word dog."), ("Guess: the word dog", "the word dog"),
     ("Sure, here is a new guess:\n\n1. **the word <<dog>>**\n2. any animal", "the word dog"),
     ("- \u201cthe  word dog\u201d", "the word dog"), ("**New guess 2:** the word dog", "the word dog"),
     ("3.14 and other numbers", "3.14 and other numbers"), ("...\n---", ""), ("", ""), ("My answer:", "")],
)  # fmt: skip
def test_a_hypothesis_is_the_first_line_that_says_something(answer, found):
    assert agent.sentence(answer) == found


def test_what_differs_in_dots_and_capitals_alone_is_not_new():
    assert agent.is_new("any animal", ["the word dog"]) and not agent.is_new("", [])
    assert not agent.is_new("The word \u201cdog\u201d.", ["the word dog"])
