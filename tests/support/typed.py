"""`python -m tasks.<module>` as a user types it, in a process of its own that has the heavy imports already.

A server that imported them once forks for every command, which saves some five seconds a command; all else is as typed:
working folder, arguments, standard streams, exit status.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE = 300  # seconds that one command may take on a busy machine
PRELOADED = [
    "sae_lens", "transformers", "saeexplainer.training.subject", "saeexplainer.saes.loading",
    "saeexplainer.saes.text_activations", "hydra",
]  # fmt: skip

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


@dataclass(frozen=True)
class Typed:
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


def typed(folder: Path, module: str, *arguments: str) -> Typed:
    """Run tasks.<module> in a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        out, err = Path(scratch, "out"), Path(scratch, "err")
        process = _context.Process(target=_run, args=(folder, module, arguments, out, err))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode is not None, f"tasks.{module} did not end within {PATIENCE} s"
        return Typed(process.exitcode, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))


def begun(folder: Path, module: str, *arguments: str) -> multiprocessing.Process:
    """Run tasks.<module> in a folder, and do not wait for it; what it says goes to out and err there."""
    process = _context.Process(target=_run, args=(folder, module, arguments, folder / "out", folder / "err"))
    process.start()
    return process


def killed(folder: Path, write: int, module: str, *arguments: str) -> None:
    """Run tasks.<module> in a folder until SIGKILL, where it would keep its batch of that number, from 1, of all that
    its loops compute."""
    with tempfile.TemporaryDirectory() as scratch:
        err = Path(scratch, "err")
        process = _context.Process(target=_killed, args=(write, folder, module, arguments, Path(scratch, "out"), err))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL, err.read_text(encoding="utf-8")


def _killed(write: int, *run: Any) -> None:
    from saeexplainer.runs import loop

    keep, kept = loop._write, []

    def kill_or_keep(path: Path, result: Any) -> None:
        kept.append(path)
        if len(kept) == write:
            os.kill(os.getpid(), signal.SIGKILL)
        keep(path, result)

    loop._write = kill_or_keep
    _run(*run)


def _run(folder: Path, module: str, arguments: tuple[str, ...], out: Path, err: Path) -> None:
    os.chdir(folder)
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [module, *arguments]
    runpy.run_module(f"tasks.{module}", run_name="__main__", alter_sys=True)
