"""What a world's seed decides: how often each word is used, and which words keep company with which.

Exchangeable words would leave a language model nothing to tell apart, so every noun and name gets verbs, adjectives
and partners of its own, every verb its adverbs, every topic its words. They are dealt like cards, so that no word is
left out of everybody's habits and every word stays frequent enough to be learnt.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from random import Random
from typing import Generic, TypeVar

from saeexplainer.domains.sandbox import lexicon

Item = TypeVar("Item")

HABIT_SHARE = 0.75  # how often a choice follows the habit of its word, not the background
PARTNER_SHARE, OBJECT_SHARE = 0.5, 0.25  # an object: a partner of the subject, one usual for the verb, or neither
ZIPF_EXPONENT = 0.5  # mild: at 1 the rarest words would be too rare to be learnt in three minutes
FAVOURITE_WEIGHTS = (0.5, 0.3, 0.2)  # of a word's first, second and third favourite
NAME_SHARE = 0.15  # subjects that are names
TOPIC_SHARE = 0.8  # background nouns that come from the topic's own
TOPIC_WORD_SHARE = 0.6  # chance that a word of a topic's category is one of the topic's own
QUOTED, COPULA = 0.15, 0.22  # sentences inside quoted speech; clauses with `is` instead of a verb
NEGATED, ASKED, QUOTED_NEGATED = 0.2, 0.18, 0.25  # quoted speech never asks: `?` then always ends its sentence
WITH_ADVERB, WITH_PLACE = 0.25, 0.3
PLURAL, COUNTED, WITH_ADJECTIVE = 0.3, 0.1, 0.4  # of noun phrases; counted ones take no adjective


@dataclass(frozen=True)
class Choice(Generic[Item]):
    """A categorical distribution."""

    items: tuple[Item, ...]  # what can be drawn
    cumulative: tuple[float, ...]  # ascending; the last is infinite, so that no rounding can pass it
    probability: Mapping[Item, float]  # of each item

    def draw(self, uniform: float) -> Item:
        """The item at a number in [0, 1)."""
        return self.items[bisect_right(self.cumulative, uniform)]


@dataclass(frozen=True)
class ClauseShape:
    """Everything about a sentence that is not a word or a noun phrase."""

    quoted: bool  # said by somebody, inside quotation marks
    copula: bool  # `is red` instead of a verb and its object
    mode: str  # statement, negation or question
    adverb: bool  # an adverb after the object
    place: bool  # `in the barn` at the end


@dataclass(frozen=True)
class PhraseShape:
    """Everything about a noun phrase that is not its noun or adjective."""

    determiner: str  # empty where a number stands in its place
    plural: bool
    adjective: bool


@dataclass(frozen=True)
class TopicHabits:
    """The words one topic prefers."""

    subjects: Choice[str]  # nouns and names
    nouns: Choice[str]
    verbs: Choice[str]
    names: Choice[str]
    places: Choice[str]


@dataclass(frozen=True)
class Habits:
    """All the distributions of one world."""

    clauses: Choice[ClauseShape]
    phrases: Choice[PhraseShape]
    document_lengths: Choice[int]  # in sentences
    lesson_lengths: Choice[int]  # in sentences
    topic: Choice[str]
    topics: Mapping[str, TopicHabits]  # by topic
    adjectives: Choice[str]  # background
    adverbs: Choice[str]  # background
    numbers: Choice[str]  # background
    verbs_of: Mapping[str, Choice[str]]  # by subject, noun or name
    partners_of: Mapping[str, Choice[str]]  # objects by subject, noun or name
    objects_of: Mapping[str, Choice[str]]  # by verb
    adjectives_of: Mapping[str, Choice[str]]  # by noun or name
    numbers_of: Mapping[str, Choice[str]]  # by noun
    adverbs_of: Mapping[str, Choice[str]]  # by verb


def stable_random(*key: object) -> Random:
    """A random source that depends on the key only, in every process and on every machine."""
    return Random(hashlib.sha256(repr(key).encode()).digest())


def choice(weights: Mapping[Item, float]) -> Choice[Item]:
    """The distribution with these weights; items of no weight are left out."""
    kept = {item: weight for item, weight in weights.items() if weight > 0}
    total = math.fsum(kept.values())
    probability = {item: weight / total for item, weight in kept.items()}
    return Choice(tuple(probability), (*list(accumulate(probability.values()))[:-1], math.inf), probability)


def build_habits(seed: int) -> Habits:
    """The habits of the world of this seed."""
    noun_weights = _zipf(_flat(lexicon.NOUNS), stable_random(seed, "nouns"))
    verb_weights = _zipf(_flat(lexicon.VERBS), stable_random(seed, "verbs"))
    name_weights = _zipf(lexicon.NAMES, stable_random(seed, "names"))
    actors = {**lexicon.NOUNS, lexicon.NAME: lexicon.NAMES}
    return Habits(
        clauses=_clause_shapes(),
        phrases=_phrase_shapes(),
        document_lengths=choice({3: 0.3, 4: 0.4, 5: 0.3}),
        lesson_lengths=choice({1: 0.9, 2: 0.1}),
        topic=choice(_zipf(tuple(lexicon.TOPICS), stable_random(seed, "topic"), exponent=ZIPF_EXPONENT / 2)),
        topics=_topics(seed, noun_weights, verb_weights, name_weights),
        adjectives=choice(_zipf(_flat(lexicon.ADJECTIVES), stable_random(seed, "adjectives"))),
        adverbs=choice(_zipf(lexicon.ADVERBS, stable_random(seed, "adverbs"))),
        numbers=choice(_zipf(lexicon.NUMBERS, stable_random(seed, "numbers"))),
        verbs_of=_favourites(actors, lexicon.VERBS, stable_random(seed, "verbs of")),
        partners_of=_favourites(actors, lexicon.NOUNS, stable_random(seed, "partners of")),
        objects_of=_objects_of(noun_weights, stable_random(seed, "objects of")),
        adjectives_of=_favourites(actors, lexicon.ADJECTIVES, stable_random(seed, "adjectives of")),
        numbers_of=_favourites(lexicon.NOUNS, {"": lexicon.NUMBERS}, stable_random(seed, "numbers of")),
        adverbs_of=_favourites(lexicon.VERBS, {"": lexicon.ADVERBS}, stable_random(seed, "adverbs of")),
    )


def _flat(groups: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return tuple(word for words in groups.values() for word in words)


def _shuffled(items: Iterable[str], random: Random) -> list[str]:
    shuffled = list(items)
    random.shuffle(shuffled)
    return shuffled


def _zipf(words: Sequence[str], random: Random, exponent: float = ZIPF_EXPONENT) -> Mapping[str, float]:
    return choice({word: rank**-exponent for rank, word in enumerate(_shuffled(words, random), 1)}).probability


def _deck(items: Sequence[str], random: Random) -> Callable[[], str]:
    """A dealer that hands out every item once before any item again."""
    waiting: list[str] = []

    def deal() -> str:
        if not waiting:
            waiting.extend(_shuffled(items, random))
        return waiting.pop()

    return deal


def _clause_shapes() -> Choice[ClauseShape]:
    weights = {}
    for quoted, copula, mode, adverb, place in product(
        (False, True), (False, True), ("statement", "negation", "question"), (False, True), (False, True)
    ):
        negated, asked = (QUOTED_NEGATED, 0.0) if quoted else (NEGATED, ASKED)
        with_adverb = 0.0 if copula else WITH_ADVERB
        weights[ClauseShape(quoted, copula, mode, adverb, place)] = (
            (QUOTED if quoted else 1 - QUOTED)
            * (COPULA if copula else 1 - COPULA)
            * {"statement": 1 - negated - asked, "negation": negated, "question": asked}[mode]
            * (with_adverb if adverb else 1 - with_adverb)
            * (WITH_PLACE if place else 1 - WITH_PLACE)
        )
    return choice(weights)


def _phrase_shapes() -> Choice[PhraseShape]:
    singular = {"the": 0.7, "this": 0.18, "every": 0.12}
    plural = {"the": 0.45, "many": 0.2, "some": 0.2, "these": 0.15}
    weights = {PhraseShape("", plural=True, adjective=False): COUNTED}
    for determiners, is_plural, share in ((singular, False, 1 - PLURAL - COUNTED), (plural, True, PLURAL)):
        for determiner, adjective in product(determiners, (False, True)):
            shape = PhraseShape(determiner, is_plural, adjective)
            weights[shape] = share * determiners[determiner] * (WITH_ADJECTIVE if adjective else 1 - WITH_ADJECTIVE)
    return choice(weights)


def _favourites(
    owners: Mapping[str, Sequence[str]], pool: Mapping[str, Sequence[str]], random: Random
) -> dict[str, Choice[str]]:
    """Three favourites from the pool for each owner: two from categories its own category prefers, one from anywhere.

    The shared categories are what makes a category worth representing; the cards within them what makes a word so.
    """
    decks = {category: _deck(words, random) for category, words in pool.items()}
    anywhere = _deck(_flat(pool), random)
    categories = _deck(tuple(pool), random)
    favourites = {}
    for words in owners.values():
        dealers = (decks[categories()], decks[categories()], anywhere)
        for word in words:
            favourites[word] = choice(_distinct(dealers))
    return favourites


def _distinct(dealers: Sequence[Callable[[], str]]) -> dict[str, float]:
    favourites: dict[str, float] = {}
    for deal, weight in zip(dealers, FAVOURITE_WEIGHTS, strict=True):
        item = deal()
        favourites[item] = favourites.get(item, 0.0) + weight
    return favourites


def _objects_of(noun_weights: Mapping[str, float], random: Random) -> dict[str, Choice[str]]:
    """The usual objects of each verb: each noun gets three verbs that are often done to it."""
    of_noun = _favourites(lexicon.NOUNS, lexicon.VERBS, random)
    weights: dict[str, dict[str, float]] = {verb: {} for verb in _flat(lexicon.VERBS)}
    for noun, verbs in of_noun.items():
        for verb, share in verbs.probability.items():
            weights[verb][noun] = share * noun_weights[noun]
    return {verb: choice(nouns) for verb, nouns in weights.items()}


def _topics(
    seed: int, nouns: Mapping[str, float], verbs: Mapping[str, float], names: Mapping[str, float]
) -> dict[str, TopicHabits]:
    random = stable_random(seed, "topics")
    own_nouns = _topic_nouns(random)
    verb_category = _deck(tuple(lexicon.VERBS), random)
    places, people = _deck(lexicon.PLACES, random), _deck(lexicon.NAMES, random)
    place_weights = _zipf(lexicon.PLACES, random)
    topics = {}
    for topic in lexicon.TOPICS:
        noun_choice = _blend(nouns, own_nouns[topic], TOPIC_SHARE)
        name_choice = _blend(names, [people() for _ in range(6)], HABIT_SHARE)
        subjects = {word: p * (1 - NAME_SHARE) for word, p in noun_choice.probability.items()}
        topics[topic] = TopicHabits(
            subjects=choice({**subjects, **{name: p * NAME_SHARE for name, p in name_choice.probability.items()}}),
            nouns=noun_choice,
            verbs=_blend(verbs, lexicon.VERBS[verb_category()], HABIT_SHARE),
            names=name_choice,
            places=_blend(place_weights, [places() for _ in range(4)], HABIT_SHARE),
        )
    return topics


def _blend(weights: Mapping[str, float], own: Iterable[str], share: float) -> Choice[str]:
    """All words by weight, except that `share` of the mass goes to one's own words."""
    inside = choice({word: weights[word] for word in own}).probability
    everywhere = choice(weights).probability
    return choice({word: (1 - share) * p + share * inside.get(word, 0.0) for word, p in everywhere.items()})


def _topic_nouns(random: Random) -> dict[str, list[str]]:
    """The own nouns of each topic; every noun is the own noun of at least one."""
    third = _deck(tuple(lexicon.NOUNS), random)
    categories = {
        topic: (*fixed, next(category for category in iter(third, None) if category not in fixed))
        for topic, fixed in lexicon.TOPICS.items()
    }
    own: dict[str, list[str]] = {topic: [] for topic in lexicon.TOPICS}
    for category, words in lexicon.NOUNS.items():
        topics = [topic for topic, names in categories.items() if category in names]
        for word in words:
            chosen = [topic for topic in topics if random.random() < TOPIC_WORD_SHARE] or [random.choice(topics)]
            for topic in chosen:
                own[topic].append(word)
    return own
