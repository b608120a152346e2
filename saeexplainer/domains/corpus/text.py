"""Text from outside, document after document: files here, the prose of installed packages, or a data set of the hub.

docs/CORPORA.md says what counts as a document.

Everything is read as it is asked for: a parquet file by batches of its row groups, the hub through `datasets` as a
stream. Order is that of the source, a folder's files by name, so the same source gives the same documents. What cannot
be read is one line that names the file and the line or row.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from saeexplainer.config import Corpus
from saeexplainer.domains.corpus import installed
from saeexplainer.errors import UserError, first_line
from saeexplainer.runs.storage import lines_of

SOURCE, COLUMN = "prepare_subject.corpus.source", "prepare_subject.corpus.column"
ROWS = 256  # of a parquet file in memory
SHOWN = 40  # characters of a wrong value that a message repeats


def read_texts(corpus: Corpus) -> Iterator[str]:
    """Every document that is not blank. Raises UserError, as late as at the document that cannot be read."""
    if is_installed(corpus):
        found = (document.text for document in installed.read_installed())
    else:
        found = _file_texts(corpus) if corpus.revision is None else hub_texts(corpus)
    return (text for text in found if text.strip())


def is_installed(corpus: Corpus) -> bool:
    """Whether the text is that of the installed packages; a file or folder of that name goes before."""
    return corpus.source == installed.NAME and corpus.revision is None and not Path(corpus.source).exists()


def _file_texts(corpus: Corpus) -> Iterator[str]:
    for file in _files(Path(corpus.source)):
        try:
            yield from READERS[file.suffix](file, corpus.column)
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({first_line(error)}); give yourself access to it") from None


def _files(source: Path) -> list[Path]:
    """The files to read, in order. Raises UserError if there is none, or if they are of several kinds."""
    if source.is_dir():
        inside = (path.relative_to(source) for path in source.rglob("*") if path.is_file())
        shown = (path for path in inside if not any(part.startswith(".") for part in path.parts))
        files = [source / path for path in sorted(shown, key=Path.as_posix) if path.suffix in READERS]
    elif source.is_file():
        files = [source] if source.suffix in READERS else []
    else:
        raise UserError(
            f"{SOURCE}: {source}: no such file or folder; correct the path, or for a data set of the hub give its "
            "revision, the 40 hex digits of a commit"
        )
    kinds = sorted({file.suffix for file in files})
    if not kinds:
        raise UserError(f"{SOURCE}: {source}: no text in it; give .txt, .jsonl or .parquet, by these endings")
    if len(kinds) > 1:
        raise UserError(f"{SOURCE}: {source}: holds {' and '.join(kinds)} files; name a file, or a folder of one kind")
    return files


def _paragraphs(file: Path, column: str) -> Iterator[str]:
    """Lines up to a blank one, joined as they stand."""
    lines: list[str] = []
    for _, line in _lines(file):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def _json_lines(file: Path, column: str) -> Iterator[str]:
    for number, line in _lines(file):
        if not line.strip():
            continue
        place = f"{file}:line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not JSON ({error}); correct or remove the line") from None
        if not isinstance(row, dict):
            raise UserError(f"{place}: is {_shown(row)}; must be a JSON object with the field {column!r}")
        yield from _text(row, column, place)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends."""
    with file.open("rb") as opened:
        for number, line in enumerate(lines_of(opened, str(file)), start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError:
                raise UserError(f"{file}:line {number}: not UTF-8; save the file as UTF-8") from None


def _parquet_rows(file: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened:
            names = opened.schema_arrow.names
            _check_column(names, column, str(file))
            number = 0
            for batch in opened.iter_batches(batch_size=ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield from _text({column: value}, column, f"{file}:row {number}")
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file}: no readable parquet file ({first_line(error)}); write it again") from None


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": _paragraphs,
    ".jsonl": _json_lines,
    ".parquet": _parquet_rows,
}


def hub_texts(corpus: Corpus) -> Iterator[str]:
    """The rows of a data set of the hub as they arrive; no code of its repository runs."""
    import httpx
    from datasets import exceptions, load_dataset

    place = f"{SOURCE}: {corpus.source}"
    try:
        # `datasets` has no loading scripts any more, and retries a connection that breaks on its own.
        rows = load_dataset(
            corpus.source, corpus.subset, split=corpus.split, revision=corpus.revision, streaming=True
        )  # fmt: skip
        for number, row in enumerate(rows, start=1):
            yield from _text(cast("dict[str, Any]", row), corpus.column, f"{corpus.source}:row {number}")
    except (OSError, ValueError, httpx.HTTPError, exceptions.DatasetsError) as error:
        raise UserError(
            f"{place}: cannot be read ({first_line(error)}); check source, revision, subset, split and the connection; "
            "a gated data set needs its terms accepted and HF_TOKEN in the environment"
        ) from None


def _text(row: dict[str, Any], column: str, place: str) -> Iterator[str]:
    """The text of a row; none where it is null."""
    _check_column(list(row), column, place)
    value = row[column]
    if value is None:
        return
    if not isinstance(value, str):
        raise UserError(f"{place}: {column} is {_shown(value)}; must be text, or set {COLUMN}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: {column} holds half a character; correct or remove it") from None
    yield value


def _check_column(names: list[str], column: str, place: str) -> None:
    if column not in names:
        raise UserError(f"{place}: no {column!r} among {', '.join(map(str, names)) or 'no fields'}; set {COLUMN}")


def _shown(value: Any) -> str:
    return repr(value)[:SHOWN]
