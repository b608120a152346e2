"""What the study found, from the evaluations of its variants alone: figures, tables, pictures, and which targets hold.

`summarise` makes study.json; the page and the pictures are made from that and nothing else. Intervals are those of
`saeexplainer.comparison`: over features, paired where two evaluations are subtracted, and where seeds are pooled,
resampled inside each seed. A variant without figures stays in every list, with the reason.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saeexplainer.comparison import LOWER_IS_BETTER
from saeexplainer.report import BASELINE_GREY
from saeexplainer.study_figures import (
    ACCURACY,
    COMPLETE,
    POOLED,
    Variant,
    bold,
    both,
    described,
    difference,
    heading,
    mean,
    of_group,
    ordered,
    percent,
    plain,
    points,
    state,
    table,
    words,
)

# Groups with a section of their own. Seeds: what counts. Looked at: seeds seen on test while settings were chosen.
SEEDS, LOOKED_AT, CONTROL, LABELS = "seeds", "looked_at", "control", "labels"
HALLUCINATION = "hallucination_rate"
SHOWN = (ACCURACY, HALLUCINATION, "collision_rate", "truth_agreement", "truth_f1")
FIRST_DIFFERENCES = (("r1", "sft"), ("r2", "r1"), ("r2", "sft"))  # then the last round against all others
GAIN = "r2-sft"
WANTED_GAIN = 0.08  # mean difference in generative accuracy that the study asks for
CEILINGS = ("best_of_", "agent", "oracle")  # feedback at inference, or the truth: no trained explainer is asked to beat it
# Okabe and Ito's colour-blind-safe colours.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def summarise(variants: Sequence[Variant], resamples: int) -> dict[str, Any]:
    """The content of study.json; every interval is {"value", "low", "high", "n"} or, where unknown, null.

    Raises UserError where evaluations of one variant measure different features.
    """
    control = of_group(variants, CONTROL)
    study: dict[str, Any] = {
        "resamples": resamples,
        "variants": {variant.name: _described(variant, resamples) for variant in variants},
        "differences": {group: _differences(of_group(variants, group), resamples) for group in (SEEDS, LOOKED_AT)},
        "control": _by_metric(control, "r2", "sft", resamples),
        "labels": _label_quality(variants, resamples),
    }
    study["others"] = {
        variant.name: {metric: difference(both([variant], "r2", "sft"), metric, resamples) for metric in SHOWN}
        for variant in variants
        if variant.group not in (SEEDS, LOOKED_AT, CONTROL, LABELS)
    }
    return study | {"targets": list(_targets(study))}


def _described(variant: Variant, resamples: int) -> dict[str, Any]:
    """All that is kept of a variant: its fields, with an interval of each metric in place of the rows."""
    evaluations = {
        name: {metric: mean([variant.evaluations[name]], metric, resamples) for metric in SHOWN}
        for name in ordered(variant.evaluations)
    }
    return described(variant) | {"evaluations": evaluations}


def _differences(variants: Sequence[Variant], resamples: int) -> dict[str, Any]:
    return {f"{a}-{b}": _by_metric(variants, a, b, resamples) for a, b in _subtractions(variants)}


def _subtractions(variants: Sequence[Variant]) -> list[tuple[str, str]]:
    names = list(dict.fromkeys(name for variant in variants for name in variant.evaluations))
    against = [("r2", name) for name in ordered(names) if name != "r2"]
    return list(dict.fromkeys([*FIRST_DIFFERENCES, *against]))


def _by_metric(variants: Sequence[Variant], a: str, b: str, resamples: int) -> dict[str, dict[str, Any]]:
    """metric -> variant or "pooled" -> interval of a - b."""
    return {
        metric: {variant.name: difference(both([variant], a, b), metric, resamples) for variant in variants}
        | {POOLED: difference(both(variants, a, b), metric, resamples)}
        for metric in SHOWN
    }


def _label_quality(variants: Sequence[Variant], resamples: int) -> list[dict[str, Any]]:
    """A row for each variant of the group and for those they come from, from the poorest labels to the best."""
    group = of_group(variants, LABELS)
    sources = {variant.source for variant in group}
    rows = []
    for variant in [other for other in variants if other.name in sources] + group:
        means = {
            name: mean([variant.evaluations[name]], ACCURACY, resamples) if name in variant.evaluations else None
            for name in ("open_loop", "sft", "r2")
        }
        gain = difference(both([variant], "r2", "sft"), ACCURACY, resamples)
        row = {"variant": variant.name, "status": variant.status, "contexts": variant.contexts}
        rows.append(row | means | {"gain": gain})
    return sorted(rows, key=lambda row: row["open_loop"]["value"] if row["open_loop"] else math.inf)


def _targets(study: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """{"target", "reached": true, false or null for open, "detail"} of each thing that the study set out to show."""
    accuracy = {key: found[ACCURACY] for key, found in study["differences"][SEEDS].items()}
    hallucination = study["differences"][SEEDS][GAIN][HALLUCINATION]
    yield _in_every_seed("r2 is above sft beyond its interval in every seed", accuracy[GAIN], _above_zero)
    yield _over_all_seeds(
        f"r2 is at least {100 * WANTED_GAIN:.0f} points above sft, seeds pooled",
        accuracy[GAIN],
        lambda found: found["value"] >= WANTED_GAIN,
    )
    against_labels = accuracy.get("r2-open_loop", {})
    yield _over_all_seeds("r2 is above open_loop beyond the interval, seeds pooled", against_labels, _above_zero)
    yield _over_all_seeds("r1 is above sft beyond the interval, seeds pooled", accuracy["r1-sft"], _above_zero)
    yield _over_all_seeds(
        "r2 is not below r1 beyond the interval, seeds pooled", accuracy["r2-r1"], lambda found: found["high"] >= 0
    )
    yield _over_all_seeds(
        "hallucination falls from sft to r2 beyond the interval, seeds pooled",
        hallucination,
        lambda found: found["high"] < 0,
    )
    yield _in_every_seed(
        "hallucination rises from sft to r2 beyond its interval in no seed",
        hallucination,
        lambda found: found["low"] <= 0,
    )
    yield _over_all_seeds(
        "control: with shuffled rewards r2 is not above sft beyond the interval, pooled",
        study["control"][ACCURACY],
        lambda found: not _above_zero(found),
    )
    yield _above_all_others(accuracy)


def _above_zero(found: dict[str, Any]) -> bool:
    return found["low"] > 0


def _target(target: str, reached: bool | None, detail: str) -> dict[str, Any]:
    return {"target": target, "reached": reached, "detail": detail}


def _in_every_seed(
    target: str, found: Mapping[str, Any], holds: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """One seed that fails settles it; one that is missing leaves it open."""
    by_seed = {name: interval for name, interval in found.items() if name != POOLED}
    verdicts = [None if interval is None else holds(interval) for interval in by_seed.values()]
    reached = False if False in verdicts else None if None in verdicts or not verdicts else True
    detail = ", ".join(f"{name} {points(interval)}" for name, interval in by_seed.items())
    return _target(target, reached, detail or "no seeds")


def _over_all_seeds(
    target: str, found: Mapping[str, Any], holds: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Open until every variant of the pool has its figures."""
    members = [interval for name, interval in found.items() if name != POOLED]
    there = sum(interval is not None for interval in members)
    pooled = found.get(POOLED)
    missing = f", {there} of {len(members)} runs" if there < len(members) else ""
    reached = holds(pooled) if pooled is not None and not missing else None
    return _target(target, reached, points(pooled) + missing)


