"""Files of feature records: JSON or JSON lines, compressed with gzip or not."""

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

from saeexplainer.errors import UserError
from saeexplainer.exchange import records as exchange_records
from saeexplainer.records import FeatureRecord
from saeexplainer.runs.storage import lines_of, replacing

GZIP = b"\x1f\x8b"  # how such a file begins, whatever its name: a browser may have unpacked it


def read_records(path: Path | str) -> list[FeatureRecord]:
    """The feature records of one file, in order (docs/EXCHANGE.md has the fields).

    The file has one JSON object a line, or it is one JSON array of them; it may be compressed with gzip. Both the shape
    that `write_records` writes and Neuronpedia's own are read. Raises UserError, one line that begins with the file and
    the number of the line or record, if something in it is no record.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            is_gzip = opened.peek(len(GZIP)).startswith(GZIP)
            with gzip.open(opened) if is_gzip else opened as unpacked:
                return exchange_records.read(lines_of(unpacked, str(file)), str(file))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file}: gzip that is damaged or cut short ({error}); download it again") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give a file of JSON or JSON lines") from None


def write_records(path: Path | str, records: Sequence[FeatureRecord]) -> None:
    """Write feature records as JSON lines, which `read_records` reads back. The file appears whole or not at all, and
    takes the place of one that is there. Raises UserError if it cannot be written."""
    to = Path(path)
    try:
        with replacing(to.absolute()) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(exchange_records.to_lines(records))
    except OSError as error:
        raise UserError(f"{to}: cannot be written ({error.strerror}); choose another place") from None
