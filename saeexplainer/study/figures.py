"""What the reports of the study share: the record of a variant, and the figures of its rows.

Everything a figure says is an interval of `saeexplainer.figures.intervals`, kept as {"value", "low", "high", "n"} so
that the reports can be written again from their JSON alone. Rows of different runs are paired only where the runs
measured the same features of the same SAE.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from saeexplainer.figures.comparison import BASELINE, METRICS, START, default_starts, values_of
from saeexplainer.figures.intervals import (
    difference_of_means,
    known_values,
    paired_difference,
    pooled_difference,
    pooled_mean,
)
from saeexplainer.figures.notation import heading, table
from saeexplainer.records import EvaluationRow

COMPLETE = "complete"
POOLED = "pooled"
# Groups of variants with a section of their own. Seeds: what counts. Looked at: seeds seen on test while settings were
# chosen. The control's rewards are shuffled; labels are poorer or better than the default's.
SEEDS, LOOKED_AT, CONTROL, LABELS = "seeds", "looked_at", "control", "labels"
BEFORE_ROUNDS = (BASELINE, "warmup", START)  # evaluations in the order of training; the rounds follow, then others
THE_LAST = "last"  # stands for the last round while no run tells its name
BOOTSTRAP_SEED = 0

Pair = tuple[Sequence[EvaluationRow], Sequence[EvaluationRow]]  # of a run, and of the one that it is held against


@dataclass(frozen=True)
class Variant:
    """One variant of a plan with what it measured."""

    name: str
    group: str  # section of the report
    source: str | None  # the variant that it shares its first stages with
    changes: list[str]  # overrides that it has and its source has not
    status: str  # COMPLETE, or why there are no figures
    seed: int | None  # of the run
    split: str | None  # that was measured: valid or test
    contexts: int | None  # that the labeller saw of each feature
    subject: dict[str, Any] | None  # reports/subject.json
    sae: dict[str, Any] | None  # reports/sae.json, of the explained SAE
    seconds: float | None  # of all stages, those that were restored at what they took where they ran
    own_seconds: float | None  # of the stages that ran for this variant
    outdated: list[str]  # modules that changed since
    evaluations: dict[str, list[EvaluationRow]]  # empty unless complete


def absent(name: str, group: str, source: str | None, changes: list[str], status: str) -> Variant:
    """A variant without figures."""
    return Variant(name, group, source, changes, status, None, None, None, None, None, None, None, [], {})


def of_group(variants: Iterable[Variant], group: str) -> list[Variant]:
    """The variants of a group, in order."""
    return [variant for variant in variants if variant.group == group]


def group_of(study: Mapping[str, Any], group: str) -> dict[str, Any]:
    """The described variants of a group, from study.json, in order."""
    return {name: found for name, found in study["variants"].items() if found["group"] == group}


def described(variant: Variant) -> dict[str, Any]:
    """All that is kept of a variant but its rows."""
    return {key: value for key, value in vars(variant).items() if key not in ("name", "evaluations")}


def state(found: Mapping[str, Any]) -> str:
    """Whether a described variant ran, and how much of its code is no longer today's; "outdated" names the modules."""
    changed = len(found["outdated"])
    return found["status"] + (f"; {changed} modules changed since" if changed else "")


def ordered(names: Iterable[str]) -> list[str]:
    """Names of evaluations: training's own steps first."""
    names = list(names)
    first = [*BEFORE_ROUNDS, *rounds_of(names)]
    return [name for name in first if name in names] + [name for name in names if name not in first]


def rounds_of(names: Iterable[str]) -> list[str]:
    """The evaluations named r1, r2, ..., in number order."""
    return list(default_starts(list(names)))


def last_round(names: Iterable[str]) -> str | None:
    """The last of the evaluations named r1, r2, ..."""
    return next(reversed(rounds_of(names)), None)


def mean(tables: Sequence[Sequence[EvaluationRow]], metric: str, resamples: int) -> dict[str, Any] | None:
    """A metric over the features of several runs, a table of rows each; a run that knows it of fewer than two has no
    interval and is left out. None if all are."""
    strata = [known for rows in tables if len(known := known_values(values_of(rows, metric))) > 1]
    return asdict(pooled_mean(strata, resamples, BOOTSTRAP_SEED)) if strata else None


def both(variants: Iterable[Variant], a: str, b: str) -> list[tuple[list[EvaluationRow], list[EvaluationRow]]]:
    """The rows of evaluations a and b of every variant that has both."""
    found = [variant.evaluations for variant in variants]
    return [(evaluations[a], evaluations[b]) for evaluations in found if {a, b} <= evaluations.keys()]


def names_of(variants: Iterable[Variant]) -> list[str]:
    """The evaluations that some variant has, training's own steps first."""
    return ordered(dict.fromkeys(name for variant in variants for name in variant.evaluations))


def pooled(variants: Sequence[Variant], resamples: int) -> dict[str, Any]:
    """evaluation -> metric -> interval of the mean over the features of all variants that have the evaluation."""
    return {
        name: {
            metric: mean([one.evaluations[name] for one in variants if name in one.evaluations], metric, resamples)
            for metric in METRICS.values()
        }
        for name in names_of(variants)
    }


