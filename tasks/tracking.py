"""Tell MLflow what came out. The files under reports/ are the source; MLflow can always be filled again from them.

    python -m tasks.tracking rebuild        log the result that lies in reports/, unless it is there already

An experiment of MLflow is an experiment of conf/. A pipeline run is a parent run with one child an evaluation; children
carry the same metric names, so that the compare view lines the rounds up, and the parent carries them again with
step = place in the chain of training (0 is what the first round started from). Logging is idempotent: a result is known
by `pipeline_key`, the hash of comparison.json and params.yaml, because DVC may skip a stage whose result it has.

Without MLFLOW_TRACKING_URI the store is mlruns/mlflow.db with artifacts under mlruns/artifacts.
"""

import argparse
import csv
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeexplainer.comparison import chain_of
from saeexplainer.config import Params
from saeexplainer.errors import UserError
from saeexplainer.storage import read_json
from tasks import params as parameters

if TYPE_CHECKING:
    from mlflow import MlflowClient

STORE = Path("mlruns/mlflow.db")
ARTIFACTS = Path("mlruns/artifacts")
REPORTS = Path("reports")
LOGGED_FILES = ("results.md", "rounds.png", "comparison.json", "rounds.csv")
PARAMS_FILE, LOCK_FILE = Path("params.yaml"), Path("dvc.lock")
# Limits of one request, and of one value, in mlflow.utils.validation.
METRICS_A_BATCH, OTHERS_A_BATCH, PARAM_LENGTH = 1000, 100, 6000


@dataclass(frozen=True)
class Logged:
    """Where a result is in MLflow."""

    run_id: str  # of the parent run
    created: bool  # False if it was there already


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    name: str  # as MLflow shows it
    value: float
    step: int  # place in the chain, or the optimizer step of a training curve


def log(params: Params, comparison: dict) -> Logged:
    """Log one result as parent and children, unless the store holds it.

    A parent counts once it is finished, which is the last thing written; runs that an interruption left half written
    are removed first. Raises whatever the store or the network raises, UserError for a broken training curve.
    """
    client = _client()
    key = pipeline_key(comparison)
    experiment = _experiment(client, params.compare_rounds.experiment)
    runs = client.search_runs([experiment], f"tags.pipeline_key = '{key}'", max_results=1000)
    parents = [run for run in runs if run.data.tags["level"] == "pipeline" and run.info.status == "FINISHED"]
    if parents:
        return Logged(parents[0].info.run_id, created=False)
    for run in runs:
        client.delete_run(run.info.run_id)
    tags = {"pipeline_key": key, **provenance()}
    parent = client.create_run(
        experiment, run_name=f"seed {comparison['seed']}, {key[:8]}", tags={**tags, "level": "pipeline"}
    ).info.run_id
    for name in comparison["rounds"]:
        _log_child(client, experiment, parent, name, params, comparison, tags)
    _write(client, parent, [*_chain_points(comparison), *_difference_points(comparison)], flattened(asdict(params)))
    for path in (REPORTS / name for name in LOGGED_FILES):
        if path.is_file():
            client.log_artifact(parent, str(path))
    client.set_terminated(parent)
    return Logged(parent, created=True)


def _log_child(
    client: "MlflowClient", experiment: str, parent: str, name: str, params: Params, comparison: dict, tags: dict
) -> None:
    chain = chain_of(comparison)
    place = chain.index(name) if name in chain else 0
    own_tags = {"level": "evaluation", "evaluation": name, "mlflow.parentRunId": parent}
    run = client.create_run(experiment, run_name=name, tags={**tags, **own_tags}).info.run_id
    settings = {"seed": params.seed}
    if name in params.evaluations:
        settings |= asdict(params.evaluations[name])
    if name in params.rounds:
        settings |= asdict(params.rounds[name])
    _write(client, run, [*_points(comparison["rounds"][name], place), *_curve(name)], flattened(settings))
    client.set_terminated(run)


