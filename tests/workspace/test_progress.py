"""What a stage shows while it works: lines in a log, bars in a terminal, and its error alone at the end."""

import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from tiny import ROOT

from tasks.workspace import progress
from tasks.workspace.progress import duration, line

# A stage of a few lines; lines are due sooner than in earnest, so that the test is not longer than it has to be.
STAGE = """
import time
from saeexplainer.errors import UserError
from tqdm.auto import tqdm
from tasks.workspace import progress
from tasks.stage import Report, main
progress.EVERY = 0.15

def run(params):
    BODY
    return Report({}, ["done"])

if __name__ == "__main__":
    main(run)
"""
WORKS = """
    for _ in tqdm(range(40), desc="reading texts", disable=None):  # as `models.generate` asks for its own
        time.sleep(0.02)
    for _ in tqdm(range(3), desc="soon done"):
        pass
    bar = tqdm(total=300)
    for step in range(30):
        bar.update(10)
        bar.set_description(f"{step}| loss 1.0")
        time.sleep(0.02)
    bar.close()
"""
FAILS = """
    for at in tqdm(range(40), desc="reading texts"):
        time.sleep(0.02)
        if at == 20:
            raise UserError("data/x.parquet: is broken; remake it")
"""
TRAINS = """
    import tempfile, torch
    from transformers import Trainer, TrainingArguments
    class Slow(torch.utils.data.Dataset):
        def __len__(self):
            return 12
        def __getitem__(self, at):
            time.sleep(0.05)
            return {"x": torch.ones(1)}
    class Model(torch.nn.Linear):
        def forward(self, x):
            return {"loss": super().forward(x).mean()}
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(output_dir=folder, per_device_train_batch_size=1, num_train_epochs=1, report_to="none")
        arguments = TrainingArguments(**settings, use_cpu=True, save_strategy="no", logging_steps=4)
        Trainer(Model(1, 1), arguments, train_dataset=Slow()).train()
"""


def written(folder: Path, body: str) -> dict:
    """A folder with params.yaml and the stage; how to start it."""
    (folder / "label_features.py").write_text(STAGE.replace("    BODY\n", body))
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    quieter = ("TQDM_", "TRANSFORMERS_")  # such as the command line sets for itself
    environment = {name: value for name, value in os.environ.items() if not name.startswith(quieter)}
    return {
        "args": [sys.executable, "-m", "label_features"], "cwd": folder,
        "env": environment | {"PYTHONPATH": str(ROOT)},
    }  # fmt: skip


def in_a_pipe(folder: Path, body: str) -> tuple[int, list[str]]:
    """Exit status and lines of stderr, which is a pipe."""
    process = subprocess.run(**written(folder, body), capture_output=True, timeout=120, check=False)
    text = process.stderr.decode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text), text  # nothing but text and line ends
    return process.returncode, text.splitlines()


def in_a_terminal(folder: Path, body: str) -> tuple[int, str]:
    """Exit status and what a terminal got on stderr."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    process = subprocess.Popen(**written(folder, body), stdout=subprocess.DEVNULL, stderr=follower)
    os.close(follower)
    shown = b""
    try:
        while part := os.read(leader, 4096):
            shown += part
    except OSError:  # how Linux says that the last writer is gone
        pass
    os.close(leader)
    return process.wait(60), shown.decode()


def test_a_log_gets_plain_lines(tmp_path: Path) -> None:
    status, lines = in_a_pipe(tmp_path, WORKS)
    assert status == 0
    reading = [text for text in lines if text.startswith("reading texts: ")]
    assert 3 <= len(reading) <= 8, lines  # 0.8 s of work at 0.15 s a line, and the last
    middle = re.compile(r"reading texts: \d+ % \(\d+ of 40\), \d s, about \d s left")
    assert not [text for text in reading[:-1] if not middle.fullmatch(text)]
    assert re.fullmatch(r"reading texts: 100 % \(40 of 40\), \d s", reading[-1])
    assert not [text for text in lines if "soon done" in text]
    # A bar without a name has the stage's, and what is written over the name later follows the figures.
    unnamed = [text for text in lines if text.startswith("label_features: ")]
    assert unnamed[-1].startswith("label_features: 100 % (300 of 300), ") and "| loss 1.0" in unnamed[-1]
    assert set(lines) == {*reading, *unnamed}


def test_a_trainers_bar_is_lines_too(tmp_path: Path) -> None:
    status, lines = in_a_pipe(tmp_path, TRAINS)
    steps = [text for text in lines if re.match(r"label_features: \d+ % \(\d+ of 12\), ", text)]
    assert status == 0 and len(steps) >= 2 and "(12 of 12)" in steps[-1], lines


def test_a_failure_in_a_log_is_its_last_line(tmp_path: Path) -> None:
    status, lines = in_a_pipe(tmp_path, FAILS)
    assert status == 2 and lines[-1] == "error: data/x.parquet: is broken; remake it"
    assert lines[0].startswith("reading texts: ")


def test_a_terminal_gets_bars(tmp_path: Path) -> None:
    status, shown = in_a_terminal(tmp_path, WORKS)
    assert status == 0 and "\rreading texts: " in shown and "40/40" in shown and "soon done: 100%" in shown
    assert "about" not in shown


def test_a_failure_in_a_terminal_has_a_line_of_its_own(tmp_path: Path) -> None:
    status, shown = in_a_terminal(tmp_path, FAILS)
    assert status == 2 and shown.endswith("\r\nerror: data/x.parquet: is broken; remake it\r\n")


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (line("texts", 1200, 3400, 0, 12.0), "texts: 35 % (1200 of 3400), 12 s, about 22 s left"),
        (line("texts", 1200, 3400, 1000, 12.0), "texts: 35 % (1200 of 3400), 12 s, about 2 min left"),
        (line("texts", 0, 3400, 0, 12.0), "texts: 0 % (0 of 3400), 12 s"),
        (line("pairs", 17, None, 0, 300.0), "pairs: 17, 5 min"),
        (line("a\r\nb", 3400, 3400, 0, 9000.0, "loss=1.2"), "a b: 100 % (3400 of 3400), 2.5 h, loss=1.2"),
        (duration(119.4), "119 s"),
    ],
)
def test_the_words(said: str, wanted: str) -> None:
    assert said == wanted


def test_lines_come_every_ten_seconds_at_most() -> None:
    assert progress.EVERY == 10.0
