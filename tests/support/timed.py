"""Seconds of stages, as a workspace keeps them that ran these stages itself."""

from pathlib import Path

import yaml

from saeexplainer.runs.storage import write_json
from tasks.workspace import repro, timings


def keep(folder: Path, seconds: dict[str, float]) -> None:
    """Keep seconds of the results that dvc.lock has; stages that it lacks get a result there."""
    path = folder / "dvc.lock"
    lock = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {"stages": {}}
    for stage in seconds:
        lock["stages"].setdefault(stage, {}).setdefault("outs", [{"path": f"reports/{stage}", "md5": "0" * 32}])
    path.write_text(yaml.safe_dump(lock), encoding="utf-8")
    versions = repro.versions(folder)
    write_json(folder / timings.KEPT, {stage: {versions[stage]: value} for stage, value in seconds.items()})
