"""Warm-up examples that are like features: a vector that is a mean over places, and contexts of several of them."""

import random
from dataclasses import replace

import pytest
import torch
from tiny import settings

from saeexplainer.config.explainers import TokensPrompt
from saeexplainer.domains.sandbox.world import World
from saeexplainer.errors import UserError
from saeexplainer.features.contexts import leading, shortened
from saeexplainer.features.token_stream import TokenBatch
from saeexplainer.training.warmup import WarmupSet, load, save, together, warmup_set

WARM_UP = replace(settings().warm_up, examples=40, places=1, modifier_share=0.0)
RESIDUALS = torch.tensor([[0.0, 2.0], [4.0, 0.0], [8.0, 8.0], [2.0, 4.0]])
SAID = ["dog", "cat", "dog", "dog"]
LINES = ["- a <<dog>>", "- the <<cat>>", "- my <<dog>> barks", "- one <<dog>>"]


def found(places: int, shown: int, seed: int = 0) -> WarmupSet:
    return together(RESIDUALS, SAID, LINES, places, shown, random.Random(seed))


def test_without_places_and_contexts_an_example_is_one_residual_and_nothing_is_drawn():
    draw = random.Random(5)
    same = together(RESIDUALS, SAID, [], 1, 0, draw)
    assert torch.equal(same.vectors, RESIDUALS) and same.contexts == [] and draw.random() == random.Random(5).random()


def test_a_vector_is_the_mean_over_places_of_which_the_same_is_said_its_own_among_them():
    seen = {tuple(found(3, 0, seed).vectors[0].tolist()) for seed in range(60)}
    # Alone; with one of the other two; with both: (0 + 8 + 2) / 3, (2 + 8 + 4) / 3.
    expected = {(0.0, 2.0), (4.0, 5.0), (1.0, 3.0), (10 / 3, 14 / 3)}
    assert {tuple(round(number, 3) for number in row) for row in seen} == {
        tuple(round(number, 3) for number in row) for row in expected
    }
    assert all(found(3, 0, seed).vectors[1].tolist() == [4.0, 0.0] for seed in range(20)), "nothing else is a cat"


def test_contexts_are_the_places_own_and_others_of_which_the_same_is_said_each_once():
    for seed in range(20):
        shown = found(1, 2, seed).contexts
        assert shown[1] == "- the <<cat>>", "there is no second one"
        own, other = shown[0].split("\n")
        assert own == LINES[0] and other in (LINES[2], LINES[3])
    assert set(found(1, 9).contexts[3].split("\n")) == {LINES[0], LINES[2], LINES[3]}


def batch(world: World, count: int) -> TokenBatch:
    """One batch of whole words, each with a residual that tells its place."""
    documents = list(world.documents("warmup", count))
    offsets, places = [], []
    for number, document in enumerate(documents):
        start = 0
        for word in document.text.split(" "):
            offsets.append((start, start + len(word)))
            places.append(number)
            start += len(word) + 1
    residual = torch.arange(len(offsets) * 2, dtype=torch.float32).reshape(-1, 2)
    return TokenBatch(documents, 0, residual, torch.tensor(places), torch.tensor(offsets))


def test_the_context_of_a_word_marks_it_among_the_words_around_it():
    world = World(0)
    shown = TokensPrompt("tokens", 1, 5, 0, 0)
    given = batch(world, 12)
    warmup = warmup_set(iter([given]), world, WARM_UP, shown, 2, random.Random(0))
    mean = given.residual.mean(dim=0)
    words = [
        given.documents[int(at)].text[start:end] for at, (start, end) in zip(given.document, given.offsets.tolist())
    ]
    for residual, line in zip(warmup.vectors, warmup.contexts, strict=True):
        row = round(float(residual[0] + mean[0])) // 2
        marked = line.removeprefix("- ").split(" ")
        (at,) = (number for number, word in enumerate(marked) if word.startswith("<<"))
        assert marked[at] == f"<<{words[row]}>>" and at <= 2 and len(marked) - at <= 3
        assert leading(line, 5).split(" ")[-1] == words[row]
    with pytest.raises(UserError, match=r"warm_up.examples: 40, but the documents have"):
        warmup_set(iter([batch(world, 1)]), world, WARM_UP, shown, 2, random.Random(0))


def test_what_leads_up_to_the_strongest_token_is_at_most_so_many_words_long():
    line = "- the judge demands the cheerful <<omelette>> . no"
    assert leading(line, 5) == "judge demands the cheerful omelette" and leading(line, 1) == "omelette"
    assert leading(line, 0) == "the judge demands the cheerful omelette"
    assert leading("- <<omelette>> . the", 5) == "omelette" and leading("- a << b <<c>> d", 5) == "a << b c"


@pytest.mark.parametrize(
    ("line", "short"),
    [
        ("- joining methods (red<<uc>>er), and you", "- methods (red<<uc>>er),"),
        ("- a dog <<.>>", "- dog <<.>>"),
        ("- <<dog>> runs", "- <<dog>>"),
        ("- one << two <<three>> four", "- two <<three>>"),
        ("- one two <<three four>> five", "- two <<three four>>"),
        ("promotes: a, b, c, d", "promotes: a, b, c, d"),
    ],
)
def test_a_prompt_in_words_shows_the_whole_word_that_the_strongest_token_is_part_of(line, short):
    assert shortened(line, 2) == short and shortened(line, 0) == line


@pytest.mark.parametrize("contexts", [[], ["- a <<dog>>", "", "- <<x>>"]], ids=["none", "some"])
def test_examples_are_read_as_they_were_written(contexts, tmp_path):
    written = WarmupSet(torch.randn(3, 4), ["the word dog", "any animal", "x"], contexts)
    save(written, tmp_path / "warmup")
    read = load(tmp_path / "warmup")
    assert torch.equal(read.vectors, written.vectors)
    assert (read.descriptions, read.contexts) == (written.descriptions, contexts)
