"""MLflow on a SQLite store: runs that line up, logging that can be repeated, a store that can be rebuilt from files."""

import getpass
import json
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timed
from rows import evaluated

from saeexplainer.costs.bills import Costs, EvaluationCosts, RoundCosts, Work
from saeexplainer.errors import UserError
from saeexplainer.figures.comparison import summarise
from saeexplainer.records import EvaluationRow
from saeexplainer.runs.storage import write_json, write_rows
from tasks import compare_rounds
from tasks.cli import main
from tasks.settings import params
from tasks.tracking import points, rebuild, runs as tracking_runs, store
from tasks.workspace import doctor

REPOSITORY = Path(__file__).parents[2]
LOCK = """schema: '2.0'
stages:
  train_sft:
    outs:
    - {path: data/explainers/sft, md5: 0123456789abcdef.dir, size: 3}
  validate_preferences@r1:
    outs:
    - {path: data/rounds/r1/validated.parquet, md5: 00112233445566778899aabbccddeeff, size: 3}
  evaluate@r1:
    outs:
    - {path: data/evaluations/r1.parquet, md5: ffeeddccbbaa99887766554433221100, size: 3}
"""
REWARDS = """round,reward,reward_low,reward_high,hallucination,hallucination_low,hallucination_high
sft,0.3,0.2,0.4,0.5,0.4,0.6
r1,0.6,0.5,0.7,0.4,0.3,0.5
open_loop,0.2,0.1,0.3,0.6,0.5,0.7
r2,0.7,0.6,0.8,0.4,0.3,0.5
"""
VALUES = {"open_loop": [0.5, 0.25], "sft": [0.25, 0.25], "r1": [0.5, 0.5], "r2": [1.0, 0.5]}


