"""DVC as its users use it: experiments composed by Hydra, metrics and plots side by side, data shared by a remote."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from altair import Chart, LayerChart
from altair.vegalite import SCHEMA_VERSION
from copies import READING, copied, run
from tiny import ROOT

from tasks.settings import compose

# One round is enough to share; all but the last stage is what test_pipeline trained, if that ran before.
SMALL = [*READING, "rounds=two", "compare_rounds.resamples=70", "~rounds.r2", "~evaluations.r2"]
RERUN = [*SMALL, "compare_rounds.resamples=50"]  # which only the last stage reads


def git(folder: Path, *arguments: str) -> str:
    return run(folder, "git", "-c", "user.name=someone", "-c", "user.email=someone@example.org", *arguments)


def dvc(folder: Path, *arguments: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments)


def sets(overrides: list[str]) -> list[str]:
    return [part for override in overrides for part in ("-S", override)]


def started(said: str) -> list[str]:
    return re.findall(r"Running stage '(.+)'", said)


def cloned(folder: Path) -> Path:
    """A repository of its own, with one commit."""
    copied(folder)
    git(folder, "init", "--quiet", "--initial-branch", "work")
    for name, value in (("user.name", "someone"), ("user.email", "someone@example.org")):
        git(folder, "config", name, value)
    with (folder / ".git/info/exclude").open("a") as file:
        file.write("own.db\n")
    committed(folder, "start")
    return folder


def committed(folder: Path, message: str) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, nano_cache: Path) -> Path:
    """A repository whose first commit has no results, and whose second has those of an experiment at nano size."""
    folder = cloned(tmp_path_factory.mktemp("work"))
    dvc(folder, "cache", "dir", "--local", str(nano_cache))
    before = (folder / "params.yaml").read_bytes()
    said = dvc(folder, "exp", "run", "--name", "small", *sets(SMALL))
    assert "compare_rounds" in started(said) and "Ran experiment(s): small" in said
    assert (folder / "params.yaml").read_bytes() != before
    committed(folder, "small")
    return folder


def test_dvc_composes_what_the_compose_task_composes(workspace: Path) -> None:
    assert (workspace / "params.yaml").read_text(encoding="utf-8") == compose.composed(SMALL)
    assert yaml.safe_load((workspace / "params.yaml").read_text())["compare_rounds"]["resamples"] == 70
    # Nothing is left to do, and nothing to commit: neither tool rewrites what the other wrote.
    run(workspace, sys.executable, "-m", "tasks.settings.compose", *SMALL)
    assert started(dvc(workspace, "exp", "run", *sets(SMALL))) == []
    assert git(workspace, "status", "--porcelain") == ""


def test_repro_takes_params_yaml_as_it_is(workspace: Path) -> None:
    text = (workspace / "params.yaml").read_text(encoding="utf-8")
    edited = text.replace("seed: 0\n", "seed: 4\n", 1)
    assert edited != text
    (workspace / "params.yaml").write_text(edited, encoding="utf-8")
    assert started(dvc(workspace, "repro", "--dry"))[0] == "prepare_subject"
    assert (workspace / "params.yaml").read_text(encoding="utf-8") == edited
    git(workspace, "checkout", "--quiet", "params.yaml")
    assert started(dvc(workspace, "repro", "--dry")) == []


@pytest.fixture(scope="module")
def rerun(workspace: Path) -> str:
    """The name of an experiment that ran out of the queue, and made nothing but the comparison anew."""
    dvc(workspace, "exp", "run", "--queue", "--name", "rerun", *sets(RERUN))
    assert "Queued" in dvc(workspace, "queue", "status")
    said = dvc(workspace, "exp", "run", "--run-all")
    assert started(said) == ["compare_rounds"]
    return "rerun"


def test_a_queued_experiment_runs_beside_the_workspace(workspace: Path, rerun: str) -> None:
    assert git(workspace, "status", "--porcelain") == ""
    experiments = json.loads(dvc(workspace, "exp", "show", "--json"))[1]["experiments"]
    revision = next(entry["revs"][0] for entry in experiments if entry["name"] == rerun)
    assert revision["data"]["params"]["params.yaml"]["data"]["compare_rounds"]["resamples"] == 50
    metrics = revision["data"]["metrics"]["reports/generative_accuracy.json"]["data"]
    assert set(metrics) == {"open_loop", "sft", "r1"} and 0 <= metrics["r1"] <= 1
    changed = json.loads(dvc(workspace, "params", "diff", "--json", "HEAD", rerun))
    assert list(changed["params.yaml"]) == ["compare_rounds.resamples"]


def test_what_the_docs_recommend_fits_a_terminal(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own width: to a narrow terminal DVC would cut the columns of `exp show`, each to a few letters."""
    headline = workspace / "reports/generative_accuracy.json"
    headline.write_text(json.dumps({name: value / 3 + 0.1 for name, value in json.loads(headline.read_text()).items()}))
    settings = (workspace / "params.yaml").read_text(encoding="utf-8")
    (workspace / "params.yaml").write_text(settings.replace("seed: 0\n", "seed: 3\n", 1), encoding="utf-8")
    dvc(workspace, "exp", "save", "--force", "--name", "seed3")
    git(workspace, "checkout", "--quiet", ".")
    monkeypatch.setenv("COLUMNS", "1000")
    pages = (ROOT / "docs/DATA.md", ROOT / "README.md")
    recommended = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    for command, columns in {
        "dvc exp show --only-changed --drop '.*/.*|State|Executor'": ["open_loop", "sft", "r1", "seed"],
        "dvc metrics show": ["open_loop", "r1", "sft"],
        "dvc stage list": ["prepare_subject"],
    }.items():
        assert f"`{command}`" in recommended
        said = dvc(workspace, *shlex.split(command)[1:]).splitlines()
        assert max(map(len, said)) <= 120, said
        assert all(any(column in line for line in said[:2]) for column in columns), said


