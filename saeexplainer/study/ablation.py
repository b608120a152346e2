"""docs/ABLATION.md, EXPLAINER.md, FURTHER.md, VARIATIONS.md: one setting changed at a time, on valid, with verdicts.

`summarise` makes the plan's JSON, `page` the page from that alone. A setting is a group of variants, one
a seed, each compared with the variant it comes `from`: last round against last round, paired by feature. Whether a
setting helps is decided by the criterion alone: its pooled interval leaves zero out, and every seed says the same. One
training run settles nothing, whatever its interval over features: that does not hold what another run would give.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saeexplainer.figures.comparison import ACCURACY, METRICS, direction
from saeexplainer.figures.notation import bold, heading, literal, percent, plain, runs, table, words
from saeexplainer.study.figures import (
    BEFORE_ROUNDS,
    Variant,
    against_sources,
    described,
    evaluations_table,
    known_metrics,
    last_round,
    leads,
    mean,
    names_of,
    of_group,
    pooled,
    rounds_of,
    state,
)

BASE = "base"  # the group that all others are compared with
CRITERION = ACCURACY
HELPS, HURTS, NO_DIFFERENCE, NOT_RUN = "helps", "hurts", "no difference shown", "not run"
ONE_RUN = "one run only"
VERDICTS = {1: HELPS, -1: HURTS, 0: NO_DIFFERENCE}


@dataclass(frozen=True)
class Title:
    """What a page says of its plan."""

    page: str
    section: str
    base: str  # what all settings are compared with


TITLES = {  # of the plans that have a page of this kind
    "ablation": Title(
        "Ablation", "Ablation: one change at a time", "two rounds of an explainer that reads the vector alone"
    ),
    "explainer": Title(
        "Other explainers",
        "What the explainer reads, and how it is trained",
        "the default, but that a tenth of the training prompts had no contexts",
    ),
    "further": Title("Further explainers", "Further changes of what it reads and how it is trained", "the default"),
    "variations": Title("Variations of the default", "Changes of the default", "the default"),
}

HOW = """\
```
make study WITH="--plan {plan}"    # conf/{plan}.yaml
```

One variant alone: `sae-explainer study --plan {plan} --only NAME`. Any product of settings as plain DVC
experiments, from the last commit: `dvc exp run --queue -S 'reward=discriminative,mean' -S seed=0,1`, then
`dvc queue start` and `dvc exp show` ([DATA.md](DATA.md)); add `-S evaluate.split=valid` while choosing. Those are
compared by their means alone, without paired intervals."""


def summarise(variants: Sequence[Variant], resamples: int) -> dict[str, Any]:
    """The content of ablation.json; every interval is {"value", "low", "high", "n"} or, where unknown, null."""
    everyone = {variant.name: variant for variant in variants}
    groups = list(dict.fromkeys(variant.group for variant in variants if variant.group != BASE))
    settings = {group: _setting(of_group(variants, group), everyone, resamples) for group in groups}
    return {
        "resamples": resamples,
        "variants": {variant.name: _last_round(variant, resamples) for variant in variants},
        "settings": settings,
        "preferred": _preferred(settings),
        "inputs": {
            group: found for group in [BASE, *groups] if (found := _inputs(of_group(variants, group), resamples))
        },
    }


def _inputs(variants: Sequence[Variant], resamples: int) -> dict[str, Any]:
    """What the same explainers say of other inputs, beside what they say of a feature's own: evaluation -> metric ->
    interval, and that of the last round's difference to each. Empty where nothing of the kind was evaluated."""
    names = names_of(variants)
    trained = [*BEFORE_ROUNDS, *rounds_of(names)]
    if not set(names) - set(trained):
        return {}
    differences = leads(variants, last_round(names) or "", resamples)
    return {
        "levels": pooled(variants, resamples),
        "leads": {name: found for name, found in differences.items() if name not in trained},
    }


def _setting(variants: Sequence[Variant], everyone: Mapping[str, Variant], resamples: int) -> dict[str, Any]:
    """What `against_sources` says, of means where no run has its base's features; by_run and verdict."""
    found = against_sources(variants, everyone, resamples)
    how = "differences" if found["paired"] else "apart"
    alone = {variant.name: against_sources([variant], everyone, resamples) for variant in variants}
    by_run = {name: one[how][CRITERION] for name, one in alone.items() if one[how][CRITERION]}
    verdict = _verdict(found[how][CRITERION], list(by_run.values()))
    return found | {"differences": found[how], "by_run": by_run, "verdict": verdict}


def _verdict(pooled: Mapping[str, Any] | None, by_run: Sequence[Mapping[str, Any]]) -> str:
    if pooled is None:
        return NOT_RUN
    if len(by_run) == 1:
        return ONE_RUN
    agree = all((run["value"] > 0) == (pooled["value"] > 0) for run in by_run)
    return VERDICTS[direction(CRITERION, pooled)] if agree else NO_DIFFERENCE


def _last_round(variant: Variant, resamples: int) -> dict[str, Any]:
    """All that is kept of a variant, with an interval of every metric of its last round."""
    name = last_round(variant.evaluations)
    metrics = {
        metric: mean([variant.evaluations[name]], metric, resamples) if name else None for metric in METRICS.values()
    }
    return described(variant) | {"round": name, "metrics": metrics}


def _preferred(settings: Mapping[str, Any]) -> str | None:
    """The setting that helps most by the criterion; None where none helps."""
    helping = [name for name, found in settings.items() if found["verdict"] == HELPS]
    return max(helping, key=lambda name: abs(settings[name]["differences"][CRITERION]["value"]), default=None)


def verdict_lines(ablation: dict[str, Any]) -> list[str]:
    """One line a setting."""
    return [f"{found['verdict']}: {_told(name, found)}" for name, found in ablation["settings"].items()]


