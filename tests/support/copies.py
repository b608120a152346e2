"""Copies of the repository as a user has them after cloning it, without results, and commands run in them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tiny import ROOT

PATIENCE = 1800  # seconds that one command may take on a busy machine
LEFT_OUT = ("reports/", "tests/", "docs/")
# The nano experiment with all that a prompt can show. Who composes it shares what was trained (`nano_cache`).
READING = (
    "experiment=nano", "warm_up.places=3", "extract_activations.spread_contexts=4",
    "explainer.prompt.shown_contexts=2", "explainer.prompt.shown_spread=1", "explainer.prompt.shown_promoted=3",
)  # fmt: skip


def copied(folder: Path) -> Path:
    """The tracked files in `folder`, but for results, tests and docs."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, os.fsdecode(tracked).split("\0")):
        if not name.startswith(LEFT_OUT) and name != "dvc.lock" and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """This Python's commands, one thread, and a tracking store of the folder's own."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'own.db'}"}
    return os.environ | store | {"PATH": path, "OMP_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1"}


def run(folder: Path, *command: str, fails: bool = False) -> str:
    """What a command says that must succeed, or must fail."""
    process = subprocess.run(
        command, cwd=folder, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert bool(process.returncode) == fails, process.stdout
    return process.stdout


def composed(folder: Path, *overrides: str) -> Path:
    """A repository of its own with the parameters composed."""
    copied(folder)
    run(folder, "git", "init", "--quiet")
    run(folder, sys.executable, "-m", "tasks.settings.compose", *overrides)
    return folder
