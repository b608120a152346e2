"""Tell MLflow what came out. The files under reports/ are the source; MLflow can always be filled again from them.

    sae-explainer tracking rebuild        log the result that lies in reports/, unless it is there already
    sae-explainer tracking relocate       after the workspace was moved: let the store find its artifacts here

Metrics, parameters, tags and datasets come from reports/, params.yaml and dvc.lock alone. The sample explanations and
the registered explainers (`tasks.registry`) need data/: where it is not there they are left out, and a line says so.

An experiment of MLflow is an experiment of conf/. A pipeline run is a parent run with one child an evaluation; children
carry the same metric names, so that the compare view lines the rounds up, and the parent carries them again with
step = place in the chain of training (0 is what the first round started from). Logging is idempotent: a result is known
by `pipeline_key`, the hash of the figures and the settings, because DVC may skip a stage whose result it has.

A run's times come from the seconds of the stages in reports/timings.json: it ends when it is logged and began as long
before as its stages took. What ran in parallel, or was not run because DVC had it, is counted as if run one by one.
"""

import argparse
import configparser
import csv
import getpass
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeexplainer.comparison import ACCURACY, chain_of
from saeexplainer.config import Params
from saeexplainer.costs import Bill, Cost
from saeexplainer.errors import UserError
from saeexplainer.notation import held_out, percent
from saeexplainer.records import EvaluationRow
from saeexplainer.storage import read_json, read_rows
from tasks import costs, store, surroundings, timings
from tasks import params as parameters

if TYPE_CHECKING:
    from mlflow import MlflowClient


REPORTS, EVALUATIONS = Path("reports"), Path("data/evaluations")
LOGGED_FILES = ("results.md", "rounds.png", "comparison.json", "rounds.csv", "report.html")
SAMPLES, SAMPLES_FILE = 100, "explanations.json"  # features in the table of sample explanations
HASHES_FILE = "data_md5.json"
LABELS = "data/labels.parquet"
WHOLE = ""  # the result, beside its evaluations' names
NO_COMMIT = "none"
PARAMS_FILE, LOCK_FILE = Path("params.yaml"), Path("dvc.lock")
# Limits of one request, and of one value, in mlflow.utils.validation.
METRICS_A_BATCH, OTHERS_A_BATCH, PARAM_LENGTH, TAG_LENGTH = 1000, 100, 6000, 8000


@dataclass(frozen=True)
class Logged:
    """Where a result is in MLflow."""

    run_id: str  # of the parent run
    experiment_id: str  # MLflow's number of the experiment
    created: bool  # False if it was there already
    skipped: list[str]  # what could not be logged, one line each

    @property
    def lines(self) -> list[str]:
        """What a person should see."""
        done = "logged" if self.created else "already holds"
        served = store.shown_uri() if store.address().startswith("http") else ""
        pages = [f"MLflow: {store.page(served, self.experiment_id, self.run_id)}"] if served else []
        return [f"MLflow: {done} run {self.run_id} in {store.shown_uri()}", *pages, *self.skipped]


@dataclass(frozen=True)
class Span:
    """When something ran, in milliseconds since 1970."""

    start: int
    end: int


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    name: str  # as MLflow shows it
    value: float
    step: int  # place in the chain, or the optimizer step of a training curve


def log(params: Params, comparison: dict) -> Logged:
    """Log one result as parent and children, unless the store holds it.

    A parent counts once it is finished, which is the last thing written; runs that an interruption left half written
    are removed first. Raises UserError for a store of another version or a broken file, and whatever else the store or
    the network raises.
    """
    client = store.open_client()
    key = pipeline_key(params, comparison)
    experiment = store.experiment_id(client, params.compare_rounds.experiment)
    runs = client.search_runs([experiment], f"tags.pipeline_key = '{key}'", max_results=1000)
    parents = [run for run in runs if run.data.tags["level"] == "pipeline" and run.info.status == "FINISHED"]
    if parents:
        return Logged(parents[0].info.run_id, experiment, created=False, skipped=[])
    for run in runs:
        client.delete_run(run.info.run_id)
    spans = spans_of(_timings(), list(comparison["rounds"]), int(time.time() * 1000))
    parent = _log_runs(client, experiment, key, params, comparison, spans)
    skipped = _log_samples(client, parent, comparison)
    client.set_terminated(parent, end_time=spans[WHOLE].end)
    return Logged(parent, experiment, created=True, skipped=skipped)


