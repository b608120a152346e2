"""Kills at random moments over a run of the nano pipeline, and what the next run makes of it: `make faults`, an hour.

The suite has one kill of the whole run (tests/test_pipeline.py), and kills of stages at chosen batches.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from copies import composed, environment, run

KILLS = int(os.environ.get("FAULTS", "0"))
ASKED = pytest.mark.skipif(not KILLS, reason="an hour: make faults")
NANO = ("experiment=nano", "rounds=two")
REPRO = (sys.executable, "-m", "dvc", "repro")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = composed(tmp_path_factory.mktemp("undisturbed"), *NANO)
    run(folder, *REPRO)
    return folder


def artifacts(folder: Path) -> dict[str, bytes]:
    """All that a run writes, but for what tells when it was."""
    lock = (folder / "dvc.lock").read_text(encoding="utf-8")
    reports = [folder / path for path in re.findall(r"path: (\S+\.(?:json|csv|md))\n", lock)]
    tables = [path for kind in ("parquet", "safetensors") for path in (folder / "data").rglob(f"*.{kind}")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in (*reports, *tables)}


def stage_of(process: int) -> int:
    """The process of the stage that this DVC runs, or DVC itself between two of them."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], check=True, capture_output=True, text=True).stdout
    parent = {int(child): int(its) for child, its in map(str.split, listed.splitlines())}
    while child := next((one for one, its in parent.items() if its == process), None):
        process = child
    return process


@ASKED
@pytest.mark.parametrize("victim", ["all", "dvc", "stage"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(undisturbed, tmp_path, victim):
    folder, draw = composed(tmp_path / victim, *NANO), random.Random(victim)
    log, kills = tmp_path / "log", 0
    for _ in range(KILLS // 3 + 1):
        with log.open("ab") as written:
            process = subprocess.Popen(
                REPRO, cwd=folder, env=environment(folder), stdout=written, stderr=written, start_new_session=True
            )
        try:
            process.wait(draw.uniform(1.0, 30.0))
        except subprocess.TimeoutExpired:
            kills += 1
            if victim == "all":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                os.kill(process.pid if victim == "dvc" else stage_of(process.pid), signal.SIGKILL)
            process.wait()
    run(folder, *REPRO)
    assert kills > KILLS // 6, f"only {kills} kills before the run was complete"
    assert "Traceback" not in log.read_text(errors="replace")
    time.sleep(10)  # a stage whose DVC was killed may still be at work
    assert artifacts(folder) == artifacts(undisturbed)
    assert not list(folder.rglob("*.partial")) or victim == "dvc"
    assert not list((folder / ".cache/batches").glob("*"))
