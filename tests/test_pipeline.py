"""The whole pipeline at nano size, through `dvc repro` in a copy of the repository: killed, resumed, extended.

Two more copies run beside it, each with one thread: the same experiment from an empty cache, whose artifacts must be
the same bytes, and the real-text domain with the other architecture.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from control_room import Api, free_port, program
from copies import PATIENCE, READING, composed, environment, run
from toy import wait_for
from typed import killed, typed

from saeexplainer.config import Evaluation, ScaledEvaluation
from saeexplainer.config.parts import EvaluationKind
from saeexplainer.evaluation.rows import Explanation
from saeexplainer.models.loading import load_model
from saeexplainer.records import EvaluationRow, ExplanationRow, FeatureRow, PreferencePair
from saeexplainer.runs.storage import read_rows
from tasks import evaluate, sources
from tasks.bench import Bench
from tasks.settings import params as settings_params
from tasks.workspace.prefect_api import answers
from tasks.workspace.repro import version

# With a reinforcement, which the default does without.
NANO = (
    *READING, "+reinforcements.g1={start: r1, epochs: 1.0, beta: 0.04, learning_rate: 1e-4}", "train_grpo.features=8",
    "+evaluations.g1={kind: explainer, source: data/explainers/g1}",
)  # fmt: skip
ROUND = (
    "generate_explanations", "score_explanations", "build_preferences", "validate_preferences", "train_dpo", "evaluate",
)  # fmt: skip
START = ["prepare_subject", "prepare_sae", "extract_activations", "label_features", "warm_up", "train_sft"]


def repro(workspace: Path, *stages: str) -> list[str]:
    """Bring stages up to date (all if none is named); those that ran, in order."""
    return re.findall(r"Running stage '(.+)'", run(workspace, sys.executable, "-m", "dvc", "repro", *stages))


def started(workspace: Path, *stages: str) -> subprocess.Popen[bytes]:
    """`dvc repro` as a process group of its own."""
    with (workspace / "repro.log").open("wb") as log:
        command = [sys.executable, "-m", "dvc", "repro", *stages]
        return subprocess.Popen(
            command, cwd=workspace, env=environment(workspace), stdout=log, stderr=log, start_new_session=True
        )


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Two copies that run one after the other while the tests of the first one go on; their folders, by name."""
    again = composed(tmp_path_factory.mktemp("again"), *NANO, "rounds=two")
    pydoc = composed(tmp_path_factory.mktemp("pydoc"), "experiment=pydoc", "size=nano")
    script = f"""
import subprocess, sys
for folder, stage in (({str(again)!r}, "train_sft"), ({str(pydoc)!r}, "label_features")):
    with open(folder + "/repro.log", "wb") as log:
        command = [sys.executable, "-m", "dvc", "repro", stage]
        status = subprocess.run(command, cwd=folder, stdout=log, stderr=log).returncode
    with open(folder + "/status", "w") as file:
        file.write(str(status))
"""
    process = subprocess.Popen([sys.executable, "-c", script], env=environment(again), start_new_session=True)
    yield {"again": again, "pydoc": pydoc}
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finished(workspace: Path) -> Path:
    """Wait for a copy that runs beside."""
    deadline = time.monotonic() + PATIENCE
    while not (workspace / "status").is_file() or not (workspace / "status").read_text():
        assert time.monotonic() < deadline, (workspace / "repro.log").read_text()
        time.sleep(0.2)
    assert (workspace / "status").read_text() == "0", (workspace / "repro.log").read_text()
    return workspace


