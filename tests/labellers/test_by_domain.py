"""The open-loop labeller: one reading of what a few top contexts share, and nothing of what it did not see."""

import random
from dataclasses import replace

import pytest
from tiny import settings

from saeexplainer.config.parts import LabelChoice
from saeexplainer.domains.sandbox.world import World
from saeexplainer.labellers.by_domain import exchanged, frequency, label, shared_concepts
from saeexplainer.records import ContextRow

WORLD = World(0)
CONFIG = replace(settings().label_features, contexts=2, modifier_share=0.0)


def contexts(*concepts: tuple[str, ...]) -> list[ContextRow]:
    return [
        ContextRow("subject/main/1", rank, "the dog", ["the", "dog"], [0.0, 1.0], 1, list(keys))
        for rank, keys in enumerate(concepts)
    ]


def labels(rows: list[ContextRow], config=CONFIG, draws: int = 60) -> set[str]:
    return {label(rows, WORLD, config, random.Random(seed), frequency(rows)) for seed in range(draws)}


def test_shared_concepts_hold_at_the_peaks_of_the_most_contexts():
    rows = contexts(("word:dog", "near:hammer"), ("word:dog", "role:verb", "near:hammer"), ("word:cat", "near:hammer"))
    assert shared_concepts(rows) == ["near:hammer"]
    assert shared_concepts(rows[:2]) == ["near:hammer", "word:dog"]
    assert shared_concepts(contexts(("word:dog", "word:dog"), ("role:verb",))) == ["role:verb", "word:dog"]
    assert shared_concepts([]) == shared_concepts(contexts((), ())) == []


def test_a_label_is_one_of_the_readings_that_fit_every_context_seen():
    rows = contexts(("word:dog", "category:animal", "role:subject"), ("word:dog", "category:animal", "role:object"))
    assert labels(rows) == {"the word dog", "any animal"}


def test_contexts_beyond_those_it_may_see_do_not_count():
    rows = contexts(("word:dog", "category:animal"), ("word:dog", "category:animal"), ("word:cat", "category:animal"))
    assert labels(rows) == {"the word dog", "any animal"}
    assert labels(rows, replace(CONFIG, contexts=3)) == {"any animal"}


def test_nothing_sayable_is_no_label():
    assert labels(contexts((), ())) == labels([]) == {""}
    assert labels(contexts(("near:hammer",), ("near:hammer",))) == {""}  # it modifies, but cannot lead


def test_a_second_concept_is_named_as_often_as_asked():
    rows = contexts(("word:dog", "near:hammer"), ("word:dog", "near:hammer"))
    both, alone = "the word dog with the word hammer", "the word dog"
    assert labels(rows, replace(CONFIG, modifier_share=1.0)) == {both}
    assert labels(rows) == {alone}
    config, elsewhere = replace(CONFIG, modifier_share=0.4), frequency(rows)
    drawn = [label(rows, WORLD, config, random.Random(seed), elsewhere) for seed in range(500)]
    assert drawn.count(both) / 500 == pytest.approx(0.4, abs=0.07)
    assert set(drawn) == {both, alone}


def test_a_label_can_be_read_back():
    rows = contexts(*(("word:dog", "category:animal", "context:question", "near:hammer"),) * 2)
    for text in labels(rows, replace(CONFIG, modifier_share=1.0)):
        named = WORLD.parse(text)
        assert len(named) == 2 and set(named) <= set(rows[0].concepts)


def test_a_careful_labeller_names_the_rarest_reading():
    rows = contexts(("word:dog", "category:animal", "role:subject"), ("word:dog", "category:animal", "role:object"))
    others = contexts(("word:cat", "category:animal"))
    careful = replace(CONFIG, choice=LabelChoice.rarest)
    elsewhere = frequency([*rows, *others])
    assert elsewhere.counts["category:animal"] == 3 and elsewhere.counts["word:dog"] == 2
    assert {label(rows, WORLD, careful, random.Random(seed), elsewhere) for seed in range(20)} == {"the word dog"}


def test_a_telling_label_is_the_word_of_most_contexts_rather_than_what_all_of_english_shares():
    animal, dog = ("category:animal",), ("word:dog", "category:animal")
    rows = contexts(dog, dog, animal)
    telling = replace(CONFIG, choice=LabelChoice.telling, contexts=3)
    # Of 12 contexts 9 have an animal and 2 a dog: 3 ln(12 / 9) = 0.86 against 2 ln(12 / 2) = 3.58.
    others = contexts(*[animal] * 6, *[("role:verb",)] * 3)
    elsewhere = frequency([*rows, *others])
    assert elsewhere.rarity("word:dog") == pytest.approx(1.7918, abs=1e-4)
    assert label(rows, WORLD, telling, random.Random(0), elsewhere) == "the word dog"
    assert label(rows, WORLD, replace(telling, choice=LabelChoice.rarest), random.Random(0), elsewhere) == "any animal"
    # A word that stands once among other features' too says less than what holds everywhere here and nowhere else.
    rare = frequency(
        [*rows, *contexts(*[("word:dog",)] * 6, *[("role:verb",)] * 3)]
    )  # 3 ln(12 / 3) against 2 ln(12 / 8)
    assert label(rows, WORLD, telling, random.Random(0), rare) == "any animal"


def test_exchanged_labels_are_the_same_labels_elsewhere():
    given = [f"label {number}" for number in range(40)]
    found = exchanged(given, 0.5, random.Random(0))
    assert sorted(found) == sorted(given)
    assert sum(a != b for a, b in zip(found, given, strict=True)) == 20
    assert exchanged(given, 0.0, random.Random(0)) == given
