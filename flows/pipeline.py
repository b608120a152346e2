"""The pipeline as a Prefect flow: `python -m flows.pipeline [--until STAGE] [--force]`.

Every stage of dvc.yaml is one task run that brings this stage up to date (`dvc repro --single-item`) in a process of
its own; the stages of a preference round are a sub-flow. DVC alone decides what is stale: Prefect caches nothing and
retries nothing, because a stage that failed on its settings or data fails again. A stage that DVC skipped completes as
`Unchanged`, one whose result DVC had kept as `Restored`.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import NoReturn

import networkx
import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

GRACE_SECONDS = 10  # between asking a stage to stop and killing it
HELD = ("Unable to acquire lock", "is busy, it is being blocked by")  # DVC's words when another one is at work here


class StageFailed(Exception):
    """A stage or the plan failed; the message is one line that says what to change."""


@dataclass(frozen=True)
class Step:
    """One stage of the plan."""

    stage: str  # DVC's name: train_dpo@r1
    round: str | None  # the preference round whose sub-flow it belongs to

    @property
    def label(self) -> str:
        """The task run's name: train_dpo[r1]."""
        name, _, item = self.stage.partition("@")
        return f"{name}[{item}]" if item else name


def plan(until: str | None = None) -> list[Step]:
    """The stages of this folder's dvc.yaml in topological order, ties as the file has them.

    `until` keeps a stage and what it needs; the name of a repeated stage (`train_dpo`) stands for all its items.
    Raises StageFailed if there is no such stage, or no pipeline to read.
    """
    try:
        with Repo() as repo:
            stages = [stage.addressing for stage in repo.index.stages]
            needs = networkx.relabel_nodes(repo.index.graph, lambda stage: stage.addressing)
    except DvcException as error:
        raise StageFailed(" ".join(str(error).split())) from None
    if until is not None:
        wanted = [stage for stage in stages if until in (stage, stage.partition("@")[0])]
        if not wanted:
            raise StageFailed(f"--until {until}: no such stage; choose from {', '.join(stages)}")
        needs = needs.subgraph(set(wanted).union(*(networkx.descendants(needs, stage) for stage in wanted)))
    of_rounds = _repeated_over_rounds()
    order = networkx.lexicographical_topological_sort(needs.reverse(), key=stages.index)
    return [Step(stage, _round_of(stage, of_rounds)) for stage in order]


def _repeated_over_rounds() -> set[str]:
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name for name, stage in stages.items() if stage.get("foreach") == "${rounds}"}


def _round_of(stage: str, of_rounds: set[str]) -> str | None:
    name, _, item = stage.partition("@")
    return item if name in of_rounds else None


@flow(name="pipeline")
def pipeline(until: str | None = None, force: bool = False) -> None:
    """Bring every stage up to date, in order; `force` runs them even if nothing changed. Raises StageFailed."""
    for name, steps in groupby(plan(until), key=lambda step: step.round):
        if name is None:
            _bring_all(list(steps), force)
        else:
            preference_round(name, [step.stage for step in steps], force)


@flow(name="preference_round", flow_run_name="preference_round[{name}]")
def preference_round(name: str, stages: list[str], force: bool = False) -> None:
    """Candidates, scores, pairs, their validation, and training of one round."""
    _bring_all([Step(stage, name) for stage in stages], force)


def _bring_all(steps: list[Step], force: bool) -> None:
    for step in steps:
        bring_up_to_date.with_options(task_run_name=step.label)(step.stage, force)


@task(cache_policy=NO_CACHE)
def bring_up_to_date(stage: str, force: bool = False) -> State:
    """Run one stage if DVC finds it stale. Raises StageFailed with the stage's own reason."""
    lines = []
    with _repro(stage, force) as process:
        for line in process.stdout or ():
            if line := line.rstrip():
                lines.append(line)
                get_run_logger().info(line)
    if process.returncode:
        raise StageFailed(f"{stage}: {reason(lines, process.returncode)}")
    if any(line.startswith(f"Stage '{stage}' didn't change") for line in lines):
        return Completed(name="Unchanged", message=f"{stage} is up to date")
    if any(line.startswith(f"Stage '{stage}' is cached") for line in lines):
        return Completed(name="Restored", message=f"DVC had kept this result of {stage}")
    return Completed(message=f"{stage} ran")


def reason(lines: list[str], status: int) -> str:
    """Why a stage failed, in one line, from what it and DVC printed."""
    if any(words in line for line in lines for words in HELD):
        return "another DVC command is at work in this workspace; let it finish or stop it, then start again"
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    dvc = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (own or dvc or [f"failed with exit status {status}; its log above says why"])[-1]


@contextmanager
def _repro(stage: str, force: bool) -> Iterator[subprocess.Popen[str]]:
    """`dvc repro` of one stage as the leader of its own process group, which does not outlive the block."""
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", *(["--force"] if force else []), stage]
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),  # dvc.yaml's `python`
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
    }
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
        process.wait()
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    """End a group that still runs: DVC may be gone before the stage that it started."""
    if process.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_SECONDS
        try:
            os.killpg(process.pid, number)
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)  # raises once nobody is left
                time.sleep(0.05)
        except ProcessLookupError:
            return


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)  # unwinds, so that the running stage is stopped too


def main() -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description="Bring every stage up to date.")
    parser.add_argument("--until", metavar="STAGE", help="only this stage and what it needs, such as train_dpo@r1")
    parser.add_argument("--force", action="store_true", help="run the stages even if nothing changed")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        plan(options.until)  # before Prefect starts a server for nothing
        pipeline(options.until, options.force)
    except StageFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the stage it stopped in", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
