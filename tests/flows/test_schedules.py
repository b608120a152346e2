"""Schedules as people rely on them: a real server plans the runs of a cron line, starts the next, and it ends well."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import toy as toys
from control_room import Api, free_port, program
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule
from toy import environment, wait_for

from flows import ui
from tasks.workspace import doctor, prefect_api

MINUTELY = "  minutely: {flow: check, cron: '* * * * *'}\n  nightly:"
WRONG = re.compile(r"\b(ERROR|CRITICAL)\b|Traceback|\w+Error\b")


@dataclass(frozen=True)
class Told:
    """What a user was told while the scheduler was switched off."""

    ui: list[str]  # by `make ui`
    doctor: str  # by `sae-explainer doctor`


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy workspace whose stages are up to date; one of its deployments is due every minute."""
    folder = toys.make(tmp_path_factory.mktemp("schedules"))
    control = folder / "conf/control.yaml"
    control.write_text(control.read_text().replace("  nightly:", MINUTELY))
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=folder, env=environment(), check=True)
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> Told:
    """First a server whose scheduler does nothing, with two deployments that have a schedule, one of them paused."""
    port = free_port()
    command = ("prefect", "server", "start", "--port", str(port))
    with (
        program(folder, *command, says="Check out", **{prefect_api.SETTING: "false"}),
        pytest.MonkeyPatch.context() as patch,
    ):
        api = Api(f"http://127.0.0.1:{port}/api")
        wait_for(lambda: prefect_api.answers(api.url))
        flow = api.client.create_flow_from_name("pipeline")
        nightly = [DeploymentScheduleCreate(schedule=CronSchedule(cron="0 2 * * *"), active=True)]
        api.client.create_deployment(flow, "nightly", schedules=nightly)
        api.client.create_deployment(flow, "asleep", schedules=nightly, paused=True)
        assert prefect_api.schedules(api.url).problem is None, "a new deployment gets the time to be planned"
        patch.setattr(prefect_api, "PATIENCE_SECONDS", 0)
        patch.setattr(ui, "LOOK_SECONDS", 0)
        patch.setenv("PREFECT_API_URL", api.url)
        said: list[str] = []
        watch = ui.Watch(api.url, Path(".prefect/server.log"), said.append, due=0)
        watch.look()
        watch.look()
        return Told(said, doctor._schedules().line)


@pytest.fixture(scope="module")
def room(folder: Path, told: Told) -> Iterator[tuple[Path, Api]]:
    """`make ui` in the same workspace, with the setting removed as the message says."""
    ports = [f"--{name}-port={free_port()}" for name in ("prefect", "mlflow", "reports")]
    with program(folder, "flows.ui", *ports, says="ctrl-c") as (_, log):
        yield folder, Api(re.findall(r"http://\S+", log.read_text())[0] + "/api")


def test_a_scheduler_that_plans_nothing_is_told_once_by_ui_and_by_doctor(told: Told) -> None:
    problem = "pipeline/nightly: its schedule is active, but the server plans no run of it"
    cure = f"its scheduler is switched off: unset {prefect_api.SETTING} or set it to true, and start the server again"
    assert told.ui == [f"warning: {problem}; {cure} (.prefect/server.log)"]
    assert told.doctor == f"fail  Prefect: {problem}; {cure}"


def test_the_cure_helps(room: tuple[Path, Api], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_api, "PATIENCE_SECONDS", 0)
    wait_for(lambda: prefect_api.schedules(room[1].url).problem is None)
    assert prefect_api.schedules(room[1].url).planned == ["check/hourly", "check/minutely", "pipeline/nightly"]
    monkeypatch.setenv("PREFECT_API_URL", room[1].url)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")  # does not lead to this machine
    assert doctor._schedules().line == f"ok    Prefect: {room[1].url} plans the runs of all 3 active schedules"


def runs_of(api: Api, deployment: str) -> list[FlowRun]:
    wanted = api.client.read_deployment_by_name(deployment)
    return api.client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id={"any_": [wanted.id]}), limit=100)


@pytest.mark.parametrize(("deployment", "apart"), [("pipeline/nightly", 24 * 60), ("check/hourly", 60)])
def test_a_cron_line_has_its_next_runs_scheduled(deployment: str, apart: int, room: tuple[Path, Api]) -> None:
    found, soon = wait_for(lambda: runs_of(room[1], deployment)), time.time() + 60
    # One that is due within the minute may have been taken up already.
    later = [run for run in found if run.expected_start_time.timestamp() > soon]
    times = sorted(run.expected_start_time.timestamp() for run in later)
    assert {run.state_name for run in later} == {"Scheduled"} and all(run.auto_scheduled for run in found)
    assert times[0] <= soon + 60 * apart and len(later) >= len(found) - 1
    assert {after - before for before, after in pairwise(times)} == {60 * apart}


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
