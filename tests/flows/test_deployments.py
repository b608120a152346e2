"""The control room as its users use it: one real start in a toy workspace, its API, its pages, and its mistakes."""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import toy as toys
import yaml
from control_room import PATIENCE, Api, free_port, program, webhook
from prefect.client.schemas.filters import LogFilter
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from toy import ENDLESS, FAILING, ROOT, STEP, environment, is_gone, pids, wait_for

from flows import control, deployments, notifications, ui
from flows.control import ControlError, Ports
from flows.server import ServerError, check_database
from tasks.workspace import repro

VARIABLE = "SAE_EXPLAINER_WEBHOOK"


class Room:
    """A started control room."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], said: str, heard: list[dict]) -> None:
        self.folder, self.process, self.said = folder, process, said
        self.urls = re.findall(r"http://\S+", said)
        self.api = Api(f"{self.urls[0]}/api")
        self.heard = heard  # what the webhook of `notify` has been told

    def terminal(self, command: str) -> list[str]:
        """For Popen: bash with the export line that the room printed, and no other knowledge of it."""
        (export,) = re.findall(r"^ *(export PREFECT_API_URL=\S+)$", self.said, re.MULTILINE)
        return ["bash", "-c", f"PATH={Path(sys.executable).parent}:$PATH\n{export}\n{command}"]


def documented(words: str) -> list[str]:
    """The commands of docs/PREFECT.md that begin with these words, as they are typed."""
    blocks = re.findall(
        r"^```\n(.*?)^```", (ROOT / "docs/PREFECT.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return [line for block in blocks for line in block.splitlines() if line.startswith(words)]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """`make ui` of a toy workspace; the last test of this file stops it."""
    folder = toys.make(tmp_path_factory.mktemp("room"))
    with (folder / "conf/control.yaml").open("a") as file:
        file.write(f"notify: {VARIABLE}\n")
    ports = [f"--{name}-port={free_port()}" for name in ("prefect", "mlflow", "reports")]
    with webhook() as (address, heard):
        with program(folder, "flows.ui", *ports, says="ctrl-c", **{VARIABLE: address}) as (process, log):
            yield Room(folder, process, log.read_text(), heard)


def test_three_addresses_answer(room: Room) -> None:
    (room.folder / "reports").mkdir()
    (room.folder / "reports/report.html").write_text("the report")
    for url, holds in zip(room.urls, ("Prefect", "MLflow", "report.html"), strict=False):
        request = urllib.request.Request(url, headers={"Accept": "text/html"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert holds in answer.read().decode()
    for outside in ("", "params.yaml", "reports/../params.yaml", "reports/%2e%2e/params.yaml"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(room.urls[2].replace("reports/", outside), timeout=30)


def test_the_deployments_have_their_schedules_and_a_form(room: Room) -> None:
    nightly = room.api.client.read_deployment_by_name("pipeline/nightly")
    assert [(one.schedule.cron, one.schedule.timezone, one.active) for one in nightly.schedules] == [
        ("0 2 * * *", "Europe/Berlin", True)
    ]
    assert room.api.client.read_deployment_by_name("check/hourly").schedules[0].schedule.cron == "7 * * * *"
    assert nightly.tags == ["training", "scheduled"]
    form = room.api.client.read_deployment_by_name("pipeline/on-demand").parameter_openapi_schema
    assert "nano" in form["definitions"]["Experiment"]["enum"]
    assert {"experiment", "overrides", "rounds", "until", "force"} <= set(form["properties"])
    assert all(one["description"] for one in form["properties"].values())


def test_a_triggered_run_names_and_versions_its_stages(room: Room) -> None:
    run = room.api.ended(room.api.trigger("pipeline/on-demand", overrides=["seed=3"]))
    assert (run.state.name, run.state.message) == ("Completed", "3 stages: 3 completed")
    tasks = room.api.tasks(run.id)
    versions = {name: repro.version(stage, room.folder) for name, stage in STAGES.items()}
    assert {name: task.task_version for name, task in tasks.items()} == {"compose_params": None} | versions
    assert "seed: 0 -> 3" in tasks["compose_params"].state.message
    assert all(version and version in tasks[name].state.message for name, version in versions.items())
    log = LogFilter(task_run_id={"any_": [tasks["again[r1]"].id]})
    logged = room.api.client.read_logs(log, limit=200, offset=0)
    assert "Running stage 'again@r1':" in [line.message for line in logged]
    run = room.api.ended(room.api.trigger("pipeline/on-demand"))
    assert {task.state.name for task in room.api.tasks(run.id).values()} == {"Unchanged"}


STAGES = {"first": "first", "again[r1]": "again@r1", "last": "last"}


def test_the_documented_commands_of_a_second_terminal_find_the_room(room: Room) -> None:
    commands = documented("prefect deployment run")
    assert len(commands) == 2
    for command in commands:
        done = subprocess.run(
            room.terminal(command), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False,
            env=environment(PREFECT_HOME=str(room.folder / "elsewhere")),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        (run,) = re.findall(r"runs/flow-run/(\S+)", done.stdout)
        assert room.api.ended(UUID(run)).state.is_completed()
    assert (room.folder / "params.yaml").read_text().startswith("seed: 1"), "what the last of them composed"


def test_a_failing_stage_shows_its_one_line(room: Room) -> None:
    (room.folder / "step.py").write_text(FAILING)
    run = room.api.ended(room.api.trigger("pipeline/on-demand"))
    reason = "again@r1: params.yaml: rounds.r1: is wrong; change it"
    assert (run.state.name, run.state.message) == ("Failed", reason)
    tasks = room.api.tasks(run.id)
    assert {name: task.state.name for name, task in tasks.items()} == {"first": "Unchanged", "again[r1]": "Failed"}
    assert tasks["again[r1]"].state.message == reason and tasks["again[r1]"].run_count == 1
    run = room.api.ended(room.api.trigger("check/hourly"))
    assert run.state.is_failed() and run.state.message.startswith("stale: again@r1")


def test_a_failed_run_of_a_scheduled_deployment_is_told_to_the_webhook(room: Room) -> None:
    """The stage fails since the test before; the run on demand that failed there was told to nobody."""
    run = room.api.ended(room.api.trigger("pipeline/nightly"))
    wait_for(lambda: len(room.heard) > 1)
    check, nightly = (message["text"] for message in room.heard)
    assert check.startswith("check/hourly: run ") and "stale: again@r1" in check
    assert nightly == (
        f"pipeline/nightly: run {run.name} failed\nagain@r1: params.yaml: rounds.r1: is wrong; change it\n"
        f"{room.urls[0]}/runs/flow-run/{run.id}"
    )


def test_serving_again_keeps_one_automation_and_removes_it_with_its_line(room: Room) -> None:
    nightly = room.api.client.read_deployment_by_name("pipeline/nightly").id
    with temporary_settings({PREFECT_API_URL: room.api.url}):
        asyncio.run(notifications.arrange("http://127.0.0.1:1/other", [nightly]))
        (automation,) = room.api.client.read_automations_by_name(notifications.NAME)
        assert automation.trigger.match_related["prefect.resource.id"] == [f"prefect.deployment.{nightly}"]
        shown = room.api.client.read_block_document_by_name(notifications.NAME, "custom-webhook", include_secrets=False)
        assert "127.0.0.1:1" not in shown.model_dump_json(), "the pages do not show the address"
        asyncio.run(notifications.arrange(None, [nightly]))
        assert room.api.client.read_automations_by_name(notifications.NAME) == []
        with pytest.raises(ObjectNotFound):
            room.api.client.read_block_document_by_name(notifications.NAME, "custom-webhook")
        asyncio.run(notifications.arrange(None, [nightly]))  # nothing to remove is no error
    assert all("a-secret-token" not in path.read_text() for path in (room.folder / "conf").iterdir())


def test_cancelling_ends_the_tree_and_the_next_run_completes(room: Room) -> None:
    """Meanwhile a second run fails with the first one's name."""
    (room.folder / "step.py").write_text(ENDLESS)
    first = room.api.trigger("pipeline/on-demand")
    started = pids(room.folder)
    second = room.api.ended(room.api.trigger("pipeline/on-demand"))
    assert f"flow run {room.api.run(first).name} ({first}) (process " in second.state.message
    assert second.state.is_failed() and not any(is_gone(pid) for pid in started)
    room.api.client.set_flow_run_state(first, Cancelling())
    wait_for(lambda: all(is_gone(pid) for pid in started), 30)
    assert room.api.ended(first).state.name == "Cancelled"
    (room.folder / "step.py").write_text(STEP)
    run = room.api.ended(room.api.trigger("pipeline/on-demand"))
    assert run.state.is_completed(), run.state.message
    assert (room.folder / "last.txt").read_text() == "round"


