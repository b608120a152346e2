"""The English that every Python installation carries, cut into short documents.

Sources, read at run time and never copied: `pydoc_data.topics` (the language reference) and the docstrings of the
standard library's modules, classes and functions, found by parsing its .py files; no module is imported. What is left
after dropping code, doctests, tables and non-ASCII text is split into sentences and packed into documents.
"""

import ast
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from pathlib import Path

from saeexplainer.domains.domain import Document
from saeexplainer.errors import UserError

MINIMUM_WORDS, MAXIMUM_WORDS = 15, 60  # of one document
MAXIMUM_SENTENCES = 4  # of one document
MINIMUM_DOCUMENTS = 1000  # fewer cannot train anything: the installation lacks its sources
LANGUAGE = "language"  # the topic of every document from pydoc_data.topics

# Folders that hold other people's packages, tests (docstrings there are often data), or generated files; `pydoc_data`
# is read in a way of its own.
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
)

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
    """The prose sentences of one docstring or one section of a topic, in order."""

    topic: str  # top-level module in lower case, or LANGUAGE
    sentences: tuple[str, ...]  # cleaned, each on one line


@dataclass(frozen=True)
class Corpus:
    """Everything that was found, in the order of the files."""

    documents: tuple[Document, ...]  # no sentence twice; `structure` is the topic, as in Passage
    files: int  # source files read
    unreadable: int  # source files that this Python cannot parse, left out


def standard_library() -> Path:
    """The folder of the running Python's standard library (of its base installation inside a virtualenv)."""
    return Path(sysconfig.get_path("stdlib"))


@cache
def read_corpus(root: Path) -> Corpus:
    """The corpus of the standard library at `root`; raises UserError if there is next to none."""
    passages, files, unreadable = [], 0, 0
    for path in source_files(root):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in old sources are not ours to report
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            unreadable += 1
            continue
        files += 1
        topic = topic_of(path.relative_to(root))
        passages += [Passage(topic, tuple(sentences(text))) for text in docstrings(tree)]
    passages += [Passage(LANGUAGE, tuple(sentences(text))) for text in language_topics(root)]
    documents = tuple(pack(unseen(passages)))
    if len(documents) < MINIMUM_DOCUMENTS:
        raise UserError(
            f"domain pydoc: {root} gives {len(documents)} documents, {MINIMUM_DOCUMENTS} are needed; "
            "install Python with its library's .py files, or choose another domain"
        )
    return Corpus(documents, files, unreadable)


def source_files(root: Path) -> list[Path]:
    """The library's own .py files, sorted by their path inside it."""
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = set(inner) - SKIPPED_FOLDERS  # not even visited: site-packages can be huge
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def topic_of(path: Path) -> str:
    """The module a file belongs to: `email/message.py` is email, and `_pydecimal.py` documents decimal."""
    name = path.parts[0].removesuffix(".py").lower()
    return re.sub(r"^_(py_?(?=\w))?", "", name).strip("_") or name


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


def language_topics(root: Path) -> list[str]:
    """The texts of `pydoc_data.topics`, sorted by name, read as a literal."""
    path = root / "pydoc_data" / "topics.py"
    if not path.exists():
        return []
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "topics":
            topics = ast.literal_eval(node.value)
            return [topics[name] for name in sorted(topics)]
    return []


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
    if not 3 <= len(words) <= MAXIMUM_WORDS or not sentence.isascii() or sentence[-1] not in ".!?\"')":
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


def unseen(passages: Iterable[Passage]) -> Iterator[Passage]:
    """The passages without the sentences that came before: copied docstrings would leak into held-out text."""
    seen: set[str] = set()
    for passage in passages:
        fresh = []
        for sentence in passage.sentences:
            key = re.sub(r"[^a-z0-9]+", " ", sentence.lower())
            if key not in seen:
                seen.add(key)
                fresh.append(sentence)
        if fresh:
            yield Passage(passage.topic, tuple(fresh))


def pack(passages: Iterable[Passage]) -> Iterator[Document]:
    """Documents of a few sentences; a passage too short for one is joined by the next of the same topic."""
    held: list[str] = []
    topic = ""
    for passage in passages:
        if passage.topic != topic:
            yield from _document(topic, held)
            held, topic = [], passage.topic
        for sentence in passage.sentences:
            if held and (len(held) == MAXIMUM_SENTENCES or _words([*held, sentence]) > MAXIMUM_WORDS):
                yield from _document(topic, held)
                held = []
            held.append(sentence)
        if _words(held) >= MINIMUM_WORDS:
            yield from _document(topic, held)
            held = []
    yield from _document(topic, held)


def _words(held: list[str]) -> int:
    return sum(len(sentence.split()) for sentence in held)


def _document(topic: str, held: list[str]) -> Iterator[Document]:
    if _words(held) >= MINIMUM_WORDS:
        yield Document(" ".join(held), None, topic)
