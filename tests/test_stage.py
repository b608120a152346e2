"""The entry point of the stages: arguments, exit statuses."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BODIES = {
    "train_sft": "def run(params):\n    return Report({'loss': 0.25}, ['done'])",
    "train_dpo": "def run(params, item):\n    return Report({}, [item])",
    "evaluate": "def run(params, item):\n    raise UserError('data/x.parquet: is\\n broken; remake it')",
    "prepare_sae": "def run(params):\n    raise KeyboardInterrupt",
    "prepare_subject": "def run(params):\n    print('ready', flush=True)\n    time.sleep(60)",
    "label_features": "def run(params):\n    raise ValueError('a defect')",
}
HEADER = "import time\nfrom saeexplainer.errors import UserError\nfrom tasks.stage import Report, main\n"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder with params.yaml and stage modules of a few lines."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for name, body in BODIES.items():
        (tmp_path / f"{name}.py").write_text(f"{HEADER}{body}\nif __name__ == '__main__':\n    main(run)\n")
    return tmp_path


def started(workspace: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=workspace,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "output", "error"),
    [
        (["train_sft"], 0, "done\nloss 0.25\ntrain_sft: ", ""),
        (["train_dpo", "r1"], 0, "r1\ntrain_dpo@r1: ", ""),
        (
            ["train_dpo"],
            2,
            "",
            "error: python -m tasks.train_dpo: got none; give one of params.yaml's rounds: r1, r2\n",
        ),
        (["train_dpo", "open_loop"], 2, "", "error: python -m tasks.train_dpo: got 'open_loop'; give one of "),
        (["train_sft", "r1"], 2, "", "error: python -m tasks.train_sft: takes no argument"),
        (["evaluate", "open_loop"], 2, "", "error: data/x.parquet: is broken; remake it\n"),
        (["prepare_sae"], 130, "", "prepare_sae: interrupted"),
        (["label_features"], 1, "", "Traceback"),
    ],
)
def test_status_and_words(workspace: Path, arguments: list[str], status: int, output: str, error: str) -> None:
    process = started(workspace, *arguments)
    printed, failed = process.communicate(timeout=30)
    assert (process.returncode, printed.startswith(output), failed.startswith(error)) == (status, True, True)
    assert (workspace / "reports" / "timings.json").exists() == (status == 0)
    assert status != 2 or failed.count("\n") == 1


def test_termination_is_one_line(workspace: Path) -> None:
    process = started(workspace, "prepare_subject")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[1] == "prepare_subject: terminated; `dvc repro` starts it again\n"
    assert process.returncode == 143