def leads(variants: Sequence[Variant], last: str, resamples: int) -> dict[str, Any]:
    """evaluation -> metric -> interval of the last round's difference to it, over the features of all variants, for
    all that are no step of training: baselines, controls, the truth."""
    names = names_of(variants)
    return {
        name: {metric: difference(both(variants, last, name), metric, resamples) for metric in METRICS.values()}
        for name in names
        if name not in (START, *rounds_of(names))
    }


def difference(
    pairs: Sequence[tuple[Sequence[EvaluationRow], Sequence[EvaluationRow]]], metric: str, resamples: int
) -> dict[str, Any] | None:
    """a - b, paired by feature inside each pair of tables, over the features of all. A pair that knows the metric of
    fewer than two is left out; None if all are.

    Raises UserError where a pair measures different features.
    """
    known = [known_to_both(a, b, metric) for a, b in pairs]
    known = [pair for pair in known if len(pair[0]) > 1]
    return asdict(pooled_difference(known, resamples, BOOTSTRAP_SEED)) if known else None


def known_to_both(
    a: Sequence[EvaluationRow], b: Sequence[EvaluationRow], metric: str
) -> tuple[dict[str, float], dict[str, float]]:
    """A metric by feature, over the features where both know it. Raises UserError if they hold different features."""
    left, right = values_of(a, metric), values_of(b, metric)
    known = [key for key, value in paired_difference(left, right).items() if not math.isnan(value)]
    return {key: left[key] for key in known}, {key: right[key] for key in known}


def known_metrics(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """The metrics that some of these tables of intervals knows; all that they name while nothing is measured."""
    kept = list(tables)
    names = list(dict.fromkeys(name for found in kept for name in found))
    return [name for name in names if any(found[name] for found in kept)] or names


def against_sources(variants: Sequence[Variant], everyone: Mapping[str, Variant], resamples: int) -> dict[str, Any]:
    """The last round of each variant against that of the variant it comes from, pooled over all that can be paired.

    {"changes", "paired": [name], "unpaired": {name: why}, "differences": {metric: interval or null}, "apart": same}.
    Apart are means subtracted, of those that are unpaired for their features alone; each side is resampled by itself.
    """
    why = {variant.name: _why_not(variant, everyone.get(variant.source or "")) for variant in variants}
    compared = [(variant, everyone[variant.source or ""]) for variant in variants if not why[variant.name]]
    paired = [(one, source) for one, source in compared if _same_features(one, source)]
    apart = [(one, source) for one, source in compared if not _same_features(one, source)]
    others = {one.name: f"its subject, SAE or features are not those of {source.name}" for one, source in apart}
    pairs, gaps = ([(_last_rows(one), _last_rows(source)) for one, source in found] for found in (paired, apart))
    return {
        "changes": list(dict.fromkeys(change for variant in variants for change in variant.changes)),
        "paired": [one.name for one, _ in paired],
        "unpaired": {name: reason for name, reason in (why | others).items() if reason},
        "differences": {metric: difference(pairs, metric, resamples) for metric in METRICS.values()},
        "apart": {metric: _gap(gaps, metric, resamples) for metric in METRICS.values()},
    }


def _gap(pairs: Sequence[Pair], metric: str, resamples: int) -> dict[str, Any] | None:
    """Mean of a less mean of b, of other features, over all pairs; None where a side knows of fewer than two."""
    sides = [[value for rows in side for value in known_values(values_of(rows, metric))] for side in zip(*pairs)]
    if any(len(side) < 2 for side in sides) or not sides:
        return None
    return asdict(difference_of_means(*sides, resamples, BOOTSTRAP_SEED))


def _why_not(variant: Variant, source: Variant | None) -> str:
    """Why these two cannot be compared; empty if they can."""
    if lacking := _lacking(variant):
        return lacking
    if source is None:
        return "it comes from no variant"
    if lacking := _lacking(source):
        return f"{source.name}: {lacking}"
    if variant.seed != source.seed:
        return f"its seed is {variant.seed}, that of {source.name} is {source.seed}"
    return ""


def _same_features(variant: Variant, source: Variant) -> bool:
    """Ids do not tell one training of an SAE from another; its own figures do."""
    ids, others = ({row.feature_id for row in _last_rows(one)} for one in (variant, source))
    return (variant.subject, variant.sae) == (source.subject, source.sae) and ids == others


def _lacking(variant: Variant) -> str:
    if variant.status != COMPLETE:
        return variant.status
    return "" if last_round(variant.evaluations) else "it has no round"


def _last_rows(variant: Variant) -> list[EvaluationRow]:
    return variant.evaluations[last_round(variant.evaluations) or ""]


def evaluations_table(head: str, rows: dict[str, Any], shown: Callable[[Any], str]) -> str:
    """A row an evaluation, or whatever the names are of, a column each metric that is known."""
    metrics = known_metrics(rows.values())
    return table([head, *map(heading, metrics)], [[f"`{name}`", *(shown(found[metric]) for metric in metrics)]
                                                  for name, found in rows.items()])  # fmt: skip


def as_json(content: dict[str, Any]) -> str:
    """A report's figures; not sorted, the order of variants and evaluations is information."""
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
