"""The pipeline as a Prefect flow: `python -m flows.pipeline [--until STAGE] [--rounds N] [--force] [OVERRIDE ...]`.

Every stage of dvc.yaml is one task run that brings this stage up to date (`dvc repro --single-item`) in a process of
its own; the stages of a preference round are a sub-flow. DVC alone decides what is stale: Prefect caches nothing, and
tries again only what may pass the second time. A stage that DVC skipped completes as `Unchanged`, one whose result DVC
had kept as `Restored`; a task run's version is the hash of the results that DVC keeps.

Limits and retries: conf/control.yaml. Nobody else may write in the workspace meanwhile: tasks/workspace/repro.py.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import yaml
from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.states import Completed, Failed
from prefect.tasks import Task
from pydantic import Field

from flows import artifacts, control
from flows.control import ControlError
from flows.plan import StageFailed, Step, is_unchanged, plan
from flows.server import ServerError, check_server
from tasks.workspace import repro, surroundings
from tasks.workspace.printable import failed
from tasks.workspace.repro import WorkspaceBusy

EVALUATION = ("evaluate", "compare_rounds")  # the stages that train nothing
SAID = (StageFailed, WorkspaceBusy, ControlError, ServerError)  # whose message is one line for the user
WAIT_MINUTES = 120  # for another run in the workspace
SHOWN_CHANGES = 8  # of the parameters, in a state's message; the log has them all
STATES = {"unchanged": "Unchanged", "restored": "Restored", "ran": "Completed"}

Experiment = StrEnum(  # of conf/experiment, so that Prefect's form lists them
    "Experiment", {path.stem: path.stem for path in sorted((control.REPOSITORY / "conf/experiment").glob("*.yaml"))}
)
Rounds = Annotated[int | None, Field(ge=1)]
Minutes = Annotated[float, Field(ge=0)]


@dataclass
class Ledger:
    """What the stages of a flow run came to, sub-flows included."""

    rows: list[artifacts.Row] = field(default_factory=list)


_ledger: ContextVar[Ledger | None] = ContextVar("ledger", default=None)


@flow(name="pipeline")
def pipeline(
    experiment: Experiment | None = None,
    overrides: list[str] = [],
    rounds: Rounds = None,
    until: str | None = None,
    force: bool = False,
    wait_minutes: Minutes = WAIT_MINUTES,
) -> State:
    """Bring every stage up to date, in order. Raises StageFailed, WorkspaceBusy or ControlError.

    Args:
        experiment: Compose params.yaml from this file of conf/experiment; none leaves params.yaml as it is
        overrides: Hydra overrides to compose params.yaml with, such as train_dpo.epochs=3 or seed=1
        rounds: How many of the first preference rounds; none is all that params.yaml has
        until: Last stage, such as train_dpo@r1, or train_dpo for that of every round; none is all
        force: Run the stages even if nothing changed
        wait_minutes: How long to wait while another run works in this workspace; 0 fails at once
    """

    def work() -> None:
        if experiment is not None or overrides:
            _demand(compose_params(None if experiment is None else str(experiment), list(overrides)))
        for name, steps in groupby(plan(until, rounds), key=lambda step: step.round):
            if name is None:
                _bring_all(steps, force)
            else:
                preference_round(name, [step.stage for step in steps], force)

    return _told(work, wait_minutes)


@flow(name="preference_round", flow_run_name="preference_round[{name}]")
def preference_round(
    name: str, stages: list[str] | None = None, force: bool = False, wait_minutes: Minutes = WAIT_MINUTES
) -> State:
    """Candidates, scores, pairs, their validation, and training of one round.

    Args:
        name: A round of params.yaml, such as r1
        stages: Only these of its stages, as DVC names them; none is all
        force: Run the stages even if nothing changed
        wait_minutes: How long to wait while another run works in this workspace; 0 fails at once
    """

    def work() -> None:
        steps = [step for step in plan() if step.round == name and (stages is None or step.stage in stages)]
        if not steps:
            known = dict.fromkeys(step.round for step in plan() if step.round)
            raise StageFailed(f"round {name}: no such round; choose from {', '.join(known)}")
        _bring_all(steps, force)

    return _told(work, wait_minutes)


@flow(name="evaluation")
def evaluation(force: bool = False, wait_minutes: Minutes = WAIT_MINUTES) -> State:
    """Evaluate and compare the explainers that there are; train nothing.

    Args:
        force: Run the stages even if nothing changed
        wait_minutes: How long to wait while another run works in this workspace; 0 fails at once
    """
    return _told(
        lambda: _bring_all([step for step in plan() if step.stage.partition("@")[0] in EVALUATION], force), wait_minutes
    )


def _told(work: Callable[[], None], wait_minutes: float) -> State:
    """How a flow run ended, after work as the workspace's only writer: a failure is its one line, no traceback."""
    try:
        with _at_work(wait_minutes) as ledger:
            before = len(ledger.rows)  # of a sub-flow, what the flow around it had done already
            work()
    except SAID as error:
        return Failed(message=str(error), data=error)
    counts = Counter(row.state for row in ledger.rows[before:])
    told = ", ".join(f"{count} {state.lower()}" for state, count in counts.items())
    stages = f"{counts.total()} stage{'s' if counts.total() > 1 else ''}"
    return Completed(message=f"{stages}: {told}" if counts else "no stage to run", data=dict(counts))


@contextmanager
def _at_work(wait_minutes: float) -> Iterator[Ledger]:
    """The outermost flow holds the workspace and leaves the artifacts; a sub-flow adds to its ledger."""
    if (outer := _ledger.get()) is not None:
        yield outer
        return
    name = f"flow run {runtime.flow_run.name} ({runtime.flow_run.id})"
    with repro.holding(name, wait_seconds=wait_minutes * 60, tell=get_run_logger().info):
        ledger = Ledger()
        token = _ledger.set(ledger)
        try:
            yield ledger
            artifacts.publish(ledger.rows)
        except SAID:
            artifacts.publish(ledger.rows)
            raise
        finally:
            _ledger.reset(token)