def _points(metrics: dict, step: int, prefix: str = "") -> Iterator[Point]:
    for metric, interval in metrics.items():
        yield Point(prefix + metric, interval["value"], step)
        yield Point(f"{prefix}{metric}_low", interval["low"], step)
        yield Point(f"{prefix}{metric}_high", interval["high"], step)


def _chain_points(comparison: dict) -> Iterator[Point]:
    for step, name in enumerate(chain_of(comparison)):
        yield from _points(comparison["rounds"][name], step)


def _difference_points(comparison: dict) -> Iterator[Point]:
    for name, metrics in comparison["differences"].items():
        yield from _points(metrics, 0, f"{name}/")


def _curve(name: str) -> Iterator[Point]:
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


def _write(client: "MlflowClient", run: str, points: list[Point], settings: dict[str, str]) -> None:
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


def pipeline_key(comparison: dict) -> str:
    """What makes two results the same: the numbers and the settings."""
    canonical = json.dumps(comparison, sort_keys=True).encode()
    return hashlib.sha256(canonical + _content(PARAMS_FILE)).hexdigest()


def provenance() -> dict[str, str]:
    """Tags: git commit, hashes of params.yaml and dvc.lock, and DVC's hash of every output under data/.

    While `dvc repro` runs, dvc.lock holds the stages that are done, which is all that came before the comparison.
    """
    tags = {"git_commit": _git_commit(), "params_sha256": _sha256(PARAMS_FILE), "dvc_lock_sha256": _sha256(LOCK_FILE)}
    return tags | _data_hashes()


def _data_hashes() -> dict[str, str]:
    import yaml

    lock = yaml.safe_load(_content(LOCK_FILE)) or {}
    outputs = [output for stage in lock.get("stages", {}).values() for output in stage.get("outs", [])]
    return {f"data_md5.{output['path']}": output["md5"] for output in outputs if "md5" in output}


def _git_commit() -> str:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "none"
    return found.stdout.strip()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _uri() -> str:
    # Absolute, because MLflow keeps one store an address for the whole process, whatever the working folder is by then.
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE.resolve()}"


def shown_uri() -> str:
    """The tracking address for messages, without the credentials that it may hold."""
    return _without_credentials(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE}")


def _without_credentials(text: str) -> str:
    return re.sub(r"://[^/@\s]*@", "://", text)


def _client() -> "MlflowClient":
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # By default a dead server is asked for several minutes before the first error.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it reports every migration of a new store
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # and this every retry; the last error says it
    from mlflow import MlflowClient

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        STORE.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=_uri())


def _experiment(client: "MlflowClient", name: str) -> str:
    """The experiment's id; made if need be, brought back if someone deleted it."""
    found = client.get_experiment_by_name(name)
    if found is None:
        local = not os.environ.get("MLFLOW_TRACKING_URI")  # a server decides itself where artifacts go
        location = (ARTIFACTS / name).resolve().as_uri() if local else None
        return client.create_experiment(name, artifact_location=location)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def one_line(error: BaseException) -> str:
    """An exception as a short piece of one line, without the credentials that an address in it may hold."""
    text = _without_credentials(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def main(arguments: list[str] | None = None) -> int:
    """`rebuild`: log what lies in reports/; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tasks.tracking", description="Fill MLflow from reports/.")
    parser.add_argument("command", choices=["rebuild"], help="log reports/comparison.json unless it is logged")
    parser.parse_args(arguments)
    try:
        logged = log(parameters.load(), read_json(REPORTS / "comparison.json"))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except Exception as error:  # whatever a server, a driver or a network can raise
        print(f"error: MLflow at {shown_uri()} did not take the result ({one_line(error)})", file=sys.stderr)
        return 2
    print(f"MLflow: {'logged' if logged.created else 'already holds'} run {logged.run_id} in {shown_uri()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
