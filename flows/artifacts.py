"""What a flow run leaves to look at in Prefect: the table of its stages, the table of rounds, and links to the results.

`make ui` serves reports/ and says where in SAE_EXPLAINER_REPORTS_URL; links are paths of files where nobody does.
Prefect shows descriptions and the texts of tables as markdown, so names and paths are written as `literal` has them.
The text of a link it shows as it is, but for brackets.
"""

import json
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from prefect import get_client, get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import Artifact

from tasks.markdown import literal

MLFLOW_RUN = "mlflow-run"  # key of the artifact that remembers it for the runs in which compare_rounds is unchanged
LOGGED = re.compile(r"MLflow: .*\brun ([0-9a-f]{32}) in (\S.*)")  # what compare_rounds prints
REPORT = Path("reports/report.html")
DATA_DOCS = Path("reports/data_docs")
RESULTS = Path("reports/results.md")
SECONDS = 5  # that MLflow may take to say which experiment a run is of


@dataclass(frozen=True)
class Row:
    """One stage of a flow run."""

    stage: str  # the task run's name
    state: str  # Completed, Unchanged, Restored, Failed, TimedOut
    version: str  # of its results; empty before its first run
    seconds: float  # it took here


def publish(rows: Iterable[Row], lines: Iterable[str]) -> None:
    """Leave the artifacts of a flow run; `lines` are what its stages printed."""
    try:
        _publish(rows, lines)
    except Exception as error:  # whatever a server or a network can raise: the results are already on disk
        get_run_logger().warning(f"the artifacts of this run are not complete: {' '.join(str(error).split())}")


def _publish(rows: Iterable[Row], lines: Iterable[str]) -> None:
    create_table_artifact([asdict(row) for row in rows], key="stages", description="Stages of this run, in order")
    if RESULTS.is_file():
        text = RESULTS.read_text(encoding="utf-8")
        create_markdown_artifact(text, key="rounds", description="The rounds as reports/results.md has them")
    _publish_mlflow_run(lines)
    for key, text, path in _pages():
        create_link_artifact(_address(path), link_text=text, key=key, description=literal(str(path)))


def latest(key: str) -> Artifact | None:
    """The newest artifact of a key on the server; `Artifact.get` of Prefect 3.8 sends what its own server refuses."""
    wish = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": 1}
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/filter", json=wish).json()
    return Artifact.model_validate(found[0]) if found else None


def _pages() -> list[tuple[str, str, Path]]:
    """Key, text and path of the pages that there are."""
    found = [("report", "the report page", REPORT)] if REPORT.is_file() else []
    for path in sorted(DATA_DOCS.glob("*/index.html")):
        name = path.parent.name
        found.append((re.sub(r"[^a-z0-9-]", "-", f"data-docs-{name}"), f"Data Docs of {name}", path))
    return found


def _address(path: Path) -> str:
    base = os.environ.get("SAE_EXPLAINER_REPORTS_URL")
    return f"{base.rstrip('/')}/{urllib.parse.quote(path.as_posix())}" if base else path.resolve().as_uri()


def _publish_mlflow_run(lines: Iterable[str]) -> None:
    here = literal(str(Path.cwd()))
    hits = [hit for line in lines if (hit := LOGGED.match(line))]
    if hits:
        link, text = _mlflow_address(hits[-1][1], hits[-1][2]), _bracketed(f"MLflow run {hits[-1][1]} in {hits[-1][2]}")
    else:
        last = latest(MLFLOW_RUN)  # compare_rounds did not run: what it logged the last time is still the result
        if last is None or here not in (last.description or ""):
            return
        found = re.fullmatch(r"\[(.*)\]\((.*)\)", str(last.data))
        if not found:
            return
        text, link = found[1], found[2]
    create_link_artifact(link, link_text=text, key=MLFLOW_RUN, description=f"Results of {here}")


def _bracketed(text: str) -> str:
    """A text that ends where its link's text ends."""
    return re.sub(r"[\[\]]", r"\\\g<0>", text)


def _mlflow_address(run: str, uri: str) -> str:
    """The run's page, where MLflow is served; else the command's help on how to."""
    base = uri if uri.startswith("http") else os.environ.get("SAE_EXPLAINER_MLFLOW_URL", "http://127.0.0.1:5000")
    try:
        with urllib.request.urlopen(f"{base}/api/2.0/mlflow/runs/get?run_id={run}", timeout=SECONDS) as answer:
            experiment = json.load(answer)["run"]["info"]["experiment_id"]
    except (OSError, ValueError, KeyError):
        return f"{base}/#/experiments"
    return f"{base}/#/experiments/{experiment}/runs/{run}"
