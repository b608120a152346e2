"""MLflow's registry: each round's explainer is a version of one model, and `champion` is the one to use.

    sae-explainer tracking register               register the result that lies in reports/ and data/
    sae-explainer promote --version N    make a version the champion by hand

A registered model an MLflow experiment (`sae-explainer-sandbox`), a version a round. A version holds the explainer, its
features and the rows on which it was measured, so that the next one can be compared with it when data/ is another.
`champion` moves to the best round that beats the champion on `compare_rounds.criterion` and loses on none of
`compare_rounds.guarded`, both paired by feature and beyond the 95 % interval (`saeexplainer.gate`); the first champion
has to beat what training started from. Results that measure other things (another subject, SAE, split, writer or probes) are not
comparable: then it stays, and only a person moves it.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

import saeexplainer
from saeexplainer import gate
from saeexplainer.comparison import chain_of
from saeexplainer.config import EvaluationKind, Params
from saeexplainer.errors import UserError
from saeexplainer.explainer import shown_contexts
from saeexplainer.explainer_folder import packages_of
from saeexplainer.records import FeatureRow
from saeexplainer.serving import (
    EXPLAINER,
    KINDS,
    QUESTIONS,
    Explained,
    Reply,
    ServedExplainer,
    evaluation_of,
    missing_files,
    write_served,
)
from saeexplainer.storage import holds_model, read_json, read_rows, read_tensors
from tasks import params as parameters
from tasks import store, surroundings, tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

CHAMPION = "champion"
ACTIVATIONS, EXPLAINERS = Path("data/activations"), Path("data/explainers")
# What a process needs to load any version, beside the code that is stored with it.
REQUIREMENTS = (
    "mlflow", "torch", "transformers", "tokenizers", "safetensors", "jaxtyping", "numpy", "scipy", "pandas", "pyarrow",
    "tqdm",
)  # fmt: skip
PROMOTE = "`sae-explainer promote --version N`"


def model_name(experiment: str) -> str:
    """The registered model of an MLflow experiment."""
    return f"sae-explainer-{experiment}"


def register(params: Params, comparison: dict) -> list[str]:
    """Register each round's explainer once, and move `champion` if one has earned it; what happened, in lines.

    Tracking comes first: a version points to its round's run. What data/ does not hold (or holds of another result) is
    left out with a line. Raises UserError for a store of another version, and whatever a server or the network raises.
    """
    client, key = store.open_client(), tracking.pipeline_key(params, comparison)
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
        self.evaluated = {item: tracking.evaluation_rows(item, comparison) for item in items}
        rows = read_rows(ACTIVATIONS / "features.parquet", FeatureRow)
        explained = [at for at, row in enumerate(rows) if row.sae == comparison["sae"]]
        known = {rows[at].feature_id for at in explained}
        if not all(row.feature_id in known for evaluated in self.evaluated.values() for row in evaluated):
            raise UserError(f"{ACTIVATIONS}: does not hold the features that were evaluated; run `dvc repro`")
        tensors = read_tensors(ACTIVATIONS / "directions.safetensors")
        self.features = [rows[at] for at in explained]
        self.tensors = {name: tensors[name][explained] for name in KINDS}
        contexts = shown_contexts(ACTIVATIONS, params.train_sft)
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
            served, _explainer(item), result.features, result.tensors, result.params.train_sft,
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
    place = tracking.provenance()
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
        opponent, whom = tracking.evaluation_rows(chain[0], result.comparison), chain[0]
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


def champion_version(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """The version that the alias points to; None while there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


@contextmanager
def stored(client: "MlflowClient", version: "ModelVersion") -> Iterator[Path]:
    """The served folder of a version, fetched if it lies elsewhere. Raises UserError if its artifacts are gone."""
    address = client.get_model_version_download_uri(version.name, version.version)
    with _fetched(f"{address.rstrip('/')}/artifacts/served") as folder:
        if folder is None or missing_files(folder):
            raise UserError(
                f"{version.name} version {version.version}: its artifacts are gone from {address}; promote another "
                f"({PROMOTE}), or delete that version in MLflow and run `sae-explainer tracking register`"
            )
        yield folder


