"""What a command finds around it: a terminal that knows few letters, a home that it may not write to, an end by signal.

Every entry point of tasks/ and flows/ calls `settle` first. It changes this process and what that starts.
"""

import io
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

FOLDER = Path(".cache/home")  # in the workspace, for what libraries would keep in a home


class Terminated(SystemExit):
    """SIGTERM arrived: an exit, so that every block is left and what it started is stopped too."""


def unwind_on_sigterm() -> None:
    """From now on SIGTERM raises Terminated, with the status that shells know it by."""
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated(128 + number)


def settle() -> None:
    """Write letters that the terminal does not know as escapes; give libraries a folder where the home has none."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None without a terminal, and some callers put others there
            stream.reconfigure(errors="backslashreplace")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~"), ".cache"))
    if _may_write(caches) or not _may_write(FOLDER):
        return
    # matplotlib would warn, and look at every font of the system again in every stage.
    os.environ.setdefault("MPLCONFIGDIR", str((FOLDER / "matplotlib").resolve()))
    if not (caches / "huggingface").is_dir():  # models that are there can be read
        os.environ.setdefault("HF_HOME", str((FOLDER / "huggingface").resolve()))


def _may_write(folder: Path) -> bool:
    """Whether files can be written into a folder, which is made for them if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
