"""Runs as they are kept beside the pages: what a page needs of them, so that a plan may be run piece by piece, by
several people or on several days, and no figure is lost with the folder that it was made in.

A run is a folder: run.json says what it was, and a table for each evaluation has its rows without their texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from saeexplainer.records import EvaluationRow
from saeexplainer.runs.storage import read_json, read_rows, replacing, write_json, write_rows
from saeexplainer.study.figures import Variant, described

RUN = "run.json"
WITHOUT = {"texts", "activations", "neighbour_activations", "tokens", "token_activations"}  # fields of a row


@dataclass(frozen=True)
class KeptRun:
    """A run that came to its end."""

    variant: Variant
    wish: Mapping[str, Any]  # what the plan asked for (`VariantSpec.wish`)
    used: list[list[str]]  # [path, md5] of the code that made it


def keep(folder: Path, run: KeptRun) -> None:
    """Write the run in place of what was kept under that name."""
    about = described(run.variant) | {"evaluations": list(run.variant.evaluations), "name": run.variant.name}
    with replacing(folder) as new:
        new.mkdir()
        write_json(new / RUN, {"variant": about, "wish": run.wish, "used": run.used})
        for name, rows in run.variant.evaluations.items():
            short = [replace(row, **{field: [] for field in WITHOUT}) for row in rows]
            write_rows(new / f"{name}.parquet", short, EvaluationRow)


def read(folder: Path) -> KeptRun | None:
    """The run that a folder keeps; None if it keeps none. Raises UserError if a table is missing."""
    if not (folder / RUN).is_file():
        return None
    found = read_json(folder / RUN)
    about = found["variant"]
    rows = {name: read_rows(folder / f"{name}.parquet", EvaluationRow) for name in about["evaluations"]}
    return KeptRun(Variant(**(about | {"evaluations": rows})), found["wish"], found["used"])
