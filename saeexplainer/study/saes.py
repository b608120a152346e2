"""docs/SAES.md and docs/REAL_SAES.md: SAEs beside each other, and how well their features are explained.

`summarise` makes the plan's JSON, `page` the page from that alone. A group is an architecture, or a k of TopK (k4, k16,
...); its variants are its seeds. Two SAEs have other features, so nothing is paired: levels with their intervals stand
side by side. Whether a figure of the SAE tells how well its features are explained is a rank correlation over all runs.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from saeexplainer.figures.comparison import ACCURACY, BASELINE, HALLUCINATION, START
from saeexplainer.figures.intervals import bootstrap_rows
from saeexplainer.figures.notation import DASH, heading, literal, percent, plain, table
from saeexplainer.saes.worth import elbow
from saeexplainer.study import claims
from saeexplainer.study.figures import BOOTSTRAP_SEED, COMPLETE, Variant, described, last_round, mean, of_group, state

TITLES = {  # of the plans that have a page of this kind
    "saes": "Which SAE is best explained?",
    "real_saes": "Which SAE of a pretrained model is best explained?",
}
TOPK, SWEEP = "topk", r"k\d+"  # the group with the default's k, and those with another
FIGURES = {  # of reports/sae.json: as a heading, and how it is written
    "fraction_variance_unexplained": ("variance unexplained", ".3f"),
    "cross_entropy_recovered": ("cross-entropy recovered", ".3f"),
    "l0": ("L0", ".1f"),
    "dead_features": ("dead", ".0f"),
    "c_dec": ("c_dec", ".4f"),
    "s_dec": ("s_dec", ".3f"),
    "phi": ("mean abs. phi", ".4f"),
    "coverage": ("coverage", ".3f"),
    "reconstruction": ("reconstruction", ".3f"),
    "cone_rows": ("rows for a concept", ".1f"),
    "monosemanticity": ("monosemanticity", ".4f"),
    "stability": ("stability", ".3f"),
    "orderedness": ("orderedness", ".3f"),
}
EXPLAINED = (ACCURACY, HALLUCINATION, "detection_auc", "output_accuracy", "truth_f1")
BEST = {"coverage": "coverage", "accuracy": "the labels' generative accuracy"}  # what the right L0 is said to make best
LAST = "last"  # round
SAID = {LAST: "the last round", BASELINE: "the labels"}
FEWEST = 4  # runs behind a rank correlation


def summarise(variants: Sequence[Variant], resamples: int) -> dict[str, Any]:
    """The content of the plan's JSON; every interval is {"value", "low", "high", "n"} or, where unknown, null."""
    groups = list(dict.fromkeys(variant.group for variant in variants))
    return {
        "resamples": resamples,
        "variants": {variant.name: described(variant) for variant in variants},
        "groups": {group: _group(of_group(variants, group), resamples) for group in groups},
        "less_topk": {
            group: {name: _less_topk(of_group(variants, group), variants, name) for name in (BASELINE, START, LAST)}
            for group in groups
            if group != TOPK
        },
        "predicted": (predicted := _predicted(variants)),
        "predictors": {figure: _predictor(variants, figure, predicted, resamples) for figure in FIGURES},
        "elbow": _elbow(variants),
        "claims": claims.summarise(variants, resamples),
    }


def _group(variants: Sequence[Variant], resamples: int) -> dict[str, Any]:
    """Means over the seeds that are complete, and pooled levels of the labels, SFT and the last round."""
    complete = [variant for variant in variants if variant.status == COMPLETE]
    last = {variant.name: last_round(variant.evaluations) for variant in complete}
    rows = {
        BASELINE: [variant.evaluations[BASELINE] for variant in complete if BASELINE in variant.evaluations],
        START: [variant.evaluations[START] for variant in complete if START in variant.evaluations],
        LAST: [variant.evaluations[name] for variant in complete if (name := last[variant.name])],
    }
    return {
        "runs": len(complete),
        "seconds": _mean([variant.own_seconds for variant in complete]),
        "sae": {figure: _mean([(variant.sae or {}).get(figure) for variant in complete]) for figure in FIGURES},
        "explained": {
            name: {metric: mean(tables, metric, resamples) for metric in EXPLAINED} for name, tables in rows.items()
        },
    }


