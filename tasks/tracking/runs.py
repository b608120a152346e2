"""Tell MLflow what came out. The files under reports/ are the source; MLflow can always be filled again from them.

    sae-explainer tracking rebuild        log the result that lies in reports/, unless it is there already
    sae-explainer tracking relocate       after the workspace was moved: let the store find its artifacts here

Metrics, parameters, tags and datasets come from reports/, params.yaml and dvc.lock alone. The sample explanations and
the registered explainers (`tasks.tracking.registry`) need data/: where it is not there they are left out, and a line
says so.

An experiment of MLflow is an experiment of conf/. A pipeline run is a parent run with one child an evaluation; children
carry the same metric names, so that the compare view lines the rounds up, and the parent carries them again with
step = place in the chain of training (0 is what the first round started from). Logging is idempotent: a result is known
by `pipeline_key`, the hash of the figures and the settings, because DVC may skip a stage whose result it has.

A run's times come from the seconds of the stages in reports/timings.json: it ends when it is logged and began as long
before as its stages took. What ran in parallel, or was not run because DVC had it, is counted as if run one by one.
"""

import configparser
import csv
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saeexplainer.config import Params
from saeexplainer.errors import UserError
from saeexplainer.figures.comparison import ACCURACY
from saeexplainer.figures.notation import held_out, percent
from saeexplainer.records import EvaluationRow
from saeexplainer.runs.storage import read_json, read_rows
from tasks.places import EVALUATIONS, REPORTS
from tasks.settings import params as settings_params
from tasks.tracking import store
from tasks.tracking.points import (
    TAG_LENGTH,
    Point,
    chain_points,
    curve_points,
    difference_points,
    explanation_costs,
    flattened,
    metric_points,
    run_costs,
    seconds_points,
    stage_seconds,
    steps_of,
    write_points,
)
from tasks.tracking.provenance import dvc_hashes, origin, provenance

if TYPE_CHECKING:
    from mlflow import MlflowClient


LOGGED_FILES = ("results.md", "rounds.png", "comparison.json", "rounds.csv", "report.html")
SAMPLES, SAMPLES_FILE = 100, "explanations.json"  # features in the table of sample explanations
HASHES_FILE = "data_md5.json"
LABELS = "data/labels.parquet"
WHOLE = ""  # the result, beside its evaluations' names


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
    spans = spans_of(stage_seconds(), list(comparison["rounds"]), int(time.time() * 1000))
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
    measured, tags = _measured(comparison), {"pipeline_key": key, **provenance(), **origin(), **_prefect_tags()}
    own_tags = {"level": "pipeline", "mlflow.note.content": _result_note(comparison)}
    run_name = f"seed {comparison['seed']}, {key[:8]}"
    parent = client.create_run(experiment, spans[WHOLE].start, {**tags, **own_tags}, run_name).info.run_id
    for name, step in steps_of(comparison).items():
        own = [*metric_points(measured[name], step), *explanation_costs(name, params)]
        _log_child(client, experiment, name, params, own, spans[name], {
            **tags, "level": "evaluation", "evaluation": name, "mlflow.parentRunId": parent,
            "mlflow.note.content": _evaluation_note(name, params, comparison),
        })  # fmt: skip
    points = [*chain_points(comparison, measured), *difference_points(comparison), *seconds_points(None)]
    points += run_costs(params)
    write_points(client, parent, points, flattened(asdict(params)))
    _log_datasets(client, parent, list(comparison["rounds"]))
    client.log_dict(parent, dvc_hashes(), HASHES_FILE)
    for path in (REPORTS / name for name in LOGGED_FILES):
        if path.is_file():
            client.log_artifact(parent, str(path))
    return parent


def run_of_the_result() -> tuple[str, str] | None:
    """Ids of the experiment and the parent run that hold the result in reports/; None if none does.

    Changes nothing. Raises UserError for a store of another version or broken files, and whatever else the store
    raises.
    """
    if not (os.environ.get("MLFLOW_TRACKING_URI") or store.STORE.is_file()):
        return None
    params, comparison = settings_params.load(), read_json(REPORTS / "comparison.json")
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
    if name in (trained := params.rounds | params.reinforcements):
        settings |= asdict(trained[name])
    write_points(client, run, [*points, *curve_points(name), *seconds_points(name)], flattened(settings))
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
    for method, trained in (("DPO", params.rounds), ("GRPO", params.reinforcements)):
        if name in trained:
            return f"{said} Trained by {method} from {trained[name].start}."
    return said


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


def pipeline_key(params: Params, comparison: dict) -> str:
    """What makes two results the same: the numbers and the settings."""
    return hashlib.sha256(json.dumps([asdict(params), comparison], sort_keys=True).encode()).hexdigest()


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
