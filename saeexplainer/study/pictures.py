"""The pictures of the plans' pages, from their JSON alone; the same bytes each time."""

from pathlib import Path
from typing import Any

from saeexplainer.figures import pictures
from saeexplainer.figures.comparison import ACCURACY, BASELINE, HALLUCINATION, START
from saeexplainer.figures.notation import words
from saeexplainer.study.figures import SEEDS, THE_LAST, group_of, ordered, rounds_of
from saeexplainer.study.saes import LAST


def plot_seeds(study: dict[str, Any], path: Path) -> None:
    """Every evaluation of every seed, a panel a metric; training's own steps are joined."""
    seeds = {name: found["evaluations"] for name, found in group_of(study, SEEDS).items()}
    names = ordered(list(dict.fromkeys(name for evaluations in seeds.values() for name in evaluations)))
    figure, (left, right) = pictures.figure_of(10.0, 3.8, 2)
    for axes, metric in ((left, ACCURACY), (right, HALLUCINATION)):
        for number, (seed, evaluations) in enumerate(seeds.items()):
            shift = 0.14 * (number - (len(seeds) - 1) / 2)  # side by side, so that no interval hides another
            places = {name: names.index(name) + shift for name in evaluations}
            colour = pictures.COLOURS[number % len(pictures.COLOURS)]
            intervals = [found[metric] for found in evaluations.values()]
            pictures.error_bars(axes, list(places.values()), intervals, colour, label=seed)
            chain = [name for name in (START, *rounds_of(evaluations)) if name in evaluations]
            heights = [100 * evaluations[name][metric]["value"] for name in chain]
            axes.plot([places[name] for name in chain], heights, color=colour, linewidth=1.4)
        axes.set_xticks(range(len(names)), [words(name) for name in names], rotation=25, ha="right")
        pictures.dress(axes, pictures.title_of(metric))
    if any(seeds.values()):
        left.legend(frameon=False, fontsize=8)
    pictures.save(figure, path)


def plot_labels(study: dict[str, Any], path: Path) -> None:
    """Left what labels, sft and the last round are worth by labeller, poor labels first; right the gain by the labels'
    worth."""
    rows = [row for row in study["labels"] if row["open_loop"] and row["gain"]]
    figure, (left, right) = pictures.figure_of(10.0, 3.6, 2)
    last = study["last"]
    colours = {BASELINE: pictures.BASELINE_GREY, START: pictures.COLOURS[1], THE_LAST: pictures.COLOURS[0]}
    for number, (key, colour) in enumerate(colours.items()):
        places = [at + 0.1 * (number - 1) for at in range(len(rows))]
        pictures.error_bars(
            left, places, [row[key] for row in rows], colour, label=words(last if key == THE_LAST else key)
        )
    left.set_xticks(range(len(rows)), [row["variant"] for row in rows], rotation=25, ha="right")
    pictures.dress(left, "generative accuracy, %")
    worth, gains = [100 * row[BASELINE]["value"] for row in rows], [row["gain"] for row in rows]
    pictures.error_bars(right, worth, gains, pictures.COLOURS[0])
    for row in rows:
        place = (100 * row[BASELINE]["value"], 100 * row["gain"]["value"])
        right.annotate(row["variant"], place, xytext=(6, 4), textcoords="offset points", fontsize=8)
    right.axhline(0, color="#444444", linewidth=0.8)
    right.margins(x=0.08)  # room for the names beside the points
    gain = f"gain of the rounds, percentage points ({last} − {START})"
    pictures.dress(right, gain, "generative accuracy of the labels, %")
    if rows:
        left.legend(frameon=False, fontsize=8)
    pictures.save(figure, path)


def plot_saes(found: dict[str, Any], path: Path) -> None:
    """Left the SAEs whose features were explained, worst first; right the labels of TopK's by L0, if it was swept."""
    groups = {name: one["explained"] for name, one in found["groups"].items()}
    reached = {name: one[LAST][ACCURACY]["value"] for name, one in groups.items() if one[LAST][ACCURACY]}
    names = sorted(reached, key=reached.__getitem__)
    sweep = found["elbow"]
    figure, (left, *right) = pictures.figure_of(10.0, 3.6, 2 if sweep else 1)
    colours = {BASELINE: pictures.BASELINE_GREY, START: pictures.COLOURS[1], LAST: pictures.COLOURS[0]}
    for number, (key, colour) in enumerate(colours.items()):
        known = {
            at + 0.1 * (number - 1): interval
            for at, name in enumerate(names)
            if (interval := groups[name][key][ACCURACY])
        }
        said = "the last round" if key == LAST else words(key)
        pictures.error_bars(left, list(known), list(known.values()), colour, label=said)
    left.set_xticks(range(len(names)), names, rotation=25, ha="right")
    pictures.dress(left, pictures.title_of(ACCURACY))
    left.legend(frameon=False, fontsize=8)
    for axes in right:
        points = [one for one in sweep["points"] if groups[one["group"]][BASELINE][ACCURACY]]
        labels = [groups[one["group"]][BASELINE][ACCURACY] for one in points]
        places = [one["l0"] for one in points]
        pictures.error_bars(axes, places, labels, pictures.BASELINE_GREY, label="labels")
        axes.set_xscale("log")
        axes.set_xticks(places, [f"{place:.0f}" for place in places])
        axes.minorticks_off()
        if sweep["l0"] is not None:
            axes.axvline(sweep["l0"], color="#444444", linewidth=0.8, linestyle="--", label="elbow of c_dec")
        pictures.dress(axes, pictures.title_of(ACCURACY), "L0 of TopK")
        axes.legend(frameon=False, fontsize=8)
    pictures.save(figure, path)
