"""Reading and writing artifacts: a file that exists is whole, because it is renamed into place."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from glob import escape
from io import BufferedIOBase
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from saeexplainer.errors import UserError, first_line
from saeexplainer.runs.processes import is_first

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

Record = TypeVar("Record")
NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # a folder or disk that takes nothing
LONGEST = 2**28  # bytes of a line of a file from outside
# What libraries end with on a file that is damaged, or is another one than its name says.
DAMAGED = (OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError)
NOTES = "notes"  # key of a table's notes in its metadata


@contextmanager
def replacing(path: Path, *, each: bool = False) -> Generator[Path, None, None]:
    """Yield a temporary sibling of `path` (file or folder) that takes its place only if the block succeeds.

    It is this process's own: a stage whose parent was killed may still be writing when it is started again. Of several
    processes of a stage the first one's takes the place, unless they write `each` a path of its own; what the others
    wrote is the same.
    """
    first = each or is_first()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _remove(temporary)
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path)
        yield temporary
        if first:
            _remove(path)
            os.replace(temporary, path)
    except OSError as error:
        if error.errno not in NO_PLACE:
            raise
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); make its folder writable, or room on its disk"
        ) from None
    finally:
        with suppress(OSError):  # where nothing can be written, nothing is left
            _remove(temporary)


def _remove_left(path: Path) -> None:
    """What processes that are no more have left of their temporary siblings of a path."""
    for left in path.parent.glob(f".{escape(path.name)}.*.partial"):
        number = left.name.split(".")[-2]
        if not (number.isdecimal() and _lives(int(number))):
            with suppress(FileNotFoundError):  # another does the same
                _remove(left)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True


def sha256(file: Path) -> str:
    """The hash of a file's content, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def lines_of(opened: BufferedIOBase, file: str) -> Iterator[bytes]:
    """The lines of an open file with their ends. Raises UserError on one longer than LONGEST: it would have to be held
    in memory whole."""
    for number in count(1):
        line = opened.readline(LONGEST + 1)
        if len(line) > LONGEST:
            raise UserError(f"{file}:line {number}: longer than {LONGEST // 2**20} MB; break it into lines")
        if not line:
            return
        yield line


def holds_model(folder: Path) -> bool:
    """Whether a folder is a transformers model, or an adapter of one (peft)."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_rows(
    path: Path, rows: Sequence[Any], record: type[Any], notes: dict[str, Any] | None = None, *, each: bool = False
) -> None:
    """Write frozen dataclass rows as parquet, one column a field of `record`, deterministically.

    `notes` are about the whole table and have no row: JSON in its schema's metadata, which `read_notes` reads. `each`
    is as in `replacing`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(record)}
    metadata = {NOTES: json.dumps(notes, sort_keys=True, default=asdict)} if notes else None
    schema = _schema(record).with_metadata(metadata)
    with replacing(path, each=each) as temporary:
        pq.write_table(pa.table(columns, schema=schema), temporary)


def _schema(record: type[Any]) -> "pa.Schema":
    import pyarrow as pa

    return pa.schema([(field.name, _arrow_type(field.type)) for field in fields(record)])


def _arrow_type(kind: Any) -> Any:
    import pyarrow as pa

    return {
        str: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        float | None: pa.float64(),
        list[str]: pa.list_(pa.string()),
        list[float]: pa.list_(pa.float64()),
        list[int]: pa.list_(pa.int64()),
        list[list[str]]: pa.list_(pa.list_(pa.string())),
        list[list[float]]: pa.list_(pa.list_(pa.float64())),
    }[kind]


