"""Seconds of stages, each kept beside what the stage made in them.

Seconds differ from run to run, and outputs must not: no output holds them, and neither does git. Two files do:

- reports/timings.json, `{stage: seconds}`: the last run of each stage in this folder, of whatever experiment it was.
- .cache/timings.json, `{stage: {version: seconds}}`: the last run that made this version of the stage's results. After
  DVC restored another experiment's results, `of_results` still tells the seconds that those took.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from saeexplainer.errors import UserError
from saeexplainer.runs.storage import read_json, write_json
from tasks.workspace import folder as workspace_folder, repro

LAST, KEPT = Path("reports/timings.json"), Path(".cache/timings.json")
PIPELINE = Path("dvc.yaml")
OUTPUTS = ("outs", "metrics", "plots")  # of a stage in dvc.yaml


def record(stage: str, seconds: float) -> None:
    """Keep the seconds of a stage, or stage@item, that has just written its results."""
    rounded = round(seconds, 1)
    _update(LAST, lambda found: found | {stage: rounded})
    made = made_version(stage)
    if made is not None:
        _update(workspace_folder.root() / KEPT, lambda found: found | {stage: found.get(stage, {}) | {made: rounded}})


def of_results(folder: Path = Path(), others: Sequence[Path] = ()) -> dict[str, float]:
    """Seconds of each stage whose results lie in a workspace, by name: as it timed them itself, or else another one.

    A stage that was timed in none of them is left out. Raises UserError if what was kept is broken.
    """
    kept = [_kept(place) for place in (folder, *others)]
    found = {
        stage: next((of[stage][version] for of in kept if version in of.get(stage, {})), None)
        for stage, version in repro.versions(folder).items()
    }
    return {stage: seconds for stage, seconds in found.items() if seconds is not None}


def _kept(folder: Path) -> dict[str, dict[str, float]]:
    """Seconds by stage and version; empty where no stage ran."""
    path = (workspace_folder.root() if folder == Path() else folder) / KEPT
    try:
        found = read_json(path) if path.is_file() else {}
        return {
            stage: {version: float(seconds) for version, seconds in versions.items()}
            for stage, versions in found.items()
        }
    except (UserError, AttributeError, TypeError, ValueError):
        raise UserError(
            f"{path}: not seconds by stage and version; delete it, the next run of each stage sets its own"
        ) from None


def made_version(stage: str) -> str | None:
    """The version that DVC is about to give to the results of a stage that has just ended; None if some are missing."""
    name, _, item = stage.partition("@")
    try:
        entry = yaml.safe_load(PIPELINE.read_text(encoding="utf-8"))["stages"][name]
    except (OSError, yaml.YAMLError, KeyError, TypeError):  # the stage was started by hand in some other folder
        return None
    listed = [out for kind in OUTPUTS for out in entry.get("do", entry).get(kind, [])]
    paths = [next(iter(out)) if isinstance(out, dict) else out for out in listed]
    paths = [path.replace("${key}", item) for path in paths]
    if not all(map(os.path.exists, paths)):
        return None
    return repro.version_of({path: _digest(path) for path in paths})


def _digest(path: str) -> str:
    """DVC's own of a file or folder."""
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB
    from dvc_objects.fs.local import LocalFileSystem
    from dvc_objects.fs.memory import MemoryFileSystem

    _, _, found = build(HashFileDB(MemoryFileSystem(), "/"), path, LocalFileSystem(), "md5", dry_run=True)
    return found.hash_info.value


def _update(path: Path, change: Callable[[dict], dict]) -> None:
    """Rewrite a file of seconds; stages that end at the same time both land, and a broken file starts anew."""
    with _only_one(path.parent):
        try:
            changed = change(read_json(path))
        except (UserError, TypeError, AttributeError):
            changed = change({})
        write_json(path, changed)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's own lock, which leaves no file behind and ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