def _above_all_others(accuracy: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """By the mean: a round may be as good as the one before."""
    rivals = {key: found for key, found in accuracy.items() if key.startswith("r2-")}
    rivals = {key: found for key, found in rivals.items() if not key.removeprefix("r2-").startswith(CEILINGS)}
    target = "r2 has the highest mean of all that have neither feedback at inference nor the truth, seeds pooled"
    judged = [_over_all_seeds(target, found, lambda found: found["value"] > 0) for found in rivals.values()]
    verdicts = [one["reached"] for one in judged]
    reached = False if False in verdicts else None if None in verdicts or not verdicts else True
    return _target(target, reached, ", ".join(f"{key} {one['detail']}" for key, one in zip(rivals, judged)))


def has_labels(study: dict[str, Any]) -> bool:
    """Whether any point of the label curve was measured; else there is nothing to draw."""
    return any(row["gain"] for row in study["labels"])


def target_lines(study: dict[str, Any]) -> list[str]:
    """The verdicts, one a line."""
    words = {True: "reached", False: "NOT reached", None: "open"}
    return [f"{words[one['reached']]}: {one['target']} ({one['detail']})" for one in study["targets"]]


def page(study: dict[str, Any]) -> str:
    """docs/STUDY.md."""
    sections = [
        "<!-- Written by `python -m tasks.study`; what is edited here is lost. -->",
        "# The study",
        "Written by `make study` from the runs that conf/study.yaml lists; the same figures are in study.json. Shares "
        "are percent, differences percentage points, both with 95 % bootstrap intervals over held-out features "
        f"({study['resamples']:,} resamples). Differences are paired by feature; pooled ones are resampled inside each "
        "seed. Bold: the interval leaves zero out.",
        "## Reached or not",
        "\n".join(f"- {line}" for line in target_lines(study)),
        "## Runs",
        _runs(study),
        "## Seeds",
        _whose_figures_count(study),
        "![generative accuracy and hallucination rate of every seed](study_seeds.png)",
        *_seed_tables(study, SEEDS),
        "## Differences between rounds",
        *_difference_tables(study, SEEDS),
        *_looked_at(study),
        "## Control: shuffled rewards",
        "Rewards are permuted among the candidates of each feature before the pairs are built; all else is the same.",
        _control_table(study),
        "## The gain and the quality of the labels",
        "From poor labels to clean ones (conf/study.yaml says what each labeller does); open_loop is what they are worth.",
        *["![gain over the generative accuracy of the labels](study_labels.png)"] * has_labels(study),
        _labels_table(study),
        *_others(study),
    ]
    return "\n\n".join(sections) + "\n"


def _whose_figures_count(study: dict[str, Any]) -> str:
    fresh, seen = (", ".join(f"`{name}`" for name in _group(study, group)) or "none" for group in (SEEDS, LOOKED_AT))
    return (
        f"Nobody looked at these seeds while settings were being chosen: {fresh}. Settings were chosen after some of "
        f"these were seen on test, so they stand apart and no target counts them: {seen}."
    )


def _runs(study: dict[str, Any]) -> str:
    """Every variant: whether it ran, its subject, its SAE, and what it cost."""
    header = [
        "run", "group", "state", "seed", "label contexts", "subject's loss", "entropy floor",
        "SAE: variance unexplained", "L0", "dead", "cross-entropy recovered", "seconds", "of them its own",
    ]  # fmt: skip
    rows = []
    for name, found in study["variants"].items():
        subject, sae = found["subject"] or {}, found["sae"] or {}
        figures = [
            plain(subject.get("loss"), ".3f"),
            plain(subject.get("entropy_floor"), ".3f"),
            plain(sae.get("fraction_variance_unexplained"), ".3f"),
            plain(sae.get("l0"), ".1f"),
            plain(sae.get("dead_features"), ","),
            plain(sae.get("cross_entropy_recovered"), ".3f"),
            plain(found["seconds"], ",.0f"),
            plain(found["own_seconds"], ",.0f"),
        ]
        numbers = [plain(found["seed"], ""), plain(found["contexts"], "")]
        rows.append([f"`{name}`", found["group"], state(found), *numbers, *figures])
    return table(header, rows)


def _looked_at(study: dict[str, Any]) -> Iterator[str]:
    """The seeds that confirm nothing, where there are any, apart from those that do."""
    if _group(study, LOOKED_AT):
        yield "## Seeds that were looked at before"
        yield from _seed_tables(study, LOOKED_AT)
        yield "## Differences between rounds, seeds that were looked at before"
        yield from _difference_tables(study, LOOKED_AT)


def _seed_tables(study: dict[str, Any], group: str) -> Iterator[str]:
    for name, found in _group(study, group).items():
        yield f"### {name}"
        yield _evaluations_table(found)


def _group(study: dict[str, Any], group: str) -> dict[str, Any]:
    return {name: found for name, found in study["variants"].items() if found["group"] == group}


def _evaluations_table(found: dict[str, Any]) -> str:
    if found["status"] != COMPLETE:
        return f"No figures: {found['status']}."
    rows = [
        [f"`{name}`", *(percent(metrics[metric]) for metric in SHOWN), f"{metrics[ACCURACY]['n']:,}"]
        for name, metrics in found["evaluations"].items()
    ]
    return table(["explanations", *map(heading, SHOWN), "features"], rows)


def _difference_tables(study: dict[str, Any], group: str) -> Iterator[str]:
    seeds = list(_group(study, group))
    for metric in SHOWN:
        rows = [
            [f"`{key.replace('-', ' − ')}`", *(bold(found[metric][name]) for name in [*seeds, POOLED])]
            for key, found in study["differences"][group].items()
        ]
        yield f"### {heading(metric)}"
        yield table(["difference", *seeds, POOLED], rows)


def _control_table(study: dict[str, Any]) -> str:
    names = [*_group(study, CONTROL), POOLED]
    rows = [
        [name, *(bold(study["control"][metric][name]) for metric in SHOWN), _state(study, name)] for name in names
    ]
    return table(["r2 − sft", *map(heading, SHOWN), "state"], rows)


def _state(study: dict[str, Any], name: str) -> str:
    return study["variants"][name]["status"] if name in study["variants"] else ""


def _labels_table(study: dict[str, Any]) -> str:
    rows = [
        [
            f"`{row['variant']}`", plain(row["contexts"], ""),
            *(percent(row[name]) for name in ("open_loop", "sft", "r2")), bold(row["gain"]), row["status"],
        ]
        for row in study["labels"]
    ]  # fmt: skip
    return table(["run", "label contexts", "open_loop", "sft", "r2", "r2 − sft", "state"], rows)


def _others(study: dict[str, Any]) -> Iterator[str]:
    """A table for every variant of a group that has no section of its own."""
    for name, gain in study["others"].items():
        found = study["variants"][name]
        yield f"## {found['group']}: {name}"
        yield _evaluations_table(found)
        if gain[ACCURACY] is not None:
            yield "r2 − sft: " + ", ".join(f"{words(metric)} {bold(gain[metric])}" for metric in SHOWN)


def plot_seeds(study: dict[str, Any], path: Path) -> None:
    """Every evaluation of every seed, a panel a metric; training's own steps are joined. The same bytes each time."""
    seeds = {name: found["evaluations"] for name, found in _group(study, SEEDS).items()}
    names = ordered(list(dict.fromkeys(name for evaluations in seeds.values() for name in evaluations)))
    figure, (left, right) = _figure_of(10.0, 3.8, 2)
    for axes, metric in ((left, ACCURACY), (right, HALLUCINATION)):
        for number, (seed, evaluations) in enumerate(seeds.items()):
            shift = 0.14 * (number - (len(seeds) - 1) / 2)  # side by side, so that no interval hides another
            places = {name: names.index(name) + shift for name in evaluations}
            colour = COLOURS[number % len(COLOURS)]
            _intervals(axes, list(places.values()), [found[metric] for found in evaluations.values()], colour, seed)
            chain = [name for name in ("sft", "r1", "r2") if name in evaluations]
            heights = [100 * evaluations[name][metric]["value"] for name in chain]
            axes.plot([places[name] for name in chain], heights, color=colour, linewidth=1.4)
        axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=25, ha="right")
        better = "lower" if metric in LOWER_IS_BETTER else "higher"
        _dress(axes, f"{words(metric)}, % ({better} is better)", "")
    if any(seeds.values()):
        left.legend(frameon=False, fontsize=8)
    _save(figure, path)


