"""Write the measured tables into README.md: `python -m tasks.readme`.

The text between `<!-- results:NAME:start -->` and `<!-- results:NAME:end -->` is replaced by the tables of experiment
NAME: reports/comparison.json if params.yaml is that experiment, else docs/results/NAME.json, a comparison kept from an
earlier run. A block of an experiment that nobody measured stays as it is.
"""

import re
import sys
from pathlib import Path

from saeexplainer.errors import UserError
from saeexplainer.report import results_table
from saeexplainer.storage import read_json, replacing
from tasks import params as parameters

README = Path("README.md")
COMPARISON = Path("reports/comparison.json")
KEPT = Path("docs/results")
_MARK = re.compile(r"<!-- results:([\w.-]+):(start|end) -->")


def fill(text: str, tables: dict[str, str]) -> str:
    """`text` with the block of every experiment in `tables` replaced. Raises UserError on a start without its end."""
    marks = list(_MARK.finditer(text))
    starts, ends = marks[::2], marks[1::2]
    paired = len(starts) == len(ends) and all(
        (start[2], end[2], start[1]) == ("start", "end", end[1]) for start, end in zip(starts, ends, strict=True)
    )
    if not paired:
        raise UserError("README: results markers must come as pairs NAME:start, NAME:end that do not overlap")
    pieces, position = [], 0
    for start, end in zip(starts, ends, strict=True):
        if start[1] in tables:
            pieces += [text[position : start.end()], f"\n{tables[start[1]].strip()}\n"]
            position = end.start()
    return "".join([*pieces, text[position:]])


def measured() -> dict[str, str]:
    """The tables of every experiment that has a comparison on disk."""
    tables = {path.stem: results_table(read_json(path)) for path in sorted(KEPT.glob("*.json"))}
    if COMPARISON.is_file():
        tables[parameters.load().compare_rounds.experiment] = results_table(read_json(COMPARISON))
    return tables


def main() -> int:
    """Fill README.md; the exit status."""
    try:
        if not README.is_file():
            raise UserError(f"{README}: no such file; run this in the repository's root")
        text = README.read_text(encoding="utf-8")
        tables = measured()
        filled = fill(text, tables)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if filled != text:
        with replacing(README) as temporary:
            temporary.write_text(filled, encoding="utf-8")
    for name in dict.fromkeys(mark[1] for mark in _MARK.finditer(text)):
        print(f"{README}: {name}: {'written' if name in tables else 'not measured, left as it is'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