@pytest.fixture
def project(empty_store, tmp_path, monkeypatch):
    """A workspace with a result in reports/, one training curve, parameters and a lock file; no tracking server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_store, tmp_path / store.STORE)
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    (tmp_path / "dvc.lock").write_text(LOCK)
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    tables = {name: evaluated(values) for name, values in VALUES.items()}
    for name, rows in tables.items():
        write_rows(tmp_path / f"data/evaluations/{name}.parquet", rows, EvaluationRow)
    comparison = summarise(tables, 50, 0)
    compare_rounds.write(comparison)
    (tmp_path / "reports/reward_hallucination.csv").write_text(REWARDS)
    (tmp_path / "reports/report.html").write_text("<p>report</p>")
    seconds = {"prepare_subject": 9.5, "train_dpo@r1": 4.0, "evaluate@r1": 2.0, "compare_rounds": 1.0}
    timed.keep(tmp_path, seconds)
    docs = tmp_path / "reports/data_docs/r1"
    docs.mkdir(parents=True)
    (docs / "index.html").write_text("<p>docs</p>")
    (docs / "tutorial.gif").write_bytes(b"GIF89a")
    curve = tmp_path / "reports/training/r1.csv"
    curve.parent.mkdir()
    curve.write_text("step,epoch,metric,value\n10,0.5,loss,0.7\n20,1.0,loss,0.4\n20,1.0,eval_rewards/accuracies,0.9\n")
    return comparison


def stored(experiment):
    """(parents, {name: child}) of an experiment, as MLflow has them."""
    client = store.open_client()
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    return client, parents, {run.info.run_name: run for run in runs if run not in parents}


def test_one_parent_and_one_child_an_evaluation(project):
    settings = params.load()
    logged = tracking_runs.log(settings, project)
    client, (parent,), children = stored(settings.compare_rounds.experiment)
    assert logged == tracking_runs.Logged(parent.info.run_id, parent.info.experiment_id, created=True, skipped=[])
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
    found = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert found == {*tracking_runs.LOGGED_FILES, "explanations.json", "data_md5.json"}
    assert {path.name for path in Path("mlruns").iterdir()} == {"mlflow.db", "artifacts"}


def test_a_tag_goes_to_the_result_it_is_about(project):
    settings = params.load()
    tracking_runs.log(settings, project)
    tracking_runs.tag(settings, project, "stop_rule", "not above 0")
    tracking_runs.tag(settings, project | {"seed": 9}, "stop_rule", "of a result that was never logged")
    _, (parent,), children = stored(settings.compare_rounds.experiment)
    assert parent.data.tags["stop_rule"] == "not above 0"
    assert not any("stop_rule" in child.data.tags for child in children.values())


def test_rewards_and_seconds_are_metrics(project):
    settings = params.load()
    tracking_runs.log(settings, project)
    client, (parent,), children = stored(settings.compare_rounds.experiment)
    assert children["r1"].data.metrics["reward"] == 0.6 and children["open_loop"].data.metrics["reward_high"] == 0.3
    history = client.get_metric_history(parent.info.run_id, "reward")
    assert sorted((point.step, point.value) for point in history) == [(0, 0.3), (1, 0.6), (2, 0.7)]
    seconds = {name: value for name, value in parent.data.metrics.items() if name.startswith("seconds/")}
    assert seconds == {"seconds/prepare_subject": 9.5, "seconds/train_dpo/r1": 4.0, "seconds/evaluate/r1": 2.0}
    assert children["r1"].data.metrics["seconds/train_dpo"] == 4.0
    assert not any(name.startswith("seconds/") for name in children["r2"].data.metrics)


def test_what_explanations_and_pairs_cost_are_metrics(project):
    nothing, settings = Work(0, 0, 0, 0), params.load()
    spent = Costs(
        {"r1": RoundCosts(features=4, pairs=5, sampling=Work(20, 80, 40, 0), scoring=Work(30, 150, 30, 90))},
        {name: EvaluationCosts(2, 2 * (1 + at), 20 * (1 + at), nothing) for at, name in enumerate(VALUES)},
    )
    write_json(Path("reports/costs.json"), spent)
    prices = replace(settings.compare_rounds.prices, million_tokens=1000.0)
    tracking_runs.log(replace(settings, compare_rounds=replace(settings.compare_rounds, prices=prices)), project)
    _, (parent,), children = stored(settings.compare_rounds.experiment)
    r1, sft = children["r1"].data.metrics, children["sft"].data.metrics
    assert (r1["cost_calls"], r1["cost_call_tokens"], sft["cost_calls"]) == (3.0, 30.0, 2.0)
    assert r1["cost_usd"] == pytest.approx(0.03)  # 30 tokens at 1000 USD a million
    whole = {name: value for name, value in parent.data.metrics.items() if name.startswith("cost_")}
    assert whole == pytest.approx({
        "cost_calls/pair/r1": 10.0, "cost_call_tokens/pair/r1": 60.0, "cost_usd/pair/r1": 0.06,
        # Timed or not: of the round 20 + 30 and 120 + 180, of four evaluations 2 + 4 + 6 + 8 and 20 + 40 + 60 + 80.
        "cost_calls/total": 70.0, "cost_call_tokens/total": 500.0, "cost_usd/total": 0.5,
    })  # fmt: skip


def test_inputs_are_datasets_by_dvcs_hash(project, tmp_path):
    (tmp_path / ".dvc").mkdir()
    # As `dvc remote add --default` writes it.
    (tmp_path / ".dvc/config").write_text("[core]\n    remote = far\n['remote \"far\"']\n    url = s3://bucket/store\n")
    settings = params.load()
    tracking_runs.log(settings, project)
    _, (parent,), children = stored(settings.compare_rounds.experiment)
    inputs = {given.tags[0].value: given.dataset for given in children["r1"].inputs.dataset_inputs}
    assert set(inputs) == {"training", "evaluation"} and not children["r2"].inputs.dataset_inputs
    assert [given.dataset.name for given in parent.inputs.dataset_inputs] == [
        "rounds/r1/validated.parquet", "evaluations/r1.parquet"
    ]  # fmt: skip
    assert inputs["training"].name == "rounds/r1/validated.parquet"
    assert inputs["training"].digest == "00112233445566778899aabbccddeeff"
    assert json.loads(inputs["training"].source) == {
        "uri": "data/rounds/r1/validated.parquet",
        "remote": "s3://bucket/store/files/md5/00/112233445566778899aabbccddeeff",
    }


def test_data_docs_and_sample_explanations_are_artifacts(project):
    settings = params.load()
    parent = tracking_runs.log(settings, project).run_id
    client, _, children = stored(settings.compare_rounds.experiment)
    docs = client.list_artifacts(children["r1"].info.run_id, "data_docs")
    assert [file.path for file in docs] == ["data_docs/index.html"]
    table = json.loads(Path(client.download_artifacts(parent, "explanations.json")).read_text())
    assert table["columns"][:3] == ["feature_id", "open_loop", "open_loop accuracy"] and len(table["columns"]) == 9
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["feature_id"] for row in rows] == ["sandbox/main/0", "sandbox/main/1"]
    assert [(row["r2"], row["r2 accuracy"]) for row in rows] == [("the word dog", 1.0), ("the word dog", 0.5)]


def test_rows_without_an_accuracy_are_of_the_same_result(tmp_path, monkeypatch):
    """Features whose texts failed; the comparison counts the others."""
    monkeypatch.chdir(tmp_path)
    rows = [*evaluated([0.25, 0.75]), replace(evaluated([math.nan] * 3)[2], texts=[])]
    write_rows(tmp_path / "data/evaluations/r1.parquet", rows, EvaluationRow)
    comparison = summarise({"r1": rows}, 10, 0)
    assert len(tracking_runs.evaluation_rows("r1", comparison)) == 3
    comparison["rounds"]["r1"]["generative_accuracy"]["n"] = 3
    with pytest.raises(UserError, match="of another result"):
        tracking_runs.evaluation_rows("r1", comparison)


def test_a_flow_run_of_prefect_is_a_tag(project, monkeypatch):
    settings = params.load()
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "0123")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    monkeypatch.delenv("PREFECT_UI_URL", raising=False)
    tracking_runs.log(settings, project)
    _, (parent,), _ = stored(settings.compare_rounds.experiment)
    assert parent.data.tags["prefect_flow_run"] == "0123"
    assert parent.data.tags["prefect_flow_run_url"] == "http://127.0.0.1:4200/runs/flow-run/0123"


def test_tags_say_what_it_came_from_and_the_hashes_of_data_are_one_artifact(project):
    settings = params.load()
    parent_id = tracking_runs.log(settings, project).run_id
    client, (parent,), children = stored(settings.compare_rounds.experiment)
    for tags in (parent.data.tags, children["r1"].data.tags):
        assert tags["git_commit"] == "none", "tmp_path is no repository"
        assert len(tags["params_sha256"]) == len(tags["dvc_lock_sha256"]) == len(tags["pipeline_key"]) == 64
        assert (tags["mlflow.source.name"], tags["mlflow.user"]) == ("dvc repro", getpass.getuser())
        assert "mlflow.source.git.commit" not in tags and len(tags) < 15
    hashes = json.loads(Path(client.download_artifacts(parent_id, "data_md5.json")).read_text())
    assert hashes["data/explainers/sft"] == "0123456789abcdef.dir"


def test_runs_say_what_they_are_of_and_how_long_their_stages_took(project):
    settings = params.load()
    before = time.time()
    tracking_runs.log(settings, project)
    client, (parent,), children = stored(settings.compare_rounds.experiment)
    assert parent.data.tags["mlflow.note.content"].startswith("Subject sandbox, SAE main, seed 0, 2 held-out features.")
    assert Path("reports/results.md").read_text().strip() in parent.data.tags["mlflow.note.content"]
    said = children["r2"].data.tags["mlflow.note.content"]
    assert said.startswith("Explanations by explainer data/explainers/r2. Generative accuracy 75.0 (")
    assert said.endswith(f"Trained by DPO from {settings.rounds['r2'].start}.")
    seconds = {name: (run.info.end_time - run.info.start_time) / 1000 for name, run in children.items()}
    assert seconds == {"open_loop": 0.0, "sft": 0.0, "r1": 6.0, "r2": 0.0}
    assert parent.info.end_time - parent.info.start_time == 15_500
    assert before <= parent.info.end_time / 1000 <= time.time()
    assert "docs/MLFLOW.md" in client.get_experiment(parent.info.experiment_id).tags["mlflow.note.content"]


def test_stages_that_evaluations_share_ran_before_their_own():
    timings = {"prepare_sae": 10.0, "train_dpo@r1": 2.0, "evaluate@r1": 1.0, "evaluate@sft": 0.5, "evaluate@gone": 4.0}
    assert tracking_runs.spans_of(timings, ["sft", "r1"], 100_000) == {
        "": tracking_runs.Span(82_500, 100_000), "sft": tracking_runs.Span(96_500, 97_000),
        "r1": tracking_runs.Span(97_000, 100_000),
    }  # fmt: skip


def files_under(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_a_copied_workspace_keeps_its_artifacts_to_itself(project, tmp_path, tmp_path_factory, monkeypatch, capsys):
    settings = params.load()
    first = tracking_runs.log(settings, project)
    copy = tmp_path_factory.mktemp("copies") / "mein Küchenprojekt #2, 100%"
    shutil.copytree(tmp_path, copy)
    before = files_under(tmp_path)
    monkeypatch.chdir(copy)
    assert doctor._store().line == (
        f"warn  MLflow: mlruns/mlflow.db names artifacts in {tmp_path}/mlruns, from where this workspace was copied or "
        "moved; the next command that opens it corrects that, or run `sae-explainer tracking relocate`"
    )
    assert tracking_runs.log(settings, project) == replace(first, created=False)
    assert capsys.readouterr().err.startswith(f"MLflow: mlruns/mlflow.db named the artifacts of {tmp_path}/mlruns; ")
    second = tracking_runs.log(settings, project | {"seed": 1})
    assert files_under(tmp_path) == before, "the original is as it was"
    shutil.rmtree(tmp_path / "mlruns/artifacts")
    client = store.open_client()
    for run in (first.run_id, second.run_id):
        assert store.local_path(client.get_run(run).info.artifact_uri).is_relative_to(copy / "mlruns")
        assert Path(client.download_artifacts(run, "report.html")).read_text() == "<p>report</p>"
    assert doctor._store().level == "ok" and capsys.readouterr().err == ""


def test_a_moved_workspace_is_mended_by_the_command_that_doctor_names(
    project, tmp_path, tmp_path_factory, monkeypatch, capsys
):
    run = tracking_runs.log(params.load(), project).run_id
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.copytree(tmp_path, moved)
    shutil.rmtree(tmp_path / "mlruns")
    monkeypatch.chdir(moved)
    cure = re.search(r"run `sae-explainer (.+?)`", doctor._store().advice)[1].split()
    assert main.main(cure) == 0
    assert doctor._store().level == "ok" and f"named the artifacts of {tmp_path}/mlruns" in capsys.readouterr().out
    assert main.main(cure) == 0
    assert capsys.readouterr().out == "MLflow: mlruns/mlflow.db names this workspace's\n"
    assert Path(store.open_client().download_artifacts(run, "report.html")).read_text() == "<p>report</p>"


def test_a_moved_store_that_may_not_be_written_is_one_line(project, tmp_path, tmp_path_factory, monkeypatch, capsys):
    tracking_runs.log(params.load(), project)
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.copytree(tmp_path, moved)
    monkeypatch.chdir(moved)
    connect = sqlite3.connect  # whoever runs this may be root, who may write anywhere

    def read_only(place, **more):
        return connect(
            f"file:{Path(place).resolve()}?mode=ro" if place == store.STORE else place, **more | {"uri": True}
        )

    monkeypatch.setattr(store.sqlite3, "connect", read_only)
    assert rebuild.main(["relocate"]) == 2
    error = capsys.readouterr().err
    assert "mlruns/mlflow.db: cannot be made to name this workspace's artifacts (attempt to write a readonly" in error
    assert error.count("\n") == 1


def test_the_own_store_is_the_same_by_a_relative_address(project, tmp_path, monkeypatch):
    """As docs/MLFLOW.md exports it for `mlflow models serve`; a run there leaves artifacts where they belong."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlruns/mlflow.db")
    tracking_runs.log(params.load(), project)
    assert {path.name for path in Path("mlruns").iterdir()} == {"mlflow.db", "artifacts"}


