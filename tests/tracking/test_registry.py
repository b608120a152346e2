"""The registry: versions that answer by themselves, a champion that moves only when beaten, errors of one line."""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rows import evaluated
from tiny import ROOT, WIDTH, settings, tiny_model, tiny_tokenizer

from saeexplainer.config.parts import Architecture
from saeexplainer.errors import UserError
from saeexplainer.figures.comparison import summarise
from saeexplainer.library.champion import champion_version
from saeexplainer.records import ContextRow, EvaluationRow, FeatureRow
from saeexplainer.runs.storage import read_json, write_rows, write_tensors
from saeexplainer.serving import Reply, ServedExplainer, evaluation_of, write_served
from tasks import compare_rounds
from tasks.cli import main
from tasks.tracking import champion as tracking_champion, rebuild, registry, runs as tracking_runs, store

SETTINGS = settings()
NAME = "sae-explainer-sandbox"
INDICES = (0, 1, 2, 5, 7, 9, 11, 12)  # latents of the explained SAE that are live
VALUES = {"open_loop": 0.2, "sft": 0.2, "r1": 0.5, "r2": 0.6}  # generative accuracy, about


def rows(level, shift=0.0):
    """An evaluation whose accuracy is near `level` and rises with the explainer's confidence."""
    found = evaluated([level + shift + 0.01 * at for at in range(len(INDICES))], truth=0.5)
    return [
        replace(row, feature_id=f"sandbox/main/{index}", log_probability=-2.0 + 0.1 * at)
        for at, (row, index) in enumerate(zip(found, INDICES, strict=True))
    ]


def write_result(levels=None, **fields):
    """data/evaluations and reports/ of a result, `fields` set in r2's rows; the comparison."""
    tables = {name: rows(level) for name, level in (levels or VALUES).items()}
    tables["r2"] = [replace(row, **fields) for row in tables["r2"]]
    for name, table in tables.items():
        write_rows(Path(f"data/evaluations/{name}.parquet"), table, EvaluationRow)
    comparison = summarise(tables, 50, 0)
    Path("reports").mkdir(exist_ok=True)
    Path("reports/comparison.json").write_text(json.dumps(comparison))
    return comparison


def write_activations(seed=0):
    table = [FeatureRow(f"sandbox/main/{index}", "main", index, "test", 1.0, 0.01) for index in INDICES]
    table.insert(0, FeatureRow("sandbox/lender/3", "lender", 3, "sft", 1.0, 0.01))
    write_rows(Path("data/activations/features.parquet"), table, FeatureRow)
    contexts = [ContextRow(row.feature_id, 0, "the cat", ["the", " cat"], [0.0, 1.0], 1, []) for row in table]
    write_rows(Path("data/activations/contexts.parquet"), contexts, ContextRow)
    generator = torch.Generator().manual_seed(seed)
    names = ("decoder", "mean_activation")
    tensors = {name: torch.randn(len(table), WIDTH, generator=generator) for name in names}
    write_tensors(Path("data/activations/directions.safetensors"), tensors)
    return tensors


@pytest.fixture(scope="module")
def explainers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explainers")
    for name, seed in (("r1", 1), ("r2", 2)):
        tiny_model(Architecture.llama, seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return folder


def make_workspace(folder, explainers, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(explainers, folder / "data/explainers")
    shutil.copy(ROOT / "params.yaml", folder)
    return write_activations()


@pytest.fixture
def workspace(empty_store, explainers, tmp_path, monkeypatch):
    """A finished result of tiny explainers, logged, in an own store; the tensors of its features."""
    tensors = make_workspace(tmp_path, explainers, monkeypatch)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_store, store.STORE)
    return tensors


def record(levels=None, **fields):
    """Log and register a result as compare_rounds does; the lines of the registry. `fields` are of r2's rows."""
    comparison = write_result(levels, **fields)
    tracking_runs.log(SETTINGS, comparison)
    return registry.register(SETTINGS, comparison)


def champion():
    return champion_version(store.open_client(), NAME)


def test_each_round_is_a_version_and_the_best_one_the_champion(workspace):
    lines = record()
    assert lines[0] == f"registry: {NAME} version 1 (r1), version 2 (r2)"
    assert lines[1] == "registry: champion is now r2: r2 - sft: generative accuracy +40.0 points (+40.0 to +40.0)"
    # MLflow's own default would be a store in the working folder.
    assert {path.name for path in Path().iterdir()} == {"data", "mlruns", "params.yaml", "reports"}
    version = champion()
    run = store.open_client().get_run(version.run_id)
    assert (version.tags["round"], version.tags["generative_accuracy"]) == ("r2", "0.6350")
    assert run.data.tags["evaluation"] == "r2" and version.tags["pipeline_key"] == run.data.tags["pipeline_key"]
    assert version.tags["params_sha256"] == run.data.tags["params_sha256"]
    with tracking_champion.opened() as folder:
        assert evaluation_of(folder) == rows(VALUES["r2"])
        names = {path.name for path in folder.parents[1].rglob("*") if path.is_file()}
    assert {"MLmodel", "requirements.txt", "input_example.json", "model.safetensors"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".bin", ".pyc"))]