def tag(params: Params, comparison: dict, name: str, value: str) -> None:
    """Set a tag on the parent run of a result, if the store has one. Raises as `log` does."""
    client = store.open_client()
    experiment = store.experiment_id(client, params.compare_rounds.experiment)
    asked = f"tags.pipeline_key = '{pipeline_key(params, comparison)}' AND tags.level = 'pipeline'"
    for run in client.search_runs([experiment], asked):
        client.set_tag(run.info.run_id, name, value)


def _log_runs(
    client: "MlflowClient", experiment: str, key: str, params: Params, comparison: dict, spans: Mapping[str, Span]
) -> str:
    """The parent, as yet unfinished, with all its children; its id."""
    measured, tags = _measured(comparison), {"pipeline_key": key, **provenance(), **_origin(), **_prefect_tags()}
    own_tags = {"level": "pipeline", "mlflow.note.content": _result_note(comparison)}
    run_name = f"seed {comparison['seed']}, {key[:8]}"
    parent = client.create_run(experiment, spans[WHOLE].start, {**tags, **own_tags}, run_name).info.run_id
    for name, step in _places(comparison).items():
        own = [*_points(measured[name], step), *_costs_of(name, params)]
        _log_child(client, experiment, name, params, own, spans[name], {
            **tags, "level": "evaluation", "evaluation": name, "mlflow.parentRunId": parent,
            "mlflow.note.content": _evaluation_note(name, params, comparison),
        })  # fmt: skip
    points = [*_chain_points(comparison, measured), *_difference_points(comparison), *_seconds(None)]
    points += _costs(params)
    _write(client, parent, points, flattened(asdict(params)))
    _log_datasets(client, parent, list(comparison["rounds"]))
    client.log_dict(parent, dvc_hashes(), HASHES_FILE)
    for path in (REPORTS / name for name in LOGGED_FILES):
        if path.is_file():
            client.log_artifact(parent, str(path))
    return parent


def run_of_the_result() -> tuple[str, str] | None:
    """Ids of the experiment and the parent run that hold the result in reports/, whoever made it; None if none does.

    Changes nothing. Raises UserError for a store of another version or broken files, and whatever else the store raises.
    """
    if not (os.environ.get("MLFLOW_TRACKING_URI") or store.STORE.is_file()):
        return None
    params, comparison = parameters.load(), read_json(REPORTS / "comparison.json")
    client = store.open_client()
    experiment = client.get_experiment_by_name(params.compare_rounds.experiment)
    asked = f"tags.pipeline_key = '{pipeline_key(params, comparison)}' AND tags.level = 'pipeline'"
    runs = client.search_runs([experiment.experiment_id], asked) if experiment else []
    finished = [run.info.run_id for run in runs if run.info.status == "FINISHED"]
    return (experiment.experiment_id, finished[0]) if experiment and finished else None


def _log_child(
    client: "MlflowClient", experiment: str, name: str, params: Params, points: list[Point], span: Span, tags: dict
) -> None:
    run = client.create_run(experiment, span.start, tags, name).info.run_id
    settings = {"seed": params.seed}
    if name in params.evaluations:
        settings |= asdict(params.evaluations[name])
    if name in params.rounds:
        settings |= asdict(params.rounds[name])
    _write(client, run, [*points, *_curve(name), *_seconds(name)], flattened(settings))
    _log_datasets(client, run, [name])
    _log_data_docs(client, run, REPORTS / "data_docs" / name)
    client.set_terminated(run, end_time=span.end)


