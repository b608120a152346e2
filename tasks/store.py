"""Where MLflow's store is, and a client of it, or one line that says why there is none.

Without MLFLOW_TRACKING_URI the store is the workspace's mlruns/mlflow.db with artifacts under mlruns/artifacts.
"""

import importlib.util
import logging
import os
import re
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from saeexplainer.errors import UserError
from tasks import printable

if TYPE_CHECKING:
    from mlflow import MlflowClient


def _workspace() -> Path:
    """Where mlruns/ is: here, but for an experiment of DVC's queue, which runs in a copy that goes away after it."""
    root = Path(os.environ.get("DVC_ROOT", ""))  # set by DVC for every stage; of a copy, the workspace that queued it
    return Path() if root.resolve() == Path.cwd() else root


STORE = _workspace() / "mlruns/mlflow.db"
ARTIFACTS = _workspace() / "mlruns/artifacts"
REBUILD = "run `python -m tasks.tracking rebuild`"


def address() -> str:
    """The tracking address that MLflow is given."""
    # Absolute, because MLflow keeps one store an address for the whole process, whatever the working folder is by then.
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE.resolve()}"


def shown_uri() -> str:
    """The tracking address for messages, without the credentials that it may hold."""
    return without_credentials(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{STORE}")


def without_credentials(text: str) -> str:
    """Addresses in a text without the name and password that they may hold."""
    return re.sub(r"://[^/@\s]*@", "://", text)


def open_client() -> "MlflowClient":
    """A client of the store. Raises UserError if the store is a SQLite file that this MLflow must not write to."""
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # By default a dead server is asked for several minutes before the first error.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it reports every migration of a new store
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # and this every retry; the last error says it
    from mlflow import MlflowClient

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        STORE.parent.mkdir(parents=True, exist_ok=True)
    check_version(address())
    return MlflowClient(tracking_uri=address())


def check_version(uri: str) -> None:
    """Raise UserError if a SQLite store has another schema: MLflow would migrate some in place, without a copy.

    Changes nothing, and does not load MLflow.
    """
    file = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if not uri.startswith("sqlite:///") or not file.is_file():
        return
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            asked = "SELECT version_num FROM alembic_version"
            found = [version for (version,) in connection.execute(asked)] if "alembic_version" in tables else []
    except sqlite3.DatabaseError as error:
        raise UserError(f"{_shown(file)}: not a database ({error}); move it away, then {REBUILD}") from None
    known = schema_versions()
    if not tables or found == known[:1]:
        return
    if set(found) <= set(known):
        raise UserError(
            f"{_shown(file)}: from an older MLflow; copy the file, then run `mlflow db upgrade "
            f"sqlite:///{_shown(file)}` (nothing was changed)"
        )
    raise UserError(
        f"{_shown(file)}: from a newer MLflow (schema {', '.join(found)}); install that one, or move the file away and "
        f"{REBUILD} (nothing was changed)"
    )


@cache
def schema_versions() -> list[str]:
    """Every version of the schema that the installed MLflow knows, its own first."""
    from alembic.script import ScriptDirectory

    package = importlib.util.find_spec("mlflow").submodule_search_locations
    migrations = ScriptDirectory(str(Path(next(iter(package))) / "store/db_migrations"))
    return [script.revision for script in migrations.walk_revisions()]


def _shown(file: Path) -> str:
    """The path as a person would write it."""
    try:
        return str(file.relative_to(Path.cwd()))
    except ValueError:
        return str(file)


def experiment_id(client: "MlflowClient", name: str) -> str:
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
    text = without_credentials(printable.one_line(error)) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
