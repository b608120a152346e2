"""SAEs of every architecture through the pipeline at nano size: trained, read, steered, labelled, and their features
explained. What comes after the labels knows nothing of the architecture, so rounds are trained on one of each kind that
sae-lens keeps."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from copies import copied, run
from tiny import ROOT

from saeexplainer.config import Params, Reinforcement
from saeexplainer.records import EvaluationRow, FeatureRow, PreferencePair
from saeexplainer.runs.storage import read_json, read_rows
from tasks import (
    build_preferences,
    compare_rounds,
    evaluate,
    extract_activations,
    generate_explanations,
    label_features,
    prepare_sae,
    probe_features,
    score_explanations,
    train_dpo,
    train_grpo,
    train_sft,
    validate_preferences,
    warm_up,
)
from tasks.settings import params as settings_params

ARCHITECTURES = sorted(path.stem for path in (ROOT / "conf/sae").glob("*.yaml") if "topk_" not in path.stem)
NANO = ["size=nano", "rounds=one", "extract_activations.max_density=1.0"]
SMALL = {  # what 64 latents allow
    "meta": ["prepare_sae.architecture.meta_k=2"],
    "topk32": ["prepare_sae.architecture.k=8"],
}
READ = [prepare_sae, extract_activations, probe_features, label_features]
ROUND = [generate_explanations, score_explanations, build_preferences, validate_preferences, train_dpo]
TRAINED = ("batchtopk",)  # a gated one is in the default, and so in every run of nano


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One subject for all."""
    folder = copied(tmp_path_factory.mktemp("variants"))
    run(folder, sys.executable, "-m", "tasks.settings.compose", *NANO)
    run(folder, sys.executable, "-m", "tasks.prepare_subject")
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_architecture_goes_through_the_loop(
    workspace: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage after stage in this process, because each by itself would first import for seconds."""
    asked = [*NANO, f"sae={architecture}", *SMALL.get(architecture, [])]
    run(workspace, sys.executable, "-m", "tasks.settings.compose", *asked)
    monkeypatch.chdir(workspace)
    params = settings_params.load()
    chosen = yaml.safe_load((ROOT / f"conf/sae/{architecture}.yaml").read_text(encoding="utf-8"))
    assert params.prepare_sae.architecture.kind == chosen["prepare_sae"]["architecture"]["kind"]
    for stage in READ:
        torch.set_grad_enabled(True)  # each stage may switch it off for its own process
        stage.run(params)
    report = read_json(Path("reports/sae.json"))
    assert set(report) == {"main", "lender1"} and 0 < report["main"]["fraction_variance_unexplained"] < 1
    assert 0 < report["main"]["coverage"] < 1 and 0 < report["main"]["stability"] <= 1
    features = read_rows(Path("data/activations/features.parquet"), FeatureRow)
    assert {row.sae for row in features} == {"main", "lender1"}
    evaluate.run(params, "open_loop")
    if architecture in TRAINED:
        torch.set_grad_enabled(True)
        warm_up.run(params)
        train_sft.run(params)
        for stage in ROUND:
            torch.set_grad_enabled(True)
            stage.run(params, "r1")
        assert read_rows(Path("data/rounds/r1/validated.parquet"), PreferencePair)
        evaluate.run(params, "r1")
    if architecture == TRAINED[0]:
        without_rounds(params)
    rows = read_rows(Path("data/evaluations/open_loop.parquet"), EvaluationRow)
    assert len(rows) == params.extract_activations.test_features and all(row.texts for row in rows if row.explanation)


def without_rounds(params: Params) -> None:
    """A run may have reinforcements alone: these are then what SFT and the labels are compared with."""
    asked = replace(
        params,
        rounds={},
        reinforcements={"g1": Reinforcement("sft", 1.0, 0.04, 1e-4)},
        train_grpo=replace(params.train_grpo, features=8),
        evaluations={name: params.evaluations[name] for name in ("open_loop", "sft")}
        | {"g1": replace(params.evaluations["r1"], source="data/explainers/g1")},
    )
    torch.set_grad_enabled(True)
    train_grpo.run(asked, "g1")
    for name in ("sft", "g1"):
        evaluate.run(asked, name)
    compare_rounds.run(asked)
    comparison = read_json(Path("reports/comparison.json"))
    assert list(comparison["rounds"]) == ["open_loop", "sft", "g1"]
    assert list(comparison["differences"]) == ["g1-sft", "g1-open_loop"]
    assert Path("reports/report.html").is_file()
