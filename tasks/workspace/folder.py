"""The workspace: where it is, what a copy of it lacks, and how DVC works in one that no git repository holds.

DVC runs a queued experiment in a copy of what git tracks, in a folder under .dvc/tmp/exps that goes away afterwards.
What is paid for once, or what git does not carry, is the workspace's: `root` says where that is, and `furnish` links it
into the copy. `python -m tasks.workspace.folder`, which `make setup` runs, lets DVC work in an unpacked archive.
"""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from saeexplainer.config import Params
from saeexplainer.errors import UserError
from tasks.places import IMPORTED
from tasks.workspace import surroundings
from tasks.workspace.printable import failed

DATA = Path("data")  # what stages make, and what `sae-explainer import` made there
CONFIG, LOCAL = Path(".dvc/config"), Path(".dvc/config.local")  # DVC's settings; the second are of this folder alone
CACHE, SOURCE = "cache", "source"  # fields of settings: a folder of replies; something to read


def root() -> Path:
    """The workspace, seen from here: here, but in the copy of a queued experiment the workspace that queued it."""
    given = Path(os.environ.get("DVC_ROOT", ""))  # set by DVC for every stage
    return Path() if given.resolve() == Path.cwd() else given


def furnish(params: Params) -> None:
    """Link into a copy what the settings name and git did not bring: replies, imported tables, models, corpora."""
    workspace = root()
    if workspace == Path():
        return
    from tasks.settings.params import leaves

    named = {(name, Path(value)) for _, name, value in leaves(params) if isinstance(value, str)}
    caches = {path for name, path in named if name == CACHE and not path.is_absolute()}
    sources = {path for name, path in named if name == SOURCE and not path.is_absolute() and DATA not in path.parents}
    for path in caches:
        (workspace / path).mkdir(parents=True, exist_ok=True)
    for path in sorted({*caches, *sources, IMPORTED}):
        if (workspace / path).exists():  # else it is an id of the hub, or it is nowhere
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):  # git brought it, or an earlier stage linked it
                path.symlink_to((workspace / path).resolve())


def allow_without_git(folder: Path = Path()) -> None:
    """Set core.no_scm where no git repository holds the folder, and take it back once it is one itself.

    Raises UserError if DVC's settings cannot be written.
    """
    place = folder.resolve()
    held = any((parent / ".git").exists() for parent in (place, *place.parents))
    own = "no_scm" in _text(folder / LOCAL)
    if not (folder / CONFIG).is_file() or (own or "no_scm" in _text(folder / CONFIG)) is not held:
        return
    if held and not (own and (place / ".git").exists()):  # as where a study's variant lies within a repository
        return
    setting = ["--unset", "core.no_scm"] if held else ["core.no_scm", "true"]
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "config", "--local", *setting],
        cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise UserError(
            f"{folder / LOCAL}: cannot be written ({said[-1].removeprefix('ERROR: ') if said else 'no reason'}); "
            "make the folder writable, or run `git init` in it: DVC works without git only if that file says so"
        )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def main() -> int:
    """Let DVC work here; the exit status."""
    surroundings.settle()
    try:
        allow_without_git()
    except UserError as error:
        return failed(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