def test_a_path_that_no_database_address_can_hold_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "what?").mkdir()
    monkeypatch.chdir(tmp_path / "what?")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert rebuild.main(["relocate"]) == 2
    error = capsys.readouterr().err
    assert "what?/mlruns/mlflow.db: a '?' in the path" in error and error.count("\n") == 1
    assert doctor._store().level == "fail"


def test_training_curve_goes_to_its_round(project):
    settings = params.load()
    tracking_runs.log(settings, project)
    client, _, children = stored(settings.compare_rounds.experiment)
    loss = client.get_metric_history(children["r1"].info.run_id, "training/loss")
    assert sorted((point.step, point.value) for point in loss) == [(10, 0.7), (20, 0.4)]
    assert "training/eval_rewards/accuracies" in children["r1"].data.metrics
    assert "training/loss" not in children["r2"].data.metrics


def test_the_same_result_is_logged_once_and_another_one_again(project):
    settings = params.load()
    first = tracking_runs.log(settings, project)
    read_back = json.loads(Path("reports/comparison.json").read_text())
    assert tracking_runs.log(settings, read_back) == replace(first, created=False)
    other = tracking_runs.log(settings, project | {"seed": 1})
    assert other.created and other.run_id != first.run_id
    _, parents, _ = stored(settings.compare_rounds.experiment)
    assert len(parents) == 2