def _less_topk(group: Sequence[Variant], variants: Sequence[Variant], explained: str) -> dict[int | None, float]:
    """Mean generative accuracy less that of TopK's run of the same seed, whose subject is the same; by seed."""
    of_topk = {one.seed: _accuracy(one, explained) for one in of_group(variants, TOPK)}
    pairs = {one.seed: (_accuracy(one, explained), of_topk.get(one.seed)) for one in group}
    return {seed: a - b for seed, (a, b) in pairs.items() if a is not None and b is not None}


def _accuracy(variant: Variant, explained: str) -> float | None:
    """The mean generative accuracy of a run's labels, its SFT, or its last round."""
    name = last_round(variant.evaluations) if explained == LAST else explained
    rows = variant.evaluations.get(name or "", [])
    known = [row.generative_accuracy for row in rows if not math.isnan(row.generative_accuracy)]
    return float(np.mean(known)) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _predicted(variants: Sequence[Variant]) -> str:
    """Whose accuracy figures of SAEs are held against: the last round's, or the labels' where no run has a round."""
    return LAST if any(last_round(variant.evaluations) for variant in variants) else BASELINE


def _predictor(variants: Sequence[Variant], figure: str, predicted: str, resamples: int) -> dict[str, Any] | None:
    """Spearman's correlation of a figure of the SAE with accuracy, over runs; None of too few."""
    points = np.array([point for variant in variants if (point := _point(variant, figure, predicted))])
    if len(points) < FEWEST or len(set(points[:, 0])) == 1:
        return None

    def correlation(rows: np.ndarray) -> float:
        drawn = points[rows]
        if len(set(drawn[:, 0])) == 1 or len(set(drawn[:, 1])) == 1:
            return 0.0  # nothing to rank by
        return float(spearmanr(drawn[:, 0], drawn[:, 1]).statistic)

    return asdict(bootstrap_rows(correlation, len(points), resamples, BOOTSTRAP_SEED))


def _point(variant: Variant, figure: str, explained: str) -> tuple[float, float] | None:
    """A figure of a run's SAE, and the accuracy."""
    value, accuracy = (variant.sae or {}).get(figure), _accuracy(variant, explained)
    return None if value is None or accuracy is None else (float(value), accuracy)


def _elbow(variants: Sequence[Variant]) -> dict[str, Any] | None:
    """TopK's groups by L0, where c_dec has its elbow, and where what the elbow stands for is best; None without a
    sweep."""
    swept = [one for one in variants if one.group == TOPK or re.fullmatch(SWEEP, one.group)]
    points: list[dict[str, Any]] = []
    for group in dict.fromkeys(one.group for one in swept):
        complete = [one for one in of_group(swept, group) if one.status == COMPLETE]
        l0, c_dec, coverage = (
            _mean([(one.sae or {}).get(figure) for one in complete]) for figure in ("l0", "c_dec", "coverage")
        )
        accuracy = _mean([_accuracy(one, BASELINE) for one in complete])
        if l0 is not None and c_dec is not None:
            points.append({"group": group, "l0": l0, "c_dec": c_dec, "coverage": coverage, "accuracy": accuracy})
    if len(points) < 3:
        return None
    points.sort(key=itemgetter("l0"))
    best = {
        name: max(known, key=itemgetter(name))["l0"]
        if (known := [one for one in points if one[name] is not None])
        else None
        for name in ("coverage", "accuracy")
    }
    return {"points": points, "l0": elbow(*([one[name] for one in points] for name in ("l0", "c_dec"))), "best": best}


