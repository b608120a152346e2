"""Odd places to work in: a moved folder, letters beyond ASCII, no git, a read-only checkout, and so on.

The suite runs a pipeline of one small stage in all of them at once. `make surroundings` runs the nano pipeline in each
of them alone.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from copies import PATIENCE, copied
from tiny import ROOT

from tasks.workspace import relocate

EACH_ALONE = pytest.mark.skipif(os.environ.get("SURROUNDINGS") != "all", reason="minutes: make surroundings")
# Modes say nothing to root, who keeps no right to go over them in this way.
AS_A_USER = ["setpriv", "--bounding-set", "-dac_override"] if os.geteuid() == 0 and shutil.which("setpriv") else []


@dataclass(frozen=True)
class Surrounding:
    """Where and how a user works."""

    folder: str = "work"
    git: bool = True
    environment: dict[str, str] = field(default_factory=dict)
    moved_to: str | None = None  # after the first run


SURROUNDINGS = {
    "spaces and letters beyond ASCII": Surrounding(folder="die größte Arbeit ☃"),
    "no git": Surrounding(git=False),
    "no writable home": Surrounding(environment={"HOME": "/proc/nowhere", "XDG_CACHE_HOME": ""}),
    "a terminal of ASCII": Surrounding(
        environment={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    ),
    "a dead proxy": Surrounding(
        environment=dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"), "http://127.0.0.1:9")
    ),
    "a moved folder": Surrounding(moved_to="another place"),
}
ALL = Surrounding(
    folder="die größte Arbeit ☃",
    git=False,
    # DVC needs names of files in UTF-8, which Python gives it unless a user forbids that by PYTHONUTF8=0.
    environment={k: v for one in SURROUNDINGS.values() for k, v in one.environment.items()} | {"PYTHONUTF8": "1"},
    moved_to="another größte place",
)
# The real entry point of a stage. It says letters and draws, as stages do.
STAGE = """
from pathlib import Path
from tasks.stage import Report, main
def run(params):
    from matplotlib.figure import Figure
    Path("data").mkdir(exist_ok=True)
    Figure().savefig("data/subject.png")
    return Report({}, ["gain ↑ of naïve labels"])
if __name__ == "__main__":
    main(run)
"""


def run(folder: Path, where: Surrounding, *command: str, status: int = 0) -> str:
    """What `python -m <command>` says. No traceback is ever among it, nor a library's word on its folders."""
    paths = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "" if (folder / "tasks").is_dir() else str(ROOT),
        "MLFLOW_TRACKING_URI": "",
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*AS_A_USER, sys.executable, "-m", *command], cwd=folder, env=os.environ | paths | where.environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE, check=False,
    )  # fmt: skip
    said = done.stdout.decode(errors="replace")
    assert done.returncode == status and not re.search("Traceback|Matplotlib|UnicodeEncodeError", said), said
    return said


def made(parent: Path, where: Surrounding) -> Path:
    folder = parent / where.folder
    (folder / ".dvc").mkdir(parents=True)
    shutil.copy(ROOT / ".dvc/config", folder / ".dvc")
    if where.git:
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


def test_a_stage_runs_in_all_of_them_at_once(tmp_path: Path) -> None:
    folder = made(tmp_path, ALL)
    (folder / "prepare_subject.py").write_text(STAGE, encoding="utf-8")
    (folder / "dvc.yaml").write_text(
        "stages: {prepare_subject: {cmd: python -m prepare_subject, outs: [data/subject.png]}}\n"
    )
    run(folder, ALL, "tasks.settings.compose", "experiment=nano")
    run(folder, ALL, "tasks.workspace.folder")
    said = run(folder, ALL, "dvc", "repro")
    assert "gain \\u2191 of na\\xefve labels" in said, "unknown letters are escapes"
    assert (folder / ".cache/home/matplotlib").is_dir()
    folder = folder.rename(tmp_path / str(ALL.moved_to))
    assert "didn't change, skipping" in run(folder, ALL, "dvc", "repro")
    assert "no such file; run `dvc repro`" in run(folder, ALL, "tasks.cli.main", "costs", status=2)


