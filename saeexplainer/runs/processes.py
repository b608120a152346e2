"""One stage in several processes: each takes its share of the batches, and all end with the same results.

`tasks.stage` starts them; accelerate knows who is who. What is drawn or measured depends on the batches alone, never on
how many processes share them, so that one process and several write the same rows. Files are written by the first.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

Result = TypeVar("Result")
MISTAKES = "SAE_EXPLAINER_MISTAKES"  # variable with the folder in which launched processes leave a user's mistake


class PeerLost(Exception):
    """Another process of the run is gone, so this one cannot go on."""


def launched() -> bool:
    """Whether this is one of several processes that were started together."""
    return count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return number() == 0


def number() -> int:
    """Which of the processes this is, from 0."""
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True)
class Failure:
    """How a launched run ended."""

    status: int  # 2 after a user's mistake, else that of the process that failed first; 1 where a signal ended it
    line: str  # what a process left with `leave_error`, for the user; "" where it showed a traceback


def launch(module: list[str], count: int) -> Failure | None:
    """`python -m <module>` in `count` processes on this machine, until all have ended or one has failed."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its tables of exit codes
    threads = max(1, (os.cpu_count() or 1) // count)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # or each would take every core
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, max_restarts=0, run_id=module[0], rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0", monitor_interval=0.5,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        os.environ[MISTAKES] = folder
        try:
            elastic_launch(config, sys.executable)("-m", *module)
        except ChildFailedError as error:
            # Not from the process that failed first: one that lost its peer may be gone before the peer itself is.
            if mistakes := sorted(Path(folder).iterdir()):
                return Failure(2, mistakes[0].read_text())
            return Failure(max(error.get_first_failure()[1].exitcode, 1), "")
        finally:
            del os.environ[MISTAKES]
    return None


def leave_error(line: str) -> bool:
    """Hand a user's mistake to `launch`, which says it once; False where something else started this process."""
    folder = os.environ.get(MISTAKES)
    if folder is None:
        return False
    Path(folder, str(number())).write_text(line)
    return True


def count() -> int:
    """How many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_mine(batch: int) -> bool:
    """Whether this process does the batch of that number."""
    return batch % count() == number()


def join() -> "PartialState":
    """Meet the other processes, on this machine's GPUs or its CPU."""
    import torch
    from accelerate import PartialState

    # On a machine without a GPU it must be told. Others wait while the first one talks to an endpoint.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))


def leave() -> None:
    """Part from the other processes; one that ends without may abort in the threads that talk to them."""
    if launched():
        join().destroy_process_group()


def gather(own: list[Result]) -> list[Result]:
    """The lists of all processes, one after the other; the same in each. Results travel pickled and are never stored
    that way."""
    if not launched():
        return own
    from accelerate.utils import gather_object

    join()
    try:
        return gather_object(own)
    except RuntimeError as error:  # a process ended early; what it has to say is the reason, not this
        raise PeerLost(str(error)) from None


def total(own: "Tensor") -> "Tensor":
    """The sum of a tensor over all processes."""
    first, *others = gather([own])
    return sum(others, first)


def once(work: Callable[[], Result]) -> Result:
    """What must not be done twice, such as a paid call: the first process does it, and all get its result."""
    return gather([work()] if is_first() else [])[0]
