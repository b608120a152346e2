"""Where a result comes from: commit, parameters, hashes of the data."""

import getpass
import hashlib
import subprocess
from pathlib import Path

from tasks.places import PARAMS

NO_COMMIT = "none"
LOCK_FILE = Path("dvc.lock")


def provenance() -> dict[str, str]:
    """Tags: git commit, and hashes of params.yaml and dvc.lock.

    While `dvc repro` runs, dvc.lock holds the stages that are done, which is all that came before the comparison.
    """
    return {"git_commit": _git_commit(), "params_sha256": _sha256(PARAMS), "dvc_lock_sha256": _sha256(LOCK_FILE)}


def origin() -> dict[str, str]:
    """Tags that MLflow's pages show as user, source and version of a run."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container may have no entry for its user
        user = "unknown"
    commit = _git_commit()
    tags = {"mlflow.user": user, "mlflow.source.name": "dvc repro", "mlflow.source.type": "LOCAL"}
    return tags if commit == NO_COMMIT else tags | {"mlflow.source.git.commit": commit}


def dvc_hashes() -> dict[str, str]:
    """DVC's hash of every output in dvc.lock, by path."""
    import yaml

    lock = yaml.safe_load(_content(LOCK_FILE)) or {}
    outputs = [output for stage in lock.get("stages", {}).values() for output in stage.get("outs", [])]
    return {output["path"]: output["md5"] for output in outputs if "md5" in output}


def _git_commit() -> str:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return NO_COMMIT
    return found.stdout.strip()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""
