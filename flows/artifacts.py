"""What a flow run leaves to look at in Prefect: the table of its stages, the table of rounds, and links to the results.

`make ui` serves reports/ and says where in SAE_EXPLAINER_REPORTS_URL; without it the links are paths of files. A result
is only shown in a run that brought it up to date, and its MLflow run is found by what the result holds: it does not
matter whether this run computed it, DVC restored it, or `make run` made it before.

Prefect shows descriptions and the texts of tables as markdown, so names and paths are written as `literal` has them.
"""

import os
import re
import urllib.parse
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from prefect import get_run_logger
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows import control
from flows.plan import plan
from tasks.places import REPORT
from tasks.workspace import repro
from tasks.workspace.markdown import literal

RESULTS = Path("reports/results.md")
RESULT, VALIDATION = "compare_rounds", "validate_preferences"  # stages: what they leave is shown


@dataclass(frozen=True)
class Row:
    """One stage of a flow run."""

    stage: str  # the task run's name
    state: str  # Completed, Unchanged, Restored, Failed, TimedOut
    version: str  # of its results; empty before its first run
    seconds: float  # it took here

    @property
    def is_done(self) -> bool:
        """Whether its results are up to date."""
        return self.state not in ("Failed", "TimedOut")


def publish(rows: Iterable[Row]) -> None:
    """Leave the artifacts of a flow run."""
    try:
        _publish(list(rows))
    except Exception as error:  # whatever a server or a network can raise: the results are already on disk
        get_run_logger().warning(f"the artifacts of this run are not complete: {' '.join(str(error).split())}")


def _publish(rows: list[Row]) -> None:
    create_table_artifact([asdict(row) for row in rows], key="stages", description="Stages of this run, in order")
    has_result = any(row.stage == RESULT and row.is_done for row in rows)
    if has_result and RESULTS.is_file():
        text = RESULTS.read_text(encoding="utf-8")
        create_markdown_artifact(text, key="rounds", description="The rounds as reports/results.md has them")
    if has_result and REPORT.is_file():
        _link("report", "the report page", REPORT)
    for name, page in _data_docs(_rounds(rows, has_result)).items():
        _link(re.sub(r"[^a-z0-9-]", "-", f"data-docs-{name}"), f"Data Docs of {name}", page)
    if has_result:
        _link_mlflow_run()


def _link(key: str, text: str, path: Path) -> None:
    base = os.environ.get("SAE_EXPLAINER_REPORTS_URL")
    address = f"{base.rstrip('/')}/{urllib.parse.quote(path.as_posix())}" if base else path.resolve().as_uri()
    create_link_artifact(address, link_text=text, key=key, description=literal(str(path)))


def _rounds(rows: list[Row], has_result: bool) -> list[str]:
    """The rounds whose Data Docs belong to a run: those that it validated, or all if it has their result."""
    if has_result:
        return list(dict.fromkeys(step.round for step in plan() if step.round))
    return [row.stage.partition("[")[2].rstrip("]") for row in rows if row.stage.startswith(f"{VALIDATION}[")]


def _data_docs(rounds: list[str]) -> dict[str, Path]:
    """The pages about these rounds' preference sets, written again where a set was restored and its pages were not."""
    from tasks.validation import data_docs

    if not all(map(data_docs.is_up_to_date, rounds)):
        with repro.started("tasks.cli.data_docs", "--no-open") as child:
            for line in filter(None, child):
                get_run_logger().info(line)
        if child.status:
            get_run_logger().warning(f"Data Docs: {repro.reason(child.said, child.status)}")
    return {name: data_docs.DATA_DOCS / name / "index.html" for name in rounds if data_docs.is_up_to_date(name)}


def _link_mlflow_run() -> None:
    from tasks.tracking import runs, store

    found = runs.run_of_the_result()
    if found is None:
        get_run_logger().warning(f"MLflow has no run of this result; {store.REBUILD}")
        return
    experiment, run = found
    uri = store.address()
    base = uri if uri.startswith("http") else os.environ.get("SAE_EXPLAINER_MLFLOW_URL")
    base = base or f"http://127.0.0.1:{control.load().ports.mlflow}"  # where `make ui` serves it
    address = store.page(store.without_credentials(base), experiment, run)
    create_link_artifact(
        address, link_text=f"MLflow run {run}", key="mlflow-run", description=f"Results of {literal(str(Path.cwd()))}"
    )
