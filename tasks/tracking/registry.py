"""MLflow's registry: each round's explainer is a version of one model, and `champion` is the one to use.

    sae-explainer tracking register               register the result that lies in reports/ and data/
    sae-explainer promote --version N    make a version the champion by hand

A registered model an MLflow experiment (`sae-explainer-sandbox`), a version a round. A version holds the explainer, its
features and the rows on which it was measured, so that the next one can be compared with it when data/ is another.
`champion` moves to the best round that beats the champion on `compare_rounds.criterion` and loses on none of
`compare_rounds.guarded`, both paired by feature and beyond the 95 % interval (`saeexplainer.figures.gate`); the first
champion has to beat what training started from. Results that measure other things (another subject, SAE, split, writer
or probes) are not comparable: then it stays, and only a person moves it.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

import saeexplainer
from saeexplainer.config import Params
from saeexplainer.config.parts import EvaluationKind
from saeexplainer.errors import UserError
from saeexplainer.explainer.folder import packages_of
from saeexplainer.explainer.table import FeatureTable
from saeexplainer.figures import gate
from saeexplainer.figures.comparison import chain_of
from saeexplainer.library.champion import CHAMPION, champion_version
from saeexplainer.runs.storage import holds_model, read_json
from saeexplainer.serving import EXPLAINER, KINDS, QUESTIONS, Reply, evaluation_of, write_served
from tasks.places import ACTIVATIONS, EXPLAINERS, REPORTS
from tasks.settings import params as settings_params
from tasks.tracking import provenance, runs as tracking_runs, store
from tasks.tracking.champion import PROMOTE, model_name, promote, stored
from tasks.workspace import surroundings
from tasks.workspace.printable import failed

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature


# What a process needs to load any version, beside the code that is stored with it.
REQUIREMENTS = (
    "mlflow", "torch", "transformers", "tokenizers", "safetensors", "jaxtyping", "numpy", "scipy", "pandas", "pyarrow",
    "pydantic", "tqdm",
)  # fmt: skip


def register(params: Params, comparison: dict) -> list[str]:
    """Register each round's explainer once, and move `champion` if one has earned it; what happened, in lines.

    Tracking comes first: a version points to its round's run. What data/ does not hold (or holds of another result) is
    left out with a line. Raises UserError for a store of another version, and whatever a server or the network raises.
    """
    client, key = store.open_client(), tracking_runs.pipeline_key(params, comparison)
    name, items = model_name(params.compare_rounds.experiment), served_rounds(params, comparison)
    if not items:
        return ["registry: nothing registered (no round of this result is evaluated under its own name)"]
    versions, lines = _versions(client, name, key), []
    if not all(item in versions and "decision" in versions[item].tags for item in items):
        try:
            result = _Result(params, comparison, key, items)
            for item in [item for item in items if item not in versions]:
                versions[item] = _add_version(client, name, item, result)
            lines = [f"registry: {_decide(client, name, versions, result)}"]
        except UserError as error:
            return [f"registry: {'not everything' if versions else 'nothing'} registered ({error})"]
    shown = ", ".join(f"version {found.version} ({item})" for item, found in versions.items())
    return [f"registry: {name} {shown}", *lines]


def served_rounds(params: Params, comparison: dict) -> list[str]:
    """The rounds whose explainer is evaluated under the round's own name, in order."""
    return [
        item for item in params.rounds
        if item in comparison["rounds"] and item in params.evaluations
        and params.evaluations[item].kind is EvaluationKind.explainer
        and Path(params.evaluations[item].source) == EXPLAINERS / item
    ]  # fmt: skip


