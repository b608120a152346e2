"""The rounds at a glance: comparison.json as tables, one headline and the geometry of a chart; pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from saeexplainer.figures.comparison import (
    ACCURACY,
    COLLISION,
    HALLUCINATION,
    LOWER_IS_BETTER,
    chain_of,
    direction,
    metrics_of,
    subtractions,
)
from saeexplainer.figures.notation import DASH, words

# What a metric says, for people who meet it here first.
MEANING = {
    ACCURACY: "texts that make the feature fire",
    HALLUCINATION: "features that no text makes fire",
    COLLISION: "features that another one drowns out",
    "mean_activation": "mean activation, of the feature's maximum",
    "truth_agreement": "explanations that name the concept that fits best",
    "truth_f1": "overlap of explanation and firing",
}
# The chart's own units: a panel is WIDTH wide, its axis runs from LEFT to WIDTH - RIGHT.
WIDTH, LEFT, RIGHT, ROW, TOP, BOTTOM = 360, 92, 44, 24, 10, 26


@dataclass(frozen=True)
class Cell:
    """One interval as the tables show it."""

    value: str  # "42.1", DASH where it is unknown
    interval: str  # "36.9 to 47.6"; empty where it is unknown
    sure: bool = False  # whether the interval of a difference leaves zero out
    good: bool = False  # whether a sure difference is for the better


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    name: str
    cells: list[Cell]  # one a metric


@dataclass(frozen=True)
class Point:
    """One evaluation in a panel, in the chart's units."""

    name: str
    y: float
    x: float  # the value
    low: float  # ends of the interval
    high: float
    label: str  # "42.1"
    trained: bool  # of the chain of training; the others are baselines


@dataclass(frozen=True)
class Panel:
    """One metric."""

    title: str
    meaning: str
    lower_is_better: bool
    points: list[Point]
    path: str  # "x,y x,y ...": the chain of training, joined
    ticks: list[tuple[float, str]]  # x and its label
    height: int


def results(comparison: Mapping) -> list[Line]:
    """One line an evaluation, in percent."""
    metrics = metrics_of(comparison)
    return [Line(name, [_percent(found.get(m)) for m in metrics]) for name, found in comparison["rounds"].items()]


def differences(comparison: Mapping) -> list[Line]:
    """One line a difference, in percentage points."""
    metrics = metrics_of(comparison)
    found = comparison["differences"]
    return [
        Line(f"{a} − {b}", [_points(found[f"{a}-{b}"].get(metric), metric) for metric in metrics])
        for a, b in subtractions(comparison)
    ]


def _percent(interval: Mapping | None) -> Cell:
    if interval is None:
        return Cell(DASH, "")
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return Cell(f"{value:.1f}", f"{low:.1f} to {high:.1f}")


def _points(interval: Mapping | None, metric: str) -> Cell:
    if interval is None:
        return Cell(DASH, "")
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    way = direction(metric, interval)
    return Cell(_signed(value), f"{_signed(low)} to {_signed(high)}", sure=way != 0, good=way > 0)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def headline(comparison: Mapping) -> str:
    """One sentence: the last round against its start, by generative accuracy; empty without a round."""
    chain, metric = chain_of(comparison), ACCURACY
    if len(chain) < 2:
        return ""
    first, last = chain[0], chain[-1]
    rounds, difference = comparison["rounds"], comparison["differences"].get(f"{last}-{first}", {}).get(metric)
    if difference is None or first not in rounds:
        return ""
    cell = _points(difference, metric)
    ends = [_percent(rounds[name][metric]).value for name in (last, first)]
    doubt = "" if cell.sure else ", an interval that holds zero"
    return (
        f"Texts written from {last}'s explanations make the feature fire {ends[0]} % of the time, from {first}'s "
        f"{ends[1]} %: {cell.value} points ({cell.interval}){doubt}."
    )


def panels(comparison: Mapping) -> list[Panel]:
    """The chart: a panel a metric, a row an evaluation, a bar from low to high; each axis begins at zero."""
    return [_panel(comparison, metric) for metric in metrics_of(comparison)]


def _panel(comparison: Mapping, metric: str) -> Panel:
    names = list(comparison["rounds"])
    chain = chain_of(comparison)
    known = {name: found[metric] for name, found in comparison["rounds"].items() if metric in found}
    top = max([interval["high"] for interval in known.values()] + [0.0])
    step = _step(100 * top)
    limit = step * max(1.0, math.ceil(round(100 * top / step, 6)))  # the first tick at or past the highest end

    def at(percent: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * percent / limit, 2)

    points = [
        Point(
            name,
            TOP + ROW * (names.index(name) + 0.5),
            *(at(100 * interval[key]) for key in ("value", "low", "high")),
            f"{100 * interval['value']:.1f}",
            name in chain,
        )
        for name, interval in known.items()
    ]
    path = " ".join(f"{point.x},{point.y}" for point in points if point.trained)
    ticks = [(at(step * count), f"{step * count:g}") for count in range(round(limit / step) + 1)]
    height = TOP + ROW * len(names) + BOTTOM
    return Panel(words(metric), MEANING.get(metric, ""), metric in LOWER_IS_BETTER, points, path, ticks, height)


def _step(highest: float) -> float:
    """Percent between ticks, so that there are two to five of them."""
    return next((step for step in (1.0, 2.0, 5.0, 10.0, 20.0) if highest <= 5 * step), 25.0)
