"""The entry point that every stage module shares: `if __name__ == "__main__": main(run)`.

`run` is `run(params) -> Report`, or `run(params, item) -> Report` in a stage that dvc.yaml repeats for every round or
evaluation; the item is then the one argument of the command: `python -m tasks.train_dpo r1`.

A stage that says `main(run, resumes=True)` keeps the batches of its loops (`saeexplainer.runs.loop`) in
.cache/batches until it has written: killed, it goes on where it was.

With `processes` above 1 in params.yaml, a stage that says `main(run, parallel=True)` starts itself again in so many
processes, as `accelerate launch` does on several GPUs; on a machine without one they talk through gloo. One started by
`accelerate launch -m tasks.<stage>` itself runs as it is.

Exit status: 0; 2 after `error: <one line>`, a mistake the user can mend; 130 or 143 when interrupted or terminated.
Whatever else goes wrong is a defect and keeps its traceback.
"""

import inspect
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import saeexplainer
from saeexplainer.config import Params
from saeexplainer.endpoints import web
from saeexplainer.errors import UserError
from saeexplainer.runs import loop, processes
from saeexplainer.runs.checkpoint import fingerprint
from tasks.places import EXPLAINERS, SAES, SUBJECT
from tasks.settings import params as settings_params
from tasks.workspace import folder, progress, surroundings, timings
from tasks.workspace.printable import one_line, printable

KEPT = Path(".cache/batches")  # of stages that were stopped
# Section whose keys are a stage's items; the other stages repeat over rounds.
REPEATED_OVER = {"evaluate": "evaluations", "train_grpo": "reinforcements"}


@dataclass(frozen=True)
class Report:
    """What a stage has to say once its artifacts are written."""

    metrics: dict[str, float]  # name in snake case to value
    lines: list[str]  # what a person should see


def main(
    run: Callable[..., Report],
    arguments: list[str] | None = None,
    *,
    parallel: bool = False,
    resumes: bool = False,
) -> NoReturn:
    """Run one stage on params.yaml, print its report, record its seconds, and exit."""
    stage = Path(inspect.getfile(run)).stem
    arguments = sys.argv[1:] if arguments is None else arguments
    surroundings.settle()
    surroundings.unwind_on_sigterm()
    progress.quiet_libraries()
    web.keep_loopback_direct()
    if processes.is_first():
        progress.install(" ".join([stage, *arguments]))
    else:
        progress.silence()
    try:
        if parallel and not processes.launched() and (count := settings_params.load().processes) > 1:
            sys.exit(_launch(stage, arguments, count))
        if processes.launched():
            processes.join()  # before a model is loaded: each process has a GPU of its own
        _run(stage, run, arguments, resumes)
        processes.leave()
    except UserError as error:
        line = f"error: {one_line(error)}"
        if processes.leave_error(line):  # the one that started this process says it, once, and ends this one
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            processes.leave()
            sys.exit(2)
        sys.exit(_failed(line, 2))
    except processes.PeerLost as error:
        _failed(f"{stage}: stopped, because another of its processes did ({error})", 1)
        os._exit(1)  # the end of Python would abort in gloo's threads, which wait for the peer
    except KeyboardInterrupt:
        sys.exit(_failed(f"{stage}: interrupted; `dvc repro` starts it again", 130))
    except surroundings.Terminated:
        sys.exit(_failed(f"{stage}: terminated; `dvc repro` starts it again", 143))
    sys.exit(0)


def _launch(stage: str, arguments: list[str], count: int) -> int:
    """Run this stage in `count` processes; the exit status of the first that failed, or 0."""
    failure = processes.launch([f"tasks.{stage}", *arguments], count)
    if failure is None:
        return 0
    return _failed(failure.line, failure.status) if failure.line else failure.status


def _run(stage: str, run: Callable[..., Report], arguments: list[str], resumes: bool) -> None:
    start = time.perf_counter()
    params = settings_params.load()
    items = _items(stage, run, params, arguments)
    folder.furnish(params)
    name = "@".join([stage, *items])
    with loop.keeping(KEPT / name, depends_on(params)) if resumes else nullcontext():
        report = run(params, *items)
    seconds = time.perf_counter() - start
    if not processes.is_first():
        return
    for line in report.lines:
        print(printable(line))
    if report.metrics:
        print(", ".join(f"{metric} {value:.4g}" for metric, value in report.metrics.items()))
    print(f"{name}: {seconds:.1f} s", flush=True)
    timings.record(name, seconds)


def depends_on(params: Params) -> str:
    """Fingerprint of what computes a batch of a stage without training: settings, models, code. What is in the batch,
    each loop says itself."""
    settings = asdict(params)
    models = [path for source in _sources(settings) if (path := Path(source)).exists()]
    code = [path for package in (saeexplainer.__file__, __file__) for path in Path(package).parent.rglob("*.py")]
    return fingerprint(settings, sorted(code), [SUBJECT, SAES, EXPLAINERS, *models])


def _sources(settings: Any) -> Iterator[str]:
    """Whatever is named as a source anywhere in the settings: models, and harmlessly tables."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            if key == "source" and isinstance(value, str):
                yield value
            yield from _sources(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _sources(value)


def _items(stage: str, run: Callable[..., Report], params: Params, arguments: list[str]) -> list[str]:
    """The arguments, once they are what `run` takes: nothing, or one known round or evaluation."""
    command = f"python -m tasks.{stage}"
    if len(inspect.signature(run).parameters) == 1:
        if arguments:
            raise UserError(
                f"{command}: takes no argument, but got {' '.join(arguments)!r}; its settings are in params.yaml"
            )
        return []
    section = REPEATED_OVER.get(stage, "rounds")
    known = list(getattr(params, section))
    if len(arguments) != 1 or arguments[0] not in known:
        given = f"got {' '.join(arguments)!r}" if arguments else "got none"
        raise UserError(
            f"{command}: {given}; give one of params.yaml's {section}: {', '.join(known) or 'there are none'}"
        )
    return arguments


def _failed(message: str, status: int) -> int:
    progress.close_bars()  # or the line below would end up beside a bar, or before its last words
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    return status