class _Result:
    """One result with what its versions share, read once. Raises UserError if data/ lacks it or holds another."""

    def __init__(self, params: Params, comparison: dict, key: str, items: Sequence[str]) -> None:
        self.params, self.comparison, self.key = params, comparison, key
        self.evaluated = {item: tracking_runs.evaluation_rows(item, comparison) for item in items}
        table = FeatureTable(ACTIVATIONS)
        rows = table.rows
        explained = [at for at, row in enumerate(rows) if row.sae == comparison["sae"]]
        known = {rows[at].feature_id for at in explained}
        if not all(row.feature_id in known for evaluated in self.evaluated.values() for row in evaluated):
            raise UserError(f"{ACTIVATIONS}: does not hold the features that were evaluated; run `dvc repro`")
        self.features = [rows[at] for at in explained]
        self.tensors = {name: table.vectors[name][explained] for name in KINDS}
        contexts = table.contexts(params.explainer.prompt)
        self.contexts = [contexts[at] for at in explained] if contexts else []

    @property
    def measured_on(self) -> str:
        """A hash of what a figure depends on beside the explainer: SAE, features' maxima, how texts are written, what
        the judge is asked."""
        found = hashlib.sha256(self.tensors["decoder"].numpy().tobytes())
        found.update(json.dumps([(row.feature_id, row.maximum, row.split) for row in self.features]).encode())
        settings = [asdict(self.params.evaluate), asdict(self.params.probe_features)]
        found.update(json.dumps(settings, sort_keys=True).encode())
        return found.hexdigest()


def _versions(client: "MlflowClient", name: str, key: str) -> dict[str, "ModelVersion"]:
    """The versions of a result by round, in the order in which they were made."""
    found = client.search_model_versions(f"name = '{name}' AND tags.pipeline_key = '{key}'", max_results=1000)
    return {version.tags["round"]: version for version in sorted(found, key=lambda version: int(version.version))}


def _add_version(client: "MlflowClient", name: str, item: str, result: _Result) -> "ModelVersion":
    """Store one round's explainer as a model of its run, then register it; only the last step makes it count."""
    from mlflow.exceptions import MlflowException

    experiment = store.experiment_id(client, result.params.compare_rounds.experiment)
    with tempfile.TemporaryDirectory() as scratch:
        run = _run_of(client, experiment, result.key, item)
        served = Path(scratch, "served")
        write_served(
            served, _explainer(item), result.features, result.tensors, result.params.explainer,
            result.params.generate_explanations, result.evaluated[item], result.contexts,
        )  # fmt: skip
        tags = _tags(item, result)
        model = client.create_logged_model(experiment, f"explainer-{item}", run, tags)
        save_model(Path(scratch, "model"), served, result.features[0].feature_id, model.model_id)
        client.log_model_artifacts(model.model_id, str(Path(scratch, "model")))
    client.finalize_logged_model(model.model_id, "READY")
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description="Feature ids or vectors in, explanations out; docs/MLFLOW.md")
    return client.create_model_version(
        name, model.artifact_location, run, tags, model_id=model.model_id, description=f"round {item}"
    )


def _explainer(item: str) -> Path:
    folder = EXPLAINERS / item
    if not holds_model(folder):
        raise UserError(f"{folder}: no explainer here; run `dvc repro` or `dvc pull`")
    return folder


def _run_of(client: "MlflowClient", experiment: str, key: str, item: str) -> str:
    asked = f"tags.pipeline_key = '{key}' AND tags.evaluation = '{item}'"
    runs = client.search_runs([experiment], asked)
    if not runs:
        raise UserError(f"round {item}: MLflow has no run of it; {store.REBUILD} first")
    return runs[0].info.run_id


def _tags(item: str, result: _Result) -> dict[str, str]:
    metrics = {name: f"{interval['value']:.4f}" for name, interval in result.comparison["rounds"][item].items()}
    place = provenance.provenance()
    own = {"round": item, "pipeline_key": result.key, "measured_on": result.measured_on}
    return own | {name: place[name] for name in ("params_sha256", "git_commit")} | metrics


