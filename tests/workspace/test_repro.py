"""One writer a workspace, a child that ends with all it started, and what is read from DVC's words."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy as toys
from dvc.lock import make_lock
from toy import environment, is_gone, pids, wait_for

from tasks.workspace import repro
from tasks.workspace.repro import WorkspaceBusy, holding, started

OOM = "ERROR: failed to reproduce 'x': failed to run: python -m tasks.x, exited with -9"
BUSY = "ERROR: Unable to acquire lock. Most likely another DVC process is running"
WRONG = "error: a: is 1; change it"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([WRONG, "ERROR: failed to reproduce 'x'"], "a: is 1; change it"),
        ([BUSY], "another DVC command is at work in this workspace; let it finish or stop it, then start again"),
        (["ERROR: failed to reproduce 'x': '/x' is busy, it is being blocked by:"], "another DVC command is at work"),
        (["ERROR: no such thing"], "no such thing"),
        ([], "failed with exit status 3"),
    ],
)
def test_the_reason_is_the_stages_own_line(lines: list[str], said: str) -> None:
    assert repro.reason(lines, 3).startswith(said)


@pytest.mark.parametrize(
    ("lines", "first", "second"),
    [
        ([BUSY], True, True),
        ([OOM], True, False),
        (["requests.exceptions.ConnectionError: HTTPConnectionPool: Max retries exceeded"], True, True),
        ([WRONG, "ERROR: failed to reproduce 'x': failed to run: x, exited with 2"], False, False),
        ([WRONG.replace("a:", "Connection refused:")], False, False),
        (["ValueError: a defect", "ERROR: failed to reproduce 'x': failed to run: x, exited with 1"], False, False),
    ],
)
def test_only_what_can_pass_is_tried_again(lines: list[str], first: bool, second: bool) -> None:
    assert (repro.may_pass(lines, 1), repro.may_pass(lines, 2)) == (first, second)


def test_the_outcome_is_dvcs_word_about_this_stage() -> None:
    lines = [
        "Running stage 'a':", "> a", "Stage 'b@r1' is cached - skipping run, checking out outputs",
        "Stage 'c' didn't change, skipping",
    ]  # fmt: skip
    assert [repro.outcome(lines, stage) for stage in ("a", "b@r1", "c")] == ["ran", "restored", "unchanged"]


def test_the_version_follows_the_results_and_nothing_else(tmp_path: Path) -> None:
    def versions(*outs: str, cmd: str = "x") -> str | None:
        entries = "".join(f"\n    - {{path: data/{index}, md5: {out}}}" for index, out in enumerate(outs))
        (tmp_path / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n  a@r1:\n    cmd: {cmd}\n    outs:{entries}\n")
        return repro.version("a@r1", tmp_path)

    assert repro.version("a@r1", tmp_path) is None
    first = versions("1a", "2b")
    assert re.fullmatch(r"[0-9a-f]{10}", first or "")
    assert versions("1a", "2b", cmd="y") == first
    assert len({first, versions("1a", "2c"), versions("1a"), versions("2b", "1a")}) == 4


def test_a_busy_workspace_names_its_holder_and_is_free_afterwards(tmp_path: Path) -> None:
    code = (
        "from tasks.workspace import repro\nwith repro.holding('flow run otter'):\n    print(flush=True)\n    input()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with other:
        other.stdout.readline()
        said = rf"flow run otter \(process {other.pid} on .* is at work here"
        with pytest.raises(WorkspaceBusy, match=said), holding("x", tmp_path):
            pass
        assert repro.holder(tmp_path).name == "flow run otter"
        told = []
        with pytest.raises(WorkspaceBusy, match=r"waited 0\.7 s"), holding("x", tmp_path, 0.7, told.append):
            pass
        assert len(told) == 1 and "waiting for flow run otter" in told[0]
        other.stdin.close()
        with holding("x", tmp_path, 60), holding("again", tmp_path):
            assert repro.holder(tmp_path).name == "x"
    assert repro.holder(tmp_path) is None


KILLED = """
import sys, time
from tasks.workspace import repro
with repro.holding("the killed"), repro.started("endless") as child:
    for line in child: print(line, flush=True)
"""


def test_what_a_killed_run_left_behind_still_holds_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(300)\n")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        left = int(process.stdout.readline())
        process.kill()
    with pytest.raises(WorkspaceBusy, match="what the killed left behind when it was killed"), holding("x", tmp_path):
        pass
    os.kill(left, signal.SIGKILL)
    with holding("x", tmp_path, 10):
        pass


def test_nothing_that_a_child_started_outlives_it(tmp_path: Path) -> None:
    """Not even a process in a session of its own, nor one that a leader left which was killed."""
    (tmp_path / "endless.py").write_text(
        "import os, subprocess, sys, time\n"
        "run = lambda **more: subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], **more).pid\n"
        "open('.pids', 'w').write(f'{os.getpid()} {run()} {run(start_new_session=True)}')\n"
        "os.rename('.pids', 'pids')\ntime.sleep(300)\n"
    )
    with started("endless", folder=tmp_path) as child:
        found = pids(tmp_path)
        repro.stop(child.process)
    assert all(is_gone(pid) for pid in found) and len(found) == 3
    (tmp_path / "pids").unlink()
    with started("endless", folder=tmp_path) as child:
        found = pids(tmp_path)
        os.kill(child.process.pid, signal.SIGKILL)
        wait_for(lambda: child.process.poll() is not None)
        repro.stop(child.process)
    assert is_gone(found[1])
    os.kill(found[2], signal.SIGKILL)  # its leader is dead and it left the session: nobody can know whose it is


def test_a_child_is_ended_at_its_limit_and_gives_its_lines_as_they_come(tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text("import time\nprint('one')\nprint('two')\ntime.sleep(300)\n")
    start = time.monotonic()
    with started("talks", folder=tmp_path, seconds=2.5) as child:
        assert list(child) == ["one", "two"]
    assert child.expired and child.status and time.monotonic() - start < 60
    with started("platform", folder=tmp_path, seconds=60) as child:
        assert len(list(child)) == 1
    assert not child.expired and child.status == 0


def test_a_list_of_users_that_a_kill_tore_is_removed_unless_somebody_writes_it(tmp_path: Path) -> None:
    toy = toys.make(tmp_path)
    users = toy / repro.USERS
    users.parent.mkdir(parents=True, exist_ok=True)
    users.write_text('{"write": {}')
    with make_lock(str(users.with_name("rwlock.lock")), tmp_dir=str(users.parent)):
        repro.mend(toy)
        assert users.exists()
    with started("dvc", "repro", folder=toy) as child:
        assert any("Running stage 'last'" in line for line in child)
    assert child.status == 0 and not repro.is_torn(users)
