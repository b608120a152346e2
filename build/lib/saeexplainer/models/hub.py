"""Models of the hub: found at a pinned commit, and by nothing else."""

import re
from pathlib import Path
from typing import Any

from saeexplainer.errors import UserError

_COMMIT = re.compile("[0-9a-f]{40}")


def arguments_for(source: Path | str, revision: str | None) -> dict[str, Any]:
    """Arguments that let transformers find a folder or a hub id, and nothing else."""
    folder = Path(source)
    if isinstance(source, Path) or folder.is_dir():
        if revision is not None:
            raise UserError(f"{source}: a folder has no revision ({revision}); leave it out")
        return {"local_files_only": True, "trust_remote_code": False}
    if revision is None or not _COMMIT.fullmatch(revision):
        raise UserError(
            f"{source}: no such folder, and a model of the hub needs a pinned revision, the 40 hex digits of a commit; "
            f"the revision is {'null' if revision is None else repr(revision)}"
        )
    return {"revision": revision, "trust_remote_code": False}


def advice(where: dict[str, Any]) -> str:
    """What to look at when a model of the hub cannot be had, as the end of a message; empty for a folder."""
    if "revision" not in where:
        return ""
    gated = "a gated model needs its licence accepted and HF_TOKEN in the environment"
    return f"; check the connection, id and revision; {gated}"
