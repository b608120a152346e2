"""`dvc repro` as a child process: who may run it here, what it says, and how it ends with everything that it started.

`holding` makes its caller the one writer of a workspace, `started` runs the command, and what it prints is read by
`outcome`, `reason` and `may_pass`. It is DVC that decides what is stale; this module only knows its words.
"""

import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import psutil
import yaml

from saeexplainer.errors import UserError
from tasks.workspace import folder as workspace_folder

GRACE_SECONDS = 10  # between asking a tree of processes to stop and killing it
REAP_SECONDS = 3  # for which the dead may wait for their parent to reap them; some never do
KEPT_LINES = 200  # of what a command said, for its reason
MOMENT_SECONDS = 0.2  # for which `holder` may have the lock that it looks at
TELL_SECONDS = 60  # between two lines about whom a run waits for
LOCK = Path(".dvc/tmp/writer.lock")  # git ignores it, and so does DVC
USERS = Path(".dvc/tmp/rwlock")  # which paths DVC's processes read and write now
EVENTS = {  # DVC's words about a stage, in the order in which they can come
    "unchanged": re.compile(r"Stage '(.+)' didn't change, skipping"),
    "restored": re.compile(r"Stage '(.+)' is cached - skipping run"),
    "ran": re.compile(r"Running stage '(.+)':"),
}
BUSY = ("Unable to acquire lock", "is busy, it is being blocked by")  # DVC's words when another one is at work here
KILLED = re.compile(r"exited with (-9|137)\b")  # as when a neighbour took the memory
UNREACHABLE = re.compile(
    r"Connection(Error| refused| reset| aborted)|Temporary failure in name resolution|Max retries exceeded|"
    r"Read timed out|Service Unavailable|Too Many Requests",
    re.IGNORECASE,
)
_held: dict[Path, int] = {}  # the locks of this process: workspace to open descriptor, handed to every child there


class WorkspaceBusy(UserError):
    """Another run holds the workspace, or nothing can be written in it; the message says which."""


@dataclass(frozen=True)
class Holder:
    """Who writes in a workspace."""

    name: str  # as a person knows it: "flow run calm-otter", "study variant seed0"
    pid: int  # its process
    host: str  # the machine that has the process
    since: str  # local time, ISO 8601 to the second

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid} on {self.host}, since {self.since})"


@contextmanager
def holding(
    name: str, folder: Path = Path(), wait_seconds: float = 0.0, tell: Callable[[str], None] = print
) -> Iterator[None]:
    """Nobody else writes in the workspace meanwhile. Raises WorkspaceBusy after `wait_seconds`, `tell`s while it waits.

    The kernel drops the lock with the last process that has it: this one or, if this one is killed outright, the
    command that it started. Who already holds the workspace may hold it again.
    """
    place = folder.resolve()
    if place in _held:
        yield
        return
    path = place / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise WorkspaceBusy(f"{path}: {error.strerror}; make the folder writable, or run in a copy of it") from None
    try:
        _acquire(descriptor, path, folder, wait_seconds, tell)
        _write_note(descriptor, json.dumps(asdict(_myself(name))))
        _held[place] = descriptor
        yield
        _write_note(descriptor, "")
    finally:
        _held.pop(place, None)
        os.close(descriptor)


def holder(folder: Path = Path()) -> Holder | None:
    """Who writes in the workspace now, this process included; None if there is none."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _noted(folder / LOCK)
    except OSError:  # no such file: nothing was ever written here
        pass
    return None


def _acquire(descriptor: int, path: Path, folder: Path, wait_seconds: float, tell: Callable[[str], None]) -> None:
    start = time.monotonic()
    told = start - TELL_SECONDS
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            now = time.monotonic()
        if now - start >= max(wait_seconds, MOMENT_SECONDS):
            place = folder.resolve() if folder == Path() else folder
            waited = f" (waited {wait_seconds:g} s)" if wait_seconds else ""
            raise WorkspaceBusy(
                f"{place}: {_noted(path)} is at work here{waited}; let it finish or stop it, then start again"
            )
        if wait_seconds and now - told >= TELL_SECONDS:
            told = now
            tell(f"waiting for {_noted(path)}, at most {wait_seconds - (now - start):.0f} s")
        time.sleep(min(0.5, wait_seconds or 0.05))


def _myself(name: str) -> Holder:
    return Holder(name, os.getpid(), socket.gethostname(), datetime.now().isoformat(sep=" ", timespec="seconds"))


def _write_note(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _noted(path: Path) -> Holder:
    """What the lock says of its holder, who may not have come to write it yet."""
    try:
        found = Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Holder("another run", 0, "this or another machine", "just now")
    if found.host == socket.gethostname() and not psutil.pid_exists(found.pid):
        return Holder(f"what {found.name} left behind when it was killed", found.pid, found.host, found.since)
    return found


class Child:
    """A command at work; iterate over it for its lines as they come, without their line ends."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: deque[str] = deque(maxlen=KEPT_LINES)  # its last lines
        self.expired = False  # whether its time limit ended it

    def __iter__(self) -> Iterator[str]:
        for line in self.process.stdout or ():
            self.said.append(line.rstrip())
            yield self.said[-1]

    @property
    def status(self) -> int:
        """Its exit status; waits for it."""
        return self.process.wait()

    def expire(self) -> None:
        """End it because its time is over."""
        self.expired = True
        stop(self.process)


