"""English that needs no download: the prose that the installed Python packages carry.

Read are the docstrings of Python files, the description in each distribution's metadata, and its .md, .rst and .txt
files; files are parsed, and nothing is imported. `saeexplainer.domains.prose` keeps the sentences that read as English.
No sentence comes twice, and no distribution gives more than DOCUMENTS documents, so that none drowns the others. The
files of one are visited in the order of a hash of their names: where it has more, what is read comes from all over it.
The documents come in the order of a hash too, because a stream that ends early is to see every distribution.
"""

import csv
import gc
import hashlib
import json
import os
import platform
import re
import sys
import sysconfig
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, DistributionFinder, MetadataPathFinder
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, cast

from saeexplainer.domains import prose
from saeexplainer.domains.corpus import markup
from saeexplainer.domains.corpus.markup import plain
from saeexplainer.domains.domain import Document
from saeexplainer.domains.prose import Passage, Size, docstrings, pack, parsed, sentences, unseen
from saeexplainer.domains.pydoc.text import language_topics, source_files, standard_library

if TYPE_CHECKING:
    from email.message import Message

NAME = "python:installed"  # of this source, in prepare_subject.corpus.source
SIZE = Size(minimum_words=20, maximum_words=150, maximum_sentences=12)
KEPT = Path(".cache/installed")  # in the working folder
DOCUMENTS = 600  # of one distribution, at most
LARGEST = 400_000  # bytes of a file; larger ones are generated, or data
PYTHON = "python"  # what the standard library is called among the distributions
READ = (".py", ".md", ".rst", ".txt")
# Folders of tests (docstrings there are often data) and of copies of other packages; names of files that are no prose
# of their own.
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "_vendor", "_vendored", "vendor", "vendored", "extern", "licenses", "license_files"}
)
_SKIPPED_NAMES = re.compile(r"licen[cs]e|copying|notice|authors|contributors|third.?party|requirements|top_level", re.I)
# A sentence that is the entry of a list: `name (type): what it is`, or one without a capital.
_ENTRY = re.compile(r"[\w.*-]+(?: \([^)]*\))?: |[\"'(]*[a-z_]")


@dataclass(frozen=True)
class Source:
    """What can be read of one distribution."""

    name: str  # in lower case, with hyphens
    description: str  # its README, as the metadata has it; may be empty
    files: tuple[Path, ...]  # in the order in which they are visited


@cache
def read_installed() -> tuple[Document, ...]:
    """The documents of everything that is installed; `structure` is the name of the distribution.

    They are kept in KEPT under what they depend on: parsing takes most of a minute, and several stages read text.
    """
    code = [
        Path(module.__file__ or "").read_text(encoding="utf-8") for module in (markup, prose, sys.modules[__name__])
    ]
    file = KEPT / f"{_hash(json.dumps([platform.python_version(), *versions(), *code]))}.json"
    with suppress(OSError, ValueError):  # not there, or cut short
        return tuple(Document(text, None, name) for text, name in json.loads(file.read_text(encoding="utf-8")))
    with _without_collector():
        found = documents([standard_library_source(), *installed(_places())])
    with suppress(OSError):  # where nothing can be written, they are read again
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps([(one.text, one.structure) for one in found]), encoding="utf-8")
        os.replace(partial, file)
    return found


def versions() -> list[str]:
    """What the documents depend on: the name and version of each distribution."""
    found = (cast("Message", distribution.metadata) for distribution in _distributions(_places()))
    return sorted(f"{metadata.get('Name')} {metadata.get('Version')}" for metadata in found)


def documents(sources: Iterable[Source]) -> tuple[Document, ...]:
    """The documents of some sources, mixed."""
    seen: set[str] = set()
    found = [
        document
        for source in sources
        for document in islice(pack(unseen(passages(source), seen), SIZE), DOCUMENTS)
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda document: _hash(document.text)))


def installed(places: Iterable[str]) -> Iterator[Source]:
    """The distributions in some folders such as site-packages, by name; the first of a name counts."""
    by_name: dict[str, Distribution] = {}
    for distribution in _distributions(places):
        name = cast("Message", distribution.metadata).get("Name")
        if name:
            by_name.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution)
    for name, distribution in sorted(by_name.items()):
        yield Source(name, description(distribution), tuple(readable(distribution)))


def standard_library_source() -> Source:
    """The running Python's standard library."""
    root = standard_library()
    found = [path for path in source_files(root) if not SKIPPED_FOLDERS & set(path.relative_to(root).parts)]
    files = sorted(found, key=lambda path: _hash(path.relative_to(root).as_posix()))
    return Source(PYTHON, "\n\n".join(language_topics(root)), tuple(files))


def description(distribution: Distribution) -> str:
    """The long description of a distribution, in whatever markup."""
    metadata = cast("Message", distribution.metadata)  # which it is, though its protocol says less
    return str(metadata.get("Description") or metadata.get_payload() or "")


def readable(distribution: Distribution) -> list[Path]:
    """The files of a distribution that may hold prose, by a hash of their names; only those that it lists itself."""
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    names = sorted({row[0] for row in rows if row}, key=_hash)
    return [Path(str(distribution.locate_file(name))) for name in names if _may_hold_prose(PurePosixPath(name))]


def passages(source: Source) -> Iterator[Passage]:
    """The prose of one source, its description first; a file that is not there or cannot be parsed gives none.

    Short passages are left out: joined, the summary lines of many functions read as no text at all.
    """
    texts = chain([source.description], (text for path in source.files for text in _texts(path)))
    for text in texts:
        found = tuple(sentence for sentence in sentences(plain(text)) if not _ENTRY.match(sentence))
        if sum(len(sentence.split()) for sentence in found) >= SIZE.minimum_words:
            yield Passage(source.name, found)


@contextmanager
def _without_collector() -> Generator[None, None, None]:
    """Syntax trees have no cycles, and looking for some takes a third of the time of parsing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _distributions(places: Iterable[str]) -> Iterator[Distribution]:
    """Those of the standard library's own finder: importlib_metadata, once imported, puts its own beside."""
    yield from MetadataPathFinder().find_distributions(DistributionFinder.Context(path=list(places)))


def _places() -> list[str]:
    """The folders of the running environment's packages; the working directory is none of them."""
    paths = sysconfig.get_paths()
    return list(dict.fromkeys([paths["purelib"], paths["platlib"]]))


def _may_hold_prose(path: PurePosixPath) -> bool:
    inside = path.parts[:-1]
    unfit = ".." in inside or any(part.endswith(".dist-info") for part in inside) or SKIPPED_FOLDERS & set(inside)
    return path.suffix in READ and not path.is_absolute() and not unfit and not _SKIPPED_NAMES.search(path.name)


def _texts(path: Path) -> Iterator[str]:
    try:
        content = path.read_bytes() if path.stat().st_size <= LARGEST else b""
    except OSError:
        return
    if path.suffix != ".py":
        yield content.decode("utf-8", errors="replace")
    elif b'"""' in content or b"'''" in content:  # parsing is what takes the time
        tree = parsed(content)
        if tree is not None:
            yield from docstrings(tree)


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", errors="surrogatepass")).hexdigest()
