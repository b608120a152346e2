"""What may keep the pipeline from running here, each with what to do about it: `sae-explainer doctor`.

A check never changes anything, and a check that cannot tell says so instead of failing.
"""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import saeexplainer
from saeexplainer.errors import UserError
from tasks.workspace.printable import one_line

RANGES_FILE, DVC_TMP = Path("pyproject.toml"), Path(".dvc/tmp")
CONTROL, REPOSITORY = Path("conf/control.yaml"), Path(saeexplainer.__file__).resolve().parent.parent
PYTHON = ((3, 11), (3, 14))  # as pyproject.toml's requires-python: from, and below
OWNERS = {"prefect": "Prefect", "mlflow": "MLflow", "reports": "the pages of `make ui`"}  # by their keys under `ui`
SHOWN = 3  # names in a line, before "and N more"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: str  # ok, warn (works, but look) or fail (will not work)
    what: str
    advice: str = ""  # empty if all is well

    @property
    def line(self) -> str:
        """As the terminal shows it."""
        return f"{self.level:<5} {self.what}" + (f"; {self.advice}" if self.advice else "")


def findings() -> Iterator[Finding]:
    """Every check, quick ones first."""
    yield _python()
    yield _versions()
    yield _git()
    yield from _ports()
    yield _schedules()
    yield _browser()
    yield _settings()
    yield from _models()
    yield _store()
    yield from _locks()
    yield _stages()


def _python() -> Finding:
    version = sys.version_info[:3]
    shown = f"Python {'.'.join(map(str, version))}"
    if PYTHON[0] <= version[:2] < PYTHON[1]:
        return Finding("ok", shown)
    return Finding("fail", shown, "3.11 to 3.13 is needed: make setup PYTHON=/path/to/python3.11")


def _versions() -> Finding:
    """The installed packages against the project's own dependencies: a version outside of its range is known not to
    work. `pip check` tells what is missing."""
    from packaging.requirements import Requirement

    try:
        project = tomllib.loads(RANGES_FILE.read_text(encoding="utf-8"))["project"]
        texts = [*project["dependencies"], *project.get("optional-dependencies", {}).get("pipeline", [])]
        ranges = [Requirement(text) for text in texts]
    except (OSError, LookupError, ValueError):  # `make setup` fails on such a file, and says more
        return Finding("fail", f"packages: no ranges in {RANGES_FILE}", "run this in the repository's root")
    outside = []
    for wanted in ranges:
        with suppress(metadata.PackageNotFoundError):
            version = metadata.version(wanted.name)
            if not wanted.specifier.contains(version, prereleases=True):
                outside.append(f"{wanted.name} {version} (needs {wanted.specifier})")
    if outside:
        return Finding("fail", f"packages: {_some(outside)}", f"{RANGES_FILE} says why; run `make setup`")
    return Finding("ok", f"packages: in the ranges of {RANGES_FILE}")


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def _git() -> Finding:
    if shutil.which("git") is None:
        return Finding("warn", "git: not found", "install it: `dvc exp` and the runs' commit tags need it")
    inside = subprocess.run(["git", "rev-parse", "--git-dir"], capture_output=True, text=True, check=False)
    if inside.returncode:
        return Finding(
            "warn",
            "git: no repository here",
            "`dvc exp` needs one: git init, or clone instead of copying; `make setup` lets the rest work without",
        )
    return Finding("ok", "git: a repository")


def _ports() -> Iterator[Finding]:
    ports = _ports_of_ui()
    if not ports:
        yield Finding("fail", f"{CONTROL}: has no ports under `ui`", "write them as the repository's file has them")
    for name, port in ports.items():
        owner = OWNERS[name]
        with closing(socket.socket()) as probe:
            probe.settimeout(1)
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        if taken:
            advice = f"fine if it is {owner}; else stop it, or change ui.{name} in {CONTROL}"
            yield Finding("warn", f"port {port}: taken", advice)
        else:
            yield Finding("ok", f"port {port}: free for {owner}")


def _ports_of_ui() -> dict[str, int]:
    """The ports of `make ui` by their keys; none if they cannot be read."""
    import yaml

    path = CONTROL if CONTROL.is_file() else REPOSITORY / CONTROL
    try:
        ports = yaml.safe_load(path.read_text(encoding="utf-8"))["ui"]
        return {name: int(ports[name]) for name in OWNERS}
    except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError):
        return {}


def _schedules() -> Finding:
    """The Prefect server at PREFECT_API_URL, else that of `make ui`: does it plan the runs of the active schedules?"""
    from tasks.tracking import store
    from tasks.workspace import prefect_api

    named, port = os.environ.get("PREFECT_API_URL"), _ports_of_ui().get("prefect")
    api = named or f"http://127.0.0.1:{port}/api"
    shown = store.without_credentials(api)
    if not prefect_api.answers(api):
        if named:
            advice = "start `make ui`, or correct or unset the variable"
            return Finding("fail", f"Prefect: no server answers at {shown}, which PREFECT_API_URL names", advice)
        return Finding("ok", "Prefect: no server runs here")
    try:
        found = prefect_api.schedules(api)
    except prefect_api.NoAnswer as error:
        advice = "if it wants to know who asks, set PREFECT_API_AUTH_STRING or PREFECT_API_KEY"
        return Finding("warn", f"Prefect: {shown} does not say what it plans: {error}", advice)
    if found.problem:
        return Finding("fail", f"Prefect: {found.problem}", found.cure)
    return Finding("ok", f"Prefect: {shown} plans the runs of all {len(found.planned)} active schedules")