def plot_labels(study: dict[str, Any], path: Path) -> None:
    """Left what labels, sft and r2 are worth by labeller, poor labels first, right the gain by the labels' worth."""
    rows = [row for row in study["labels"] if row["open_loop"] and row["gain"]]
    figure, (left, right) = _figure_of(10.0, 3.6, 2)
    series = (("open_loop", BASELINE_GREY), ("sft", COLOURS[1]), ("r2", COLOURS[0]))
    for number, (name, colour) in enumerate(series):
        places = [at + 0.1 * (number - 1) for at in range(len(rows))]
        _intervals(left, places, [row[name] for row in rows], colour, name.replace("_", " "))
    left.set_xticks(range(len(rows)), [row["variant"] for row in rows], rotation=25, ha="right")
    _dress(left, "generative accuracy, %", "")
    _intervals(right, [100 * row["open_loop"]["value"] for row in rows], [row["gain"] for row in rows], COLOURS[0], "")
    for row in rows:
        place = (100 * row["open_loop"]["value"], 100 * row["gain"]["value"])
        right.annotate(row["variant"], place, xytext=(6, 4), textcoords="offset points", fontsize=8)
    right.axhline(0, color="#444444", linewidth=0.8)
    right.margins(x=0.08)  # room for the names beside the points
    _dress(right, "gain of the rounds, percentage points (r2 − sft)", "generative accuracy of the labels, %")
    if rows:
        left.legend(frameon=False, fontsize=8)
    _save(figure, path)


def _figure_of(width: float, height: float, panels: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Figure, not pyplot: no global state and no window system.
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, panels)


def _intervals(
    axes: Any, places: Sequence[float], intervals: Sequence[Mapping[str, Any]], colour: str, label: str
) -> None:
    """Points with their intervals, in percent."""
    centre = [100 * interval["value"] for interval in intervals]
    # Where all features agree, the ends can lie a rounding error inside the mean, which matplotlib refuses.
    below = [max(0.0, 100 * (interval["value"] - interval["low"])) for interval in intervals]
    above = [max(0.0, 100 * (interval["high"] - interval["value"])) for interval in intervals]
    axes.errorbar(
        places, centre, yerr=[below, above], fmt="o", color=colour, markersize=4.5, capsize=2.5, linewidth=1.2,
        label=label or None,
    )  # fmt: skip


def _dress(axes: Any, title: str, x: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=8.5)
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without this, matplotlib stamps its version into the file.
    figure.savefig(path, format="png", metadata={"Software": None})