def page(found: dict[str, Any], plan: str = "ablation") -> str:
    """docs/ABLATION.md, or that of another plan of TITLES."""
    written = (
        "This page shows what single settings are worth. Written by `sae-explainer study`; the same figures are in "
        f"{plan}.json. Every figure is times 100: percent for shares, percentage points for differences; AUC, "
        "correlation and F1 likewise. In brackets the 95 % bootstrap interval over features "
        f"({found['resamples']:,} resamples), differences paired by feature and resampled inside each seed. Bold: the "
        "interval leaves zero out; ↑ higher is better, ↓ lower."
    )
    warning = "<!-- Written by `sae-explainer study`; what is edited here is lost. -->"
    return (
        "\n\n".join([warning, f"# {TITLES[plan].page}", written, HOW.format(plan=plan), *sections(found, plan)]) + "\n"
    )


def sections(ablation: dict[str, Any], plan: str = "ablation") -> Iterator[str]:
    """All but the head of the page, in markdown."""
    measured = ", ".join(dict.fromkeys(found["split"] for found in ablation["variants"].values() if found["split"]))
    yield f"## {TITLES[plan].section}, measured on {measured or 'valid (nothing measured yet)'}"
    yield (
        f"Each setting differs from `base`, which is {TITLES[plan].base}, in what stands beside it; the last "
        "rounds are compared, and "
        f"{words(CRITERION)} decides. The product of all directions, rewards, pairings, losses, rounds and "
        "seeds was not run, so what two settings do together is not known. "
        "Intervals are over features: they do not hold what another training run would give, and no interval is "
        f"corrected for the {len(ablation['settings'])} comparisons. So a setting helps or hurts only if it has more "
        "than one run and all of them say so. A rule of pairing changes how many pairs there are, and a reward which "
        "features reach the floor; that is part of what is compared. Where a setting changes the features themselves, "
        "means are compared, and nothing is paired. The features of valid also pick the checkpoint of each round."
    )
    yield _preference(ablation)
    for verdict in (HELPS, HURTS, NO_DIFFERENCE, ONE_RUN, NOT_RUN):
        yield f"### {verdict.capitalize()}"
        chosen = {name: found for name, found in ablation["settings"].items() if found["verdict"] == verdict}
        yield "\n".join(f"- {_told(name, found)}" for name, found in chosen.items()) or "None."
    yield "### Differences from the base"
    yield _differences(ablation)
    for group, inputs in ablation["inputs"].items():
        yield f"### Beside it: `{group}`"
        yield (
            "The same explainers on other inputs than a feature's own, and explanations from elsewhere put to the same "
            "writer; all seeds together."
        )
        yield evaluations_table("explanations", inputs["levels"], percent)
        yield evaluations_table("last round −", inputs["leads"], bold)
    yield "### Every variant"
    yield _levels(ablation)


def _preference(ablation: dict[str, Any]) -> str:
    settings = ablation["settings"]
    measured = sum(found["verdict"] != NOT_RUN for found in settings.values())
    if not measured:
        return "No setting has been measured: nothing is preferred yet."
    name = ablation["preferred"]
    preferred = f"`{name}` ({_changes(settings[name])})" if name else "the base, which no setting beats"
    return f"Preferred, by {measured} of {len(settings)} settings that were measured: {preferred}."


def _told(name: str, found: Mapping[str, Any]) -> str:
    """A setting, what it did to the criterion, what else moved beyond its interval, and what is missing."""
    missing = [f"{variant}: {literal(why)}" for variant, why in found["unpaired"].items()]
    if found["verdict"] == NOT_RUN:
        return f"`{name}` ({_changes(found)}): {'; '.join(missing)}"
    differences = found["differences"]
    others = [metric for metric in differences if metric != CRITERION]
    interval = differences[CRITERION]
    parts = [f"{words(CRITERION)} {bold(interval)}, {runs(len(found['by_run']))}, {interval['n']:,} features"]
    if len(found["by_run"]) > 1:
        each = (f"{run} {100 * one['value']:+.1f}" for run, one in found["by_run"].items())
        parts[0] += f" ({', '.join(each)})"
    for sign, label in ((1, "also better"), (-1, "worse")):
        moved = [metric for metric in others if direction(metric, differences[metric]) == sign]
        if moved:
            parts.append(f"{label}: " + ", ".join(f"{words(metric)} {bold(differences[metric])}" for metric in moved))
    return "; ".join([f"`{name}` ({_changes(found)}): {parts[0]}", *parts[1:], *missing])


def _changes(found: Mapping[str, Any]) -> str:
    return ", ".join(f"`{change}`" for change in found["changes"]) or "no change"


def _differences(ablation: dict[str, Any]) -> str:
    metrics = known_metrics(found["differences"] for found in ablation["settings"].values())
    rows = [
        [
            f"`{name}`", found["verdict"], f"{len(found['by_run'])}",
            *(bold(found["differences"][metric]) for metric in metrics),
        ]
        for name, found in ablation["settings"].items()
    ]  # fmt: skip
    return table(["setting − base", "verdict", "runs", *map(heading, metrics)], rows)


def _levels(ablation: dict[str, Any]) -> str:
    metrics = known_metrics(found["metrics"] for found in ablation["variants"].values())
    rows = [
        [
            f"`{name}`", literal(found["group"]), literal(state(found)), plain(found["seed"], ""),
            found["round"] or "–",
            *(percent(found["metrics"][metric]) for metric in metrics),
        ]
        for name, found in ablation["variants"].items()
    ]  # fmt: skip
    return table(["run", "setting", "state", "seed", "round", *map(heading, metrics)], rows)
