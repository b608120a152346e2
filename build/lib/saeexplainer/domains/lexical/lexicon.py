"""Which words, beginnings, endings and marks are concepts: counted once from texts, with limits that a domain sets."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from saeexplainer.domains.lexical import signs

FAMILY = 5  # distinct words that share a beginning or an ending which is counted
SHORTEST, LONGEST = 2, 14  # letters of a beginning
BEGUN = 5  # letters of a word that a beginning is said of: `the` tells nothing of words beginning with th
PARTING = 0.6  # share of the words of a beginning that may go on with the same letter


@dataclass(frozen=True)
class Limits:
    """How many words become concepts."""

    occurrences: int  # a word concept has at least so many
    words: int  # at most so many word concepts
    after: int  # the most frequent words, for `after:`
    beginnings: int  # at most so many
    word: re.Pattern[str]  # what a word concept is made of, in lower case
    function_words: frozenset[str]  # of which no text is about


@dataclass(frozen=True)
class Lexicon:
    """What is frequent enough to be a concept; keys are as they stand in lower-case text, values concept keys."""

    span: re.Pattern[str]  # what is annotated: one of signs.SPAN, signs.SPAN_FURTHER
    apart: bool  # whether quotes and parentheses end with their paragraph
    words: dict[str, str]  # most frequent first
    rarity: dict[str, float]  # of the same words: occurrences ** -0.5, the weight of a word among a lesson's candidates
    after: dict[str, str]  # of the most frequent words
    near: dict[str, str]  # of the content words
    topics: dict[str, str]  # of what a document may be about
    endings: dict[str, str]  # in a fixed order
    beginnings: dict[str, str]  # most letters saved first
    marks: dict[str, str]
    shapes: tuple[str, ...]  # concept keys
    # What a token's surface alone says; filled while annotating, because most tokens come again.
    forms: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    def concepts(self) -> list[str]:
        """Every concept key, kind after kind, words by falling frequency."""
        parts = (self.marks, self.endings, self.beginnings)
        formed = [concept for part in parts for concept in dict.fromkeys(part.values())]
        placed = [*signs.POSITIONS, *self.after.values(), *self.near.values(), *self.topics.values()]
        return [*self.words.values(), *self.shapes, *formed, *placed]


def counted(texts: Iterable[str], span: re.Pattern[str]) -> Counter[str]:
    """How often each word or number stands in the texts, in lower case."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(match[0].lower() for match in span.finditer(text) if match[1] is None)
    return found


def ranked(counts: Mapping[str, int], limits: Limits) -> list[str]:
    """The words that become concepts, most frequent first."""
    frequent = [word for word, n in counts.items() if n >= limits.occurrences and limits.word.fullmatch(word)]
    return sorted(frequent, key=lambda word: (-counts[word], word))[: limits.words]


def of_outside(counts: Mapping[str, int], limits: Limits) -> Lexicon:
    """The lexicon of text from outside: content words are its topics, its families are counted."""
    words = ranked(counts, limits)
    content = [word for word in words if word not in limits.function_words and len(word) > 2]
    # A word that stands once may be a mistake in writing.
    several = [word for word, n in counts.items() if n > 1 and word.isalpha()]
    return Lexicon(
        span=signs.SPAN_FURTHER,
        apart=True,
        words={word: f"word:{word}" for word in words},
        rarity={word: counts[word] ** -0.5 for word in words},
        after={word: f"after:{word}" for word in words[: limits.after]},
        near={word: f"near:{word}" for word in content},
        topics={word: f"topic:{word}" for word in content},
        endings={ending: f"ending:{ending}" for ending in endings(several)},
        beginnings={start: f"beginning:{start}" for start in beginnings(several, limits.beginnings)},
        marks={mark: concept for mark, (concept, _) in (signs.MARKS | signs.MARKS_FURTHER).items()},
        shapes=(*signs.SHAPES, *signs.SHAPES_FURTHER),
    )


def endings(words: Collection[str]) -> list[str]:
    """The endings of English that enough of the words have."""
    every = sorted({*signs.ENDINGS, *signs.ENDINGS_FURTHER})
    stems = Counter(ending for word in words for ending in every if ends(word, ending))
    return [ending for ending in every if stems[ending] >= FAMILY]


def ends(word: str, ending: str) -> bool:
    """Whether a word has an ending, and a stem before it."""
    return word.endswith(ending) and len(word) >= len(ending) + signs.STEM


def beginnings(words: Collection[str], count: int) -> list[str]:
    """At most `count` beginnings that distinct words share, those that save most letters first.

    A beginning ends where its words part ways: `environ` is none where nearly all go on as environment does.
    """
    sizes = range(SHORTEST, LONGEST + 2)
    shared = Counter(word[:size] for word in words if len(word) >= BEGUN for size in sizes if size <= len(word))
    longer: dict[str, int] = {}
    for start, n in shared.items():
        longer[start[:-1]] = max(longer.get(start[:-1], 0), n)
    found = {
        start: n
        for start, n in shared.items()
        if n >= FAMILY and len(start) <= LONGEST and longer.get(start, 0) <= PARTING * n
    }
    return sorted(found, key=lambda start: (-(found[start] - 1) * (len(start) - 1), start))[:count]
