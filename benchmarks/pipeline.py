"""How long the pipeline takes, cold and with nothing to do, and how much memory: `python benchmarks/pipeline.py [override ...]`.

Runs in a temporary copy of the repository with an empty DVC cache, so the workspace is left alone. Overrides are those of
`python -m tasks.compose`, for example `experiment=nano`. Prints one JSON object.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
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


def main() -> None:
    """Compose, run cold, run again, print."""
    bin_folder = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_of_repository(folder)
        timed([sys.executable, "-m", "tasks.compose", *sys.argv[1:]], folder, environment)
        cold = timed(["dvc", "repro"], folder, environment)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        again = timed(["dvc", "repro"], folder, environment)
        stages = json.loads((folder / "reports" / "timings.json").read_text(encoding="utf-8"))
    measured = {
        "cold_seconds": round(cold, 1),
        "unchanged_seconds": round(again, 1),
        "peak_gib_of_one_process": round(peak, 2),
        "cores": os.cpu_count(),
        "stage_seconds": stages,
    }
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
