"""Measurements as MLflow takes them: points of curves, in batches."""

import csv
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saeexplainer.config import Params
from saeexplainer.costs.bills import Bill, Cost
from saeexplainer.errors import UserError
from saeexplainer.figures.comparison import chain_of
from tasks import costs
from tasks.places import REPORTS
from tasks.workspace import timings

if TYPE_CHECKING:
    from mlflow import MlflowClient


# Limits of one request, and of one value, in mlflow.utils.validation.
METRICS_A_BATCH, OTHERS_A_BATCH, PARAM_LENGTH, TAG_LENGTH = 1000, 100, 6000, 8000


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    name: str  # as MLflow shows it
    value: float
    step: int  # place in the chain, or the optimizer step of a training curve


def seconds_points(item: str | None) -> Iterator[Point]:
    """Seconds in which each stage made its results: a round's or an evaluation's own, or all of them."""
    for name, seconds in stage_seconds().items():
        stage, _, of = name.partition("@")
        if item in (None, of):
            yield Point(f"seconds/{stage}" if item else f"seconds/{name.replace('@', '/')}", seconds, 0)


def stage_seconds() -> dict[str, float]:
    """Without compare_rounds, which is still running when it logs."""
    return {name: seconds for name, seconds in timings.of_results().items() if name != "compare_rounds"}


def _bill(params: Params) -> Bill | None:
    return costs.bill(params, stage_seconds()) if costs.COSTS.is_file() else None


def explanation_costs(name: str, params: Params) -> Iterator[Point]:
    """What one explanation of an evaluation cost: cost_calls, cost_call_tokens, and cost_usd where there is a price."""
    bill = _bill(params)
    yield from _cost_points(bill.explanations.get(name) if bill else None, "")


def run_costs(params: Params) -> Iterator[Point]:
    """What one validated pair of each round cost, and all stages together."""
    if bill := _bill(params):
        for name, cost in bill.pairs.items():
            yield from _cost_points(cost, f"/pair/{name}")
        yield from _cost_points(bill.total, "/total")


def _cost_points(cost: Cost | None, suffix: str) -> Iterator[Point]:
    """Seconds are left to `seconds/`."""
    for name in ("calls", "call_tokens", "usd"):
        value = getattr(cost, name, None)
        if value is not None:
            yield Point(f"cost_{name}{suffix}", float(value), 0)


def steps_of(comparison: dict) -> dict[str, int]:
    """Each evaluation's step: its place in the chain of training, 0 for what is not in it."""
    chain = chain_of(comparison)
    return {name: chain.index(name) if name in chain else 0 for name in comparison["rounds"]}


def metric_points(metrics: dict, step: int, prefix: str = "") -> Iterator[Point]:
    """Each metric's mean and the ends of its interval, at one step."""
    for metric, interval in metrics.items():
        yield Point(prefix + metric, interval["value"], step)
        yield Point(f"{prefix}{metric}_low", interval["low"], step)
        yield Point(f"{prefix}{metric}_high", interval["high"], step)


def chain_points(comparison: dict, measured: dict[str, dict]) -> Iterator[Point]:
    """What was measured of the chain of training, each evaluation at its place in the chain."""
    for step, name in enumerate(chain_of(comparison)):
        yield from metric_points(measured[name], step)


def difference_points(comparison: dict) -> Iterator[Point]:
    """Each difference of the comparison, under the names of its two evaluations."""
    for name, metrics in comparison["differences"].items():
        yield from metric_points(metrics, 0, f"{name}/")


def curve_points(name: str) -> Iterator[Point]:
    """reports/training/<name>.csv (step, epoch, metric, value) as points of training/<metric>."""
    path = REPORTS / "training" / f"{name}.csv"
    if not path.is_file():
        return
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                # MLflow takes letters, digits and _ - . space : / in a name.
                metric = re.sub(r"[^\w\-. :/]", "_", row["metric"])
                yield Point(f"training/{metric}", float(row["value"]), int(float(row["step"])))
            except (KeyError, TypeError, ValueError):
                problem = f"{path}: line {number} is not step,epoch,metric,value; retrain with `dvc repro`"
                raise UserError(problem) from None


def write_points(client: "MlflowClient", run: str, points: list[Point], settings: dict[str, str]) -> None:
    """Give a run its metrics and parameters, in batches of the sizes that MLflow takes."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    metrics = [Metric(point.name, point.value, now, point.step) for point in points]
    for first in range(0, len(metrics), METRICS_A_BATCH):
        client.log_batch(run, metrics=metrics[first : first + METRICS_A_BATCH])
    params = [Param(name, value[:PARAM_LENGTH]) for name, value in settings.items()]
    for first in range(0, len(params), OTHERS_A_BATCH):
        client.log_batch(run, params=params[first : first + OTHERS_A_BATCH])


def flattened(value: Any, name: str = "") -> dict[str, str]:
    """Nested settings as {"section.field": text}; entries of a list by their position."""
    if isinstance(value, dict) and value:
        items = [(f"{name}.{key}", child) for key, child in value.items()]
    elif isinstance(value, list) and any(isinstance(child, dict | list) for child in value):
        items = [(f"{name}.{index}", child) for index, child in enumerate(value)]
    else:
        return {name.removeprefix("."): str(value)}
    return {key: text for child_name, child in items for key, text in flattened(child, child_name).items()}