def test_a_workspace_whose_run_was_killed_outright_recovers(room: Room) -> None:
    """The whole session dies at once, DVC with its lock files."""
    (room.folder / "pids").unlink()
    (room.folder / "step.py").write_text(ENDLESS)
    code = (
        "from tasks.workspace import repro as r\nwith r.holding('x'), r.started('dvc', 'repro') as child: list(child)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=room.folder, env=toys.environment()) as process:
        started = pids(room.folder)
        lock = json.loads((room.folder / ".dvc/tmp/rwlock").read_text())
        dvc = {user["pid"] for user in lock["write"].values()}
        for pid in (process.pid, *dvc, *started):
            os.kill(pid, signal.SIGKILL)
    (room.folder / "step.py").write_text(STEP + "# again\n")
    run = room.api.ended(room.api.trigger("pipeline/on-demand"))
    assert run.state.is_completed(), run.state.message


def test_the_documented_worker_runs_what_is_deployed_to_its_pool(room: Room) -> None:
    shutil.copy(ROOT / "prefect.yaml", room.folder)
    pool, deploy, worker = (
        documented("prefect work-pool") + documented("prefect deploy ") + documented("prefect worker")
    )
    surroundings = environment(PREFECT_HOME=str(room.folder / ".prefect"))
    for command in (pool, deploy):
        done = subprocess.run(
            room.terminal(command), cwd=room.folder, env=surroundings, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    nightly = room.api.client.read_deployment_by_name("pipeline/nightly")
    assert (nightly.work_pool_name, nightly.tags) == ("sae-explainer", ["training", "scheduled"])
    with subprocess.Popen(
        room.terminal(f"exec {worker}"), cwd=room.folder, env=surroundings, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            run = room.api.ended(room.api.trigger("evaluation/evaluation"))  # which is served by nobody else
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:  # Prefect's worker does not always heed it
                process.kill()
    assert (run.state.name, run.state.message, run.work_pool_name) == ("Completed", "no stage to run", "sae-explainer")


def test_sigterm_stops_everything(room: Room) -> None:
    (room.folder / "pids").unlink()
    (room.folder / "step.py").write_text(ENDLESS)
    room.api.trigger("pipeline/on-demand")
    started = pids(room.folder)
    room.process.send_signal(signal.SIGTERM)
    assert room.process.wait(120) == 0
    assert all(is_gone(pid) for pid in started)
    for url in room.urls[:3]:
        port = int(re.search(r":(\d+)", url)[1])
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)), f"{url} still answers"


def test_a_taken_port_is_one_line_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / ".prefect"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        before = time.monotonic()
        assert ui.main([f"--prefect-port={free_port()}", f"--mlflow-port={port}"]) == 2
        assert time.monotonic() - before < 60
    error = capsys.readouterr().err
    assert error.startswith(f"error: port {port} is taken") and "--mlflow-port N" in error and error.count("\n") == 1
    assert not list((tmp_path / ".prefect").iterdir())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"0 2 * * *"', '"0 2 * *"', "deployments.nightly.cron: is '0 2 * *', which does not parse"),
        ('"0 2 * * *"', '"0 25 * * *"', "deployments.nightly.cron: is '0 25 * * *', which does not parse"),
        ('"0 2 * * *"', "{}", "deployments.nightly.cron: is {}, which does not parse"),
        ("Europe/Berlin", "Berlin", "deployments.nightly.timezone: is 'Berlin'; must be one such as"),
        ("flow: check", "flow: chekc", "deployments.hourly.flow: is 'chekc'; choose from pipeline, check, evaluation"),
        ("cron: null,", "crom: null,", "deployments.on-demand: crom: unknown key"),
        ("default: 30", "default: -1", "limits.default: is -1; must be a number of at least"),
        ("5001", "70000", "ui.reports: is 70000; must be a port"),
        ("retries:", "retires:", "retires: unknown key"),
        ("{default: 30}", "{default: 30", "cannot be read"),
        (
            "[training, scheduled]",
            "training",
            "deployments.nightly.tags: is 'training'; must be a list of texts such as",
        ),
        ("ui:", "notify: https://a-secret-token\nui:", "notify: must be null or the name of an environment variable"),
        ("ui:", "notify: 3\nui:", "notify: must be null or the name of an environment variable"),
    ],
)
def test_a_wrong_line_of_the_configuration_is_named(old: str, new: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/control.yaml").write_text(toys.CONTROL.replace(old, new))
    with pytest.raises(ControlError) as caught:
        control.load(tmp_path)
    assert str(caught.value).startswith("conf/control.yaml: ") and said in str(caught.value)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_webhook_that_is_not_there_is_one_line_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/control.yaml").write_text(f"{toys.CONTROL}notify: {VARIABLE}\n")
    monkeypatch.chdir(tmp_path)
    for value, said in (
        ("", "the environment has no such variable; export it with the webhook's address, or set notify to null"),
        ("a-secret-token", "the variable holds no address of a webhook; it must start with http:// or https://"),
    ):
        monkeypatch.setenv(VARIABLE, value)
        for main in (ui.main, deployments.main):
            assert main([]) == 2 if main is ui.main else main() == 2
            assert capsys.readouterr().err == f"error: conf/control.yaml: notify: {VARIABLE}: {said}\n"
    monkeypatch.setenv(VARIABLE, "https://hooks.example.com/a-secret-token")
    assert control.load().webhook() == "https://hooks.example.com/a-secret-token"


def test_the_documented_options_of_make_ui_are_understood() -> None:
    ports = control.load(ROOT).ports
    for command in documented("make ui"):
        words = shlex.split(command, comments=True)[2:]
        given = [word for option in words for word in shlex.split(option.removeprefix("WITH="))]
        assert ui._options(given, ports) == (Ports(4300, ports.mlflow, ports.reports) if given else ports)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine() -> None:
    code = "import flows, urllib.request as r; print(r.proxy_bypass('127.0.0.1'), r.proxy_bypass('intranet'), end='')"
    surroundings = environment(http_proxy="http://proxy.example.com:3128", no_proxy="intranet")
    done = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=True)
    assert done.stdout == "1 1" or done.stdout == "True True"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("{untill: first}", "deployments.on-demand.parameters.untill: unknown; pipeline takes experiment, "),
        ("{rounds: many}", "deployments.on-demand.parameters: "),
    ],
)
def test_wrong_parameters_of_a_deployment_are_named(
    parameters: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/control.yaml").write_text(toys.CONTROL.replace("{wait_minutes: 0}", parameters))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ControlError, match=re.escape(said)):
        deployments._deployment(control.load().deployments[0])


def test_no_server_at_the_address_is_one_line(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    for command in (["flows.deployments"], ["flows.pipeline", "--until", "prepare_subject"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
            env=os.environ | {"PREFECT_API_URL": url},
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr == (
            f"error: PREFECT_API_URL: no Prefect server answers at {url}; start one (`make ui`) or correct the "
            "address\n"
        )


def test_a_database_of_another_version_is_one_line_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "prefect.db"
    check_database(tmp_path)  # none yet
    with sqlite3.connect(path) as database:
        check_database(tmp_path)  # empty
        database.execute("create table alembic_version (version_num text)")
        database.execute("insert into alembic_version values ('fffffffffff0')")
    database.close()
    before = path.read_bytes()
    with pytest.raises(ServerError, match=f"^{path}: is of another version of Prefect .*fffffffffff0 .*move the file"):
        check_database(tmp_path)
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(ServerError, match=f"^{path}: cannot be read"):
        check_database(tmp_path)
    path.write_bytes(before)
    with sqlite3.connect(path) as database:
        database.execute("update alembic_version set version_num = '9725c1cbee35'")  # Prefect's first
    database.close()
    check_database(tmp_path)


def test_prefect_yaml_has_the_same_deployments() -> None:
    """And its entry points are the flows."""
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    there = {
        entry["name"]: (
            entry["entrypoint"],
            [(one["cron"], one["timezone"]) for one in entry["schedules"]],
            entry.get("parameters", {}),
            entry["tags"],
        )
        for entry in document["deployments"]
    }
    flows = deployments._flows()
    assert there == {
        entry.name: (
            f"{flows[entry.flow].fn.__module__}.{flows[entry.flow].fn.__name__}",
            [(entry.cron, entry.timezone)] if entry.cron else [],
            entry.parameters,
            entry.tags,
        )
        for entry in control.load(ROOT).deployments
    }