def spans_of(timings: Mapping[str, float], names: Sequence[str], end: int) -> dict[str, Span]:
    """When the stages of each evaluation ran, and under WHOLE those of the result, if they ran one by one up to `end`:
    the stages that all share, then what is each evaluation's own, in the order of `names`. `timings` are seconds by
    stage."""
    own = dict.fromkeys(names, 0.0)
    for stage, seconds in timings.items():
        name = stage.partition("@")[2]
        if name in own:
            own[name] += seconds
    spans, at = {}, end
    for name in reversed(names):
        start = at - round(1000 * own[name])
        spans[name], at = Span(start, at), start
    shared = sum(timings.values()) - sum(own.values())
    return spans | {WHOLE: Span(at - round(1000 * shared), end)}


def _result_note(comparison: dict) -> str:
    """The parent's description: what it is of and its tables, as far as MLflow has room for whole ones."""
    measured = f"Subject {comparison['subject']}, SAE {comparison['sae']}, seed {comparison['seed']}"
    tables = REPORTS / "results.md"
    note = f"{measured}, {held_out(comparison)}. `report.html` among the artifacts has every feature.\n\n"
    for block in tables.read_text(encoding="utf-8").split("\n\n") if tables.is_file() else []:
        if len(note) + len(block) + 2 > TAG_LENGTH:
            break
        note += f"{block}\n\n"
    return note.strip()


def _evaluation_note(name: str, params: Params, comparison: dict) -> str:
    """A child's description."""
    said = f"Generative accuracy {percent(comparison['rounds'][name].get(ACCURACY))} %."
    if name in params.evaluations:
        said = f"Explanations by {params.evaluations[name].kind} {params.evaluations[name].source}. {said}"
    return f"{said} Trained by DPO from {params.rounds[name].start}." if name in params.rounds else said


