"""Reads what is true at each word of a sandbox text, from the text alone but for its topic.

The grammar is unambiguous and every word has one category, so reading back loses nothing; and a text that a language
model wrote is read by the same rules, as far as they apply to it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from saeexplainer.domains.domain import Annotation
from saeexplainer.domains.sandbox import lexicon
from saeexplainer.domains.sandbox.lexicon import Entry

_CONTENT_KINDS = frozenset(entry.kind for entry in lexicon.CONTENT_ENTRIES)
_UNKNOWN_ENTRY = Entry("", "unknown", None)


@dataclass(frozen=True)
class _Phrases:
    """What the words of one sentence are to each other, by index of the word."""

    roles: list[str]  # role keys; empty where there is none
    plural: frozenset[int]  # words inside a plural noun phrase
    counted: frozenset[int]  # nouns right after a number
    quoted: range  # words between quotation marks


def split_sentences(words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """[start, end) word indices of each sentence; a closing quotation mark belongs to its sentence."""
    start, opened = 0, False
    for index, word in enumerate(words):
        if word == lexicon.QUOTE_MARK:
            opened = not opened
            ends = not opened
        else:
            ends = word in (lexicon.STOP, lexicon.QUESTION_MARK) and not opened
        if ends:
            yield start, index + 1
            start = index + 1
    if start < len(words):
        yield start, len(words)


def annotate_text(text: str, topic: str | None) -> Annotation:
    """What is true at each word, suffix and mark of a text; without a topic, no topic concepts."""
    words = text.split(" ")
    spans: list[tuple[int, int]] = []
    concepts: list[tuple[str, ...]] = []
    common = (f"topic:{topic}",) if topic else ()
    offset = 0
    for start, end in split_sentences(words):
        offset = _annotate_sentence(words[start:end], common, offset, spans, concepts)
    return Annotation(spans, concepts)


def _annotate_sentence(
    words: Sequence[str],
    common: tuple[str, ...],
    offset: int,
    spans: list[tuple[int, int]],
    concepts: list[tuple[str, ...]],
) -> int:
    """Append the spans and concepts of one sentence that starts at a character offset; the offset of the next."""
    entries = [lexicon.SURFACES.get(word, _UNKNOWN_ENTRY) for word in words]
    content = [entry.base if entry.kind in _CONTENT_KINDS else "" for entry in entries]
    phrases = _read_phrases(words, entries)
    if "not" in words:
        common = (*common, "context:negation")
    if lexicon.QUESTION_MARK in words:
        common = (*common, "context:question")
    last = max((index for index, word in enumerate(content) if word), default=-1)
    once = tuple(dict.fromkeys(filter(None, content)))
    near = tuple(f"near:{word}" for word in once)
    for index, (word, entry) in enumerate(zip(words, entries, strict=True)):
        shared = [*common, *_context(index, phrases)]
        own = content[index]
        # A word is near itself only if the sentence has it twice; its suffix is part of it.
        shared += near if not own or content.count(own) > 1 else [key for key in near if key != f"near:{own}"]
        position = ("position:first",) if index == 0 else ()
        if index == last:
            position = (*position, "position:last")
        if index in phrases.counted:
            position = (*position, "context:number")  # of the noun; its suffix is a plural's like any other
        role = (phrases.roles[index],) if phrases.roles[index] else ()
        end = offset + len(word)
        cut = end - 1 if entry.suffixed else end
        if word:
            spans.append((offset, cut))
            concepts.append((*_own_concepts(entry), *role, *position, *shared))
        if entry.suffixed:
            spans.append((cut, end))
            concepts.append(("suffix:plural" if entry.kind == lexicon.NOUN else "suffix:verb", *shared))
        offset = end + 1
    return offset


@cache
def _own_concepts(entry: Entry) -> tuple[str, ...]:
    if entry.kind == lexicon.MARK:
        return (f"mark:{lexicon.MARKS[entry.base]}",)
    if not entry.base:
        return ()
    word = (f"word:{entry.base}",)
    return (*word, f"category:{entry.category}") if entry.category else word


def _context(index: int, phrases: _Phrases) -> Iterator[str]:
    if index in phrases.plural:
        yield "context:plural"
    if index in phrases.quoted:
        yield "context:quote"


def _read_phrases(words: Sequence[str], entries: Sequence[Entry]) -> _Phrases:
    roles = [""] * len(words)
    plural: list[int] = []
    counted: list[int] = []
    verb_seen = False
    phrase_start = 0  # where the noun phrase begins that the next noun would end
    for index, entry in enumerate(entries):
        following = entries[index + 1] if index + 1 < len(entries) else _UNKNOWN_ENTRY
        if entry.kind in (lexicon.DETERMINER, lexicon.NUMBER):
            phrase_start = index
            roles[index] = "role:determiner" if entry.kind == lexicon.DETERMINER else ""
        elif entry.kind == lexicon.ADJECTIVE:
            roles[index] = "role:adjective" if following.kind == lexicon.NOUN else "role:predicate"
        elif entry.kind == lexicon.VERB:
            roles[index] = "role:verb"
            verb_seen = True
        elif entry.kind == lexicon.NAME and following.base == "says":
            roles[index] = "role:speaker"
        elif entry.kind in (lexicon.NOUN, lexicon.NAME):
            roles[index] = "role:object" if verb_seen else "role:subject"
            if entry.suffixed:
                plural.extend(range(phrase_start, index + 1))
            if index and entries[index - 1].kind == lexicon.NUMBER:
                counted.append(index)
            phrase_start = index + 1
        elif entry.kind == lexicon.PLACE and words[index - 2 : index] == ["in", "the"]:
            roles[index - 2 : index + 1] = ["role:place"] * 3
    return _Phrases(roles, frozenset(plural), frozenset(counted), _quoted(words))


def _quoted(words: Sequence[str]) -> range:
    if lexicon.QUOTE_MARK not in words:
        return range(0)
    opening = words.index(lexicon.QUOTE_MARK)
    closing = len(words) - 1 if words[-1] == lexicon.QUOTE_MARK else len(words)
    return range(opening + 1, closing)
