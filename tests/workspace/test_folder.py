"""Where DVC runs: in a copy that lacks what git does not carry, and in a folder that no git repository holds."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT
from toy import environment

from tasks.settings.compose import composed
from tasks.workspace import folder as workspace_folder

PIPELINE = """
stages:
  prepare_subject: {cmd: python -m prepare_subject, params: [seed], outs: [data/subject]}
  label_features:
    cmd: cp data/imported/ours.parquet data/labels
    deps: [data/imported/ours.parquet, data/subject]
    outs: [data/labels]
"""
# The real entry point of a stage, whose body stands for all that reads replies, tables and models.
STAGE = """
from pathlib import Path
from tasks.stage import Report, main
def run(params):
    replies = Path(params.score_explanations.writer.endpoint.cache)
    paid = sorted(path.name for path in replies.iterdir())
    (replies / f"of_seed_{params.seed}").write_text("a reply that was paid for")
    Path("data/subject").write_text(f"{paid} {Path(params.explainer.pretrained.source, 'config.json').read_text()}")
    return Report({}, [f"replies that are there: {paid}"])
if __name__ == "__main__":
    main(run)
"""


def run(folder: Path, *command: str, fails: bool = False) -> str:
    """What a command says that must succeed, or must fail."""
    process = subprocess.run(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert bool(process.returncode) == fails, process.stdout
    return process.stdout


def dvc(folder: Path, *arguments: str, fails: bool = False) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments, fails=fails)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with two stages, and beside what git tracks a model, an imported table and a paid reply."""
    settings = composed(["writer=endpoint", "explainer=lora", "explainer.pretrained.source=models/own"])
    for name, text in {
        "dvc.yaml": PIPELINE,
        "prepare_subject.py": STAGE,
        "params.yaml": settings,
        ".gitignore": "/.cache/\n/data/\n/reports/\n/models/\n__pycache__/\n",
        "models/own/config.json": "the model",
        "data/imported/ours.parquet": "the table",
        ".cache/writer/of_yesterday": "a reply",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    run(tmp_path, "git", "init", "--quiet", "--initial-branch", "work")
    for name, value in (("user.name", "someone"), ("user.email", "someone@example.org")):
        run(tmp_path, "git", "config", name, value)
    dvc(tmp_path, "init", "--quiet")
    run(tmp_path, "git", "add", "--all")
    run(tmp_path, "git", "commit", "--quiet", "--message", "start")
    return tmp_path


def test_a_queued_experiment_has_replies_tables_and_models_of_the_workspace(repository: Path) -> None:
    dvc(repository, "exp", "run", "--queue", "--name", "seed1", "-S", "seed=1")
    said = dvc(repository, "exp", "run", "--run-all")
    assert "replies that are there: ['of_yesterday']" in said and "Running stage 'label_features'" in said
    assert (repository / ".cache/writer/of_seed_1").read_text() == "a reply that was paid for"
    assert list(json.loads((repository / ".cache/timings.json").read_text())) == ["prepare_subject"]
    assert run(repository, "git", "status", "--porcelain") == ""
    kept = run(repository, "git", "ls-tree", "-r", "--name-only", "refs/heads/work").split()
    (reference,) = run(repository, "git", "for-each-ref", "--format=%(refname)", "refs/exps/**/seed1").split()
    assert set(run(repository, "git", "ls-tree", "-r", "--name-only", reference).split()) == {*kept, "dvc.lock"}


def test_dvc_works_without_git_once_the_set_up_has_said_so(tmp_path: Path) -> None:
    """And with it again, as soon as there is a repository."""
    (tmp_path / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", tmp_path / ".dvc")
    (tmp_path / "dvc.yaml").write_text("stages: {one: {cmd: echo 1 > one, outs: [one]}}\n")
    assert "is not a git repository" in dvc(tmp_path, "repro", fails=True)
    settle = (sys.executable, "-m", "tasks.workspace.folder")
    assert run(tmp_path, *settle) == run(tmp_path, *settle) == ""
    assert "Running stage 'one'" in dvc(tmp_path, "repro")
    run(tmp_path, "git", "init", "--quiet")
    run(tmp_path, *settle)
    assert "no_scm" not in (tmp_path / workspace_folder.LOCAL).read_text()


def test_a_folder_within_a_repository_keeps_what_its_owner_set(tmp_path: Path) -> None:
    """As a variant of the study does, which is no repository of its own."""
    run(tmp_path, "git", "init", "--quiet")
    variant = tmp_path / "variant"
    (variant / ".dvc").mkdir(parents=True)
    (variant / workspace_folder.CONFIG).write_text("[core]\n    analytics = false\n")
    (variant / workspace_folder.LOCAL).write_text("[core]\n    no_scm = true\n")
    workspace_folder.allow_without_git(variant)
    assert "no_scm = true" in (variant / workspace_folder.LOCAL).read_text()
