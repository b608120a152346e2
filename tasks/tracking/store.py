"""Where MLflow's store is, and a client of it, or one line that says why there is none.

Without MLFLOW_TRACKING_URI the store is the workspace's mlruns/mlflow.db with artifacts under mlruns/artifacts.

MLflow keeps every place of artifacts as an absolute address. In a workspace that was copied or moved these addresses
still name the folder that it came from, and MLflow would go on reading and writing there. `open_client` therefore
corrects them before anything is read: the artifacts of a workspace's own store lie in that workspace.
"""

import importlib.util
import logging
import os
import re
import shlex
import sqlite3
import sys
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from saeexplainer.endpoints import web
from saeexplainer.errors import UserError
from saeexplainer.library.champion import local_path
from tasks.workspace import folder, printable

if TYPE_CHECKING:
    from mlflow import MlflowClient

STORE = folder.root() / "mlruns/mlflow.db"
ARTIFACTS = folder.root() / "mlruns/artifacts"
REBUILD = "run `sae-explainer tracking rebuild`"
RELOCATE = "run `sae-explainer tracking relocate`"
# MLflow's columns that say where artifacts lie.
PLACES = (
    ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
    ("model_versions", "source"), ("model_versions", "storage_location"),
)  # fmt: skip
EXPERIMENT_NOTE = "A parent run is a result of the pipeline, its children are the evaluations; docs/MLFLOW.md"
# Without this in the address MLflow 3.17 shows the traces of an experiment, of which there are none, and not its runs.
VIEW = "workflowType=machine_learning"
SECONDS = 5.0  # that a server of pages may take to say which experiment has a name


def address() -> str:
    """The tracking address that MLflow is given. Raises UserError if the workspace's path cannot stand in one."""
    if given := os.environ.get("MLFLOW_TRACKING_URI"):
        return given
    # Absolute, because MLflow keeps one store an address for the whole process, whatever the working folder is by then.
    place = STORE.resolve()
    if "?" in str(place):
        raise UserError(f"{place}: a '?' in the path ends the address of a database; rename the folder")
    return f"sqlite:///{place}"


def is_own() -> bool:
    """Whether the store is this workspace's own file, by whatever address."""
    file = _file_of(address())
    return file is not None and file.resolve() == STORE.resolve()


def _file_of(uri: str) -> Path | None:
    """The file of a SQLite store; None if it is another kind of store."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


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
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # addresses that open no runs: see VIEW
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it reports every migration of a new store
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # and this every retry; the last error says it
    from mlflow import MlflowClient

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        STORE.parent.mkdir(parents=True, exist_ok=True)
    check_version(address())
    if is_own() and (former := relocate()):
        said = f"named the artifacts of {former[0]}; it names this workspace's now"
        print(f"MLflow: {_shown(STORE)} {said}", file=sys.stderr)
    return MlflowClient(tracking_uri=address())


def former_homes() -> list[Path]:
    """Where the workspace's own store thinks that it lies, if that is not where it lies: it was copied or moved.

    Changes nothing. An experiment of ours keeps its artifacts in HOME/artifacts/NAME, with HOME the database's folder.
    """
    if not STORE.is_file():
        return []
    with closing(sqlite3.connect(f"{STORE.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        return _former_homes(connection)


def _former_homes(connection: sqlite3.Connection) -> list[Path]:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
        return []
    home, found = STORE.resolve().parent, {}
    for name, location in connection.execute("SELECT name, artifact_location FROM experiments"):
        place = local_path(location or "")
        if place is not None and place.parts[-2:] == ("artifacts", name) and place.parents[1] != home:
            found[place.parents[1]] = None
    return list(found)


def relocate() -> list[Path]:
    """Make the workspace's own store name the artifacts of this workspace; where it was made before, if elsewhere.

    Raises UserError if the store cannot be read or written.
    """
    try:
        if former := former_homes():
            _relocate(former, STORE.resolve().parent)
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{STORE}: cannot be made to name this workspace's artifacts ({error}); make it writable, or move it away "
            f"and {REBUILD}"
        ) from None
    return former


def _relocate(former: list[Path], home: Path) -> None:

    def moved(uri: str | None) -> str | None:
        place = local_path(uri) if uri else None
        for old in former:
            if place is not None and place.is_relative_to(old):
                new = home / place.relative_to(old)
                return new.as_uri() if str(uri).startswith("file:") else str(new)
        return uri

    with closing(sqlite3.connect(STORE, timeout=20)) as connection, connection:
        connection.create_function("moved", 1, moved, deterministic=True)
        known = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table, column in (place for place in PLACES if place[0] in known):  # another MLflow's store has others
            connection.execute(f"UPDATE {table} SET {column} = moved({column}) WHERE {column} <> moved({column})")


def check_version(uri: str) -> None:
    """Raise UserError if a SQLite store has another schema: MLflow would migrate some in place, without a copy.

    Changes nothing, and does not load MLflow.
    """
    file = _file_of(uri)
    if file is None or not file.is_file():
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
            f"{shlex.quote(f'sqlite:///{_shown(file)}')}` (nothing was changed)"
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
        location = (ARTIFACTS / name).resolve().as_uri() if is_own() else None  # a server decides itself
        return client.create_experiment(name, artifact_location=location, tags={"mlflow.note.content": EXPERIMENT_NOTE})
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def page(base: str, experiment: str, run: str = "") -> str:
    """The address of an experiment's runs, or of one run, on the pages that `base` serves."""
    return f"{base.rstrip('/')}/#/experiments/{experiment}/runs{f'/{run}' if run else ''}?{VIEW}"


def runs_page(base: str) -> str:
    """As `page` for the experiment of params.yaml; the list of experiments where the pages do not know it (yet)."""
    import httpx

    from tasks.settings import params

    try:
        asked = {"experiment_name": params.load().compare_rounds.experiment}
        with web.client(base, SECONDS, {}) as client:
            found = client.get(f"{base.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name", params=asked).json()
        return page(base, found["experiment"]["experiment_id"])
    except (UserError, httpx.HTTPError, ValueError, KeyError):
        return f"{base.rstrip('/')}/#/experiments?{VIEW}"


def one_line(error: BaseException) -> str:
    """An exception as a short piece of one line, without the credentials that an address in it may hold."""
    text = without_credentials(printable.one_line(error)) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
