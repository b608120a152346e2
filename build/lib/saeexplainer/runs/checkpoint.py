"""What a long pass over documents has gathered so far, kept on disk, so that a killed stage goes on where it was.

A pass adds batch after batch to something that can be kept (`Kept`). A save is a folder that is renamed into place,
under the fingerprint of all that the work depends on: with another setting, model, corpus or code nothing of it is
found. Each process of a stage keeps its own part, and goes on from it if there are as many processes again.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from saeexplainer.errors import UserError
from saeexplainer.records import ContextRow
from saeexplainer.runs import processes
from saeexplainer.runs.storage import read_rows, read_tensors, replacing, sha256, write_rows, write_tensors

if TYPE_CHECKING:
    import torch

EVERY = 60.0  # seconds of work between two saves, at least
SHARE = 0.01  # of the time that saves may take: after a slow one the next waits longer
TENSORS, CONTEXTS = "state.safetensors", "contexts.parquet"


@runtime_checkable  # the tests check types as they run
class Kept(Protocol):
    """Work in progress: restored, it goes on as if it had never stopped, to the last bit."""

    contexts: list[ContextRow]  # found so far; empty where a pass finds none

    def state(self) -> "dict[str, torch.Tensor]":
        """All else, on any device."""

    def restore(self, state: "dict[str, torch.Tensor]", contexts: list[ContextRow]) -> None:
        """Take over what was kept."""


class Checkpoint:
    """The saves of one run of a stage, by the name of the pass; of each the last alone."""

    def __init__(self, root: Path, fingerprint: str) -> None:
        """`root` holds nothing else; `fingerprint` is of all that the work depends on."""
        self.root = root
        self.folder = root / fingerprint / f"{processes.number()}-of-{processes.count()}"
        self._last, self._seconds = time.monotonic(), 0.0  # when a save ended, and what it took

    def restore(self, name: str, work: Kept) -> int:
        """Give `work` what was kept of that pass; how many documents it holds, 0 where nothing was kept.

        Raises UserError if what was kept cannot be read.
        """
        from safetensors import SafetensorError

        self._last = time.monotonic()
        done = max(self._saves(name), default=0)
        if done:
            folder = self._folder(name, done)
            try:
                work.restore(read_tensors(folder / TENSORS), read_rows(folder / CONTEXTS, ContextRow))
            except (UserError, SafetensorError, OSError, ValueError, KeyError):  # ValueError: pyarrow's are
                raise UserError(f"{folder}: cannot be read; remove {self.root}, and the stage starts over") from None
        return done

    def save(self, name: str, work: Kept, done: int) -> None:
        """Keep `work`, which holds the first `done` documents, if the last save is long enough ago."""
        if time.monotonic() - self._last >= max(EVERY, self._seconds / SHARE):
            self.save_now(name, work, done)

    def save_now(self, name: str, work: Kept, done: int) -> None:
        """Keep `work`, which holds the first `done` documents."""
        if done in self._saves(name):  # it holds the same
            return
        start = time.monotonic()
        with replacing(self._folder(name, done), each=True) as folder:
            folder.mkdir()
            write_tensors(folder / TENSORS, work.state(), each=True)
            write_rows(folder / CONTEXTS, work.contexts, ContextRow, each=True)
        for older in self._saves(name):
            if older != done:
                shutil.rmtree(self._folder(name, older))
        self._last = time.monotonic()
        self._seconds = self._last - start

    def remove(self) -> None:
        """Once the stage has written what it was for: away with this work, of all processes, and any left before."""
        if processes.is_first():
            shutil.rmtree(self.root, ignore_errors=True)

    def _folder(self, name: str, done: int) -> Path:
        return self.folder / name / str(done)

    def _saves(self, name: str) -> list[int]:
        return [int(path.name) for path in (self.folder / name).glob("[0-9]*")]


def fingerprint(settings: Any, contents: Iterable[Path], stamps: Iterable[Path]) -> str:
    """Hash of settings (JSON values and dataclasses), of what is in some files, and of the size and time of others,
    too large to be read for this. A folder stands for all files in it; what is not there, for nothing."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=asdict).encode())
    for file in _files(contents):
        digest.update(f"{file}\n{sha256(file)}\n".encode())
    for file in _files(stamps):
        stat = file.stat()
        digest.update(f"{file}\n{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(one for one in (path.rglob("*") if path.is_dir() else [path]) if one.is_file())
