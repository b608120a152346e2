"""Several processes: shares come together in order, files are written once, and a mistake is said once."""

import subprocess
import sys
from pathlib import Path

import pytest

from saeexplainer.runs.loop import spread
from saeexplainer.runs.processes import is_first, launched

STAGE = """
import atexit
import os
import time
from pathlib import Path
from saeexplainer.errors import UserError
from saeexplainer.runs.loop import spread
from saeexplainer.runs.storage import read_json, write_json
from tasks.stage import Report, main

def run(params):
    rank = int(os.environ.get("RANK", 0))

    def work(at, batch):
        if Path("wrong").exists() and rank == 1:
            if Path("late").exists():  # the other one loses its peer and is gone first
                atexit.register(time.sleep, 3)
            raise UserError("corpus.txt: empty; name another")
        return [at, batch * batch, rank]

    found = spread(list(range(7)), work, "squares")
    if Path("broken").exists():
        raise ValueError("a defect")
    write_json(Path("found.json"), found)
    return Report({"mean": 1.0}, [f"{len(found)} batches"])

if __name__ == "__main__":
    main(run, parallel=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A place with a stage of its own, in two processes."""
    root = Path(__file__).parents[2]
    text = (root / "params.yaml").read_text().replace("\nprocesses: 1\n", "\nprocesses: 2\n")
    assert "\nprocesses: 2\n" in text
    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / "tasks").symlink_to(root / "tasks")
    (tmp_path / "saeexplainer").symlink_to(root / "saeexplainer")
    (tmp_path / "probe.py").write_text(STAGE)
    return tmp_path


def ran(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", "import probe, tasks.stage as s, saeexplainer.runs.processes as p; "
         "launch = p.launch; p.launch = lambda module, count: launch(['probe'], count); "
         "s.main(probe.run, [], parallel=True)"],
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_alone_nothing_is_shared() -> None:
    assert not launched() and is_first()
    assert spread(["a", "b"], lambda at, batch: (at, batch), "letters") == [(0, "a"), (1, "b")]


def test_two_processes_share_the_batches_and_write_once(folder: Path) -> None:
    from saeexplainer.runs.storage import read_json

    done = ran(folder)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert read_json(folder / "found.json") == [[at, at * at, at % 2] for at in range(7)]
    assert done.stdout.count("7 batches") == 1
    assert not list(folder.glob(".*partial"))


@pytest.mark.parametrize("late", [False, True])
def test_a_mistake_in_one_process_is_one_line(folder: Path, late: bool) -> None:
    (folder / "wrong").touch()
    if late:
        (folder / "late").touch()
    done = ran(folder)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1:] == ["error: corpus.txt: empty; name another"], done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "found.json").exists()


def test_a_defect_keeps_its_traceback(folder: Path) -> None:
    (folder / "broken").touch()
    done = ran(folder)
    assert done.returncode == 1, done.stderr
    assert "ValueError: a defect" in done.stderr
