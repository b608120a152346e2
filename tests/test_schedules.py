"""Schedules as people rely on them: a real server plans the runs of a cron line, starts the next one, and it ends well."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import toy as toys
from control_room import Api, free_port, program
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from toy import wait_for

MINUTELY = "  minutely: {flow: check, cron: '* * * * *'}\n  nightly:"
WRONG = re.compile(r"\b(ERROR|CRITICAL)\b|Traceback|\w+Error\b")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Api]]:
    """`make ui` in a toy workspace whose stages are up to date; one of its deployments is due every minute."""
    folder = toys.make(tmp_path_factory.mktemp("schedules"))
    control = folder / "conf/control.yaml"
    control.write_text(control.read_text().replace("  nightly:", MINUTELY))
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=folder, env=toys.environment(), check=True)
    ports = [f"--{name}-port={free_port()}" for name in ("prefect", "mlflow", "reports")]
    with program(folder, "flows.ui", *ports, says="ctrl-c") as (_, log):
        yield folder, Api(re.findall(r"http://\S+", log.read_text())[0] + "/api")


def runs_of(api: Api, deployment: str) -> list[FlowRun]:
    wanted = api.client.read_deployment_by_name(deployment)
    return api.client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id={"any_": [wanted.id]}), limit=100)


@pytest.mark.parametrize(("deployment", "apart"), [("pipeline/nightly", 24 * 60), ("check/hourly", 60)])
def test_a_cron_line_has_its_next_runs_scheduled(deployment: str, apart: int, room: tuple[Path, Api]) -> None:
    found = wait_for(lambda: runs_of(room[1], deployment))
    times = sorted(run.expected_start_time.timestamp() for run in found)
    assert {run.state_name for run in found} == {"Scheduled"} and all(run.auto_scheduled for run in found)
    assert time.time() < times[0] <= time.time() + 60 * apart
    assert {later - earlier for earlier, later in pairwise(times)} == {60 * apart}


def test_a_run_that_is_due_starts_by_itself_and_completes(room: tuple[Path, Api]) -> None:
    _, api = room

    def ended() -> list[FlowRun]:
        return [run for run in runs_of(api, "check/minutely") if run.state.is_final()]

    run = wait_for(ended, 240)[0]
    assert run.auto_scheduled and (run.state.name, run.state.message) == ("Completed", "nothing is stale")


def test_no_server_of_the_locked_versions_logs_an_error(room: tuple[Path, Api]) -> None:
    """The last of this file: by now each has served, planned and run."""
    for name in ("server", "mlflow", "deployments"):
        log = room[0] / f".prefect/{name}.log"
        assert [line for line in log.read_text().splitlines() if WRONG.search(line)] == [], log.name