def locked(workspace: Path) -> dict[str, list]:
    """Path and md5 of every artifact of every stage that dvc.lock has."""
    stages = yaml.safe_load((workspace / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    return {name: [(out["path"], out["md5"]) for out in stage.get("outs", [])] for name, stage in stages.items()}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, beside: dict[str, Path], nano_cache: Path) -> Path:
    """A copy whose first run was killed while warm_up wrote, and whose second run completed."""
    folder = composed(tmp_path_factory.mktemp("nano"), *NANO, "rounds=two")
    run(folder, sys.executable, "-m", "dvc", "cache", "dir", "--local", str(nano_cache))
    process = started(folder)
    explainers = folder / "data/explainers"
    while not explainers.exists():  # the stage makes it to write the first explainer into it
        assert process.poll() is None, (folder / "repro.log").read_text()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert set(locked(folder)) == {*START[:-2], "probe_features"}
    for path in explainers.iterdir():  # what has an artifact's name is whole
        assert path.name.startswith(".") or load_model(path)
    assert not (explainers / "sft").exists()
    (folder / "ran.json").write_text(json.dumps(repro(folder)))
    return folder


def test_after_a_kill_only_what_was_missing_runs(workspace):
    ran = json.loads((workspace / "ran.json").read_text())
    rounds = [f"{stage}@{name}" for name in ("r1", "r2") for stage in ROUND[:-1]]
    evaluations = {f"evaluate@{name}" for name in params(workspace)["evaluations"]}
    assert ran[:2] == ["warm_up", "train_sft"] and ran[-1] == "compare_rounds"
    assert set(ran) == {"warm_up", "train_sft", *rounds, "train_grpo@g1", *evaluations, "compare_rounds"}
    assert len(ran) == len(set(ran))
    assert [stage for stage in ran if stage in rounds] == rounds
    assert not list((workspace / "data").rglob("*.partial")) and not list((workspace / "reports").rglob("*.partial"))


def params(workspace: Path) -> dict:
    return yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))


def evaluated(workspace: Path, name: str) -> list[EvaluationRow]:
    return read_rows(workspace / f"data/evaluations/{name}.parquet", EvaluationRow)


def comparison(workspace: Path) -> dict:
    return json.loads((workspace / "reports/comparison.json").read_text(encoding="utf-8"))


def test_the_report_has_every_evaluation_on_the_test_features(workspace):
    assert list(comparison(workspace)["rounds"]) == list(params(workspace)["evaluations"])
    rows = read_rows(workspace / "data/activations/features.parquet", FeatureRow)
    tested = {row.feature_id for row in rows if row.split == "test"}
    assert len(tested) == params(workspace)["extract_activations"]["test_features"]
    for name in params(workspace)["evaluations"]:
        found = evaluated(workspace, name)
        assert {row.feature_id for row in found} == tested and len(found) == len(tested)
    assert (workspace / "reports/rounds.png").read_bytes().startswith(b"\x89PNG")
    assert (workspace / "own.db").is_file()  # MLflow was told, where it was told to


TOGETHER = """
from saeexplainer.runs.processes import gather
from tasks import evaluate, extract_activations, generate_explanations, score_explanations
from tasks.settings import params

settings = params.load()
extract_activations.run(settings)
gather([0])  # the first has written
generate_explanations.run(settings, "r1")
gather([0])
score_explanations.run(settings, "r1")
evaluate.run(settings, "r1")
"""


def test_two_processes_write_the_same_bytes(workspace, tmp_path):
    folder = composed(tmp_path, *NANO, "processes=2")
    shutil.copytree(workspace / "data", folder / "data", dirs_exist_ok=True)
    results = [
        "data/activations/features.parquet", "data/activations/contexts.parquet", "data/activations/neighbours.parquet",
        "data/activations/directions.safetensors", "data/rounds/r1/candidates.parquet", "data/rounds/r1/scores.parquet",
        "data/evaluations/r1.parquet",
    ]  # fmt: skip
    (folder / "data/evaluations/r1.parquet").unlink()
    shutil.rmtree(folder / "data/activations")
    shutil.rmtree(folder / "data/rounds")
    (folder / "together.py").write_text(TOGETHER)
    run(
        folder,
        sys.executable,
        "-c",
        "from saeexplainer.runs.processes import launch; assert launch(['together'], 2) is None",
    )
    for name in results:
        assert (folder / name).read_bytes() == (workspace / name).read_bytes(), name


@pytest.mark.parametrize(
    ("stage", "output", "write"),
    [("score_explanations", "rounds/r1/scores", 2), ("evaluate", "evaluations/r1", 5)],
    ids=["score", "evaluate"],
)
def test_a_killed_stage_goes_on_and_writes_the_same_bytes(workspace, tmp_path, stage, output, write):
    folder = composed(tmp_path, *NANO, "rounds=two")
    shutil.copytree(workspace / "data", folder / "data", dirs_exist_ok=True)
    result, kept = folder / f"data/{output}.parquet", folder / f".cache/batches/{stage}@r1"
    expected = result.read_bytes()
    result.unlink()
    killed(folder, write, stage, "r1")
    assert not result.exists() and sum(path.is_file() for path in kept.rglob("*")) == write - 1
    done = typed(folder, stage, "r1")
    assert done.returncode == 0 and "batches are there" in done.stderr, done.stderr
    assert result.read_bytes() == expected and not kept.exists()


