"""English out of documentation: no code, no doctests, no tables, no lists of names, ASCII alone.

A docstring or a page is split into paragraphs, these into sentences, of which those stay that read as prose; sentences
are packed into documents.
"""

import ast
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from inspect import cleandoc

from saeexplainer.domains.domain import Document

SENTENCE_WORDS = 60  # of one sentence, at most

# Typographic characters of the topics, as the ASCII that means the same.
_ASCII = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "--", "…": "...", "\xa0": " "})
# Lines of doctests, tables, rules and field lists: dropped.
_CODE_LINE = re.compile(
    r"\s*(>>>|\.\.\.( |$)|[$%#@+|] |[-=*~^_+|]{3,}|\.\. |:\w+ |from \w+ import |import \w+$|[A-Z]:\\)"
)
# A bullet or number (dropped), and `name -- meaning` or a column of names (kept): each starts a paragraph of its own.
_ITEM = re.compile(r"\s*([-*+o•] +|\d{1,2}[.)] +|\(\w\) )")
_DEFINITION = re.compile(r"\s*(?=\S)[\w.*,'\"()\[\]=/ -]{1,40}?( --? | : |: | {3,})")
# "(see section Foo)" points into a manual that is not here.
_REFERENCE = re.compile(r"\s*\((?:see|See) section [^)]*\)| see section [A-Z][\w ]*(?=[.,;)])")
# The white space between two sentences, abbreviations aside.
_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!cf\.)(?<!vs\.)(?<!etc\.)[\"')\]]*(\s+)(?=[\"'(`<\[_]*[A-Z])"
)
# A plain word with the punctuation that prose puts around it; signs that prose does not use.
_WORDLIKE = re.compile(r"[\"'(`*]*[A-Za-z][a-z]*(?:['-][a-z]+)*[\"')`*]*[.,;:!?]*[\"')]*$")
_CODE_SIGN = re.compile(
    r"::=|>>>|\\|[{}|~^@$]|[^=!<>]=[^=]|==|;$|//|\w\[|->|<-|__main__|\blambda\b|\w\(\w+\(|<\w|\.\.\.$|--$"
)
# Every English sentence has some of these, lists of names have none; none of them in lower case opens a whole sentence.
_GLUE_WORDS = (
    "a an the of to in is are be it its for and or if that this by with as from on at not which when can will has no "
    "then do does may must than was were have been but so"
)
_GLUE = frozenset(_GLUE_WORDS.split())


@dataclass(frozen=True)
class Paragraph:
    """Lines of a docstring that read on."""

    text: str  # as in the source, line ends and all
    whole: bool  # whether it ends of itself; otherwise code or another indent cut in, and its last sentence may go on


@dataclass(frozen=True)
class Passage:
    """The prose sentences of one docstring, page or section, in order."""

    topic: str  # what it documents, such as a module or a distribution
    sentences: tuple[str, ...]  # cleaned, each on one line


@dataclass(frozen=True)
class Size:
    """Of one document."""

    minimum_words: int  # what has fewer is left out
    maximum_words: int
    maximum_sentences: int