def _bring_all(steps: Iterable[Step], force: bool) -> None:
    settings = control.load()
    for step in steps:
        options = {"retries": settings.attempts, "retry_delay_seconds": settings.retry_seconds}
        start = time.monotonic()
        state = bring_up_to_date.with_options(task_run_name=step.label, **options)(step.stage, force)
        if (ledger := _ledger.get()) is not None:
            seconds = round(time.monotonic() - start, 1)
            ledger.rows.append(artifacts.Row(step.label, str(state.name), repro.version(step.stage) or "", seconds))
        _demand(state)


def _demand(state: State) -> None:
    if not state.is_completed():
        raise StageFailed(state.message or "failed")


def _may_pass(task: Task[Any, Any], run: TaskRun, state: State) -> bool:
    return isinstance(state.data, StageFailed) and state.data.may_pass


@task(cache_policy=NO_CACHE, retry_condition_fn=_may_pass)
def bring_up_to_date(stage: str, force: bool = False) -> State:
    """Run one stage if DVC finds it stale. The state says what happened, its message why it failed."""
    logger = get_run_logger()
    if not force and is_unchanged(stage):
        logger.info(f"Stage '{stage}' didn't change, skipping")
        return _ended(stage, "unchanged")
    key, minutes = control.load().limit(stage)
    command = ("dvc", "repro", "--single-item", *(["--force"] if force else []), stage)
    with repro.started(*command, seconds=minutes * 60) as child:
        for line in filter(None, child):
            logger.info(line)
    if child.expired:
        message = f"{stage}: stopped at its limit of {minutes:g} minutes; raise {key} in {control.CONTROL}"
        return Failed(name="TimedOut", message=message, data=StageFailed(message))
    if child.status:
        message = f"{stage}: {repro.reason(child.said, child.status)}"
        return Failed(message=message, data=StageFailed(message, repro.may_pass(child.said, _attempt())))
    return _ended(stage, repro.outcome(child.said, stage))


def _attempt() -> int:
    context = TaskRunContext.get()
    return context.task_run.run_count if context else 1


def _ended(stage: str, event: str) -> State:
    """A completed state, and the version on the task run itself, where it goes with the state to the server."""
    version = repro.version(stage)
    if (context := TaskRunContext.get()) is not None:
        context.task_run.task_version = version
    told = {"unchanged": "is up to date", "restored": "is restored: DVC had kept this result", "ran": "ran"}[event]
    return Completed(name=STATES[event], message=f"{stage} {told}; version {version}", data=version)


@task(cache_policy=NO_CACHE, task_run_name="compose_params")
def compose_params(experiment: str | None, overrides: list[str]) -> State:
    """Write params.yaml from conf/; the state's message says what changed."""
    for override in overrides:
        if override.startswith("-"):
            message = f"overrides: {override!r} is no Hydra override; give key=value, +key=value or ~key"
            return Failed(message=message, data=StageFailed(message))
    chosen = [] if experiment is None else [f"experiment={experiment}"]
    before = _parameters()
    with repro.started("tasks.settings.compose", *chosen, *overrides) as child:
        for line in filter(None, child):
            get_run_logger().info(line)
    if child.status:
        message = repro.reason(child.said, child.status)
        return Failed(message=message, data=StageFailed(message))
    changes = _differences(before, _parameters())
    for change in changes:
        get_run_logger().info(change)
    if not changes:
        return Completed(name="Unchanged", message="params.yaml had these values", data=changes)
    more = f" and {len(changes) - SHOWN_CHANGES} more" if len(changes) > SHOWN_CHANGES else ""
    return Completed(message=f"params.yaml: {', '.join(changes[:SHOWN_CHANGES])}{more}", data=changes)


def _parameters() -> dict[str, Any]:
    """params.yaml, each value by its full key; nothing if it is missing or broken."""
    try:
        return dict(_leaves(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))))
    except (OSError, yaml.YAMLError):
        return {}


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for child, value in node.items():
            yield from _leaves(value, f"{key}.{child}".removeprefix("."))
    else:
        yield key, node


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """One text a changed key: "seed: 0 -> 1"; a key that one side lacks has `none` there."""
    keys = dict.fromkeys([*before, *after])
    return [
        f"{key}: {before.get(key, 'none')} -> {after.get(key, 'none')}"
        for key in keys
        if (key in before, before.get(key)) != (key in after, after.get(key))
    ]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description="Bring every stage up to date.")
    parser.add_argument("overrides", nargs="*", help="compose params.yaml first, with these: experiment=nano, seed=1")
    parser.add_argument("--until", metavar="STAGE", help="only this stage and what it needs, such as train_dpo@r1")
    parser.add_argument("--rounds", type=int, metavar="N", help="only the first N preference rounds")
    parser.add_argument("--force", action="store_true", help="run the stages even if nothing changed")
    parser.add_argument("--wait", type=float, default=0, metavar="MINUTES", help="for another run in this workspace")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    surroundings.settle()
    options = _options(arguments)
    surroundings.unwind_on_sigterm()
    try:
        control.load()
        if not options.overrides:
            plan(options.until, options.rounds)  # before Prefect starts a server for nothing
        check_server()
        pipeline(
            overrides=options.overrides,
            rounds=options.rounds,
            until=options.until,
            force=options.force,
            wait_minutes=options.wait,
        )
    except SAID as error:
        return failed(error)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the stage it stopped in", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
