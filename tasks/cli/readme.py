"""Write what was measured into README.md and the pages beside it: `sae-explainer readme`.

The text between `<!-- WHAT:NAME:start -->` and `<!-- WHAT:NAME:end -->` is replaced by what is known of experiment
NAME:
`headline` and `results` are tables of its comparison, `example` is a feature that the rounds mended, `examples` are
three. The comparison is
reports/comparison.json if params.yaml is that experiment, else docs/results/NAME.json, kept from an earlier run. An
example needs data/. A block that cannot be filled here stays as it is.
"""

import re
import sys
from pathlib import Path

from saeexplainer.errors import UserError
from saeexplainer.features.contexts import listed
from saeexplainer.figures.comparison import chain_of
from saeexplainer.records import ContextRow, EvaluationRow, by_feature
from saeexplainer.reports.tables import headline_table, results_table
from saeexplainer.runs.storage import read_json, read_rows, replacing
from tasks.places import COMPARISON, EVALUATIONS
from tasks.settings import params
from tasks.workspace import surroundings
from tasks.workspace.markdown import literal
from tasks.workspace.printable import failed

PAGES = (Path("README.md"), Path("docs/results/README.md"))
CONTEXTS = Path("data/activations/contexts.parquet")
KEPT = Path("docs/results")
SHOWN = 3  # contexts of an example
MENDED = (0.1, 0.9)  # generative accuracy at the start of training, at most, and after the last round, at least
_MARK = re.compile(r"<!-- ([a-z]+:[\w.-]+):(start|end) -->")


def fill(text: str, blocks: dict[str, str]) -> str:
    """`text` with every block of `blocks` ("results:sandbox") replaced. Raises UserError on a start without its end."""
    marks = list(_MARK.finditer(text))
    starts, ends = marks[::2], marks[1::2]
    paired = len(starts) == len(ends) and all(
        (start[2], end[2], start[1]) == ("start", "end", end[1]) for start, end in zip(starts, ends, strict=True)
    )
    if not paired:
        raise UserError("README: markers must come as pairs results:NAME:start, results:NAME:end that do not overlap")
    pieces, position = [], 0
    for start, end in zip(starts, ends, strict=True):
        if start[1] in blocks:
            pieces += [text[position : start.end()], f"\n{blocks[start[1]].strip()}\n"]
            position = end.start()
    return "".join([*pieces, text[position:]])


def measured() -> dict[str, str]:
    """Every block that can be filled from what is on disk."""
    comparisons = {path.stem: read_json(path) for path in sorted(KEPT.glob("*.json"))}
    blocks = {}
    if COMPARISON.is_file():
        name = params.load().compare_rounds.experiment
        comparisons[name] = read_json(COMPARISON)
        if CONTEXTS.is_file() and EVALUATIONS.is_dir():
            blocks[f"example:{name}"] = examples(comparisons[name], 1)
            blocks[f"examples:{name}"] = examples(comparisons[name], 3)
    for name, comparison in comparisons.items():
        blocks[f"headline:{name}"] = headline_table(comparison)
        blocks[f"results:{name}"] = results_table(comparison)
    return blocks


def examples(comparison: dict, count: int) -> str:
    """The first features that the rounds mended, and where these are few those that gained most beside them, with their
    contexts and what each evaluation said of them and caused.

    They are of one kind, so the text says how many were mended and how many went the other way.
    """
    chain = chain_of(comparison)
    names = [name for name in comparison["rounds"] if name not in chain] + chain
    tables = {
        name: {row.feature_id: row for row in read_rows(EVALUATIONS / f"{name}.parquet", EvaluationRow)}
        for name in names
    }
    accuracy = {name: {key: row.generative_accuracy for key, row in table.items()} for name, table in tables.items()}
    first, last = accuracy[chain[0]], accuracy[chain[-1]]
    low, high = MENDED
    mended = [key for key in first if first[key] <= low and last[key] >= high]
    spoiled = [key for key in first if first[key] >= high and last[key] <= low]
    gained = [key for key in first if last[key] > first[key] and key not in mended]
    mended.sort(key=_number)
    shown = [*mended, *sorted(gained, key=lambda key: (first[key] - last[key], _number(key)))][:count]
    if not shown:
        return "No feature was mended by the rounds."
    contexts = by_feature(read_rows(CONTEXTS, ContextRow))
    lines = []
    for key in shown:
        which = "Another" if lines else "One"
        lines += [f"**{which} feature.** `{key}`, which no training saw, fires hardest on the marked words:", ""]
        lines += [f"    {line}" for line in listed(contexts[key], SHOWN)[key].splitlines()]
        lines += ["", "| | explanation | texts that make it fire | one of them |", "|---|---|---:|---|"]
        lines += [*(_told(name, tables[name][key]) for name in names), ""]
    rest = " The others above gained most of the rest." if len(mended) < len(shown) else ""
    lines.append(
        f"{len(mended)} of {len(first)} features went from at most {low:.0%} of their texts to at least {high:.0%}, "
        f"{len(spoiled)} the other way.{rest}"
    )
    return "\n".join(lines)


def _number(feature_id: str) -> int:
    return int(feature_id.rpartition("/")[2])


def _told(name: str, row: EvaluationRow) -> str:
    """A line of the example's table."""
    fired = round(row.generative_accuracy * len(row.texts))
    best = max(zip(row.activations, row.texts, strict=True), default=(0.0, ""))[1]
    said, wrote = literal(row.explanation or "(nothing)"), literal(best)
    return f"| `{name}` | {said} | {fired} of {len(row.texts)} | {wrote} |"


def main() -> int:
    """Fill the pages; the exit status."""
    surroundings.settle()
    try:
        if not PAGES[0].is_file():
            raise UserError(f"{PAGES[0]}: no such file; run this in the repository's root")
        blocks = measured()
        texts = {path: path.read_text(encoding="utf-8") for path in PAGES if path.is_file()}
        filled = {path: fill(text, blocks) for path, text in texts.items()}
    except UserError as error:
        return failed(error)
    for path, text in texts.items():
        if filled[path] != text:
            with replacing(path) as temporary:
                temporary.write_text(filled[path], encoding="utf-8")
        for name in dict.fromkeys(mark[1] for mark in _MARK.finditer(text)):
            print(f"{path}: {name}: {'written' if name in blocks else 'not measured, left as it is'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
