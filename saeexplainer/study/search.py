"""docs/SEARCH.md: trials of two samplers over the settings of an SAE, and what the best of each is worth.

`summarise` makes search.json, `page` the page from that alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from saeexplainer.figures.intervals import bootstrap_mean, difference_of_means
from saeexplainer.figures.notation import DASH, bold, heading, literal, percent, table
from saeexplainer.study.figures import BOOTSTRAP_SEED


@dataclass(frozen=True)
class Trial:
    """One setting that was tried."""

    sampler: str
    number: int  # from 0, which is the default's settings
    settings: Mapping[str, float | int]
    values: Sequence[float]  # the metric of each feature; empty where the run failed
    seconds: float  # of the run, in this folder; small where its results were restored


def summarise(trials: Sequence[Trial], metric: str, resamples: int) -> dict[str, Any]:
    """By sampler: every trial, the best, and what the best is above the default; null where nothing came to its end."""
    by_sampler: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda one: (one.sampler, one.number)):
        by_sampler.setdefault(trial.sampler, []).append(trial)
    return {
        "metric": metric,
        "resamples": resamples,
        "samplers": {name: _sampler(found, resamples) for name, found in by_sampler.items()},
    }


def _sampler(trials: Sequence[Trial], resamples: int) -> dict[str, Any]:
    done = [trial for trial in trials if trial.values]
    best = max(done, key=_mean, default=None)
    default = next((trial for trial in done if trial.number == 0), None)
    told = [
        {"number": one.number, "settings": dict(one.settings), "seconds": one.seconds,
         "value": asdict(bootstrap_mean(one.values, resamples, BOOTSTRAP_SEED)) if one.values else None}
        for one in trials
    ]  # fmt: skip
    gain = difference_of_means(best.values, default.values, resamples, BOOTSTRAP_SEED) if best and default else None
    return {"trials": told, "best": best and best.number, "above_default": asdict(gain) if gain else None}


def _mean(trial: Trial) -> float:
    return sum(trial.values) / len(trial.values)


def page(found: Mapping[str, Any]) -> str:
    """docs/SEARCH.md."""
    metric = heading(found["metric"])
    best, every = [], []
    for name, one in found["samplers"].items():
        trials = one["trials"]
        chosen = next((trial for trial in trials if trial["number"] == one["best"]), None)
        told = [_settings(chosen["settings"]), percent(chosen["value"])] if chosen else [DASH, DASH]
        best.append([literal(name), str(len(trials)), *told, bold(one["above_default"])])
        for trial in trials:
            value = percent(trial["value"]) if trial["value"] else "failed"
            seconds = f"{trial['seconds']:.0f}"
            every.append([literal(name), str(trial["number"]), _settings(trial["settings"]), value, seconds])
    return "\n\n".join(
        [
            "<!-- Written by `sae-explainer search`; what is edited here is lost. -->",
            "# A search over the settings of an SAE",
            "Each trial trains an SAE, labels its features and measures the labels (conf/search.yaml). In brackets the "
            f"95 % bootstrap interval over features ({found['resamples']:,} resamples). The best of many trials is "
            "best by luck too, on the features that chose it: what it is above the default is an upper bound.",
            table(["sampler", "trials", "its best", metric, "above the default"], best),
            "## Every trial",
            table(["sampler", "trial", "settings", metric, "seconds"], every),
        ]
    ) + "\n"  # fmt: skip


def _settings(settings: Mapping[str, float | int]) -> str:
    return ", ".join(f"`{name}={value:.3g}`" for name, value in settings.items())
