"""Writes sentences of a topic, and keeps the probability of every choice made.

Where a word can come from a habit or from the background, the probability is that of the word, over both ways to it,
so nothing hidden remains but the topic.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from saeexplainer.domains.sandbox import lexicon
from saeexplainer.domains.sandbox.habits import (
    HABIT_SHARE,
    OBJECT_SHARE,
    PARTNER_SHARE,
    Choice,
    ClauseShape,
    Habits,
    PhraseShape,
    TopicHabits,
)


@dataclass(frozen=True)
class Story:
    """Some sentences of one topic."""

    topic: str
    text: str
    nats: float  # -log p of the topic, the number of sentences and the words, jointly


def write_story(habits: Habits, lengths: Choice[int], uniform: Callable[[], float]) -> Story:
    """Draw a topic, a number of sentences and the sentences; `uniform` yields numbers in [0, 1)."""
    topic = habits.topic.draw(uniform())
    length = lengths.draw(uniform())
    words: list[str] = []
    nats = -math.log(habits.topic.probability[topic] * lengths.probability[length])
    for _ in range(length):
        nats -= math.log(_write_sentence(habits, habits.topics[topic], uniform, words))
    return Story(topic, " ".join(words), nats)


def draw_mixed(uniform: float, habit: Choice[str], background: Choice[str]) -> tuple[str, float]:
    """A word by habit or from the background, and its probability over both."""
    if uniform < HABIT_SHARE:
        word = habit.draw(uniform / HABIT_SHARE)
    else:
        word = background.draw((uniform - HABIT_SHARE) / (1 - HABIT_SHARE))
    return word, (
        HABIT_SHARE * habit.probability.get(word, 0.0) + (1 - HABIT_SHARE) * background.probability.get(word, 0.0)
    )


def draw_object(habits: Habits, topic: TopicHabits, subject: str, verb: str, uniform: float) -> tuple[str, float]:
    """An object by the habits of its subject, of its verb, or of neither, and its probability over all three."""
    partners, usual, background = habits.partners_of[subject], habits.objects_of[verb], topic.nouns
    rest = 1 - PARTNER_SHARE - OBJECT_SHARE
    if uniform < PARTNER_SHARE:
        noun = partners.draw(uniform / PARTNER_SHARE)
    elif uniform < PARTNER_SHARE + OBJECT_SHARE:
        noun = usual.draw((uniform - PARTNER_SHARE) / OBJECT_SHARE)
    else:
        noun = background.draw((uniform - PARTNER_SHARE - OBJECT_SHARE) / rest)
    return noun, (
        PARTNER_SHARE * partners.probability.get(noun, 0.0)
        + OBJECT_SHARE * usual.probability.get(noun, 0.0)
        + rest * background.probability[noun]
    )


def _write_phrase(
    habits: Habits, noun: str, uniform: Callable[[], float], words: list[str]
) -> tuple[PhraseShape, float]:
    """Append the noun phrase of a noun; its shape, and the probability of all but the noun."""
    shape = habits.phrases.draw(uniform())
    probability = habits.phrases.probability[shape]
    first = shape.determiner
    if not first:
        first, p = draw_mixed(uniform(), habits.numbers_of[noun], habits.numbers)
        probability *= p
    words.append(first)
    if shape.adjective:
        adjective, p = draw_mixed(uniform(), habits.adjectives_of[noun], habits.adjectives)
        words.append(adjective)
        probability *= p
    words.append(noun + "s" if shape.plural else noun)
    return shape, probability


def _write_sentence(habits: Habits, topic: TopicHabits, uniform: Callable[[], float], words: list[str]) -> float:
    """Append a sentence; its probability given the topic."""
    shape = habits.clauses.draw(uniform())
    probability = habits.clauses.probability[shape]
    if shape.quoted:
        speaker = topic.names.draw(uniform())
        probability *= topic.names.probability[speaker]
        words += (speaker, "says", lexicon.QUOTE_MARK)
    probability *= _write_clause(habits, topic, shape, uniform, words)
    if shape.place:
        place = topic.places.draw(uniform())
        probability *= topic.places.probability[place]
        words += ("in", "the", place)
    words.append(lexicon.QUESTION_MARK if shape.mode == "question" else lexicon.STOP)
    if shape.quoted:
        words.append(lexicon.QUOTE_MARK)
    return probability


def _write_clause(
    habits: Habits, topic: TopicHabits, shape: ClauseShape, uniform: Callable[[], float], words: list[str]
) -> float:
    """Append subject and predicate; their probability given the shape and the topic."""
    subject = topic.subjects.draw(uniform())
    probability = topic.subjects.probability[subject]
    phrase: list[str] = []  # apart, because in a question the auxiliary that agrees with it comes first
    plural = False
    if lexicon.SURFACES[subject].kind == lexicon.NAME:
        phrase.append(subject)
    else:
        phrase_shape, p = _write_phrase(habits, subject, uniform, phrase)
        plural = phrase_shape.plural
        probability *= p
    if shape.copula:
        helper = "are" if plural else "is"
        rest, p = draw_mixed(uniform(), habits.adjectives_of[subject], habits.adjectives)
    else:
        helper = "do" if plural else "does"
        rest, p = draw_mixed(uniform(), habits.verbs_of[subject], topic.verbs)
    probability *= p
    if shape.mode == "question":
        words += (helper, *phrase, rest)
    elif shape.mode == "negation":
        words += (*phrase, helper, "not", rest)
    elif shape.copula:
        words += (*phrase, helper, rest)
    else:
        words += (*phrase, rest if plural else rest + "s")
    if shape.copula:
        return probability
    return probability * _write_object(habits, topic, shape, subject, rest, uniform, words)


def _write_object(
    habits: Habits,
    topic: TopicHabits,
    shape: ClauseShape,
    subject: str,
    verb: str,
    uniform: Callable[[], float],
    words: list[str],
) -> float:
    """Append the object and the adverb; their probability given all before."""
    noun, probability = draw_object(habits, topic, subject, verb, uniform())
    _, p = _write_phrase(habits, noun, uniform, words)
    probability *= p
    if shape.adverb:
        adverb, p = draw_mixed(uniform(), habits.adverbs_of[verb], habits.adverbs)
        words.append(adverb)
        probability *= p
    return probability
