"""How figures are written, wherever people read them: tables in markdown, metrics in words, intervals in percent.

An interval is {"value", "low", "high"} as the JSON files keep it, or None where it is unknown.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from saeexplainer.figures.comparison import LOWER_IS_BETTER

DASH = "–"  # what is unknown, or does not apply
# What markdown, its tables, its formulas and the HTML in it are made of; an underscore inside a word is only itself.
MARKUP = re.compile(r"[\\`*{}\[\]()<>#|~$!&]|(?<!\w)_|_(?!\w)")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, figures to the right."""
    alignment = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, alignment, *rows))


def literal(text: str) -> str:
    """A name or a message as markdown that shows it as it is, on one line, in a table too."""
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of plain text, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in rows
    ]


def words(metric: str) -> str:
    """A metric's name in a sentence."""
    return metric.replace("_", " ")


def heading(metric: str) -> str:
    """A metric's name with the direction in which it is better."""
    return f"{words(metric)} {'↓' if metric in LOWER_IS_BETTER else '↑'}"


def percent(interval: Mapping[str, Any] | None) -> str:
    """A share with its interval, in percent."""
    return DASH if interval is None else "{:.1f} ({:.1f} to {:.1f})".format(*_hundredfold(interval))


def short(interval: Mapping[str, Any] | None) -> str:
    """A share in percent, without its interval."""
    return DASH if interval is None else f"{100 * interval['value']:.1f}"


def points(interval: Mapping[str, Any] | None) -> str:
    """A difference with its interval, in percentage points."""
    return DASH if interval is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*_hundredfold(interval))


def bold(interval: Mapping[str, Any] | None) -> str:
    """As `points`; bold where the interval leaves zero out."""
    decided = interval is not None and (interval["low"] > 0 or interval["high"] < 0)
    return f"**{points(interval)}**" if decided else points(interval)


def change(metric: str, difference: Mapping[str, Any]) -> str:
    """Text such as "generative accuracy +31.7 points (+26.7 to +37.1)"."""
    value, low, high = (f"{number:+.1f}" for number in _hundredfold(difference))
    return f"{words(metric)} {value} points ({low} to {high})"


def _hundredfold(interval: Mapping[str, Any]) -> list[float]:
    return [100 * interval[end] for end in ("value", "low", "high")]


def runs(count: int) -> str:
    """How many, in words."""
    return f"{count} run{'' if count == 1 else 's'}"


def plain(value: float | int | None, form: str) -> str:
    """A number without an interval."""
    return DASH if value is None else format(value, form)


def held_out(comparison: Mapping[str, Any]) -> str:
    """How many features the figures of a comparison are over."""
    counts = sorted({interval["n"] for found in comparison["rounds"].values() for interval in found.values()})
    if not counts:
        return "no features"
    return " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1]))) + " held-out features"
