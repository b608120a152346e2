"""The registered explainer that people use, and how it is chosen."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from saeexplainer.errors import UserError
from saeexplainer.library.champion import CHAMPION, PREFIX, SERVED, champion_version, fetched
from saeexplainer.serving import Explained, ServedExplainer, missing_files
from tasks.places import EXPLAINERS
from tasks.settings import params
from tasks.tracking import points, store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


PROMOTE = "`sae-explainer promote --version N`"


def model_name(experiment: str) -> str:
    """The registered model of an MLflow experiment."""
    return f"{PREFIX}{experiment}"


@contextmanager
def stored(client: "MlflowClient", version: "ModelVersion") -> Iterator[Path]:
    """The served folder of a version, fetched if it lies elsewhere. Raises UserError if its artifacts are gone."""
    address = client.get_model_version_download_uri(version.name, version.version)
    with fetched(f"{address.rstrip('/')}/{SERVED}", store.address()) as folder:
        if folder is None or missing_files(folder):
            raise UserError(
                f"{version.name} version {version.version}: its artifacts are gone from {address}; promote another "
                f"({PROMOTE}), or delete that version in MLflow and run `sae-explainer tracking register`"
            )
        yield folder


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
        name = model_name(params.load().compare_rounds.experiment)
        version = champion_version(client, name)
        if version is None:
            registered = client.search_model_versions(f"name = '{name}'", max_results=1)
            cure = (
                f"{PROMOTE} makes one the champion" if registered else f"{_cure()} to register each round's explainer"
            )
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
    there = (points.REPORTS / "comparison.json").is_file() and EXPLAINERS.is_dir()
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
    name = model_name(params.load().compare_rounds.experiment)
    with _answering() as client:
        version = _named(client, f"models:/{name}/{number}")
        before = version.tags.get("decision", "it was not compared")
        with stored(client, version):
            client.set_registered_model_alias(name, CHAMPION, version.version)
        client.set_model_version_tag(name, version.version, "promoted_by_hand", f"not automatic because: {before}")
    return f"{name}: {CHAMPION} is now version {number} by hand; not automatic because: {before}"