@contextmanager
def _fetched(address: str) -> Iterator[Path | None]:
    """A folder of artifacts as a local one; None if there is nothing."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    local = store.local_path(address)
    if local is not None:
        yield local if local.is_dir() else None
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = Path(download_artifacts(artifact_uri=address, dst_path=scratch, tracking_uri=store.address()))
        except (MlflowException, OSError):
            found = None
        yield found


def explain(feature_ids: Sequence[str], model: str = CHAMPION) -> list[Explained]:
    """Explanations by a registered explainer: `champion`, models:/name@alias or models:/name/version.

    A feature is an id (subject/sae/index) or the number of a latent. Raises UserError on whatever hinders it.
    """
    with opened(model) as folder:
        return ServedExplainer(folder).explain(feature_ids)


@contextmanager
def opened(model: str = CHAMPION) -> Iterator[Path]:
    """The served folder of a registered explainer. Raises UserError if it cannot be had."""
    with ExitStack() as stack:
        with _answering() as client:
            folder = stack.enter_context(stored(client, _named(client, model)))
        yield folder


def _named(client: "MlflowClient", model: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    if model == CHAMPION:
        name = model_name(parameters.load().compare_rounds.experiment)
        version = champion_version(client, name)
        if version is None:
            registered = client.search_model_versions(f"name = '{name}'", max_results=1)
            cure = f"{PROMOTE} makes one the champion" if registered else f"{_cure()} to register each round's explainer"
            raise UserError(f"{name} has no {CHAMPION} yet in {store.shown_uri()}; {cure}")
        return version
    found = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", model)
    if found is None:
        raise UserError(f"model {model!r}: give {CHAMPION}, models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = found.groups()
    try:
        return client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(f"{model}: no such version in {store.shown_uri()}") from None
        raise


def _cure() -> str:
    """What fills the store: `dvc repro` skips what DVC has, so where a result lies already it takes the rebuild."""
    there = (tracking.REPORTS / "comparison.json").is_file() and EXPLAINERS.is_dir()
    return store.REBUILD if there else "run `dvc repro`, or `dvc pull` and `sae-explainer tracking rebuild`,"


@contextmanager
def _answering() -> Iterator["MlflowClient"]:
    """A client of a store that is there; what a server or a database raises inside becomes a UserError."""
    if not os.environ.get("MLFLOW_TRACKING_URI") and not store.STORE.is_file():
        raise UserError(f"{store.STORE}: no MLflow store here, and so no {CHAMPION}; {_cure()} to make both")
    from mlflow.exceptions import MlflowException

    try:
        yield store.open_client()
    except (MlflowException, OSError) as error:
        raise UserError(
            f"MLflow at {store.shown_uri()} does not answer as it should ({store.one_line(error)}); start it, or "
            f"unset MLFLOW_TRACKING_URI to use {store.STORE}"
        ) from None


def promote(number: int) -> str:
    """Make a version the champion by hand; one line. Raises UserError if there is no such version."""
    name = model_name(parameters.load().compare_rounds.experiment)
    with _answering() as client:
        version = _named(client, f"models:/{name}/{number}")
        before = version.tags.get("decision", "it was not compared")
        with stored(client, version):
            client.set_registered_model_alias(name, CHAMPION, version.version)
        client.set_model_version_tag(name, version.version, "promoted_by_hand", f"not automatic because: {before}")
    return f"{name}: {CHAMPION} is now version {number} by hand; not automatic because: {before}"


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
            print(*register(parameters.load(), read_json(tracking.REPORTS / "comparison.json")), sep="\n")
    except UserError as error:
        print(f"error: {store.one_line(error)}", file=sys.stderr)
        return 2
    except Exception as error:  # whatever a server, a driver or a network can raise
        print(f"error: MLflow at {store.shown_uri()}: {store.one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
