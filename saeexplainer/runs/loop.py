"""The loop over batches that generation, reading and judging share: it divides them among processes, and keeps each
until its stage has written.

A stage that was killed begins again, and finds in `keeping` what it had computed, under the fingerprint of all that its
work depends on: a kill costs a batch, and the stage writes the same bytes. A batch is found again by the number of its
loop, by what the loop is about, and by its own number; not by who computed it, so it may be by other processes.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from saeexplainer.runs.processes import gather, is_first, is_mine
from saeexplainer.runs.storage import replacing

Batch = TypeVar("Batch")
Result = TypeVar("Result")
JSON, ARRAYS = ".json", ".safetensors"


class _Journal:
    """The folder of one run of a stage, and how many loops have begun."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.loops = folder, 0

    def loop(self, about: Any) -> Path:
        """The folder of the next loop."""
        self.loops += 1
        content = hashlib.sha256(json.dumps(about, default=asdict).encode()).hexdigest()
        return self.folder / f"{self.loops}-{content[:32]}"


_JOURNAL: ContextVar[_Journal | None] = ContextVar("_JOURNAL", default=None)


@contextmanager
def keeping(root: Path, fingerprint: str) -> Generator[None]:
    """Keep the batches of all loops in the block under `root`, which holds nothing else, until the block ends well.
    What another fingerprint left is removed first."""
    if is_first() and root.is_dir():
        for other in root.iterdir():
            if other.name != fingerprint:
                shutil.rmtree(other, ignore_errors=True)
    token = _JOURNAL.set(_Journal(root / fingerprint))
    try:
        yield
    finally:
        _JOURNAL.reset(token)
    if is_first():
        shutil.rmtree(root, ignore_errors=True)


def spread(
    batches: Sequence[Batch], work: Callable[[int, Batch], Result], about: Any, progress: str = ""
) -> list[Result]:
    """`work(number, batch)` of every batch, in their order; each process does its share and gets all results.

    `about` is JSON that tells this loop from another of the same stage: the texts, and what is done with them. A result
    is JSON, or arrays by name; it must not depend on the batches before.
    """
    from tqdm.auto import tqdm

    journal = _JOURNAL.get()
    folder = None if journal is None else journal.loop(about)
    share = [at for at in range(len(batches)) if is_mine(at)]
    if folder is not None and folder.is_dir() and is_first():
        there = sum(1 for _ in folder.iterdir())
        print(f"{progress or 'batches'}: goes on, {there} of {len(batches)} batches are there", file=sys.stderr)
    own = []
    for at in tqdm(share, desc=progress, disable=None if progress else True):
        result = None if folder is None else _read(folder / str(at))
        if result is None:
            result = work(at, batches[at])
            if folder is not None:
                _write(folder / str(at), result)
        own.append((at, result))
    return [result for _, result in sorted(gather(own), key=lambda pair: pair[0])]


def _write(path: Path, result: Any) -> None:
    """One file for each batch: arrays as safetensors, all else as JSON."""
    import numpy as np

    if isinstance(result, dict) and all(isinstance(one, np.ndarray) for one in result.values()):
        from safetensors.numpy import save

        path, content = path.with_suffix(ARRAYS), save(result)
    else:
        path, content = path.with_suffix(JSON), json.dumps(result).encode()
    with replacing(path, each=True) as temporary:
        temporary.write_bytes(content)


def _read(path: Path) -> Any:
    """What `_write` wrote; None where there is nothing whole, as where the power failed before a disk had it."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    readers = {JSON: json.loads, ARRAYS: load}
    there = [path.with_suffix(kind) for kind in readers if path.with_suffix(kind).is_file()]
    try:
        return readers[there[0].suffix](there[0].read_bytes()) if there else None
    except (ValueError, SafetensorError):
        return None