def test_the_same_result_registers_once(workspace):
    record()
    lines = record()
    assert lines == [f"registry: {NAME} version 1 (r1), version 2 (r2)"]
    comparison = read_json(Path("reports/comparison.json"))
    shutil.rmtree("data")
    assert registry.register(SETTINGS, comparison) == lines
    assert len(store.open_client().search_model_versions(f"name = '{NAME}'")) == 2


def test_a_later_result_has_to_beat_the_champion(workspace):
    record()
    worse = record(VALUES | {"r1": 0.4, "r2": 0.59})
    points = "r2 - champion version 2: generative accuracy -1.0 points (-1.0 to -1.0), not above 0"
    assert worse[1] == f"registry: champion version 2 stays: {points}"
    assert champion().version == 2
    better = record(VALUES | {"r1": 0.65, "r2": 0.7})
    assert better[1].startswith("registry: champion is now r2: r2 - champion version 2: generative accuracy +10.0")
    assert champion().version == 6 and "+10.0 points" in champion().tags["decision"]


def test_a_round_that_loses_what_is_guarded_is_passed_over(workspace):
    """r2 is ahead, but other features fire on all its texts; in the tables of the others on every second feature's."""
    lines = record(collision=1.0)
    assert "champion is now r1: r1 - sft: generative accuracy +30.0 points (+30.0 to +30.0); r2 - sft: " in lines[1]
    assert "but it loses collision rate +50.0 points (" in lines[1]
    assert champion().tags["round"] == "r1" and "collision rate" in champion().tags["decision"]
    assert "champion version 1 stays: r2 - champion" in record(VALUES | {"r1": 0.4, "r2": 0.9}, collision=1.0)[1]


def test_no_round_above_its_start_gives_no_champion(workspace):
    lines = record(VALUES | {"r1": 0.2, "r2": 0.1})
    assert (
        lines[1].startswith("registry: no champion yet: r1 - sft: generative accuracy +0.0 points")
        and champion() is None
    )
    with pytest.raises(UserError, match=r"sae-explainer-sandbox has no champion yet in sqlite:///mlruns/mlflow.db; "):
        tracking_champion.explain(["1"])


def test_another_sae_moves_the_champion_only_by_hand(workspace, capsys):
    record()
    write_activations(seed=1)  # the same ids name other features
    lines = record(VALUES | {"r1": 0.8, "r2": 0.9})
    assert "champion version 2 stays: it was measured on another subject, SAE, split, writer or probes" in lines[1]
    assert champion().version == 2
    assert registry.main(["promote", "--version", "4"]) == 0
    assert champion().version == 4 and "another subject" in capsys.readouterr().out
    assert registry.main(["promote", "--version", "9"]) == 2
    assert capsys.readouterr().err == f"error: models:/{NAME}/9: no such version in sqlite:///mlruns/mlflow.db\n"