def test_what_an_interruption_left_is_replaced(project, monkeypatch):
    settings = params.load()
    with monkeypatch.context() as patch:
        patch.setattr(tracking_runs, "LOGGED_FILES", (None,))  # fails after the children are written
        with pytest.raises(TypeError):
            tracking_runs.log(settings, project)
    assert tracking_runs.log(settings, project).created
    _, parents, children = stored(settings.compare_rounds.experiment)
    assert [parent.info.status for parent in parents] == ["FINISHED"] and len(children) == 4


def test_rebuild_on_an_empty_mlruns_gives_the_same_metrics_from_the_reports_alone(
    project, empty_store, tmp_path, tmp_path_factory, monkeypatch, capsys
):
    settings = params.load()
    tracking_runs.log(settings, project)

    def runs():
        """Every point of every metric of every run, its parameters, tags but MLflow's own, and datasets, by name."""
        client, parents, children = stored(settings.compare_rounds.experiment)
        return {
            run.info.run_name: (
                {
                    name: sorted((at.step, at.value) for at in client.get_metric_history(run.info.run_id, name))
                    for name in run.data.metrics
                },
                run.data.params,
                {name: value for name, value in run.data.tags.items() if not name.startswith("mlflow.")},
                [given.dataset for given in run.inputs.dataset_inputs],
            )
            for run in [*parents, *children.values()]
        }

    before = runs()
    assert len(before) == 5 and sum(len(metrics) for metrics, *_ in before.values()) > 100
    clone = tmp_path_factory.mktemp("clone")
    shutil.copytree(tmp_path, clone, ignore=shutil.ignore_patterns("data", "mlruns"), dirs_exist_ok=True)
    (clone / "mlruns").mkdir()
    shutil.copy(empty_store, clone / store.STORE)
    monkeypatch.chdir(clone)
    assert rebuild.main(["rebuild"]) == 0
    assert runs() == before
    assert rebuild.main(["rebuild"]) == 0
    out = [line.split(" run ")[0] for line in capsys.readouterr().out.splitlines()]
    assert out[0] == "MLflow: logged" and out[3] == "MLflow: already holds"
    assert out[1].startswith("MLflow: sample explanations left out (data/evaluations/open_loop.parquet: no such table")
    assert out[2].startswith("registry: nothing registered (data/")


