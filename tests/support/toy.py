"""A DVC workspace of three stages, the second once for each round, whose steps do what a test needs."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = """
stages:
  first: {cmd: "echo one > first.txt", deps: [source.txt], outs: [first.txt]}
  again:
    foreach: ${rounds}
    do: {cmd: "python step.py ${key}", deps: [first.txt, step.py], outs: ["${key}.txt"]}
  last: {cmd: "cat r1.txt > last.txt", deps: [r1.txt], outs: [last.txt]}
"""
CONTROL = """
limits: {default: 30}
retries: {attempts: 2, seconds: 0}
deployments:
  on-demand: {flow: pipeline, cron: null, parameters: {wait_minutes: 0}}
  nightly: {flow: pipeline, cron: "0 2 * * *", timezone: Europe/Berlin, tags: [training, scheduled]}
  hourly: {flow: check, cron: "7 * * * *"}
ui: {prefect: 4200, mlflow: 5000, reports: 5001}
"""
STEP = "import sys\nopen(sys.argv[1] + '.txt', 'w').write('round')\n"
FAILING = "import sys\nprint('error: params.yaml: rounds.r1: is wrong; change it', file=sys.stderr)\nsys.exit(2)\n"
# A grandchild in a session of its own, as accelerate's workers are; both leave their number in pids.
ENDLESS = """
import os, subprocess, sys, time
code = "import time; time.sleep(300)"
other = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
open(".pids", "w").write(f"{os.getpid()} {other.pid}")
os.rename(".pids", "pids")
time.sleep(300)
"""
COMPOSE = """
import sys
given = dict(word.split("=") for word in sys.argv[1:])
if given.get("rounds") == "wrong":
    sys.exit("error: conf: rounds: is 'wrong'; correct the override; params.yaml is untouched")
open("params.yaml", "w").write("seed: " + given.get("seed", "0") + "\\nrounds: {r1: {}}\\n")
"""


def make(folder: Path) -> Path:
    """Fill a folder with the workspace."""
    for name, text in {
        "dvc.yaml": PIPELINE,
        "params.yaml": "seed: 0\nrounds: {r1: {}}\n",
        "source.txt": "1",
        "step.py": STEP,
        "conf/control.yaml": CONTROL,
        "tasks/__init__.py": f"__path__.append({str(ROOT / 'tasks')!r})\n",  # the repository's, but for compose
        "tasks/settings/__init__.py": f"__path__.append({str(ROOT / 'tasks/settings')!r})\n",
        "tasks/settings/compose.py": COMPOSE,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, env=environment(), check=True
    )
    return folder


def environment(**more: str) -> dict[str, str]:
    """For programs of the repository that run in another folder."""
    return os.environ | {"PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"} | more


def wait_for(found: Callable[[], object], seconds: float = 120) -> object:
    """The first true value of `found`."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return value


def pids(folder: Path) -> list[int]:
    """The processes of an endless step, once it has begun."""
    wait_for((folder / "pids").exists)
    return [int(number) for number in (folder / "pids").read_text().split()]


def is_gone(pid: int) -> bool:
    """Whether a process has ended and was reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