def test_explanations_by_id_number_and_vector_agree(workspace):
    record()
    by_id, again = tracking_champion.explain(["sandbox/main/5", "5"])
    assert by_id == again and by_id.feature_id == "sandbox/main/5" and 0.6 <= by_id.expected_accuracy <= 0.67
    with tracking_champion.opened(f"models:/{NAME}/2") as folder:
        served = ServedExplainer(folder)
    assert served.shown_contexts == SETTINGS.explainer.prompt.shown_contexts > 0
    vector = workspace["mean_activation"][1 + INDICES.index(5)].tolist()
    assert served.explain_vector(vector, "- the <<cat>>") == replace(by_id, feature_id="")
    (raw,) = served.reply([{"mean_activation": vector}])
    assert raw == Reply(**vars(served.explain_vector(vector)), error=None), "without contexts it answers too"
    texts = [answer.explanation for answer in served.explain(list(INDICES))]
    assert len(set(texts)) > 1, "the vector decides"


def test_a_row_that_cannot_be_answered_says_why_and_the_others_are_answered(workspace):
    record()
    with tracking_champion.opened() as folder:
        served = ServedExplainer(folder)
    tensors = {name: tensor[1 + INDICES.index(5)].tolist() for name, tensor in workspace.items()}
    own = tensors["mean_activation"]
    wrong = {
        "row: gives nothing; give feature_id, or index, or mean_activation": {},
        "row: gives feature_id and index; give": {"feature_id": "5", "index": 5},
        "feature 6: sandbox/main does not explain it, it fires too rarely or too often; the nearest is 5": {"index": 6},
        "decoder: this explainer reads mean_activation; give that": {"decoder": tensors["decoder"]},
        "row: gives decoder and mean_activation; give feature_id": {"decoder": own, "mean_activation": own},
        "mean_activation: is the decoder vector of sandbox/main/5; this explainer reads its mean_activation vector": {
            "mean_activation": [3 * value for value in tensors["decoder"]]
        },
        f"mean_activation: must be a list of {WIDTH} numbers": {"mean_activation": own[1:]},
        "mean_activation: must be a list": {"mean_activation": "1, 2"},
        "mean_activation: must be finite numbers of 32 bits, not all of them 0": {"mean_activation": [0] * WIDTH},
        "mean_activation: must be finite": {"mean_activation": [1e300] + own[1:]},
    }
    whole_numbers = [round(1000 * value) for value in own]
    right = [{"index": 5.0}, {"mean_activation": whole_numbers}]
    replies = served.reply([right[0], *wrong.values(), right[1]])
    for reply, said in zip(replies[1:-1], wrong, strict=True):
        assert (reply.feature_id, reply.explanation, reply.expected_accuracy) == (None, None, None)
        assert reply.error.startswith(said)
    assert [reply.error for reply in (replies[0], replies[-1])] == [None, None]
    assert replies[0].explanation == served.explain(["5"])[0].explanation
    assert replies[-1].explanation == served.explain_vector(own).explanation


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("12345", "feature 12345: out of range; sandbox/main has features 0 to 12"),
        ("-1", "feature -1: out of range; sandbox/main has features 0 to 12"),
        ("6", "feature 6: sandbox/main does not explain it, .* the nearest is 5"),
        ("sandbox/lender/3", "feature 'sandbox/lender/3': this explainer knows sandbox/main/0 to sandbox/main/12"),
        ("dog", "feature 'dog': this explainer knows"),
    ],
)
def test_an_unknown_feature_names_the_known_ones(served, asked, said):
    with pytest.raises(UserError, match=said):
        served.explain([0, asked])


