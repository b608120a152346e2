"""How long the pipeline takes, cold and with nothing to do, and how much memory one process of it.

    python benchmarks/pipeline.py [--folder FOLDER] [override ...]

Runs in a copy of the repository with an empty DVC cache, so the workspace is left alone: a temporary one, or FOLDER
(new or empty), which stays. Overrides are those of `sae-explainer compose`, for example `experiment=nano`. Prints one
JSON object; `dvc_lock_sha256` is the same for two cold runs of one seed on one machine.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def copy_of_repository(folder: Path) -> None:
    """A git repository in `folder` that holds the tracked files and nothing else."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Wall seconds of a command that has to succeed."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=sys.stderr)
    return time.perf_counter() - start


def measured(folder: Path, overrides: list[str]) -> dict:
    """Compose, run cold, run again."""
    bin_folder = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    copy_of_repository(folder)
    timed([sys.executable, "-m", "tasks.settings.compose", *overrides], folder, environment)
    cold = timed(["dvc", "repro"], folder, environment)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return {
        "cold_seconds": round(cold, 1),
        "unchanged_seconds": round(timed(["dvc", "repro"], folder, environment), 1),
        "peak_gib_of_one_process": round(peak, 2),
        "cores": os.cpu_count(),
        "dvc_lock_sha256": hashlib.sha256((folder / "dvc.lock").read_bytes()).hexdigest(),
        "stage_seconds": json.loads((folder / "reports" / "timings.json").read_text(encoding="utf-8")),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python benchmarks/pipeline.py")
    parser.add_argument("--folder", type=Path, help="where to run; left out, a temporary folder")
    parser.add_argument("overrides", nargs="*", help="as of sae-explainer compose")
    options = parser.parse_intermixed_args()
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            sys.exit(f"error: --folder {folder}: is not empty; name a new one")
        print(json.dumps(measured(folder, options.overrides), indent=2))


if __name__ == "__main__":
    main()
