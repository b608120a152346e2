"""The command line as a user types it: answers, and one line for every mistake."""

import fcntl
import json
import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timed
import torch
import yaml
from omegaconf import OmegaConf
from rows import evaluated
from served import serving
from tiny import ROOT, WIDTH, random_sae, tiny_model, tiny_tokenizer
from typed import Typed, typed as in_a_process

from saeexplainer.config.parts import Architecture
from saeexplainer.costs.bills import Costs, EvaluationCosts, Work
from saeexplainer.records import ContextRow, EvaluationRow, ExplanationRow, FeatureRow, NeighbourRow, PromotedRow
from saeexplainer.runs.storage import write_json, write_rows, write_tensors
from tasks.settings import compose, params
from tasks.tracking import store
from tasks.workspace import doctor
from tasks.workspace.doctor import Finding

LATENTS = (0, 5, 63)  # live ones, of 64
MEASURING = Work(calls=6, prompt_tokens=36, written_tokens=24, read_tokens=10)
SPENT = Costs({}, {"sft": EvaluationCosts(explanations=3, calls=3, call_tokens=24, measuring=MEASURING)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nano parameters, a subject, an SAE, two explainers and the tables, all real and untrained."""
    folder = tmp_path_factory.mktemp("workspace")
    assert compose.main(["experiment=nano", "--output", str(folder / "params.yaml")]) == 0
    for at, name in enumerate(("data/subject", "data/explainers/sft", "data/explainers/r1")):
        tiny_model(Architecture.llama, seed=at).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    random_sae(folder / "data/saes/main")
    ids = [f"sandbox-llama/main/{index}" for index in LATENTS]
    rows = [
        FeatureRow(name, "main", index, split, maximum, density)
        for name, index, split, maximum, density in zip(
            ids, LATENTS, ("sft", "test", "test"), (3.0, 1.0, 2.0), (0.25, 0.5, 0.0125), strict=True
        )
    ]
    write_rows(folder / "data/activations/features.parquet", rows, FeatureRow)
    near = [NeighbourRow(ids[0], LATENTS[1], 0.5, 0.1)]
    write_rows(folder / "data/activations/neighbours.parquet", near, NeighbourRow)
    context = ContextRow(ids[1], 0, "the dog runs", ["the", "dog", "runs"], [0.0, 1.0, 0.0], 1, [])
    write_rows(folder / "data/activations/contexts.parquet", [context], ContextRow)
    write_rows(folder / "data/activations/promoted.parquet", [PromotedRow(ids[0], ["ambles", "off"])], PromotedRow)
    write_rows(folder / "data/labels.parquet", [ExplanationRow(ids[0], "sft", "a question")], ExplanationRow)
    measured = replace(evaluated([0.0])[0], feature_id=ids[1], explanation="The Word dog")
    write_rows(folder / "data/evaluations/r1.parquet", [measured], EvaluationRow)
    directions = torch.randn(len(rows), WIDTH, generator=torch.Generator().manual_seed(0))
    write_tensors(folder / "data/activations/directions.safetensors", {"mean_activation": directions})
    return folder


def typed(folder: Path, *arguments: str) -> Typed:
    return in_a_process(folder, "cli.main", *arguments)


def answered(folder: Path, *arguments: str) -> list[dict]:
    process = typed(folder, *arguments, "--json")
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_explains_by_index_and_by_id_in_the_order_asked(folder: Path) -> None:
    both = ("--feature", "63", "--feature", "sandbox-llama/main/0")
    first, second = answered(folder, "explain", *both, "--explainer", "r1")
    assert [first["feature_id"], second["feature_id"]] == ["sandbox-llama/main/63", "sandbox-llama/main/0"]
    assert first["explanation"] != second["explanation"]  # each read its own direction
    assert 0 <= first["expected_accuracy"] <= 1  # not a reward, which goes to 1.3
    again = answered(folder, "explain", "--feature", "0", "--explainer", "data/explainers/r1")
    assert again[0]["explanation"] == second["explanation"]
    (other,) = answered(folder, "explain", "--feature", "0", "--explainer", "sft")
    assert other["explanation"] != second["explanation"]
    lines = typed(folder, "explain", "--feature", "0", "--explainer", "r1").stdout.splitlines()
    assert lines[0] == f"sandbox-llama/main/0: {second['explanation']}"
    assert lines[1].startswith("    expected accuracy ") and lines[1].endswith(", by r1")


def test_holds_back_what_is_not_worth_enough(folder: Path) -> None:
    asked = ("explain", "--feature", "63", "--feature", "0", "--explainer", "r1", "--json")
    everything = json.loads(typed(folder, *asked).stdout)
    least = math.nextafter(min(row["expected_accuracy"] for row in everything), math.inf)  # above the worst, by a hair
    worth_it = [row for row in everything if row["expected_accuracy"] >= least]
    process = typed(folder, *asked, "--min-expected", repr(least))
    assert process.returncode == 0 and json.loads(process.stdout) == worth_it
    last = process.stderr.splitlines()[-1]
    assert last == f"{2 - len(worth_it)} of 2 held back: expected accuracy below {least:g}"


def test_what_an_explanation_is_worth_is_unknown_where_every_call_for_its_texts_failed(folder: Path) -> None:
    """A served writer that never answers in JSON."""
    before, own = (folder / "params.yaml").read_bytes(), "evaluate.writer.endpoint"
    with serving() as start:
        server = start(*["no"] * 40)
        said = [f"base_url=http://127.0.0.1:{server.server_port}/v1", "max_failed_share=1.0", "structured=null"]
        settings = ["experiment=nano", "writer=endpoint", *(f"{own}.{one}" for one in said)]
        try:
            assert compose.main([*settings, "--output", str(folder / "params.yaml")]) == 0
            asked = ("explain", "--feature", "63", "--explainer", "r1")
            (answer,) = answered(folder, *asked)
            assert answer["explanation"] and answer["expected_accuracy"] is None
            lines = typed(folder, *asked).stdout.splitlines()
            assert lines[1] == "    expected accuracy unknown, because every call for its texts failed, by r1"
            held_back = typed(folder, *asked, "--min-expected", "0.1")
        finally:
            (folder / "params.yaml").write_bytes(before)
    assert held_back.stdout == "" and "1 of 1 held back" in held_back.stderr


def test_says_what_was_spent(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "params.yaml", tmp_path)
    nothing = typed(tmp_path, "costs")
    assert nothing.returncode == 2 and "reports/costs.json: no such file; run `dvc repro`" in nothing.stderr
    write_json(tmp_path / "reports/costs.json", SPENT)
    untimed = [line.split() for line in typed(tmp_path, "costs").stdout.splitlines()]
    assert untimed[1:4] == [
        ["evaluate@sft", "-", "9", "84", "-"],
        ["all", "of", "these", "-", "9", "84", "-"],
        ["sft:", "an", "explanation", "-", "1", "8", "-"],
    ], "what generated has its calls, timed or not"
    seconds = {"evaluate@sft": 6.0, "evaluate@r9": 5.0, "prepare_subject": 30.0}
    timed.keep(tmp_path, seconds)
    bill = json.loads(typed(tmp_path, "costs", "--json").stdout)
    assert list(bill["stages"]) == ["prepare_subject", "evaluate@sft"], "pipeline order, none that params.yaml lacks"
    assert bill["stages"]["evaluate@sft"]["calls"] == 3 + 6
    assert bill["total"]["seconds"] == 36.0 and bill["explanations"]["sft"]["seconds"] == 2.0
    write_json(tmp_path / "reports/costs.json", {"rounds": []})
    assert "reports/costs.json: not the costs of rounds and evaluations" in typed(tmp_path, "costs").stderr
    write_json(tmp_path / ".cache/timings.json", {"evaluate@sft": "six"})
    assert typed(tmp_path, "costs").stderr.startswith("error: .cache/timings.json: not seconds by stage and version; ")


def test_lists_what_is_known_of_each_feature(folder: Path) -> None:
    rows = answered(folder, "features")
    assert [row["index"] for row in rows] == list(LATENTS)
    assert rows[1]["top_tokens"] == ["dog"] and rows[1]["explanations"] == {"r1": "The Word dog"}
    assert rows[0]["explanations"] == {"label": "a question"}
    assert rows[0]["promoted"] == ["ambles", "off"] and not rows[1]["promoted"]
    assert [row["index"] for row in answered(folder, "features", "--sort", "density")] == [5, 0, 63]
    assert [row["index"] for row in answered(folder, "features", "--sort", "maximum", "--limit", "1")] == [0]
    assert [row["index"] for row in answered(folder, "features", "--split", "test")] == [5, 63]
    for text in ("word DOG", "dog", "main/5"):
        assert [row["index"] for row in answered(folder, "features", "--search", text)] == [5]
    assert [row["index"] for row in answered(folder, "features", "--search", "ambles")] == [0]
    shown = typed(folder, "features", "--limit", "1").stdout
    assert "    promotes   ambles off\n" in shown
    assert "sandbox-llama/main/0" in shown and "label      a question" in shown and "1 of 3 features" in shown


def test_composes_as_the_module_does(folder: Path, tmp_path: Path) -> None:
    overrides = ["experiment=nano", "rounds=two", "seed=3", "~rounds.r2", "~evaluations.r2"]
    process = typed(folder, "compose", *overrides, "--output", str(tmp_path / "p.yaml"))
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "p.yaml").read_text() == compose.composed(overrides)


def test_names_the_report(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/report.html").write_text("<html>")
    assert typed(tmp_path, "report").stdout == f"{(tmp_path / 'reports/report.html').resolve()}\n"


WRONG = {
    "a feature out of range": ("explain --feature 64 --explainer r1", "the SAE main has features 0 to 63"),
    "a dead feature": ("explain --feature 7 --explainer r1", "feature 7: not live"),
    "a negative index": ("explain --feature -1 --explainer r1", "no such id; give an index of the SAE main, 0 to 63"),
    "an unknown id": ("explain --feature a/b/1 --explainer r1", "feature a/b/1: no such id; "),
    "an unknown explainer": ("explain --feature 0 --explainer r7", "'r7': unknown; choose champion, r1, sft, or"),
    "no feature": ("explain", "Missing option '--feature'"),
    "an unknown sort": ("features --sort size", "--sort size: unknown; choose from index, density, maximum"),
    "an unknown SAE": ("features --sae lender9", "--sae lender9: unknown; choose from main, lender1"),
    "an unknown split": ("features --split tset", "--split tset: unknown; choose from sft, dpo, valid, test"),
    "a negative expectation": ("explain --feature 0 --min-expected -1", "Invalid value for '--min-expected'"),
    "no number": ("features --limit many", "Invalid value for '--limit'"),
    "an unknown option": ("features --srot index", "--srot"),
    "an unknown command": ("explian", "No such command 'explian'"),
    "no report": ("report", "reports/report.html: not there yet; run `dvc repro` to make it"),
    "an override that does not compose": ("compose train_sft.epoch=1", "did you mean train_sft.epochs?"),
}  # fmt: skip


@pytest.mark.parametrize(("command", "said"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_line_and_status_2(folder: Path, command: str, said: str) -> None:
    before = (folder / "params.yaml").read_bytes()
    process = typed(folder, *command.split())
    assert process.returncode == 2 and process.stdout == ""
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1 and said in process.stderr
    assert (folder / "params.yaml").read_bytes() == before


@pytest.mark.parametrize("command", ["explain --feature 0 --explainer r1", "features"])
def test_without_data_it_says_what_makes_it(tmp_path: Path, command: str) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    process = typed(tmp_path, *command.split())
    assert process.returncode == 2 and process.stderr.count("\n") == 1 and "`dvc repro`" in process.stderr


def test_help_names_every_command_and_loads_nothing_heavy(folder: Path) -> None:
    shown = typed(folder).stdout
    assert [line.split()[0] for line in shown.split("Commands:\n")[1].splitlines()] == [
        "explain", "features", "import", "export", "compose", "rounds", "attribute", "report", "costs", "plan",
        "data-docs", "promote", "readme", "study", "search", "doctor", "tracking",
    ]  # fmt: skip
    heavy = ["torch", "transformers", "mlflow", "prefect", "pyarrow", "hydra", "dvc", "pandas"]
    code = f"import sys; from tasks.cli import main; main.main([]); print(set({heavy}) & set(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "set()"


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder to be in, with the nano parameters."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(folder / "params.yaml", tmp_path)
    return tmp_path


def test_doctor_reads_the_settings(here: Path) -> None:
    assert doctor._settings() == Finding("ok", "params.yaml: nano as conf/ composes it")
    settings = yaml.safe_load((here / "params.yaml").read_text())
    (here / "params.yaml").write_text(yaml.safe_dump(settings | {"seed": 7}))
    assert doctor._settings().line.startswith("warn  params.yaml: nano, but for seed 7; meant, if")
    (here / "params.yaml").write_text(yaml.safe_dump(settings | {"sede": 7}))
    assert doctor._settings().level == "fail" and "did you mean seed?" in doctor._settings().what


def test_doctor_names_calls_without_a_limit_and_models_beside_an_idle_gpu(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert list(doctor._models()) == []  # nothing is served, and no model is pretrained
    limited = ["evaluate.writer.endpoint.max_cost=5", "evaluate.writer.endpoint.million_prompt_tokens=1"]
    local = ["explainer=lora", "explainer.pretrained.source=folder"]
    config = OmegaConf.create(compose.composed(["writer=endpoint", *limited, *local]))
    Path("params.yaml").write_text(params.text(config, "test"), encoding="utf-8")
    found = list(doctor._models())
    assert [finding.level for finding in found] == ["warn", "warn"]
    assert [finding.what for finding in found] == [
        "paid calls: no limit at score_explanations.writer.endpoint",
        "GPU: with device_map null explainer.pretrained reads and writes on the CPU",
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert len(list(doctor._models())) == 1
    Path("params.yaml").write_text("seed: no")
    assert list(doctor._models()) == []  # `_settings` says it


def test_doctor_fails_on_a_version_outside_of_the_projects_own_range(here: Path) -> None:
    assert doctor._versions().line.startswith("fail  packages: no ranges in pyproject.toml; run this in")
    version = doctor.metadata.version("numpy")
    for dependency, level in (("numpy<1000", "ok"), ("numpy<0.2", "fail"), ("no-such-package<1", "ok")):
        (here / "pyproject.toml").write_text(f"[project]\ndependencies = ['{dependency}']")
        assert doctor._versions().level == level
    (here / "pyproject.toml").write_text("[project]\ndependencies = ['numpy<0.2']")
    assert doctor._versions().line == (
        f"fail  packages: numpy {version} (needs <0.2); pyproject.toml says why; run `make setup`"
    )


def test_doctor_tells_who_holds_dvcs_locks_from_who_left_them(here: Path) -> None:
    (here / ".dvc/tmp").mkdir(parents=True)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    entries = [{"pid": gone.pid, "cmd": "/bin/dvc repro"}, {"pid": os.getpid(), "cmd": "/bin/dvc exp run"}]
    (here / ".dvc/tmp/rwlock").write_text(json.dumps({"read": {"/a": entries[:1]}, "write": {}}))
    assert [f.line.partition(";")[0] for f in doctor._locks()] == [
        f"warn  DVC: files were held by process {gone.pid} (dvc repro), which is gone"
    ]
    (here / ".dvc/tmp/rwlock").write_text(json.dumps({"read": {}, "write": {"/a": entries[1]}}))
    assert [f.what for f in doctor._locks()] == [f"DVC: files are held by process {os.getpid()} (dvc exp run)"]
    (here / ".dvc/tmp/rwlock").write_text('{"read": {}, "wri')
    (torn,) = doctor._locks()
    assert torn.line.startswith("warn  DVC: a kill tore .dvc/tmp/rwlock, on which `dvc repro` fails; the next ")
    (here / ".dvc/tmp/rwlock").unlink()
    (here / ".dvc/tmp/lock").write_text(f" {os.getpid()}")
    assert [f.level for f in doctor._locks()] == ["ok"]
    with (here / ".dvc/tmp/lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert next(doctor._locks()).what == f"DVC: at work here (process {os.getpid()})"


def test_doctor_knows_a_store_of_another_mlflow(here: Path) -> None:
    (here / "mlruns").mkdir()
    known = store.schema_versions()
    for version, level, said in (
        (known[0], "ok", "has this version's schema"),
        (known[3], "fail", "from an older MLflow; copy the file, then run `mlflow db upgrade"),
        ("feedfacecafe", "fail", "from a newer MLflow"),
    ):
        with sqlite3.connect("mlruns/mlflow.db") as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS alembic_version (version_num TEXT)")
            connection.execute("DELETE FROM alembic_version")
            connection.execute("INSERT INTO alembic_version VALUES (?)", (version,))
        connection.close()
        assert doctor._store().level == level and said in doctor._store().line
    Path("mlruns/mlflow.db").write_text("no database at all, only text that is long enough to be looked at")
    assert doctor._store().level == "fail"


def test_doctor_sees_a_taken_port(here: Path) -> None:
    free = (1, 2)  # where nothing listens
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        (here / "conf").mkdir()
        (here / "conf/control.yaml").write_text(f"ui: {{prefect: {port}, mlflow: {free[0]}, reports: {free[1]}}}")
        assert [f.level for f in doctor._ports()] == ["warn", "ok", "ok"]
    assert [f.what for f in doctor._ports()][:2] == [
        f"port {port}: free for Prefect",
        f"port {free[0]}: free for MLflow",
    ]
    (here / "conf/control.yaml").write_text("ui: [4200]")
    assert [f.line for f in doctor._ports()] == [
        "fail  conf/control.yaml: has no ports under `ui`; write them as the repository's file has them"
    ]


def test_doctor_asks_a_prefect_server_only_where_one_is_meant(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "conf").mkdir()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{server.getsockname()[1]}/api"
        ports = f"ui: {{prefect: {server.getsockname()[1]}, mlflow: 1, reports: 2}}"
        (here / "conf/control.yaml").write_text(ports)
        monkeypatch.delenv("PREFECT_API_URL", raising=False)
        assert doctor._schedules().line == "ok    Prefect: no server runs here"
        monkeypatch.setenv("PREFECT_API_URL", url)
        assert doctor._schedules().line == (
            f"fail  Prefect: no server answers at {url}, which PREFECT_API_URL names; start `make ui`, or correct or "
            "unset the variable"
        )


def test_doctor_fails_where_there_is_no_workspace(here: Path) -> None:
    process = typed(here, "doctor")
    assert process.returncode == 1
    lines = process.stdout.splitlines()
    assert all(line.split()[0] in ("ok", "warn", "fail") for line in lines)
    assert "fail  DVC: no workspace here; run this in the repository's root" in lines