@pytest.fixture(scope="module")
def served(explainers, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    features = [FeatureRow(f"sandbox/main/{index}", "main", index, "test", 1.0, 0.01) for index in INDICES]
    tensors = {"mean_activation": torch.ones(len(features), WIDTH)}
    write_served(
        folder, explainers / "r1", features, tensors, SETTINGS.explainer, SETTINGS.generate_explanations, rows(0.5)
    )
    return ServedExplainer(folder)


def test_a_champion_without_its_artifacts_says_what_to_do(workspace):
    record()
    with tracking_champion.opened() as folder:
        shutil.rmtree(folder.parents[1])
    with pytest.raises(UserError, match=f"{NAME} version 2: its artifacts are gone from .*; promote another"):
        tracking_champion.explain(["1"])
    lines = record(VALUES | {"r2": 0.9})
    assert "champion version 2 stays: sae-explainer-sandbox version 2: its artifacts are gone" in lines[1]
    assert registry.main(["promote", "--version", "1"]) == 0
    assert tracking_champion.explain(["1"])


def test_a_workspace_of_any_name_has_a_champion_and_has_it_still_when_it_was_moved(
    empty_store, explainers, tmp_path, monkeypatch
):
    folder = tmp_path / "my projekt é #1, 100%"
    folder.mkdir()
    make_workspace(folder, explainers, monkeypatch)
    Path("mlruns").mkdir()
    shutil.copy(empty_store, store.STORE)
    settings = replace(SETTINGS, compare_rounds=replace(SETTINGS.compare_rounds, experiment="mein Versuch.2 ü"))
    text = (ROOT / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("experiment: sandbox\n", "experiment: mein Versuch.2 ü\n"))
    comparison = write_result()
    tracking_runs.log(settings, comparison)
    assert "champion is now r2" in registry.register(settings, comparison)[1]
    asked = tracking_champion.explain(["5", "7"])
    assert registry.main(["promote", "--version", "2"]) == 0
    moved = folder.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    second = "models:/sae-explainer-mein Versuch.2 ü/2"
    assert tracking_champion.explain(["5", "7"]) == asked == tracking_champion.explain(["5", "7"], second)
    assert not folder.exists()
    found = store.open_client().get_model_version("sae-explainer-mein Versuch.2 ü", "2")
    assert store.local_path(found.source).is_relative_to(moved), "MLflow's own commands find it too"


def test_without_data_the_registry_says_so_and_nothing_fails(workspace, capsys):
    write_result()
    shutil.rmtree("data/explainers")
    assert rebuild.main(["rebuild"]) == 0
    assert "registry: nothing registered (data/explainers/r1: no explainer here" in capsys.readouterr().out
    shutil.rmtree("data")
    assert rebuild.main(["rebuild"]) == 0
    assert "registry: nothing registered (data/evaluations/r1.parquet: no such table" in capsys.readouterr().out


def test_data_of_another_result_is_not_registered(workspace):
    comparison = write_result()
    write_rows(Path("data/evaluations/r2.parquet"), rows(0.9), EvaluationRow)
    tracking_runs.log(SETTINGS, comparison)
    assert "data/evaluations/r2.parquet: is of another result" in registry.register(SETTINGS, comparison)[0]


def test_an_interruption_before_the_decision_is_made_up_for(workspace, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_decide", None)
        with pytest.raises(TypeError):
            record()
    assert champion() is None
    assert record()[1].startswith("registry: champion is now r2")
    assert len(store.open_client().search_model_versions(f"name = '{NAME}'")) == 2


def test_what_a_clone_is_told_when_it_has_no_store_makes_one(workspace):
    """As after `dvc pull`: results and data are there, `dvc repro` has nothing to do, and nothing was logged here."""
    write_result()
    shutil.rmtree("mlruns")
    for there in (False, True):  # then as `make ui` leaves it: a database without a run
        if there:
            store.open_client().search_experiments()
        with pytest.raises(UserError) as failed:
            tracking_champion.explain(["5"])
        cure = re.search(r"run `sae-explainer (.+?)` to", str(failed.value))[1]
    assert cure == "tracking rebuild" and main.main(cure.split()) == 0
    assert tracking_champion.explain(["5"])[0].explanation
    shutil.rmtree("mlruns")
    shutil.rmtree("data")
    with pytest.raises(UserError, match="run `dvc repro`, or `dvc pull` and `sae-explainer tracking rebuild`, to"):
        tracking_champion.explain(["5"])


def test_no_store_and_a_dead_server_are_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="mlruns/mlflow.db: no MLflow store here"):
        tracking_champion.explain(["1"])
    assert not Path("mlruns").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(UserError, match=r"MLflow at http://127.0.0.1:\d+ does not answer") as failed:
        tracking_champion.explain(["1"])
    assert "secret" not in str(failed.value)
    with pytest.raises(UserError, match="model 'champ': give champion, models:/NAME@ALIAS or models:/NAME/VERSION"):
        tracking_champion.explain(["1"], "champ")


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE alembic_version SET version_num = '451aebb31d03'", "from an older MLflow; copy the file, then run `"),
        ("UPDATE alembic_version SET version_num = 'ffffffffffff'", "from a newer MLflow"),
        (None, "not a database"),
    ],
)
def test_a_store_of_another_version_is_left_alone(workspace, capsys, statement, said):
    write_result()
    if statement is None:
        store.STORE.write_bytes(b"not a database, but long enough to be taken for one" * 30)
    else:
        connection = sqlite3.connect(store.STORE)
        connection.execute(statement)
        connection.execute("DROP TABLE registered_model_aliases")  # MLflow would take this for a new file
        connection.commit()
        connection.close()
    before = store.STORE.read_bytes()
    for command in (rebuild.main, registry.main):
        assert command(["rebuild" if command is rebuild.main else "register"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: mlruns/mlflow.db: ") and said in error and error.count("\n") == 1
    with pytest.raises(UserError, match=said):
        tracking_champion.explain(["1"])
    lines = compare_rounds._tracked(SETTINGS, read_json(Path("reports/comparison.json")))
    assert lines[0].startswith("warning: MLflow at sqlite:///mlruns/mlflow.db did not take the result (mlruns/mlflow.")
    assert store.STORE.read_bytes() == before


# A real server, a real process elsewhere, a real HTTP request.


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Served:
    """A command that serves HTTP on loopback, in a process group of its own."""

    def __init__(self, folder, *command, port, health, environment):
        self.address, self.log = f"http://127.0.0.1:{port}", folder / f"{port}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 300
        while not self._answers(health):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def _answers(self, health):
        try:
            return urllib.request.urlopen(self.address + health, timeout=5).status == 200
        except OSError:
            return False

    def stop(self):
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def environment():
    """What a process elsewhere gets: this interpreter's tools, no path to the repository."""
    own = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}
    return kept | own | quiet | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven helpers that nothing here needs


LOADED = """
import json, sys
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
given = pandas.DataFrame({"feature_id": ["5", "sandbox/main/7"]})
numbers = pandas.DataFrame({"index": [5, 7]})
vectors = pandas.DataFrame({"mean_activation": json.loads(sys.argv[2])})
answers = [model.predict(table).to_dict("records") for table in (given, numbers, vectors)]
import saeexplainer
print(json.dumps([saeexplainer.__file__, answers]))
"""


def test_a_real_server_keeps_the_runs_and_its_champion_answers(
    empty_store, explainers, tmp_path_factory, tmp_path, monkeypatch, environment, capsys
):
    home, elsewhere = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("elsewhere")
    shutil.copy(empty_store, home / "own.db")
    tensors = make_workspace(tmp_path, explainers, monkeypatch)
    vectors = [tensors["mean_activation"][1 + INDICES.index(index)].tolist() for index in (5, 7)]
    where = ("--backend-store-uri", f"sqlite:///{home / 'own.db'}", "--artifacts-destination", str(home / "artifacts"))
    port = free_port()
    command = (sys.executable, "-m", "mlflow", "server", "--workers", "1", *where, "--port", str(port))
    server = Served(home, *command, port=port, health="/health", environment=environment)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        comparison = write_result()
        lines = compare_rounds._tracked(SETTINGS, comparison)
        assert [line.split(" ")[0] for line in lines] == ["MLflow:", "MLflow:", "registry:", "registry:"], lines
        assert capsys.readouterr().out == "", "MLflow's own lines have addresses that do not open the runs"
        check_pages(server.address, lines[0], lines[1])
        check_runs(server.address, comparison)
        asked = tracking_champion.explain(["5", "7"])
        assert [answer.feature_id for answer in asked] == ["sandbox/main/5", "sandbox/main/7"]
        assert not Path("mlruns").exists()
        wanted = [[vars(answer) for answer in found] for found in (asked, bare(vectors))]
        there = environment | {"MLFLOW_TRACKING_URI": server.address}
        check_loaded(elsewhere, there, wanted, vectors)
    finally:
        server.stop()


def check_pages(address, logged, shown):
    """The addresses that are printed, by experiment, by run, and before there is an experiment."""
    run, page = re.search(r"run (\w{32}) in ", logged)[1], store.runs_page(address)
    assert re.fullmatch(rf"{address}/#/experiments/\d+/runs\?workflowType=machine_learning", page)
    assert shown == f"MLflow: {page.replace('/runs?', f'/runs/{run}?')}"
    kept = Path("params.yaml").rename("kept.yaml")
    assert store.runs_page(address) == f"{address}/#/experiments?workflowType=machine_learning"
    kept.rename("params.yaml")


def check_runs(address, comparison):
    """Parent, children, metrics and datasets, asked of the server by a client that knows its address alone."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=address)
    runs = client.search_runs([client.get_experiment_by_name("sandbox").experiment_id])
    (parent,) = [run for run in runs if run.data.tags["level"] == "pipeline"]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert set(children) == set(comparison["rounds"])
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    for name, metrics in comparison["rounds"].items():
        assert children[name].data.metrics["generative_accuracy"] == metrics["generative_accuracy"]["value"]
    history = client.get_metric_history(parent.info.run_id, "hallucination_rate")
    assert [point.step for point in sorted(history, key=lambda point: point.step)] == [0, 1, 2]
    assert "explanations.json" in {file.path for file in client.list_artifacts(parent.info.run_id)}


def bare(vectors):
    """What the champion says of vectors that come without contexts."""
    with tracking_champion.opened() as folder:
        served = ServedExplainer(folder)
        return [served.explain_vector(vector) for vector in vectors]


def check_loaded(folder, environment, wanted, vectors):
    process = subprocess.run(
        [sys.executable, "-c", LOADED, f"models:/{NAME}@champion", json.dumps(vectors)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    library, found = json.loads(process.stdout.splitlines()[-1])
    answered, nameless = ([answer | {"error": None} for answer in answers] for answers in wanted)
    assert found == [answered, answered, nameless]
    assert not Path(library).is_relative_to(ROOT), "the code that was stored with the version answers"


def test_what_the_docs_say_about_serving_works_as_it_stands(workspace, tmp_path, environment):
    record()
    said = (ROOT / "docs/MLFLOW.md").read_text().partition("\n## Serve\n")[2].partition("\n## ")[0]
    blocks, port = re.findall(r"^```(\w*)\n(.*?)^```$", said, re.MULTILINE | re.DOTALL), free_port()
    assert [language for language, _ in blocks] == ["", "", "json", "python"]
    serve, ask, _, script = (text.replace("5002", str(port)) for _, text in blocks)
    here = environment | {"PYTHONPATH": str(ROOT)}
    server = Served(tmp_path, "bash", "-ec", serve, port=port, health="/ping", environment=here)
    try:
        told = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", ask], cwd=tmp_path, env=here, capture_output=True, text=True, check=True
        )
        first, other = json.loads(told.stdout)["predictions"]
        assert first["feature_id"] == "sandbox/main/0" and first["explanation"] and first["error"] is None
        assert other["explanation"] is None and other["error"].startswith("feature 'no/such/feature': this explainer")
        vector = [round(100 * value) for value in workspace["mean_activation"][1].tolist()]
        replies = answers(server, [{"index": 0}, {"mean_activation": vector}, {"index": 12345}, {"decoder": [1.0]}])
        said = [first["explanation"], bare([vector])[0].explanation, None, None]
        assert [reply["explanation"] for reply in replies] == said
        assert "feature 12345: out of range; sandbox/main has features 0 to 12" in replies[2]["error"]
        assert replies[3]["error"].startswith("decoder: this explainer reads mean_activation")
        with pytest.raises(urllib.error.HTTPError) as failed:
            answers(server, [{"feature": "5"}])
        assert "give feature_id, index, or mean_activation" in failed.value.read().decode()
    finally:
        server.stop()
    exported = here | {"MLFLOW_TRACKING_URI": "sqlite:///mlruns/mlflow.db"}
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=exported, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    by_feature, by_vector = process.stdout.splitlines()
    assert by_feature.startswith(f"['{first['explanation']}', '")
    assert by_vector == str([answer.explanation for answer in bare(workspace["mean_activation"][1:3].tolist())])


def answers(server, records):
    """What the server says to `curl -d '{"dataframe_records": [...]}'`."""
    body = json.dumps({"dataframe_records": records}).encode()
    request = urllib.request.Request(f"{server.address}/invocations", body, {"Content-Type": "application/json"})
    return json.loads(urllib.request.urlopen(request, timeout=120).read())["predictions"]