def test_no_pair_comes_from_a_held_out_feature_and_every_round_learns(workspace):
    rows = read_rows(workspace / "data/activations/features.parquet", FeatureRow)
    split_of = {row.feature_id: row.split for row in rows}
    trained = ("warmup", "sft", "r1", "r2", "g1")
    weights = [load_model(workspace / f"data/explainers/{name}").state_dict() for name in trained]
    assert all(any(not a[name].equal(b[name]) for name in a) for a, b in zip(weights, weights[1:]))
    for name in ("r1", "r2"):
        pairs = read_rows(workspace / f"data/rounds/{name}/validated.parquet", PreferencePair)
        assert {pair.split for pair in pairs} == {"dpo", "valid"}
        assert all(split_of[pair.feature_id] == pair.split for pair in pairs)


BASELINES = {
    "best_of_2": {"kind": "best_of_n", "source": "data/explainers/sft"},
    "agent": {"kind": "agent", "source": "data/activations"},
    "other_feature": {"kind": "other_feature", "source": "data/explainers/sft"},
    "zero_vector": {"kind": "zero_vector", "source": "data/explainers/r1"},
    "vector_alone": {"kind": "vector_alone", "source": "data/explainers/r1"},
    "other_vector": {"kind": "other_vector", "source": "data/explainers/r1"},
    "other_contexts": {"kind": "other_contexts", "source": "data/explainers/r1"},
    "oracle": {"kind": "truth", "source": "data/activations/truth.safetensors"},
}


def test_every_baseline_is_measured_and_costs_what_it_asked(workspace, monkeypatch):
    """In this process: five stages of their own would be five times the imports."""
    monkeypatch.chdir(workspace)
    known = settings_params.load()
    texts = known.score_explanations.writer.texts
    more = {name: Evaluation(EvaluationKind(one["kind"]), one["source"]) for name, one in BASELINES.items()}
    prompt = replace(known.explainer.prompt, shown_contexts=0, shown_spread=0, shown_promoted=0)
    bare = replace(known.explainer, prompt=prompt)
    for name in more:
        how = {"explainer": bare} if name == "zero_vector" else {}
        evaluate.run(replace(known, evaluations=known.evaluations | more, **how), name)
    costs = {name: evaluated(workspace, name) for name in ("sft", *BASELINES)}
    for name in more:  # no part of what dvc.lock knows
        (workspace / f"data/evaluations/{name}.parquet").unlink()
    assert {row.calls for row in costs["sft"] + costs["other_feature"]} == {1}
    assert max(row.calls for row in costs["best_of_2"]) == 2 * (1 + texts)
    assert max(row.calls for row in costs["agent"]) <= 2 * (1 + texts)  # the same budget
    assert {row.calls for row in costs["oracle"]} == {0}
    assert all(row.call_tokens > 1 for row in costs["sft"])
    moved, own = (Counter(row.explanation for row in costs[name]) for name in ("other_feature", "sft"))
    assert moved == own, "everyone's is somebody's"
    with_vectors = {row.explanation for row in evaluated(workspace, "r1")}
    assert len({row.explanation for row in costs["zero_vector"]}) == 1 < len(with_vectors), "nothing tells them apart"