@pytest.mark.skipif(os.geteuid() == 0 and not AS_A_USER, reason="root needs setpriv for this")
def test_a_folder_that_takes_nothing_is_one_line(tmp_path: Path) -> None:
    """For who may only read: what reads works, what writes says where it cannot."""
    folder = made(tmp_path, Surrounding(git=False))
    shutil.copy(ROOT / "params.yaml", folder)
    for path in (folder / ".dvc", folder):
        path.chmod(0o555)
    where = Surrounding(environment={"HOME": "/proc/nowhere"})
    for command, place in {
        ("tasks.settings.compose", "seed=1"): "params.yaml",
        ("tasks.workspace.folder",): ".dvc/config.local",
        ("tasks.cli.main", "rounds", "--at-most", "2"): ".dvc/tmp/writer.lock",
    }.items():
        said = run(folder, where, *command, status=2)
        assert said.startswith("error: ") and place in said and "make" in said and said.count("\n") == 1, said
    assert "reports/costs.json: no such file" in run(folder, where, "tasks.cli.main", "costs", status=2)


def test_every_entry_point_settles_in() -> None:
    files = [path for package in ("tasks", "flows") for path in (ROOT / package).rglob("*.py")]
    texts = {path.stem: path.read_text(encoding="utf-8") for path in files}
    entered = {
        name for name, text in texts.items() if 'if __name__ == "__main__"' in text and "    main(run" not in text
    }
    entered -= {"relocate"}  # which has only Python's own modules
    assert [name for name in sorted(entered) if "surroundings.settle()" not in texts[name]] == []


def test_the_commands_of_a_moved_environment_start_its_own_python(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "neuer Ort"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", old / ".venv"], check=True)
    heads = {
        "short": f"#!{old}/.venv/bin/python3.11\n",
        "long": f"#!/bin/sh\n'''exec' \"{old}/.venv/bin/python\" \"$0\" \"$@\"\n' '''\n",
    }
    for name, head in heads.items():
        command = old / ".venv/bin" / name
        command.write_text(f"{head}import sys\nprint(sys.prefix, *sys.argv[1:])\n")
        command.chmod(0o755)
    activate = (old / ".venv/bin/activate").read_text()
    shutil.copytree(old, new, symlinks=True)
    binaries = new / ".venv/bin"
    assert relocate.relocate(binaries, binaries / "python") == 2
    for name in heads:
        done = subprocess.run([binaries / name, "one", "two words"], capture_output=True, text=True, check=True)
        assert done.stdout == f"{new}/.venv one two words\n"
    assert (binaries / "activate").read_text() == activate, "no command; venv itself writes it again"


def test_a_moved_folder_is_set_up_again(tmp_path: Path) -> None:
    """Its .venv came along, with commands that start nothing there."""
    here, there = tmp_path / "here", tmp_path / "dort ☃"
    here.mkdir()
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, here)

    def asked(folder: Path) -> str:
        return subprocess.run(["make", "-n", "setup"], cwd=folder, capture_output=True, text=True, check=True).stdout

    stamp = re.search(r"touch ([\w./-]+)", asked(here))
    assert stamp is not None
    (here / ".venv").mkdir()
    (here / stamp[1]).touch()
    assert "set-up" not in asked(here)
    here.rename(there)
    assert "tasks.workspace.relocate" in asked(there) and "--requirement requirements.lock" in asked(there)


@EACH_ALONE
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_the_pipeline_runs_in_each_of_them(name: str, tmp_path: Path) -> None:
    where = SURROUNDINGS[name]
    folder = made(tmp_path, where)
    copied(folder)
    run(folder, where, "tasks.settings.compose", "experiment=nano", "rounds=two")
    run(folder, where, "tasks.workspace.folder")
    said = run(folder, where, "dvc", "repro")
    assert "Running stage 'compare_rounds'" in said and "warning" not in said
    if where.moved_to:
        folder = folder.rename(tmp_path / where.moved_to)
        assert "Running stage" not in run(folder, where, "dvc", "repro")
    bill = run(folder, where, "tasks.cli.main", "costs")
    assert re.search(r"^all of these +[\d,.]+ ", bill, re.MULTILINE), bill
    assert "main/" in run(folder, where, "tasks.cli.main", "features")
    assert "(nothing)" in (answer := run(folder, where, *_explain(folder))) or "expected accuracy" in answer


def _explain(folder: Path) -> list[str]:
    from saeexplainer.records import FeatureRow
    from saeexplainer.runs.storage import read_rows

    feature = read_rows(folder / "data/activations/features.parquet", FeatureRow)[0]
    return ["tasks.cli.main", "explain", "--feature", str(feature.index), "--explainer", "r1"]
