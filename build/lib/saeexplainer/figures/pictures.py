"""What the pictures share: an empty figure, points with their intervals, plain axes, and the same bytes each time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeexplainer.figures.comparison import LOWER_IS_BETTER
from saeexplainer.figures.notation import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind-safe colours; baselines stay grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE_GREY = "#8A8A8A"


def figure_of(width: float, height: float, panels: int) -> tuple["Figure", list["Axes"]]:
    """A figure of so many inches with panels side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Figure, not pyplot: no global state and no window system.
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def error_bars(
    axes: "Axes", places: Sequence[float | int], found: Sequence[Mapping[str, Any]], colour: str, **style: Any
) -> None:
    """Points with their intervals, in percent, at these places of the x axis; `style` is that of `Axes.errorbar`."""
    centre = [100 * interval["value"] for interval in found]
    # Where all features agree, the ends can lie a rounding error inside the mean, which matplotlib refuses.
    below = [max(0.0, 100 * (interval["value"] - interval["low"])) for interval in found]
    above = [max(0.0, 100 * (interval["high"] - interval["value"])) for interval in found]
    shape: dict[str, Any] = {"markersize": 4.5, "capsize": 2.5, "linewidth": 1.2, "linestyle": "none"} | style
    axes.errorbar(places, centre, yerr=[below, above], marker="o", color=colour, **shape)


def title_of(metric: str) -> str:
    """A metric in percent, and in which direction it is better."""
    return f"{words(metric)}, % ({'lower' if metric in LOWER_IS_BETTER else 'higher'} is better)"


def dress(axes: "Axes", title: str, x: str = "") -> None:
    """A title, the name of the x axis, a grid to read heights by, and no frame."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=8.5)
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without this, matplotlib stamps its version into the file.
    figure.savefig(path, format="png", metadata={"Software": None})