def read_rows(path: Path, record: type[Record], *, gaps: bool = False, filters: Any = None) -> list[Record]:
    """Read a table that `write_rows` wrote. Raises UserError if it is missing, damaged or of another shape; also where
    a value is null that may not be unknown, unless `gaps` are what the caller looks for. `filters` as pyarrow takes
    them: rows that they leave out are not made."""
    table = read_table(path, record, filters=filters)
    kinds = {field.name: field.type for field in fields(cast("Any", record))}
    if not gaps and (gap := next((n for n in kinds if kinds[n] != float | None and _has_gap(table[n])), None)):
        raise UserError(f"{path}: column {gap} has nulls; run `{_maker(path)}` to remake it")
    return [record(**row) for row in table.to_pylist()]


def read_table(path: Path, record: type[Any], **how: Any) -> "pa.Table":
    """The same as columns of the types that `write_rows` gives them; `how` is what pyarrow's read_table takes, such as
    filters or a part of the columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _reading(path, "parquet", _maker(path), "table"):
        schema = _schema(record)
        if (names := pq.read_schema(path).names) != schema.names:
            raise UserError(f"{path}: columns are {names}, expected {schema.names}; run `{_maker(path)}` to remake it")
        table = pq.read_table(path, **how)
        table = table.cast(pa.schema([schema.field(name) for name in table.column_names]))
        table.validate(full=True)  # texts are UTF-8, and lists begin and end inside their column
        return table


def _has_gap(values: Any) -> bool:
    """Whether something is null in a column, or in its lists."""
    import pyarrow as pa

    return values.null_count > 0 or (pa.types.is_list(values.type) and any(map(_has_gap, _inner(values))))


def _inner(values: Any) -> Iterator[Any]:
    return (chunk.flatten() for chunk in getattr(values, "chunks", [values]))


def _maker(path: Path) -> str:
    """The command that makes a file: what others made is no output of a stage."""
    return "sae-explainer import FILE" if path.parent.name == "imported" else "dvc repro"


@contextmanager
def _reading(path: Path, form: str, maker: str = "dvc repro", what: str = "file") -> Generator[None, None, None]:
    """Whatever a reader ends with on a file that is missing, damaged or no such file, as one line that says how it is
    made."""
    from safetensors import SafetensorError

    try:
        if not path.is_file():  # what pipes hold comes late, or never
            raise UserError(f"{path}: no such {what}; run `{maker}` to make it")
        yield
    except (*DAMAGED, SafetensorError) as error:
        why = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise UserError(f"{path}: not {form} that can be read ({why}); run `{maker}` to remake it") from None


def read_notes(path: Path) -> dict[str, Any]:
    """The notes of a table that `write_rows` wrote; empty where it has none. Raises UserError if it is missing or
    damaged."""
    import pyarrow.parquet as pq

    with _reading(path, "parquet", _maker(path), "table"):
        notes = json.loads((pq.read_schema(path).metadata or {}).get(NOTES.encode(), b"{}"))
        if not isinstance(notes, dict):
            raise TypeError(f"its notes are {notes!r}")
        return notes


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file with sorted keys; dataclasses are welcome."""
    with replacing(path) as temporary:
        text = json.dumps(value, indent=2, sort_keys=True, default=asdict, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError if it is missing or broken."""
    with _reading(path, "JSON"):
        return json.loads(path.read_text(encoding="utf-8"))


def write_tensors(path: Path, tensors: "dict[str, torch.Tensor]", *, each: bool = False) -> None:
    """Write named tensors as safetensors; `each` is as in `replacing`."""
    from safetensors.torch import save_file

    with replacing(path, each=each) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


class _Tensors(dict[str, "torch.Tensor"]):
    """Of one file, which a name that it lacks is the user's mistake about."""

    def __init__(self, path: Path) -> None:
        from safetensors.torch import load_file

        super().__init__(load_file(path))
        self.path = path

    def __missing__(self, name: str) -> NoReturn:
        raise UserError(f"{self.path}: holds no tensor {name}; run `dvc repro` to remake it")


def read_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """Read named tensors. Raises UserError if the file is missing or damaged, and later where a name is asked for that
    it does not have."""
    with _reading(path, "safetensors"):
        return _Tensors(path)