@contextmanager
def started(*command: str, folder: Path = Path(), seconds: float | None = None) -> Iterator[Child]:
    """`python -m <command>` in a session of its own, of which nothing outlives the block, nor `seconds`."""
    lock = _held.get(folder.resolve())
    mend(folder)
    workspace_folder.allow_without_git(folder)
    child = Child(
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            pass_fds=[] if lock is None else [lock],
        )
    )
    timer = threading.Timer(seconds, child.expire) if seconds is not None else None
    try:
        if timer:
            timer.start()
        yield child
        child.process.wait()
    finally:
        if timer:
            timer.cancel()
        if timer and child.expired:
            timer.join()  # it may still be stopping others
        stop(child.process)
        if child.process.stdout:
            child.process.stdout.close()


def mend(folder: Path = Path()) -> None:
    """Remove the list of DVC's users if a kill tore it: DVC does not write it in one step, and fails on what is left.

    No process is at work when it is torn and DVC's own guard is free, so that it lists no process that lives.
    """
    path = folder / USERS
    if not is_torn(path):
        return
    with path.with_name(f"{path.name}.lock").open("a") as guard:  # DVC's own: who writes the list has it locked
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if is_torn(path):
            path.unlink()


def is_torn(path: Path) -> bool:
    """Whether a list of DVC's users is there and is no JSON."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return True
    except OSError:  # above all: no such file
        return False
    return False


def environment() -> dict[str, str]:
    """This process's, with what `dvc repro` needs."""
    return os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),  # dvc.yaml's `python`
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",  # of what is read from it, whatever the terminal knows
        "PYTHONUTF8": "1",  # and of names of files, without which DVC fails on a folder with letters beyond ASCII
        "DVC_NO_ANALYTICS": "1",
    }


def stop(process: subprocess.Popen[str]) -> None:
    """End what still runs of a session and of its members' descendants: ask, wait, kill.

    The leader may be gone before what it started, and what it started may have left its session.
    """
    tree = ended = _tree(process)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for member in sorted(tree, key=_age):  # parents first: DVC must not start to write because its stage ended
            with suppress(psutil.NoSuchProcess):
                member.send_signal(number)
        deadline = time.monotonic() + GRACE_SECONDS
        while tree and time.monotonic() < deadline:
            time.sleep(0.05)
            process.poll()
            ended = ended | _tree(process)
            tree = {member for member in ended if _runs(member)}
        if not tree:
            break
    process.poll()
    deadline = time.monotonic() + REAP_SECONDS
    while any(member.is_running() for member in ended) and time.monotonic() < deadline:
        time.sleep(0.02)


def _tree(process: subprocess.Popen[str]) -> set[psutil.Process]:
    found = {member for member in psutil.process_iter() if _session(member.pid) == process.pid}
    for member in list(found):
        with suppress(psutil.NoSuchProcess):
            found.update(member.children(recursive=True))
    return {member for member in found if _runs(member)}


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _age(member: psutil.Process) -> float:
    """When it started, seconds of the epoch."""
    try:
        return member.create_time()
    except psutil.NoSuchProcess:
        return 0.0


def _runs(member: psutil.Process) -> bool:
    """Neither gone nor dead and waiting to be reaped."""
    try:
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def outcome(lines: Iterable[str], stage: str) -> str:
    """What DVC did about a stage: a key of EVENTS."""
    hits = [(event, words.match(line)) for line in lines for event, words in EVENTS.items()]
    return next((event for event, hit in reversed(hits) if hit and hit[1] == stage), "ran")


def reason(lines: Iterable[str], status: int) -> str:
    """Why it failed, in one line: the stage's own words, else DVC's, else its exit status."""
    lines = list(lines)
    if _is_busy(lines):
        return "another DVC command is at work in this workspace; let it finish or stop it, then start again"
    own = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    dvc = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (own or dvc or [f"failed with exit status {status}; its log above says why"])[-1]


def may_pass(lines: Iterable[str], attempt: int) -> bool:
    """Whether the same command can pass the next time; `attempt` counts from 1.

    A stage that says `error: ` has settings or data that are wrong, and stay so.
    """
    lines = list(lines)
    if _is_busy(lines):
        return True
    if any(line.startswith("error: ") for line in lines):
        return False
    if any(KILLED.search(line) for line in lines):
        return attempt == 1
    return any(UNREACHABLE.search(line) for line in lines)


def _is_busy(lines: list[str]) -> bool:
    return any(words in line for line in lines for words in BUSY)


def version(stage: str, folder: Path = Path()) -> str | None:
    """The version of a stage's results; None before its first run."""
    return versions(folder).get(stage)


def versions(folder: Path = Path()) -> dict[str, str]:
    """The version of each stage's results, by name, as dvc.lock has them."""
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where PyYAML has it
        stages = yaml.load((folder / "dvc.lock").read_text(encoding="utf-8"), loader)["stages"].items()
        return {
            stage: version_of({out["path"]: out.get("md5") for out in entry["outs"]})
            for stage, entry in stages
            if entry.get("outs")
        }
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {}


def version_of(outs: Mapping[str, str | None]) -> str:
    """The first 10 digits of a hash over what DVC keeps of a stage's results: its digest of each, by path."""
    text = "\n".join(sorted(f"{path} {digest}" for path, digest in outs.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:10]
