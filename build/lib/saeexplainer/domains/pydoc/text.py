"""The English that every Python installation carries, cut into short documents.

Sources, read at run time and never copied: `pydoc_data.topics` (the language reference) and the docstrings of the
standard library's modules, classes and functions, found by parsing its .py files; no module is imported. What
`saeexplainer.domains.prose` leaves of them is packed into documents.
"""

import ast
import os
import re
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from saeexplainer.domains.domain import Document
from saeexplainer.domains.prose import Passage, Size, docstrings, pack, parsed, sentences, unseen
from saeexplainer.errors import UserError

SIZE = Size(minimum_words=15, maximum_words=60, maximum_sentences=4)
MINIMUM_DOCUMENTS = 1000  # fewer cannot train anything: the installation lacks its sources
LANGUAGE = "language"  # the topic of every document from pydoc_data.topics

# Folders that hold other people's packages, tests (docstrings there are often data), or generated files; `pydoc_data`
# is read in a way of its own.
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
)


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
        tree = parsed(path.read_bytes())
        if tree is None:
            unreadable += 1
            continue
        files += 1
        topic = topic_of(path.relative_to(root))
        passages += [Passage(topic, tuple(sentences(text))) for text in docstrings(tree)]
    passages += [Passage(LANGUAGE, tuple(sentences(text))) for text in language_topics(root)]
    documents = tuple(pack(unseen(passages, set()), SIZE))
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