def parsed(source: bytes) -> ast.Module | None:
    """A file of Python; None if this Python cannot parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old sources are not ours to report
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last: nested too deep for the parser
        return None


def docstrings(tree: ast.Module) -> Iterator[str]:
    """The docstrings of a module, its classes and its functions, in the order of the source."""
    text = ast.get_docstring(tree)
    if text:
        yield text
    yield from _inner_docstrings(tree)


def _inner_docstrings(node: ast.AST) -> Iterator[str]:
    for part in ("body", "handlers", "orelse", "finalbody", "cases"):  # statements only: expressions define nothing
        for child in getattr(node, part, ()):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(child)
                if text:
                    yield text
            yield from _inner_docstrings(child)


def sentences(text: str) -> Iterator[str]:
    """The sentences of English in a docstring: no code, no tables, no lists of names."""
    for paragraph in paragraphs(cleandoc(text.translate(_ASCII)).expandtabs()):
        line = _REFERENCE.sub("", re.sub(r"\s+", " ", paragraph.text).strip())
        if len(line.split()) < 3:
            continue
        if line.endswith(":"):
            line = (
                line.rstrip(":") + "."
            )  # what it announced was code or a list, dropped or given a document of its own
        elif paragraph.whole and re.search(r"[^.!?\W][\"')]*$", line):
            line += "."  # summary lines often lack it, and it ends the sentence once they are packed
        for sentence in split_sentences(line):
            if is_prose(sentence):
                yield sentence


def split_sentences(line: str) -> Iterator[str]:
    """The sentences of a line of text, closing quotes and parentheses with them."""
    start = 0
    for end in _SENTENCE_END.finditer(line):
        yield line[start : end.start(1)]
        start = end.end(1)
    yield line[start:]


def paragraphs(text: str) -> Iterator[Paragraph]:
    """Runs of lines that read on: broken at blank lines, list items, changes of indent, and around code."""
    lines: list[str] = []
    for line in [*text.split("\n"), ""]:
        item = _ITEM.match(line)
        breaks = not line.strip() or item or _CODE_LINE.match(line) or _DEFINITION.match(line)
        deeper = lines and abs(_indent(line) - _indent(lines[-1])) > 3
        if lines and (breaks or deeper):
            yield Paragraph("\n".join(lines), whole=not (deeper and line.strip()) and not _CODE_LINE.match(line))
            lines = []
        if line.strip() and not _CODE_LINE.match(line):
            lines.append(
                line[: item.start()] + " " * (item.end() - item.start()) + line[item.end() :] if item else line
            )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def is_prose(sentence: str) -> bool:
    """Whether a sentence reads as English: whole, mostly plain words, some of them grammar, no signs of code."""
    words = sentence.split()
    if not 3 <= len(words) <= SENTENCE_WORDS or not sentence.isascii() or sentence[-1] not in ".!?\"')":
        return False
    if not re.match(r"[\"'(`]*[A-Za-z_]", sentence) or _CODE_SIGN.search(sentence) or words[0] in _GLUE:
        return False
    if any(sentence.count(opening) != sentence.count(closing) for opening, closing in ("()", "[]")):
        return False
    if sentence.count('"') % 2 or sentence.count("`") % 2:
        return False
    plain = sum(bool(_WORDLIKE.match(word)) for word in words)
    glue = sum(word.lower().strip(".,;:()\"'") in _GLUE for word in words)
    return plain >= 0.7 * len(words) and glue >= 0.1 * len(words)


def unseen(passages: Iterable[Passage], seen: set[str]) -> Iterator[Passage]:
    """The passages without the sentences that came before: copied docstrings would leak into held-out text. What came
    is added to `seen`."""
    for passage in passages:
        fresh = []
        for sentence in passage.sentences:
            key = re.sub(r"[^a-z0-9]+", " ", sentence.lower())
            if key not in seen:
                seen.add(key)
                fresh.append(sentence)
        if fresh:
            yield Passage(passage.topic, tuple(fresh))


def pack(passages: Iterable[Passage], size: Size) -> Iterator[Document]:
    """Documents of a few sentences; a passage too short for one is joined by the next of the same topic."""
    held: list[str] = []
    topic = ""
    for passage in passages:
        if passage.topic != topic:
            yield from _document(topic, held, size)
            held, topic = [], passage.topic
        for sentence in passage.sentences:
            if held and (len(held) == size.maximum_sentences or _words([*held, sentence]) > size.maximum_words):
                yield from _document(topic, held, size)
                held = []
            held.append(sentence)
        if _words(held) >= size.minimum_words:
            yield from _document(topic, held, size)
            held = []
    yield from _document(topic, held, size)


def _words(held: list[str]) -> int:
    return sum(len(sentence.split()) for sentence in held)


def _document(topic: str, held: list[str], size: Size) -> Iterator[Document]:
    if _words(held) >= size.minimum_words:
        yield Document(" ".join(held), None, topic)
