"""The flow and DVC tell one story: the order, what is unchanged, why a stage failed, what dies with a cancelled run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest
from dvc.repo import Repo
from prefect.testing.utilities import prefect_test_harness

from flows import pipeline
from flows.pipeline import StageFailed, Step, plan, reason

ROOT = Path(__file__).resolve().parent.parent
TOY = """
stages:
  first: {cmd: "echo one > first.txt", deps: [source.txt], outs: [first.txt]}
  again:
    foreach: ${rounds}
    do: {cmd: "python step.py ${key}", deps: [first.txt, step.py], outs: ["${key}.txt"]}
  last: {cmd: "cat r1.txt > last.txt", deps: [r1.txt], outs: [last.txt]}
"""
STEP = "import sys\nopen(sys.argv[1] + '.txt', 'w').write('round')\n"
FAILING = "import sys\nprint('error: params.yaml: rounds.r1: is wrong; change it', file=sys.stderr)\nsys.exit(2)\n"
ENDLESS = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(300)\n"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC workspace of three stages, the second once for each round."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    for name, text in {
        "dvc.yaml": TOY,
        "params.yaml": "rounds: {r1: {}}\n",
        "source.txt": "1",
        "step.py": STEP,
    }.items():
        (tmp_path / name).write_text(text)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], check=True)
    return tmp_path


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


def states_of(caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    """The state in which each task run of the last flow run ended, by the runs' names, in order."""
    ended = [
        record
        for record in caplog.records
        if record.name == "prefect.task_runs" and "Finished in state" in record.message
    ]
    caplog.clear()
    return {record.task_run_name: record.message.split()[3].partition("(")[0] for record in ended}


def test_the_plan_is_a_topological_order_of_dvcs_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    order = [step.stage for step in plan()]
    with Repo() as repo:
        graph = networkx.relabel_nodes(repo.index.graph, lambda stage: stage.addressing)
    assert sorted(order) == sorted(graph.nodes)
    assert all(order.index(needed) < order.index(stage) for stage, needed in graph.edges)


def test_rounds_are_sub_flows_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    steps = plan()
    assert [step.round for step in steps if step.round] == ["r1"] * 5 + ["r2"] * 5
    assert Step("train_dpo@r1", "r1").label == "train_dpo[r1]"
    assert Step("evaluate@r1", None) in steps


def test_until_keeps_what_a_stage_needs(toy: Path) -> None:
    assert [step.stage for step in plan("again@r1")] == ["first", "again@r1"]
    assert [step.stage for step in plan("again")] == ["first", "again@r1"]
    with pytest.raises(StageFailed, match="--until agian: no such stage; choose from first, again@r1, last"):
        plan("agian")


def test_a_folder_without_a_pipeline_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageFailed) as caught:
        plan()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["error: a: is 1", "ERROR: failed to reproduce 'x'"], "a: is 1"),
        (
            ["ERROR: Unable to acquire lock. Most likely another DVC process is running"],
            "another DVC command is at work",
        ),
        (["ERROR: failed to reproduce 'x': '/x' is busy, it is being blocked by:"], "another DVC command is at work"),
        (["ERROR: no such thing"], "no such thing"),
        ([], "exit status 3"),
    ],
)
def test_the_reason_is_the_stages_own_line(lines: list[str], said: str) -> None:
    assert reason(lines, 3).startswith(said) or said in reason(lines, 3)


def test_runs_then_is_unchanged_then_fails_with_the_stages_reason(
    toy: Path, prefect: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="prefect.task_runs")
    pipeline.pipeline()
    assert (toy / "last.txt").read_text() == "round"
    assert states_of(caplog) == {"first": "Completed", "again[r1]": "Completed", "last": "Completed"}
    (toy / "r1.txt").unlink()
    pipeline.pipeline()
    assert states_of(caplog) == {"first": "Unchanged", "again[r1]": "Restored", "last": "Unchanged"}
    (toy / "step.py").write_text(FAILING)
    with pytest.raises(StageFailed, match="^again@r1: params.yaml: rounds.r1: is wrong; change it$"):
        pipeline.pipeline()
    assert states_of(caplog) == {"first": "Unchanged", "again[r1]": "Failed"}


RUN_ONE_STAGE = """
import logging, signal
from flows import pipeline
signal.signal(signal.SIGTERM, pipeline._terminate)
pipeline.get_run_logger = logging.getLogger
pipeline.bring_up_to_date.fn("again@r1")
"""


def test_a_terminated_run_takes_its_stage_along(toy: Path) -> None:
    (toy / "first.txt").write_text("one")
    (toy / "step.py").write_text(ENDLESS)
    command = [sys.executable, "-c", RUN_ONE_STAGE]
    process = subprocess.Popen(command, cwd=toy, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (toy / "pid").exists() or not (toy / "pid").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((toy / "pid").read_text()), 0)
