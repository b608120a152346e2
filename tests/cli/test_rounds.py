"""`sae-explainer rounds` with DVC itself, on stages that copy the scores that a test made: killed, gone on, stopped."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toy import environment, is_gone, pids, wait_for

from saeexplainer.config.parts import EvaluationKind
from saeexplainer.records import ScoreRow
from saeexplainer.runs.storage import write_rows
from tasks.cli import rounds
from tasks.settings import compose, params
from tasks.workspace import repro

PIPELINE = """
stages:
  score_explanations:
    foreach: ${rounds}
    do:
      cmd: python step.py ${key}
      deps: ["ready/${key}.parquet", "data/explainers/${item.start}"]
      params: ["rounds.${key}"]
      outs: ["data/rounds/${key}/scores.parquet"]
  train_dpo:
    foreach: ${rounds}
    do:
      cmd: "echo ${key} > data/explainers/${key}"
      deps: ["data/rounds/${key}/scores.parquet"]
      outs: ["data/explainers/${key}"]
  compare_rounds: {cmd: "ls data/* > compared", deps: [data/rounds, data/explainers], outs: [compared]}
"""
# Round r3's scores take for ever the first time: then somebody kills everything.
STEP = """
import os, shutil, sys, time
name = sys.argv[1]
if name == "r3" and not os.path.exists("pids"):
    open(".pids", "w").write(f"{os.getpid()}")
    os.rename(".pids", "pids")
    time.sleep(300)
os.makedirs(f"data/rounds/{name}", exist_ok=True)
shutil.copy(f"ready/{name}.parquet", f"data/rounds/{name}/scores.parquet")
"""
# Of four texts, how many fire for each of two valid features; rN is by the explainer that r(N - 1) made.
FIRING = {"r1": (0, 0), "r2": (1, 1), "r3": (2, 3), "r4": (2, 3)}
THIRD = [
    "+rounds.r3={start: r2, beta: 0.15, learning_rate: 0.0003}",
    "+evaluations.r3={kind: explainer, source: data/explainers/r3}",
]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert compose.main(["rounds=two"]) == 0
    Path("dvc.yaml").write_text(PIPELINE)
    Path("step.py").write_text(STEP)
    Path("data/explainers").mkdir(parents=True)
    Path("data/explainers/sft").write_text("sft")
    for name, firing in FIRING.items():
        found = [
            ScoreRow(f"{at}", "valid", 0, "a dog", ["a"] * 4, [1.0] * n + [0.0] * (4 - n), [0.0] * 4, 0.0)
            for at, n in enumerate(firing)
        ]
        write_rows(Path(f"ready/{name}.parquet"), found, ScoreRow)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], env=environment(), check=True)
    return tmp_path


def started(at_most: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tasks.cli.main", "rounds", "--at-most", str(at_most)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def said(at_most: int) -> str:
    with started(at_most) as process:
        text = process.communicate()[0]
    assert process.returncode == 0, text
    return text


def test_rounds_are_added_while_the_last_was_worth_it_and_a_kill_is_no_end(workspace: Path) -> None:
    with started(at_most=9) as process:
        (step,) = pids(workspace)
        process.kill()
    leader = os.getsid(step)  # DVC, which with its stage outlives a kill of their parent
    os.killpg(leader, signal.SIGKILL)
    wait_for(lambda: repro.holder() is None and is_gone(leader))  # DVC takes a process for alive until it is reaped
    assert Path("params.yaml").read_text() == compose.composed(THIRD)  # as a person would have added it

    text = said(at_most=9)
    lines = [line for line in text.splitlines() if line.startswith("rounds: ")]
    # r2 - r1: 1/4 and 2/4 more; r3 - r2: nothing.
    assert lines[0] == (
        "rounds: r2 - r1: share of firing texts +37.5 points (+25.0 to +50.0), 2 valid features: worth it, on to r3"
    )
    assert lines[1].startswith("rounds: r4 added to params.yaml, as ") and "'+rounds.r4={start: r3, beta" in lines[1]
    nothing = "share of firing texts +0.0 points (+0.0 to +0.0), 2 valid features"
    assert lines[2:] == [f"rounds: stopped after r3: r3 - r2: {nothing}, not above 0"]
    ran = re.findall(r"Running stage '(.+)'", text)
    assert ran == ["score_explanations@r3", "train_dpo@r3", "compare_rounds", "score_explanations@r4"]
    # The fourth round left nothing, so that the pipeline of three is up to date.
    assert Path("params.yaml").read_text() == compose.composed(THIRD)
    assert not Path("data/rounds/r4").exists() and not rounds.TRIAL.exists()

    text = said(at_most=3)
    assert "Running" not in text
    assert text.splitlines()[-1] == "rounds: stopped after r3: params.yaml has 3 rounds, --at-most 3"


def test_a_note_of_a_round_that_is_not_there_is_no_trial(workspace: Path) -> None:
    rounds.TRIAL.parent.mkdir(parents=True, exist_ok=True)
    rounds.TRIAL.write_text("r3")
    assert rounds._on_trial(params.load()) is None and not rounds.TRIAL.exists()


def test_a_round_taken_out_leaves_the_file_as_it_was(workspace: Path) -> None:
    before = Path("params.yaml").read_text()
    rounds.TRIAL.parent.mkdir(parents=True, exist_ok=True)
    rounds._add(params.load())
    loaded = params.load()
    assert loaded.rounds["r3"].start == "r2" and loaded.evaluations["r3"].kind is EvaluationKind.explainer
    assert rounds._on_trial(loaded) == "r3"
    rounds._take_out("r3")
    assert Path("params.yaml").read_text() == before and rounds._on_trial(params.load()) is None
