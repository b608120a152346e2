"""What the study found, from the evaluations of its variants alone: figures and tables.

`summarise` makes study.json; the page, and the pictures (`saeexplainer.study.pictures`), are made from that and nothing
else. Intervals are those of `saeexplainer.figures.intervals`: over features, paired where two evaluations are
subtracted, and where seeds are pooled, resampled inside each seed. A variant without figures stays in every list, with
the reason.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from saeexplainer.figures.comparison import ACCURACY, BASELINE, COLLISION, HALLUCINATION, METRICS, START
from saeexplainer.figures.notation import bold, heading, literal, percent, plain, table
from saeexplainer.study.figures import (
    COMPLETE,
    CONTROL,
    LABELS,
    LOOKED_AT,
    POOLED,
    SEEDS,
    THE_LAST,
    Variant,
    against_sources,
    both,
    described,
    difference,
    evaluations_table,
    group_of,
    last_round,
    leads,
    mean,
    names_of,
    of_group,
    ordered,
    pooled,
    rounds_of,
    state,
)

TITLES = {  # of the plans that have a page of this kind
    "study": "The study, of an explainer that reads the vector alone",
    "contexts": "The study, of an explainer that reads contexts too",
    "gated": "The study, of the default",
    "real": "The study on a pretrained model",
}
SHOWN = (ACCURACY, HALLUCINATION, COLLISION, "truth_agreement", "truth_f1")


def summarise(variants: Sequence[Variant], resamples: int) -> dict[str, Any]:
    """The content of study.json; every interval is {"value", "low", "high", "n"} or, where unknown, null.

    Raises UserError where evaluations of one variant measure different features.
    """
    control = of_group(variants, CONTROL)
    last = next(
        filter(None, (last_round(names_of(of_group(variants, group))) for group in (SEEDS, LOOKED_AT))), THE_LAST
    )
    return {
        "resamples": resamples,
        "last": last,
        "variants": {variant.name: _described(variant, resamples) for variant in variants},
        "pooled": pooled(of_group(variants, SEEDS), resamples),
        "calls": _calls(of_group(variants, SEEDS)),
        "gains": _gains(of_group(variants, SEEDS), resamples),
        "leads": leads(of_group(variants, SEEDS), last, resamples),
        "differences": {
            group: _differences(of_group(variants, group), last, resamples) for group in (SEEDS, LOOKED_AT)
        },
        "control": _by_metric(control, last, START, resamples),
        "labels": _label_quality(variants, last, resamples),
        "others": _others(variants, resamples),
    }


def _calls(seeds: Sequence[Variant]) -> dict[str, float]:
    """evaluation -> calls of a model that an explanation took, the mean over the features of all seeds."""
    rows = {name: [row for one in seeds for row in one.evaluations.get(name, [])] for name in names_of(seeds)}
    return {name: sum(row.calls for row in found) / len(found) for name, found in rows.items()}


def _gains(seeds: Sequence[Variant], resamples: int) -> dict[str, Any]:
    """round -> metric -> interval of its difference to SFT, over the features of all seeds."""
    return {
        name: {metric: difference(both(seeds, name, START), metric, resamples) for metric in METRICS.values()}
        for name in rounds_of(names_of(seeds))
    }


def _others(variants: Sequence[Variant], resamples: int) -> dict[str, Any]:
    """group -> what `against_sources` finds of it and, by_run and apart_by_run, of each of its variants alone; for
    every group without a section of its own."""
    everyone = {variant.name: variant for variant in variants}

    def against(group: str) -> dict[str, Any]:
        found = against_sources(of_group(variants, group), everyone, resamples)
        alone = {one.name: against_sources([one], everyone, resamples) for one in of_group(variants, group)}
        return found | {
            "by_run": {name: alone[name]["differences"] for name in found["paired"]},
            "apart_by_run": {name: one["apart"] for name, one in alone.items() if any(one["apart"].values())},
        }

    groups = dict.fromkeys(variant.group for variant in variants)
    return {group: against(group) for group in groups if group not in (SEEDS, LOOKED_AT, CONTROL, LABELS)}


def _described(variant: Variant, resamples: int) -> dict[str, Any]:
    """All that is kept of a variant: its fields, with an interval of each metric in place of the rows."""
    evaluations = {
        name: {metric: mean([variant.evaluations[name]], metric, resamples) for metric in SHOWN}
        for name in ordered(variant.evaluations)
    }
    return described(variant) | {"evaluations": evaluations}


def _differences(variants: Sequence[Variant], last: str, resamples: int) -> dict[str, Any]:
    return {f"{a}-{b}": _by_metric(variants, a, b, resamples) for a, b in _subtractions(names_of(variants), last)}


def _subtractions(names: Sequence[str], last: str) -> list[tuple[str, str]]:
    """Each round and its start, each round and sft, then the last round and all others."""
    rounds = rounds_of(names)
    pairs = [*zip(rounds, [START, *rounds]), *((name, START) for name in rounds), (last, START)]
    return list(dict.fromkeys([*pairs, *((last, name) for name in names if name != last)]))


def _by_metric(variants: Sequence[Variant], a: str, b: str, resamples: int) -> dict[str, dict[str, Any]]:
    """metric -> variant or "pooled" -> interval of a - b."""
    return {
        metric: {variant.name: difference(both([variant], a, b), metric, resamples) for variant in variants}
        | {POOLED: difference(both(variants, a, b), metric, resamples)}
        for metric in SHOWN
    }


def _label_quality(variants: Sequence[Variant], last: str, resamples: int) -> list[dict[str, Any]]:
    """A row for each variant of the group and for those they come from, from the poorest labels to the best."""
    group = of_group(variants, LABELS)
    sources = {variant.source for variant in group}
    rows = []
    for variant in [other for other in variants if other.name in sources] + group:
        means = {
            key: mean([variant.evaluations[name]], ACCURACY, resamples) if name in variant.evaluations else None
            for key, name in ((BASELINE, BASELINE), (START, START), (THE_LAST, last))
        }
        gain = difference(both([variant], last, START), ACCURACY, resamples)
        row = {"variant": variant.name, "status": variant.status, "contexts": variant.contexts}
        rows.append(row | means | {"gain": gain})
    return sorted(rows, key=lambda row: row[BASELINE]["value"] if row[BASELINE] else math.inf)


def has_labels(study: dict[str, Any]) -> bool:
    """Whether any point of the label curve was measured; else there is nothing to draw."""
    return any(row["gain"] for row in study["labels"])


def page(study: dict[str, Any], plan: str = "study") -> str:
    """docs/STUDY.md, or the page of another plan."""
    sections = [
        "<!-- Written by `sae-explainer study`; what is edited here is lost. -->",
        f"# {TITLES[plan]}",
        f"Written by `sae-explainer study --plan {plan}` from the runs that conf/{plan}.yaml lists; the same figures "
        f"are in {plan}.json. Shares are percent, differences percentage points, both with 95 % bootstrap intervals "
        f"over held-out features ({study['resamples']:,} resamples). Differences are paired by feature; pooled ones "
        "are resampled inside each seed. Bold: the interval leaves zero out.",
        "## All seeds together",
        _whose_figures_count(study),
        *_together(study),
        "## Runs",
        _runs(study),
        *_seeds(study, plan),
        *_looked_at(study),
        *_control(study),
        *_labels(study, plan),
        *_groups(study),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _whose_figures_count(study: dict[str, Any]) -> str:
    there = [name for name, found in group_of(study, SEEDS).items() if found["status"] == COMPLETE]
    fresh, seen = (", ".join(f"`{name}`" for name in names) for names in (there, group_of(study, LOOKED_AT)))
    if not seen:
        return f"The table pools the features of {fresh or 'no seed'}."
    return (
        f"The table pools the features of the seeds that were not used to choose any setting: {fresh or 'none'}. "
        "Settings were chosen after some of the following seeds had been seen on test, so their figures stand apart: "
        f"{seen}."
    )


def _together(study: dict[str, Any]) -> Iterator[str]:
    """The pooled tables, once a seed that counts was run."""
    if study["pooled"]:
        yield evaluations_table("explanations", study["pooled"], percent)
        yield _calls_told(study["calls"])
        yield f"The next table has the difference of each round to `{START}`, paired by feature."
        yield evaluations_table(f"− {START}", study["gains"], bold)
        yield f"The next table subtracts what is no round from `{study['last']}`."
        yield evaluations_table(f"{study['last']} −", study["leads"], bold)


def _seeds(study: dict[str, Any], plan: str) -> Iterator[str]:
    """The seeds that count one by one, the picture and the differences once one was run."""
    yield "## Seeds"
    if study["pooled"]:
        yield f"![generative accuracy and hallucination rate of every seed]({plan}_seeds.png)"
    yield from _seed_tables(study, SEEDS)
    if study["pooled"]:
        yield "## Differences between rounds"
        yield from _difference_tables(study, SEEDS)


def _calls_told(calls: dict[str, float]) -> str:
    told = ", ".join(f"`{name}` {count:.1f}" for name, count in calls.items()) or "nothing was run"
    return (
        "To arrive at one explanation, models generate the following number of sequences (explanations, and texts to "
        f"choose it by), on average: {told}. Training is not in them."
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
        rows.append([f"`{name}`", literal(found["group"]), literal(state(found)), *numbers, *figures])
    return table(header, rows)


def _looked_at(study: dict[str, Any]) -> Iterator[str]:
    """The seeds that confirm nothing, where there are any, apart from those that do."""
    if group_of(study, LOOKED_AT):
        yield "## Seeds that were looked at before"
        yield from _seed_tables(study, LOOKED_AT)
        yield "## Differences between rounds, seeds that were looked at before"
        yield from _difference_tables(study, LOOKED_AT)


def _seed_tables(study: dict[str, Any], group: str) -> Iterator[str]:
    for name, found in group_of(study, group).items():
        yield f"### {name}"
        yield _figures_of(found)


def _figures_of(found: dict[str, Any]) -> str:
    if found["status"] != COMPLETE:
        return f"No figures: {literal(found['status'])}."
    return _levels_table(found["evaluations"])


def _levels_table(evaluations: dict[str, Any]) -> str:
    rows = [
        [f"`{name}`", *(percent(metrics[metric]) for metric in SHOWN), f"{metrics[ACCURACY]['n']:,}"]
        for name, metrics in evaluations.items()
    ]
    return table(["explanations", *map(heading, SHOWN), "features"], rows)


def _difference_tables(study: dict[str, Any], group: str) -> Iterator[str]:
    seeds = list(group_of(study, group))
    for metric in SHOWN:
        rows = [
            [f"`{key.replace('-', ' − ')}`", *(bold(found[metric][name]) for name in [*seeds, POOLED])]
            for key, found in study["differences"][group].items()
        ]
        yield f"### {heading(metric)}"
        yield table(["difference", *seeds, POOLED], rows)


def _control(study: dict[str, Any]) -> Iterator[str]:
    """What comes of rewards that mean nothing, where that was asked."""
    if group_of(study, CONTROL):
        yield "## Control: shuffled rewards"
        yield (
            "Rewards are permuted among the candidates of each feature before the pairs are built; "
            "all else is the same."
        )
        yield _control_table(study)


def _labels(study: dict[str, Any], plan: str) -> Iterator[str]:
    """The label curve, where the plan has one."""
    if group_of(study, LABELS):
        yield "## The gain and the quality of the labels"
        yield (
            f"From poor labels to clean ones (conf/{plan}.yaml says what each labeller does); "
            "open_loop is what they are worth."
        )
        if has_labels(study):
            yield f"![gain over the generative accuracy of the labels]({plan}_labels.png)"
        yield _labels_table(study)


def _control_table(study: dict[str, Any]) -> str:
    names = [*group_of(study, CONTROL), POOLED]
    rows = [[name, *(bold(study["control"][metric][name]) for metric in SHOWN), _state(study, name)] for name in names]
    return table([f"{study['last']} − {START}", *map(heading, SHOWN), "state"], rows)


def _state(study: dict[str, Any], name: str) -> str:
    return literal(study["variants"][name]["status"]) if name in study["variants"] else ""


def _labels_table(study: dict[str, Any]) -> str:
    rows = [
        [
            f"`{row['variant']}`", plain(row["contexts"], ""),
            *(percent(row[name]) for name in (BASELINE, START, THE_LAST)), bold(row["gain"]),
            literal(row["status"]),
        ]
        for row in study["labels"]
    ]  # fmt: skip
    last = study["last"]
    return table(["run", "label contexts", BASELINE, START, last, f"{last} − {START}", "state"], rows)


def _groups(study: dict[str, Any]) -> Iterator[str]:
    """A section for every group that has none of its own: what its settings change, run by run and pooled."""
    for group, found in study["others"].items():
        yield f"## {group}"
        changed = ", ".join(f"`{change}`" for change in found["changes"]) or "nothing"
        yield f"These runs change {changed}. Each is compared with the run it comes from: last round minus last round."
        head, apart = "run − where it comes from", found["apart_by_run"]
        if found["paired"]:
            yield "The features are the same and are paired."
            yield evaluations_table(head, found["by_run"] | {POOLED: found["differences"]}, bold)
        if apart:
            yield "The features are others: means are subtracted, and the features of either side are resampled alone."
            yield evaluations_table(head, apart | {POOLED: found["apart"]}, bold)
        yield "\n".join(f"- `{name}`: {literal(why)}" for name, why in found["unpaired"].items() if name not in apart)
