"""The second part of docs/RESULTS.md: the default on test, on seeds that nobody looked at while settings were chosen.

`summarise` makes confirmation.json, `sections` its part of the page from that alone: every evaluation and every metric
pooled over the seeds, each round against SFT, the last one against all else, what an explanation costs, and whether
another reward lowers collisions at no loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from saeexplainer.figures.comparison import ACCURACY, COLLISION, METRICS, START, direction
from saeexplainer.figures.intervals import pooled_ratio
from saeexplainer.figures.notation import DASH, bold, heading, literal, percent, plain, points, runs, table, words
from saeexplainer.records import EvaluationRow
from saeexplainer.study import targets
from saeexplainer.study.figures import (
    BOOTSTRAP_SEED,
    SEEDS,
    Variant,
    against_sources,
    both,
    difference,
    known_metrics,
    known_to_both,
    last_round,
    mean,
    of_group,
    ordered,
    rounds_of,
)

REWARD = "reward"  # the group of runs with another reward, each from a seed of the study
TOLERATED_LOSS = 0.02  # of generative accuracy, fixed before anything was measured: "no loss" excludes more than this


def summarise(variants: Sequence[Variant], resamples: int) -> dict[str, Any]:
    """The content of confirmation.json; intervals are {"value", "low", "high", "n"} or, where unknown, null."""
    seeds = of_group(variants, SEEDS)
    names = ordered(dict.fromkeys(name for variant in seeds for name in variant.evaluations))
    last = last_round(names)
    return {
        "resamples": resamples,
        "seeds": {variant.name: variant.status for variant in seeds},
        "splits": list(dict.fromkeys(variant.split for variant in seeds if variant.split)),
        "last": last,
        "evaluations": {
            name: {metric: mean(_tables(seeds, name), metric, resamples) for metric in METRICS.values()}
            for name in names
        },
        "gains": {name: _subtracted(seeds, name, START, resamples) for name in rounds_of(names) if START in names},
        "differences": {
            name: _subtracted(seeds, last, name, resamples) for name in names if last and name not in (last, START)
        },
        "costs": {name: _cost(seeds, name, last or name, resamples) for name in names},
        "reward": against_sources(of_group(variants, REWARD), {one.name: one for one in variants}, resamples),
    }


def _subtracted(seeds: Sequence[Variant], a: str, b: str, resamples: int) -> dict[str, Any]:
    """metric -> interval of a - b."""
    return {metric: difference(both(seeds, a, b), metric, resamples) for metric in METRICS.values()}


def _tables(variants: Sequence[Variant], name: str) -> list[list[EvaluationRow]]:
    return [variant.evaluations[name] for variant in variants if name in variant.evaluations]


def _cost(seeds: Sequence[Variant], name: str, last: str, resamples: int) -> dict[str, Any]:
    """Means an explanation of one evaluation, and the share of its accuracy that the last round reaches."""
    rows = [row for table_of_seed in _tables(seeds, name) for row in table_of_seed]
    pairs = [known for a, b in both(seeds, last, name) if len((known := known_to_both(a, b, ACCURACY))[0]) > 1]
    reached = pooled_ratio(pairs, resamples, BOOTSTRAP_SEED) if pairs else None
    return {
        "runs": len(_tables(seeds, name)),
        "features": len(rows),
        "calls": sum(row.calls for row in rows) / len(rows),
        "call_tokens": sum(row.call_tokens for row in rows) / len(rows),
        "reached": asdict(reached) if reached else None,
    }


def sections(found: dict[str, Any]) -> Iterator[str]:
    """The part of docs/RESULTS.md, in markdown."""
    yield f"## Confirmation: the default, measured on {', '.join(found['splits']) or 'test (nothing measured yet)'}"
    seeds = ", ".join(f"`{name}` ({literal(status)})" for name, status in found["seeds"].items()) or "none"
    yield f"Runs of conf/study.yaml, nothing chosen by them: {seeds}. Features of all seeds are pooled."
    if not found["evaluations"]:
        yield "Not run: no figures."
    else:
        yield "\n".join(f"- {target.line}" for target in targets.of_confirmation(found))
        yield _evaluations(found)
        if found["last"]:
            yield f"### Each round against {START}, {found['last']} against all else"
            yield _differences(found)
            yield "### What an explanation costs"
            yield from _costs(found)
    yield "### Another reward: fewer collisions at no loss of generative accuracy?"
    yield from _reward(found["reward"])


def _evaluations(found: dict[str, Any]) -> str:
    metrics = known_metrics(found["evaluations"].values())
    rows = [
        [
            f"`{name}`", f"{found['costs'][name]['runs']}", f"{found['costs'][name]['features']:,}",
            *(percent(intervals[metric]) for metric in metrics),
        ]
        for name, intervals in found["evaluations"].items()
    ]  # fmt: skip
    return table(["explanations", "runs", "features", *map(heading, metrics)], rows)


def _differences(found: dict[str, Any]) -> str:
    subtracted = {f"{name} − {START}": intervals for name, intervals in found["gains"].items()}
    subtracted |= {f"{found['last']} − {name}": intervals for name, intervals in found["differences"].items()}
    metrics = known_metrics(subtracted.values())
    rows = [[f"`{name}`", *(bold(intervals[metric]) for metric in metrics)] for name, intervals in subtracted.items()]
    return table(["difference", *map(heading, metrics)], rows)


def _costs(found: dict[str, Any]) -> Iterator[str]:
    """Calls and tokens of each evaluation, and what the last round makes of those that spend them at inference."""
    last = found["last"]
    own = found["costs"][last]
    yield (
        "Calls are the sequences that models generate to arrive at one explanation: explanations, and texts to choose "
        "it by; tokens are those of the calls, prompts included. Training is not in them."
    )
    rows = [
        [
            f"`{name}`", plain(cost["calls"], ",.1f"), plain(cost["call_tokens"], ",.0f"),
            _times(cost["calls"], own["calls"]), _times(cost["call_tokens"], own["call_tokens"]),
            percent(cost["reached"]),
        ]
        for name, cost in found["costs"].items()
    ]  # fmt: skip
    header = ["explanations", "calls", "tokens", f"calls of {last}", f"tokens of {last}"]
    yield table([*header, f"{last} reaches of its {words(ACCURACY)}, %"], rows)
    for name, cost in found["costs"].items():
        if name.startswith(targets.FEEDBACK) and cost["reached"]:
            yield (
                f"`{last}` reaches {percent(cost['reached'])} percent of the {words(ACCURACY)} of `{name}`, which "
                f"takes {_times(cost['calls'], own['calls'])} its calls and "
                f"{_times(cost['call_tokens'], own['call_tokens'])} its tokens."
            )


def _times(a: float, b: float) -> str:
    return f"{a / b:,.1f} times" if b else DASH


def _reward(found: dict[str, Any]) -> Iterator[str]:
    """The question, its answer, and every metric."""
    missing = [f"{name}: {why}" for name, why in found["unpaired"].items()]
    collisions, accuracy = found["differences"][COLLISION], found["differences"][ACCURACY]
    changes = ", ".join(f"`{change}`" for change in found["changes"])
    if not collisions or not accuracy:
        yield f"Open ({changes or 'no run listed'}): {'; '.join(missing) or 'not run'}."
        return
    lower = {1: "fall", -1: "rise", 0: "are not shown to change"}[direction(COLLISION, collisions)]
    loss = {1: "is gained", -1: "is lost", 0: "is not shown to change"}[direction(ACCURACY, accuracy)]
    if missing:
        answer = "Open"
    elif lower != "fall" or loss == "is lost":
        answer = "No"
    elif accuracy["low"] < -TOLERATED_LOSS:
        answer = f"Fewer collisions, but a loss of more than {100 * TOLERATED_LOSS:.0f} points is not excluded"
    else:
        answer = "Yes"
    open_still = f" Not every run is there: {'; '.join(missing)}." if missing else ""
    yield (
        f"{answer}. {changes} against the default, pooled over {runs(len(found['paired']))}, paired by feature: "
        f"collisions {lower} ({points(collisions)} points), and {words(ACCURACY)} {loss} ({points(accuracy)} points)."
        f"{open_still}"
    )
    metrics = [metric for metric, interval in found["differences"].items() if interval]
    row = [changes, *(bold(found["differences"][metric]) for metric in metrics)]
    yield table(["difference", *map(heading, metrics)], [row])