def save_model(folder: Path, served: Path, example: str, model_id: str) -> None:
    """An MLflow model: the served folder, the code that reads it, signature, example and pinned requirements."""
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model

    code = served.with_name("code") / "saeexplainer"
    shutil.copytree(Path(saeexplainer.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__"))
    mlflow.pyfunc.save_model(
        str(folder), mlflow_model=Model(model_id=model_id), artifacts={"served": str(served)}, code_paths=[str(code)],
        python_model=str(Path(__file__).with_name("served_model.py")), signature=_signature(),
        input_example=pd.DataFrame({"feature_id": [example]}),
        pip_requirements=requirements(served),
    )  # fmt: skip


def requirements(served: Path) -> list[str]:
    """What pip has to install where a served folder is to be loaded, in the versions that are installed here."""
    names = [*REQUIREMENTS, *packages_of(served / EXPLAINER)]
    return [f"{name}=={installed(name).partition('+')[0]}" for name in names]


def _signature() -> "ModelSignature":
    """Every column of the input is optional and of any type: MLflow refuses a whole batch for one value of another
    type, the explainer (`saeexplainer.serving`) only the row in which it stands."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, Schema

    given = [ColSpec(AnyType(), name, required=False) for name in QUESTIONS]
    kinds = {field.name: DataType.string for field in fields(Reply)} | {"expected_accuracy": DataType.double}
    return ModelSignature(Schema(given), Schema([ColSpec(kind, name, required=False) for name, kind in kinds.items()]))


def _decide(client: "MlflowClient", name: str, versions: Mapping[str, "ModelVersion"], result: _Result) -> str:
    """Move `champion` or leave it; the reason, which each version keeps as a tag."""
    best, reason = _choice(client, name, result)
    if best is not None:
        client.set_registered_model_alias(name, CHAMPION, versions[best].version)
    for item, version in versions.items():
        verdict = "promoted" if item == best else "not promoted"
        client.set_model_version_tag(name, version.version, "decision", f"{verdict}: {reason}")
    return reason


def _choice(client: "MlflowClient", name: str, result: _Result) -> tuple[str | None, str]:
    """The round to promote, if there is one, and why."""
    champion = champion_version(client, name)
    if champion is None:
        chain = chain_of(result.comparison)
        if not chain:
            return None, "no champion yet: no round of this result was measured beside its start"
        opponent, whom = tracking_runs.evaluation_rows(chain[0], result.comparison), chain[0]
    else:
        whom = f"champion version {champion.version}"
        if champion.tags.get("measured_on") != result.measured_on:
            why = "it was measured on another subject, SAE, split, writer or probes"
            return None, f"{whom} stays: {why}; promote by hand: {PROMOTE}"
        try:
            with stored(client, champion) as folder:
                opponent = evaluation_of(folder)
        except UserError as error:
            return None, f"{whom} stays: {error}"
    settings = result.params.compare_rounds
    try:
        verdict = gate.judge(
            result.evaluated, opponent, settings.criterion, settings.guarded, settings.resamples, result.params.seed
        )
    except UserError as error:
        return None, f"{whom} stays: {error}; promote by hand: {PROMOTE}"
    if verdict.best:
        return verdict.best, f"champion is now {verdict.best}: {verdict.reason(whom)}"
    return None, f"{'no champion yet' if champion is None else f'{whom} stays'}: {verdict.reason(whom)}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    surroundings.settle()
    parser = argparse.ArgumentParser(prog="sae-explainer tracking", description="MLflow's registry of explainers.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("register", help="register the result that lies in reports/ and data/")
    by_hand = commands.add_parser("promote", help="make a version the champion by hand")
    by_hand.add_argument("--version", type=int, required=True, help="its number, as MLflow's Models page shows it")
    given = parser.parse_args(arguments)
    try:
        if given.command == "promote":
            print(promote(given.version))
        else:
            print(*register(settings_params.load(), read_json(REPORTS / "comparison.json")), sep="\n")
    except UserError as error:
        return failed(store.one_line(error))
    except Exception as error:  # whatever a server, a driver or a network can raise
        return failed(f"MLflow at {store.shown_uri()}: {store.one_line(error)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