def test_rebuild_without_a_result_is_one_line(project, capsys):
    Path("reports/comparison.json").unlink()
    assert rebuild.main(["rebuild"]) == 2
    assert capsys.readouterr().err == "error: reports/comparison.json: no such file; run `dvc repro` to make it\n"


def test_a_broken_curve_names_its_line(project):
    Path("reports/training/r1.csv").write_text("step,epoch,metric,value\n10,0.5,loss,low\n")
    with pytest.raises(UserError, match=r"r1\.csv: line 2 "):
        list(points.curve_points("r1"))


def test_settings_are_flattened_by_name_and_place():
    nested = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": True}], "f": {}}
    assert points.flattened(nested) == {"a.b": "1", "a.c": "[1, 2]", "d.0.e": "True", "f": "{}"}


def test_an_experiment_of_dvcs_queue_has_the_workspaces_store(tmp_path: Path) -> None:
    """Its stages run in a copy, with DVC_ROOT the workspace that queued it."""
    copy, workspace = tmp_path / "copy", tmp_path / "workspace"
    copy.mkdir()
    for root, place in (
        (workspace, workspace / "mlruns/mlflow.db"),
        (copy, "mlruns/mlflow.db"),
        ("", "mlruns/mlflow.db"),
    ):
        code = "from tasks.tracking import store; print(store.STORE)"
        environment = os.environ | {"DVC_ROOT": str(root), "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(place)
