"""What the surface of a text says at each word, number and mark."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence

from saeexplainer.domains.domain import Annotation
from saeexplainer.domains.lexical import signs
from saeexplainer.domains.lexical.lexicon import BEGUN, LONGEST, SHORTEST, Lexicon, ends

NEAR_DISTANCE = 6  # words to either side, for `near:`
TOPIC_OCCURRENCES, TOPIC_ONE_IN = 3, 50  # a word that a text is about stands so often, and is one in so many words
TOPICS = 2  # of one text, at most
FORMS = 100_000  # tokens that are kept: texts of a writer may hold any number of new words
BLANK = "\n\n"  # neither quotes nor parentheses go on past it


def annotate(text: str, lexicon: Lexicon, about: Sequence[str] = ()) -> Annotation:
    """The concepts at each word, number and mark; `about` are those that hold at all of them."""
    matches = list(lexicon.span.finditer(text))
    spans = [match.span() for match in matches]
    names = [match[1] is None for match in matches]
    words = [match[0].lower() for match, name in zip(matches, names, strict=True) if name]
    nearby = [lexicon.near.get(word) for word in words]
    following = [lexicon.after.get(word) for word in words]
    inside = enclosed(text, spans, lexicon.apart)
    last = len(words) - 1
    concepts, before = [], 0  # `before` counts the words so far
    for index, (start, end) in enumerate(spans):
        found = [*form(text[start:end], text[end : end + 5], lexicon), *inside[index]]
        name = names[index]
        if name and before == 0:
            found.append("position:first")
        if name and before == last:
            found.append("position:last")
        if before and (after := following[before - 1]) is not None:
            found.append(after)
        window = dict.fromkeys(nearby[max(before - NEAR_DISTANCE, 0) : before + NEAR_DISTANCE + name])
        window.pop(None, None)
        if name:
            window.pop(nearby[before], None)
        concepts.append((*found, *window, *about))
        before += name
    return Annotation(spans, concepts)


def topics(text: str, lexicon: Lexicon) -> list[str]:
    """The topics of a text: content words that stand in it again and again, most frequent first."""
    words = [match[0].lower() for match in lexicon.span.finditer(text) if match[1] is None]
    counts = Counter(word for word in words if word in lexicon.topics)
    least = max(TOPIC_OCCURRENCES, len(words) / TOPIC_ONE_IN)
    found = sorted((word for word, n in counts.items() if n >= least), key=lambda word: (-counts[word], word))
    return [lexicon.topics[word] for word in found[:TOPICS]]


def form(token: str, following: str, lexicon: Lexicon) -> tuple[str, ...]:
    """What a token says by itself; a name is a call if a parenthesis follows at once."""
    call = following[:1] == "(" and not following.startswith(signs.PLURAL) and (token[0].isalpha() or token[0] == "_")
    key = token + "(" if call else token
    known = lexicon.forms.get(key)
    if known is None:
        if len(lexicon.forms) > FORMS:
            lexicon.forms.clear()
        known = lexicon.forms[key] = tuple(_surface(token, call, lexicon))
    return known


def _surface(token: str, call: bool, lexicon: Lexicon) -> Iterator[str]:
    lower = token.lower()
    if lower in lexicon.words:
        yield lexicon.words[lower]
    if token[0].isdigit():
        yield "shape:number"
        return
    if not (token[0].isalpha() or token[0] == "_"):
        blank = token.isspace()
        if not blank:
            yield "shape:punctuation"
        mark = token[: len(BLANK)] if blank else token  # however many empty lines there are
        if mark in lexicon.marks:
            yield lexicon.marks[mark]
        return
    if token[0].isupper():
        yield "shape:capital"
    if "shape:capitals" in lexicon.shapes and len(token) > 1 and token.isupper():
        yield "shape:capitals"
    if call or (signs.IDENTIFIER.fullmatch(token) and lower not in signs.ABBREVIATIONS):
        yield "shape:identifier"
    elif lower.isalpha():
        yield from _families(lower, lexicon)


def _families(word: str, lexicon: Lexicon) -> Iterator[str]:
    """The endings and beginnings that a word shares with others."""
    for ending, concept in lexicon.endings.items():
        if ends(word, ending):
            yield concept
    if len(word) >= BEGUN:
        starts = (word[:size] for size in range(SHORTEST, min(len(word), LONGEST) + 1))
        yield from (lexicon.beginnings[start] for start in starts if start in lexicon.beginnings)


def enclosed(text: str, spans: list[tuple[int, int]], apart: bool) -> list[list[str]]:
    """For each span, whether it lies inside quotes and inside parentheses; the marks themselves lie outside.

    A parenthesis that never closes counts up to the end: texts may be cut. `apart`: up to the end of its paragraph, as
    quotes do.
    """
    found: list[list[str]] = []
    start = 0
    while start < len(text):
        blank = text.find(BLANK, start) if apart else -1
        end = blank + len(BLANK) if blank >= 0 else len(text)
        here = bisect_right(spans, end - 1, lo=len(found), key=lambda span: span[0])
        found += _enclosed(text, start, end, spans[len(found) : here])
        start = end
    return found


def _enclosed(text: str, begin: int, stop: int, spans: list[tuple[int, int]]) -> Iterator[list[str]]:
    quotes = [match.span() for match in signs.QUOTED.finditer(text, begin, stop)]
    opened = [start for start, _ in quotes]
    depth = 0
    for start, end in spans:
        found = []
        quote = bisect_right(opened, start - 1) - 1  # the last one that opened before this span
        if quote >= 0 and end < quotes[quote][1]:
            found.append("shape:quoted")
        if text[start] == ")":
            depth = max(depth - (end - start), 0)
        if depth:
            found.append("shape:parenthesis")
        if text[start] == "(":
            depth += end - start
        yield found
