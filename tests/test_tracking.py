"""MLflow on a SQLite store: runs that line up, logging that can be repeated, a store that can be rebuilt from files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from test_comparison import evaluated

from saeexplainer.comparison import summarise
from saeexplainer.errors import UserError
from tasks import compare_rounds, params, tracking

REPOSITORY = Path(__file__).parents[1]
LOCK = """schema: '2.0'
stages:
  train_sft:
    outs:
    - {path: data/explainers/sft, md5: 0123456789abcdef.dir, size: 3}
"""


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A store as `tracking` makes it on first use; MLflow takes a second or more for its migrations, so only once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("store"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking._client().search_experiments()
        return tracking.STORE.resolve()


@pytest.fixture
def project(empty_store, tmp_path, monkeypatch):
    """A workspace with a result in reports/, one training curve, parameters and a lock file; no tracking server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_store, tmp_path / tracking.STORE)
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    (tmp_path / "dvc.lock").write_text(LOCK)
    rows = {"open_loop": [0.5, 0.25], "sft": [0.25, 0.25], "r1": [0.5, 0.5], "r2": [1.0, 0.5]}
    comparison = summarise({name: evaluated(values) for name, values in rows.items()}, 50, 0)
    compare_rounds.write(comparison)
    curve = tmp_path / "reports/training/r1.csv"
    curve.parent.mkdir()
    curve.write_text("step,epoch,metric,value\n10,0.5,loss,0.7\n20,1.0,loss,0.4\n20,1.0,eval_rewards/accuracies,0.9\n")
    return comparison


def stored(experiment):
    """(parents, {name: child}) of an experiment, as MLflow has them."""
    client = tracking._client()
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    return client, parents, {run.info.run_name: run for run in runs if run not in parents}


def test_one_parent_and_one_child_an_evaluation(project):
    settings = params.load()
    logged = tracking.log(settings, project)
    client, (parent,), children = stored(settings.compare_rounds.experiment)
    assert logged == tracking.Logged(parent.info.run_id, created=True)
    assert list(project["rounds"]) == ["open_loop", "sft", "r1", "r2"] and set(children) == set(project["rounds"])
    assert {child.data.tags["mlflow.parentRunId"] for child in children.values()} == {parent.info.run_id}

    final = {name: {m: v for m, v in run.data.metrics.items() if "/" not in m} for name, run in children.items()}
    assert len({frozenset(metrics) for metrics in final.values()}) == 1, "the compare view lines up equal names"
    interval = project["rounds"]["r2"]["generative_accuracy"]
    assert final["r2"]["generative_accuracy"] == interval["value"] == 0.75
    assert final["r2"]["generative_accuracy_low"] == interval["low"]
    history = client.get_metric_history(parent.info.run_id, "generative_accuracy")
    assert sorted((point.step, point.value) for point in history) == [(0, 0.25), (1, 0.5), (2, 0.75)]
    assert parent.data.metrics["r2-sft/generative_accuracy"] == 0.5
    assert parent.data.params["train_dpo.batch_size"] == str(settings.train_dpo.batch_size)
    assert children["r2"].data.params["start"] == settings.rounds["r2"].start
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == set(tracking.LOGGED_FILES)
    assert {path.name for path in Path("mlruns").iterdir()} == {"mlflow.db", "artifacts"}


def test_tags_say_what_it_came_from(project):
    settings = params.load()
    tracking.log(settings, project)
    _, (parent,), children = stored(settings.compare_rounds.experiment)
    for tags in (parent.data.tags, children["r1"].data.tags):
        assert tags["git_commit"] == "none", "tmp_path is no repository"
        assert len(tags["params_sha256"]) == len(tags["dvc_lock_sha256"]) == len(tags["pipeline_key"]) == 64
        assert tags["data_md5.data/explainers/sft"] == "0123456789abcdef.dir"


def test_training_curve_goes_to_its_round(project):
    settings = params.load()
    tracking.log(settings, project)
    client, _, children = stored(settings.compare_rounds.experiment)
    loss = client.get_metric_history(children["r1"].info.run_id, "training/loss")
    assert sorted((point.step, point.value) for point in loss) == [(10, 0.7), (20, 0.4)]
    assert "training/eval_rewards/accuracies" in children["r1"].data.metrics
    assert "training/loss" not in children["r2"].data.metrics


def test_the_same_result_is_logged_once_and_another_one_again(project):
    settings = params.load()
    first = tracking.log(settings, project)
    read_back = json.loads(Path("reports/comparison.json").read_text())
    assert tracking.log(settings, read_back) == replace(first, created=False)
    other = tracking.log(settings, project | {"seed": 1})
    assert other.created and other.run_id != first.run_id
    _, parents, _ = stored(settings.compare_rounds.experiment)
    assert len(parents) == 2


def test_what_an_interruption_left_is_replaced(project, monkeypatch):
    settings = params.load()
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "LOGGED_FILES", (None,))  # fails after the children are written
        with pytest.raises(TypeError):
            tracking.log(settings, project)
    assert tracking.log(settings, project).created
    _, parents, children = stored(settings.compare_rounds.experiment)
    assert [parent.info.status for parent in parents] == ["FINISHED"] and len(children) == 4


def test_rebuild_fills_an_empty_store_with_the_same_metrics(project, capsys):
    settings = params.load()
    tracking.log(settings, project)

    def metrics():
        _, parents, children = stored(settings.compare_rounds.experiment)
        return [run.data.metrics for run in parents], {name: run.data.metrics for name, run in children.items()}

    before = metrics()
    client = tracking._client()
    for run in client.search_runs([client.get_experiment_by_name(settings.compare_rounds.experiment).experiment_id]):
        client.delete_run(run.info.run_id)
    assert metrics() == ([], {})
    assert tracking.main(["rebuild"]) == 0
    assert metrics() == before
    assert tracking.main(["rebuild"]) == 0
    assert [line.split(" run ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "MLflow: logged",
        "MLflow: already holds",
    ]


def test_rebuild_without_a_result_is_one_line(project, capsys):
    Path("reports/comparison.json").unlink()
    assert tracking.main(["rebuild"]) == 2
    assert capsys.readouterr().err == "error: reports/comparison.json: no such file; run `dvc repro` to make it\n"


def test_a_broken_curve_names_its_line(project):
    Path("reports/training/r1.csv").write_text("step,epoch,metric,value\n10,0.5,loss,low\n")
    with pytest.raises(UserError, match=r"r1\.csv: line 2 "):
        list(tracking._curve("r1"))


def test_settings_are_flattened_by_name_and_place():
    nested = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": True}], "f": {}}
    assert tracking.flattened(nested) == {"a.b": "1", "a.c": "[1, 2]", "d.0.e": "True", "f": "{}"}