def test_controls_exchange_or_take_away_what_they_are_named_after_and_nothing_else(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    bench = Bench(settings_params.load())
    scales = []

    def given(_folder, vectors, settings, _generation, contexts):
        scales.append(settings.injection_scale)
        return vectors, contexts

    monkeypatch.setattr(sources, "Explainer", given)
    monkeypatch.setattr(sources, "_greedy", lambda _bench, given: (next(iter(given[0].values())), list(given[1])))
    vectors, contexts = sources.from_explainer(bench, Path())
    assert len(contexts) == len(vectors) == len(bench.all_rows) and all(contexts[at] for at in bench.numbers)
    others = [at for at in range(len(vectors)) if at not in bench.numbers]

    moved, same = sources.from_other_vector(bench, Path())
    assert same == contexts and torch.equal(moved[others], vectors[others])
    assert not any(torch.equal(moved[at], vectors[at]) for at in bench.numbers)
    assert sorted(moved[bench.numbers].tolist()) == sorted(vectors[bench.numbers].tolist())

    kept, exchanged = sources.from_other_contexts(bench, Path())
    assert torch.equal(kept, vectors) and not any(exchanged[at] == contexts[at] for at in bench.numbers)
    assert sorted(exchanged[at] for at in bench.numbers) == sorted(contexts[at] for at in bench.numbers)

    alone, none = sources.from_vector_alone(bench, Path())
    assert torch.equal(alone, vectors) and none == []
    zero, left = sources.from_zero_vector(bench, Path())
    assert not zero.any() and left == contexts

    louder = ScaledEvaluation(EvaluationKind.scaled, "data/explainers/r1", 2.0)
    same, shown = sources.explanations_of(louder, bench)
    assert torch.equal(same, vectors) and shown == contexts
    assert scales[-1] == 2 * scales[0] and len(set(scales)) == 2


def test_an_unmodified_explanation_keeps_what_it_is_built_on(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    bench = Bench(settings_params.load())
    concepts = bench.domain.concepts()
    lead, modifier = next(filter(bench.domain.can_lead, concepts)), next(filter(bench.domain.can_modify, concepts))
    said = [bench.domain.describe([lead, modifier]), bench.domain.describe([lead]), "no such words", ""]
    monkeypatch.setattr(sources, "from_explainer", lambda *_: [Explanation(text, 1, 9, -0.5) for text in said])
    found = sources.from_unmodified(bench, Path())
    assert [one.text for one in found] == [said[1], said[1], *said[2:]]
    assert {(one.calls, one.call_tokens, math.isnan(one.log_probability)) for one in found} == {(1, 9, True)}


def test_nothing_is_left_to_do_and_a_third_round_is_an_edit_of_params_alone(workspace):
    assert repro(workspace) == []
    path = workspace / "params.yaml"
    text = path.read_text(encoding="utf-8")
    run(workspace, sys.executable, "-m", "tasks.settings.compose", *NANO, "rounds=three")
    stale = json.loads(run(workspace, sys.executable, "-m", "dvc", "status", "--json"))
    assert list(stale) == [f"{stage}@r3" for stage in ROUND] + ["compare_rounds"]
    path.write_text(text, encoding="utf-8")


def test_one_seed_gives_the_same_bytes_from_an_empty_cache(workspace, beside):
    here, there = locked(workspace), locked(finished(beside["again"]))
    assert there == {name: here[name] for name in START}  # DVC orders a few named stages now one way, now another


def test_real_text_and_the_other_architecture_go_the_same_way(beside):
    folder = finished(beside["pydoc"])
    assert load_model(folder / "data/subject").config.model_type == "gpt2"
    rows = read_rows(folder / "data/activations/features.parquet", FeatureRow)
    assert {row.split for row in rows} >= {"sft", "dpo", "valid", "test"}
    labels = read_rows(folder / "data/labels.parquet", ExplanationRow)
    said = [row.explanation for row in labels if row.explanation]
    assert len(labels) == sum(row.split != "twin" for row in rows) and len(said) > len(labels) / 2


ONE_ROUND = [*NANO[1:], "rounds=two", "~rounds.r2", "~evaluations.r2"]


def test_a_served_deployment_restores_every_stage(workspace, tmp_path):
    """On a real server. The results come out of DVC's cache: the tests above have seen the stages run."""
    folder = tmp_path / "served"
    left_out = shutil.ignore_patterns("data", "reports", "own.db")
    shutil.copytree(workspace, folder, ignore=lambda at, names: left_out(at, names) if Path(at) == workspace else set())
    port = free_port()
    more = environment(workspace) | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    more = {name: value for name, value in more.items() if name not in ("PREFECT_HOME", "PYTHONPATH")}
    server = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
    with ExitStack() as stack:
        stack.enter_context(program(folder, *server, says="Check out the dashboard", **more))
        wait_for(lambda: answers(more["PREFECT_API_URL"]), 300)
        stack.enter_context(program(folder, "flows.deployments", says="being served", **more))
        api = Api(more["PREFECT_API_URL"])
        first = api.ended(api.trigger("pipeline/on-demand", experiment="nano", overrides=ONE_ROUND))
        assert first.state.name == "Completed", first.state.message
        tasks = api.tasks(first.id)
        assert tasks.pop("compose_params").state.is_completed()
        stages = {name.replace("[", "@").rstrip("]"): task for name, task in tasks.items()}
        assert set(stages) == {name for name in locked(folder) if not name.endswith("@r2")}
        assert all(task.task_version and task.task_version == version(name, folder) for name, task in stages.items())
        states = {name: task.state.name for name, task in stages.items()}
        assert states.pop("compare_rounds") == "Completed"  # DVC keeps no run of it; it tells MLflow
        assert set(states.values()) == {"Restored"}