def _browser() -> Finding:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found:
        return Finding("ok", f"browser for the tests: {found}")
    return Finding("warn", "browser for the tests: no chromium", "they are skipped; apt-get install chromium")


def _settings() -> Finding:
    """params.yaml loads, and is what conf/ composes to for the experiment that it names."""
    from omegaconf import OmegaConf

    from tasks.settings import compose, params

    try:
        loaded = params.load()
        experiment = loaded.compare_rounds.experiment
        overrides = [f"experiment={experiment}"] if (compose.CONF / f"experiment/{experiment}.yaml").is_file() else []
        composed = params.build(OmegaConf.create(compose.composed(overrides)), "conf")
    except UserError as error:
        return Finding("fail", one_line(error))
    here, there = ({key: value for key, _, value in params.leaves(one)} for one in (loaded, composed))
    differing = [f"{key} {here.get(key, 'left out')}" for key in here | there if here.get(key) != there.get(key)]
    if not differing:
        return Finding("ok", f"params.yaml: {experiment} as conf/ composes it")
    advice = "meant, if you overrode them; after an edit in conf/ compose again: sae-explainer compose"
    return Finding("warn", f"params.yaml: {experiment}, but for {_some(differing)}", advice)


def _models() -> Iterator[Finding]:
    """What the models of params.yaml may cost unseen: money without a limit, and hours beside an idle GPU."""
    from tasks.settings import params

    try:
        unset = [key for key, _, value in params.leaves(params.load()) if value is None]
    except UserError:  # `_settings` has said so
        return
    unlimited = [key.removesuffix(".max_cost") for key in unset if key.endswith(".endpoint.max_cost")]
    if unlimited:
        advice = "if the server takes money, set max_cost and the prices there (docs/ENDPOINTS.md)"
        yield Finding("warn", f"paid calls: no limit at {_some(unlimited)}", advice)
    unplaced = [key.removesuffix(".device_map") for key in unset if key.endswith(".device_map")]
    if unplaced and _has_gpu():
        what = f"GPU: with device_map null {_some(unplaced)} reads and writes on the CPU"
        yield Finding("warn", what, "set device_map to cuda")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _store() -> Finding:
    """mlruns/mlflow.db has the schema of the installed MLflow, and names artifacts of this workspace."""
    from tasks.tracking import store

    try:
        if not store.is_own():
            return Finding("ok", "MLflow: the store that MLFLOW_TRACKING_URI names")
        if not store.STORE.is_file():
            return Finding("ok", f"MLflow: no {store.STORE} yet")
        store.check_version(store.address())
    except UserError as error:
        return Finding("fail", f"MLflow: {error}")
    if former := store.former_homes():
        what = f"MLflow: {store.STORE} names artifacts in {former[0]}, from where this workspace was copied or moved"
        return Finding("warn", what, f"the next command that opens it corrects that, or {store.RELOCATE}")
    return Finding("ok", f"MLflow: {store.STORE} has this version's schema")


def _locks() -> Iterator[Finding]:
    """DVC's locks: who holds them, and what a killed one left."""
    from tasks.workspace import repro

    if _is_held(DVC_TMP / "lock"):
        holder = (DVC_TMP / "lock").read_text(encoding="utf-8", errors="replace").strip() or "unknown"
        yield Finding(
            "warn", f"DVC: at work here (process {holder})", "let it finish, or stop it, before another starts"
        )
    if repro.is_torn(repro.USERS):
        advice = "the next `make flow`, `make study` or `sae-explainer rounds` removes it; else delete it yourself"
        yield Finding("warn", f"DVC: a kill tore {repro.USERS}, on which `dvc repro` fails", advice)
        return
    gone, alive = _holders(repro.USERS)
    if alive:
        yield Finding("warn", f"DVC: files are held by {_some(alive)}", "let it finish, or stop it")
    if gone:
        yield Finding("warn", f"DVC: files were held by {_some(gone)}, which is gone", "the next run clears that")
    if not (gone or alive):
        yield Finding("ok", "DVC: no file is held")


def _is_held(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _holders(path: Path) -> tuple[list[str], list[str]]:
    """(dead, live) processes that a list of DVC's users names."""
    import psutil

    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no such file, or torn a moment ago
        return [], []
    entries = [entry for readers in held.get("read", {}).values() for entry in readers]
    entries += list(held.get("write", {}).values())
    commands = {entry["pid"]: entry["cmd"].rpartition("/")[2] for entry in entries}  # `dvc repro`, without its folder
    shown = {pid: f"process {pid} ({command})" for pid, command in commands.items()}
    dead = [text for pid, text in shown.items() if not psutil.pid_exists(pid)]
    return dead, [text for pid, text in shown.items() if psutil.pid_exists(pid)]


def _stages() -> Finding:
    """What `dvc repro` would run, as DVC sees it."""
    if not Path(".dvc").is_dir() or not Path("dvc.yaml").is_file():
        return Finding("fail", "DVC: no workspace here", "run this in the repository's root")
    from tasks.workspace import repro

    command = [sys.executable, "-m", "dvc", "status", "--json"]
    process = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", env=repro.environment(), check=False
    )
    if process.returncode:
        said = [line.removeprefix("ERROR: ") for line in process.stderr.splitlines() if line.startswith("ERROR")]
        return Finding("fail", f"DVC: {said[0] if said else 'dvc status fails'}", "`dvc status` says the rest")
    stale = list(json.loads(process.stdout))
    if stale:
        return Finding("warn", f"stages: {len(stale)} are not up to date ({_some(stale)})", "run `dvc repro`")
    return Finding("ok", "stages: all up to date")