def _log_datasets(client: "MlflowClient", run: str, names: Sequence[str]) -> None:
    """What evaluations were trained and measured on, by name, DVC's hash and place: no data is copied."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    hashes, inputs = dvc_hashes(), []
    places = {LABELS: "training"} if "sft" in names else {}
    for name in names:
        places |= {f"data/rounds/{name}/validated.parquet": "training", f"{EVALUATIONS}/{name}.parquet": "evaluation"}
    for path, context in places.items():
        if path in hashes:
            source = json.dumps({"uri": path, **_remote_place(hashes[path])})
            # MLflow has room for 36 characters, which is a hash of DVC's with its ".dir".
            dataset = Dataset(path.removeprefix("data/"), hashes[path][:36], "local", source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    if inputs:
        client.log_inputs(run, inputs)


def _remote_place(md5: str) -> dict[str, str]:
    """Where `dvc push` puts an output: {"remote": address} if this repository has a default remote."""
    config = configparser.ConfigParser(interpolation=None)
    config.read([Path(".dvc/config"), Path(".dvc/config.local")], encoding="utf-8")
    section = f"'remote \"{config.get('core', 'remote', fallback='')}\"'"
    url = store.without_credentials(config.get(section, "url", fallback="").rstrip("/"))
    if not url:
        return {}
    if "://" not in url:  # a folder, relative to the file that names it
        url = os.path.normpath(Path(".dvc") / url)
    return {"remote": f"{url}/files/md5/{md5[:2]}/{md5[2:]}"}


def _log_data_docs(client: "MlflowClient", run: str, docs: Path) -> None:
    """The Data Docs of the round's preference set, without Great Expectations' animated tutorials (3 MB a round)."""
    if not docs.is_dir():
        return
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(docs, Path(scratch, "data_docs"), ignore=shutil.ignore_patterns("*.gif"))
        client.log_artifacts(run, scratch)


def _log_samples(client: "MlflowClient", run: str, comparison: dict) -> list[str]:
    """A table of what every evaluation says of the same features; a line if data/ does not hold this result's."""
    try:
        rows = {name: evaluation_rows(name, comparison) for name in comparison["rounds"]}
    except UserError as error:
        return [f"MLflow: sample explanations left out ({error})"]
    tables = {name: {row.feature_id: row for row in found} for name, found in rows.items()}
    ids = sorted(next(iter(tables.values())))
    chosen = ids[:: -(-len(ids) // SAMPLES)]
    columns: dict[str, list] = {"feature_id": chosen}
    for name, table in tables.items():
        columns[name] = [table[feature].explanation for feature in chosen]
        columns[f"{name} accuracy"] = [table[feature].generative_accuracy for feature in chosen]
    client.log_table(run, columns, SAMPLES_FILE)
    return []


def evaluation_rows(name: str, comparison: dict) -> list[EvaluationRow]:
    """The rows behind one evaluation of a comparison. Raises UserError if data/ has none or another result's."""
    path = EVALUATIONS / f"{name}.parquet"
    rows = read_rows(path, EvaluationRow)
    found = comparison["rounds"][name][ACCURACY]
    known = [row.generative_accuracy for row in rows if not math.isnan(row.generative_accuracy)]
    if len(known) != found["n"] or abs(sum(known) / max(len(known), 1) - found["value"]) > 1e-9:
        raise UserError(f"{path}: is of another result than reports/comparison.json; run `dvc repro`")
    return rows


def _measured(comparison: dict) -> dict[str, dict]:
    """The comparison's metrics of each evaluation, and the reward where reports/reward_hallucination.csv has it."""
    path = REPORTS / "reward_hallucination.csv"
    rewards: dict[str, dict] = {}
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                try:
                    ends = {"value": "reward", "low": "reward_low", "high": "reward_high"}
                    rewards[row["round"]] = {"reward": {end: float(row[column]) for end, column in ends.items()}}
                except (KeyError, TypeError, ValueError):
                    raise UserError(f"{path}: not round,reward,reward_low,reward_high; run `dvc repro`") from None
    return {name: metrics | rewards.get(name, {}) for name, metrics in comparison["rounds"].items()}


def _seconds(item: str | None) -> Iterator[Point]:
    """Seconds in which each stage made its results: a round's or an evaluation's own, or all of them."""
    for name, seconds in _timings().items():
        stage, _, of = name.partition("@")
        if item in (None, of):
            yield Point(f"seconds/{stage}" if item else f"seconds/{name.replace('@', '/')}", seconds, 0)


def _timings() -> dict[str, float]:
    """Without compare_rounds, which is still running when it logs."""
    return {name: seconds for name, seconds in timings.of_results().items() if name != "compare_rounds"}


def _bill(params: Params) -> Bill | None:
    return costs.bill(params, _timings()) if costs.COSTS.is_file() else None


def _costs_of(name: str, params: Params) -> Iterator[Point]:
    """What one explanation of an evaluation cost: cost_calls, cost_call_tokens, and cost_usd where there is a price."""
    bill = _bill(params)
    yield from _cost_points(bill.explanations.get(name) if bill else None, "")


def _costs(params: Params) -> Iterator[Point]:
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


def _places(comparison: dict) -> dict[str, int]:
    """Each evaluation's step: its place in the chain of training, 0 for what is not in it."""
    chain = chain_of(comparison)
    return {name: chain.index(name) if name in chain else 0 for name in comparison["rounds"]}


def _points(metrics: dict, step: int, prefix: str = "") -> Iterator[Point]:
    for metric, interval in metrics.items():
        yield Point(prefix + metric, interval["value"], step)
        yield Point(f"{prefix}{metric}_low", interval["low"], step)
        yield Point(f"{prefix}{metric}_high", interval["high"], step)


def _chain_points(comparison: dict, measured: dict[str, dict]) -> Iterator[Point]:
    for step, name in enumerate(chain_of(comparison)):
        yield from _points(measured[name], step)


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


def pipeline_key(params: Params, comparison: dict) -> str:
    """What makes two results the same: the numbers and the settings."""
    return hashlib.sha256(json.dumps([asdict(params), comparison], sort_keys=True).encode()).hexdigest()


def provenance() -> dict[str, str]:
    """Tags: git commit, and hashes of params.yaml and dvc.lock.

    While `dvc repro` runs, dvc.lock holds the stages that are done, which is all that came before the comparison.
    """
    return {"git_commit": _git_commit(), "params_sha256": _sha256(PARAMS_FILE), "dvc_lock_sha256": _sha256(LOCK_FILE)}


def _origin() -> dict[str, str]:
    """Tags that MLflow's pages show as user, source and version of a run."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may have no entry for its user
        user = "unknown"
    commit = _git_commit()
    tags = {"mlflow.user": user, "mlflow.source.name": "dvc repro", "mlflow.source.type": "LOCAL"}
    return tags if commit == NO_COMMIT else tags | {"mlflow.source.git.commit": commit}


def dvc_hashes() -> dict[str, str]:
    """DVC's hash of every output in dvc.lock, by path."""
    import yaml

    lock = yaml.safe_load(_content(LOCK_FILE)) or {}
    outputs = [output for stage in lock.get("stages", {}).values() for output in stage.get("outs", [])]
    return {output["path"]: output["md5"] for output in outputs if "md5" in output}


def _prefect_tags() -> dict[str, str]:
    """The flow run, where Prefect started this process or the one that did."""
    flow_run = os.environ.get("PREFECT__FLOW_RUN_ID")
    if not flow_run:
        return {}
    tags = {"prefect_flow_run": flow_run}
    pages = os.environ.get("PREFECT_UI_URL") or os.environ.get("PREFECT_API_URL", "").rstrip("/").removesuffix("/api")
    if pages:
        tags["prefect_flow_run_url"] = f"{store.without_credentials(pages.rstrip('/'))}/runs/flow-run/{flow_run}"
    return tags


def _git_commit() -> str:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return NO_COMMIT
    return found.stdout.strip()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def main(arguments: list[str] | None = None) -> int:
    """`rebuild`: log and register what lies in reports/ and data/. `relocate`: correct a store that was moved. The exit
    status."""
    surroundings.settle()
    parser = argparse.ArgumentParser(prog="sae-explainer tracking", description="Fill MLflow from reports/.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("rebuild", help="log reports/comparison.json unless it is logged")
    commands.add_parser("relocate", help="after the workspace was copied or moved: name its artifacts where they are")
    given = parser.parse_args(arguments)
    try:
        print(*(_rebuild() if given.command == "rebuild" else _relocate()), sep="\n")
    except UserError as error:
        print(f"error: {store.one_line(error)}", file=sys.stderr)
        return 2
    except Exception as error:  # whatever a server, a driver or a network can raise
        print(
            f"error: MLflow at {store.shown_uri()} did not take the result ({store.one_line(error)})", file=sys.stderr
        )
        return 2
    return 0


def _rebuild() -> list[str]:
    from tasks import registry

    params, comparison = parameters.load(), read_json(REPORTS / "comparison.json")
    return [*log(params, comparison).lines, *registry.register(params, comparison)]


def _relocate() -> list[str]:
    if not store.is_own():
        raise UserError(f"{store.shown_uri()}: not this workspace's own store; unset MLFLOW_TRACKING_URI")
    store.check_version(store.address())
    former = store.relocate()
    said = f"named the artifacts of {former[0]}; it names this workspace's now" if former else "names this workspace's"
    return [f"MLflow: {store.STORE} {said}"]


if __name__ == "__main__":
    sys.exit(main())