def test_metrics_diff_is_a_line_a_metric(workspace: Path) -> None:
    asked = ["metrics", "diff", "HEAD", "--targets", "reports/metrics.json"]
    (workspace / "reports/metrics.json").write_text('{"r1": {"generative_accuracy": 1.0}}')
    changed = json.loads(dvc(workspace, *asked, "--json"))["reports/metrics.json"]
    assert max(map(len, dvc(workspace, *asked).splitlines())) <= 120
    git(workspace, "checkout", "--quiet", "reports/metrics.json")
    assert changed["r1.generative_accuracy"]["new"] == 1.0 and set(changed["r1.generative_accuracy"]) >= {"old", "new"}
    assert all(name.count(".") == 1 for name in changed)  # evaluation.metric, no interval's ends


PLOTS = {
    "reports/rounds.csv", "reports/rewards.csv", "reports/reward_hallucination.csv",
    "reports/confidence.csv", "reports/training/warmup.csv", "reports/training/sft.csv", "reports/training/r1.csv",
}  # fmt: skip


def test_every_plot_is_a_valid_picture_of_both_revisions(workspace: Path, rerun: str) -> None:
    """Valid by Vega-Lite's own schema, which refuses what a browser would draw as an empty frame."""
    drawn = json.loads(dvc(workspace, "plots", "diff", "--json", "HEAD", rerun))["data"]
    assert set(drawn) == PLOTS
    for name, (plot,) in drawn.items():
        content = plot["content"] if isinstance(plot["content"], dict) else json.loads(plot["content"])
        assert "<DVC_METRIC" not in json.dumps(content)
        assert {row["rev"] for row in content["data"]["values"]} == {"HEAD", rerun}, name
        fields = set(content["data"]["values"][0]) | {step["as"] for step in content["transform"] if "as" in step}
        assert set(re.findall(r'"field": "([^"]+)"', json.dumps(content))) <= fields, name
        schema = content | {"$schema": f"https://vega.github.io/schema/vega-lite/{SCHEMA_VERSION}.json"}
        (LayerChart if "layer" in content else Chart).from_dict(schema, validate=True)
    dvc(workspace, "plots", "show")
    assert "vegaEmbed" in (workspace / "dvc_plots/index.html").read_text()


def test_the_distribution_of_rewards_is_whole(workspace: Path) -> None:
    lines = (workspace / "reports/rewards.csv").read_text().splitlines()
    assert lines[0] == "round,candidates,reward,reward_to,share"
    for which in ("all", "best"):
        shares = [float(line.split(",")[4]) for line in lines[1:] if line.startswith(f"r1,{which},")]
        assert sum(shares) == pytest.approx(1.0)


@pytest.mark.parametrize("override", ["train_sft.epoch=1", "sise=nano", "experiment=nope"])
def test_a_misspelled_set_changes_nothing_and_names_it(workspace: Path, override: str) -> None:
    said = run(workspace, sys.executable, "-m", "dvc", "exp", "run", "-S", override, fails=True)
    first = next(line for line in said.splitlines() if line.startswith("ERROR"))
    assert override.split("=")[0] in first or override.split("=")[1] in first, said
    assert "Traceback" not in said and git(workspace, "status", "--porcelain") == ""


def test_pushed_data_are_all_that_a_clone_needs(workspace: Path, tmp_path: Path) -> None:
    """What is committed and what is pushed make the whole: nothing runs in the clone, and it can explain."""
    dvc(workspace, "remote", "add", "--local", "--force", "--default", "storage", str(tmp_path / "storage"))
    dvc(workspace, "push", "--quiet")
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(workspace), str(clone))
    assert [path for path in (clone / "data").rglob("*") if path.is_file()] == [clone / "data/rounds/.gitkeep"]
    dvc(clone, "remote", "add", "--local", "--default", "storage", str(tmp_path / "storage"))
    dvc(clone, "pull", "--quiet")
    assert started(dvc(clone, "repro")) == []
    assert git(clone, "status", "--porcelain") == "" and dvc(clone, "status", "--json").strip().endswith("{}")
    said = json.loads(run(clone, sys.executable, "-m", "tasks.cli.main", "features", "--split", "test", "--json"))
    feature = next(row for row in said if row["explanations"]["r1"])
    command = ["explain", "--feature", str(feature["index"]), "--explainer", "r1", "--json"]
    (answer,) = json.loads(run(clone, sys.executable, "-m", "tasks.cli.main", *command))
    assert answer["explanation"] == feature["explanations"]["r1"]