def page(found: dict[str, Any], plan: str) -> str:
    """docs/SAES.md, or the page of another plan."""
    return (
        "\n\n".join(
            [
                "<!-- Written by `sae-explainer study`; what is edited here is lost. -->",
                f"# {TITLES[plan]}",
                f"Written by `sae-explainer study --plan {plan}` from conf/{plan}.yaml; the same figures are in "
                f"{plan}.json. "
                "docs/METHOD.md, section 14, says what each figure of an SAE is. In brackets the 95 % bootstrap "
                f"interval over features ({found['resamples']:,} resamples), seeds pooled and resampled inside each. "
                "Other SAEs have other features, so levels are compared and nothing is paired.",
                "## The dictionaries, on held-out documents",
                _dictionaries(found),
                "## How well their features are explained, in percent",
                "The labels, the explainer after SFT, and after the last round.",
                *_picture(found, plan),
                _explained(found),
                "Generative accuracy less that of TopK's run of the same seed, whose subject is the same: in points, "
                "the mean and every seed. An interval over features does not know that another seed trains another "
                "SAE; this does.",
                _seed_by_seed(found),
                "## Which figure of an SAE tells how well it is explained?",
                f"Spearman's correlation with the generative accuracy of {SAID[found['predicted']]}, and its interval, "
                "both over runs. All architectures and seeds are in it, so it also holds what else differs between "
                "them.",
                _predictors(found),
                "## The right L0",
                _told_elbow(found),
                *claims.sections(found["claims"], FIGURES),
                "## Every run",
                _runs(found),
            ]
        )
        + "\n"
    )


def _dictionaries(found: Mapping[str, Any]) -> str:
    rows = [
        [literal(group), str(one["runs"]), *(plain(one["sae"][figure], form) for figure, (_, form) in FIGURES.items())]
        for group, one in found["groups"].items()
        if one["runs"]
    ]
    return table(["SAE", "runs", *(name for name, _ in FIGURES.values())], rows)


def has_rounds(found: Mapping[str, Any]) -> bool:
    """Whether any run has come to a last round, which the picture shows."""
    return any(one["explained"][LAST][ACCURACY] for one in found["groups"].values())


def _picture(found: Mapping[str, Any], plan: str) -> list[str]:
    return (
        [f"![generative accuracy of the SAEs' features, and of TopK's by L0]({plan}.png)"] if has_rounds(found) else []
    )


def _explained(found: Mapping[str, Any]) -> str:
    rows = [
        [literal(group), name, *(percent(one["explained"][name][metric]) for metric in EXPLAINED)]
        for group, one in found["groups"].items()
        for name in (BASELINE, START, LAST)
        if any(one["explained"][name].values())
    ]
    return table(["SAE", "explanations", *map(heading, EXPLAINED)], rows)


def _seed_by_seed(found: Mapping[str, Any]) -> str:
    rows = [
        [literal(group), *(_differences(by_seed) for by_seed in one.values())]
        for group, one in found["less_topk"].items()
        if any(one.values())
    ]
    return table([f"SAE − {TOPK}", BASELINE, START, LAST], rows)


def _differences(by_seed: Mapping[Any, float]) -> str:
    if not by_seed:
        return DASH
    every = ", ".join(f"{100 * value:+.1f}" for value in by_seed.values())
    return f"{100 * sum(by_seed.values()) / len(by_seed):+.1f} ({every})"


def _predictors(found: Mapping[str, Any]) -> str:
    rows = [
        [FIGURES[figure][0], DASH if one is None else f"{one['value']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f})",
         DASH if one is None else str(one["n"])]
        for figure, one in found["predictors"].items()
    ]  # fmt: skip
    return table(["figure", "rank correlation", "runs"], rows)


def _told_elbow(found: Mapping[str, Any]) -> str:
    sweep = found["elbow"]
    if sweep is None:
        return "No sweep over L0 has been run."
    rows = [
        [
            literal(one["group"]),
            plain(one["l0"], ".1f"),
            plain(one["c_dec"], ".4f"),
            plain(one["coverage"], ".3f"),
            *(percent(found["groups"][one["group"]]["explained"][name][ACCURACY]) for name in (BASELINE, LAST)),
        ]
        for one in sweep["points"]
    ]
    where = f"The elbow of c_dec is at an L0 of {sweep['l0']:.1f}" if sweep["l0"] is not None else "c_dec has no elbow"
    best = (f"{said} is best at {sweep['best'][name]:.1f}" for name, said in BEST.items() if sweep["best"][name])
    told = "; ".join([where, *best])
    header = ["TopK", "L0", "c_dec", "coverage", "labels, percent", "last round, percent"]
    return f"{told}.\n\n{table(header, rows)}"


def _runs(found: Mapping[str, Any]) -> str:
    rows = [
        [
            literal(name),
            literal(one["group"]),
            literal(state(one)),
            plain(one["seed"], ""),
            plain(one["seconds"], ",.0f"),
        ]
        for name, one in found["variants"].items()
    ]
    return table(["run", "SAE", "state", "seed", "seconds"], rows)
