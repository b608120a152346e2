"""Seconds of stages: kept by what the stage made, on a real DVC workspace of two stages."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from toy import environment

from saeexplainer.errors import UserError
from tasks.workspace import repro, timings

PIPELINE = """
stages:
  first:
    cmd: python step.py first
    params: [seed]
    outs: [data/first]
    metrics: [reports/first.json: {cache: false}]
  again:
    foreach: ${rounds}
    do: {cmd: "python step.py again ${key}", deps: [data/first], outs: ["data/${key}.txt"]}
"""
# As long as the seed says, by its own clock: the seconds tell which run they are of.
STEP = """
import sys, yaml
from pathlib import Path
from tasks.workspace import timings
stage, *items = sys.argv[1:]
seed = yaml.safe_load(Path("params.yaml").read_text())["seed"]
first = ["data/first/b/two.txt", "data/first/one.txt", "reports/first.json"]
made = first if stage == "first" else [f"data/{items[0]}.txt"]
for path in map(Path, made):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{path} {seed}")
timings.record("@".join([stage, *items]), float(seed) + len(items))
"""


def dvc(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=True)
    return done.stdout


def test_restored_results_have_the_seconds_that_they_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path)
    for name, text in {"dvc.yaml": PIPELINE, "step.py": STEP}.items():
        (tmp_path / name).write_text(text)
    dvc(tmp_path, "init", "--no-scm", "--quiet")

    def after(seed: int, events: str) -> dict[str, float]:
        (tmp_path / "params.yaml").write_text(f"seed: {seed}\nrounds: {{r1: {{}}}}\n")
        said = dvc(tmp_path, "repro")
        assert [repro.outcome(said.splitlines(), stage) for stage in ("first", "again@r1")] == [events] * 2
        return timings.of_results()

    assert after(100, "ran") == {"first": 100.0, "again@r1": 101.0}
    assert after(200, "ran") == {"first": 200.0, "again@r1": 201.0}
    assert after(100, "restored") == {"first": 100.0, "again@r1": 101.0}, "those of the run that made what lies here"
    assert json.loads(timings.LAST.read_text()) == {"first": 200.0, "again@r1": 201.0}, "the last runs here"
    kept = timings.KEPT.rename("kept")
    assert timings.of_results() == {}, "nobody knows, which is a dash"
    kept.rename(timings.KEPT)
    other = tmp_path / "other"
    other.mkdir()
    (other / "dvc.lock").write_bytes((tmp_path / "dvc.lock").read_bytes())
    assert timings.of_results(other) == {}
    assert timings.of_results(other, [tmp_path]) == {"first": 100.0, "again@r1": 101.0}, "made there, restored here"


def test_stages_that_end_together_all_land(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: timings.record(f"stage@{number}", float(number)), range(40)))
    assert json.loads(timings.LAST.read_text()) == {f"stage@{number}": float(number) for number in range(40)}


def test_broken_seconds_are_named_and_start_anew_with_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (timings.LAST, timings.KEPT):
        path.parent.mkdir()
        path.write_text("<<<<<<< HEAD")
    with pytest.raises(UserError, match=r"^\.cache/timings\.json: not seconds by stage and version; delete it"):
        timings.of_results()
    timings.KEPT.unlink()
    assert timings.of_results() == {}
    timings.record("train_sft", 1.23)
    assert json.loads(timings.LAST.read_text()) == {"train_sft": 1.2}
