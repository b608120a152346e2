"""A trainer's log as a table: one row a step and metric, what DVC plots and MLflow read."""

import csv
from collections.abc import Sequence
from pathlib import Path

from saeexplainer.runs.storage import replacing

# Wall-clock figures would make two runs of one seed differ.
LEFT_OUT = ("runtime", "per_second", "total_flos", "step_time", "profiling")


def write_curves(path: Path, history: Sequence[dict[str, float]]) -> None:
    """Write columns step, epoch, metric, value. The steps of consecutive trainings are made to follow each other."""
    rows, before, last = [], 0, 0
    for entry in history:
        if entry["step"] < last:
            before += last
        last = entry["step"]
        for metric, value in entry.items():
            if metric not in ("step", "epoch") and not any(part in metric for part in LEFT_OUT):
                rows.append((before + last, round(entry["epoch"], 4), metric, value))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("step", "epoch", "metric", "value"))
        writer.writerows(rows)
