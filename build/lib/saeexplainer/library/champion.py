"""The champion of an MLflow registry, for a program that has MLflow and perhaps no workspace of the pipeline.

This is the one place of the library that knows MLflow, and it needs it only when it is asked.
"""

import logging
import os
import re
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from saeexplainer.errors import UserError
from saeexplainer.serving import ServedExplainer, missing_files

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"  # the alias
PREFIX = "sae-explainer-"  # of registered models; the rest is the experiment
SERVED = "artifacts/served"  # where a version holds the explainer's folder
OWN_STORE = Path("mlruns/mlflow.db")  # of a workspace
SHOWN = 200  # characters of a message of MLflow's


def load_champion(name: str | None = None, tracking_uri: str | None = None) -> ServedExplainer:
    """The explainer that the alias `champion` of a registered model points to, fetched if it lies elsewhere.

    name: the registered model, such as sae-explainer-sandbox, or the experiment alone, such as sandbox; None where the
        registry has one champion.
    tracking_uri: MLflow's address, such as http://host:5000 or sqlite:///mlruns/mlflow.db; None is the variable
        MLFLOW_TRACKING_URI, or mlruns/mlflow.db in the working folder.

    Raises UserError, one line, if MLflow is not installed or does not answer, and if there is no such champion. Nothing
    is written to the registry.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise UserError(
            "load_champion needs MLflow, which is not installed: pip install 'mlflow>=3.17,<4', or use load_explainer"
        ) from None
    address = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _own_store()
    _check_file(address)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it reports on every store that is opened
    try:
        client = MlflowClient(tracking_uri=address)
        version = _version(client, name)
        source = client.get_model_version_download_uri(version.name, version.version)
        with fetched(f"{source.rstrip('/')}/{SERVED}", address) as folder:
            if folder is None or missing_files(folder):
                raise UserError(f"{version.name} version {version.version}: its artifacts are gone from {source}")
            return ServedExplainer(folder)
    except (MlflowException, OSError) as error:
        said = re.sub(r"://[^/@\s]*@", "://", " ".join(str(error).split()))[:SHOWN]
        raise UserError(f"MLflow does not answer as it should ({said}); check tracking_uri") from None


def champion_version(client: "MlflowClient", name: str) -> "ModelVersion | None":
    """The version of a registered model that the alias points to; None while there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


@contextmanager
def fetched(address: str, tracking_uri: str) -> Generator[Path | None, None, None]:
    """A folder of artifacts as a local one, as long as the block runs; None if there is nothing."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    local = local_path(address)
    if local is not None:
        yield local if local.is_dir() else None
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = Path(download_artifacts(artifact_uri=address, dst_path=scratch, tracking_uri=tracking_uri))
        except (MlflowException, OSError):
            found = None
        yield found


def local_path(uri: str) -> Path | None:
    """The folder or file that an address of artifacts names on this machine; None if they lie elsewhere."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return Path(uri) if not parts.scheme else None


def _own_store() -> str:
    if not OWN_STORE.is_file():
        raise UserError(f"{OWN_STORE}: no MLflow store here; give tracking_uri, or set MLFLOW_TRACKING_URI")
    return f"sqlite:///{OWN_STORE.resolve()}"


def _check_file(address: str) -> None:
    """MLflow would make a database where none is."""
    file = Path(address.removeprefix("sqlite:///").partition("?")[0])
    if address.startswith("sqlite:///") and not file.is_file():
        raise UserError(f"tracking_uri: {file} is no file; name the registry's database or server")


def _version(client: "MlflowClient", name: str | None) -> "ModelVersion":
    wanted = _only_champion(client) if name is None else name if name.startswith(PREFIX) else f"{PREFIX}{name}"
    version = champion_version(client, wanted)
    if version is None:
        raise UserError(f"{wanted}: has no {CHAMPION} in this registry; `sae-explainer promote --version N` makes one")
    return version


def _only_champion(client: "MlflowClient") -> str:
    models = client.search_registered_models(f"name LIKE '{PREFIX}%'", max_results=100)
    names = sorted(model.name for model in models if CHAMPION in model.aliases)
    if len(names) != 1:
        raise UserError(f"name: this registry has {len(names)} champions ({', '.join(names) or 'none'}); name one")
    return names[0]
