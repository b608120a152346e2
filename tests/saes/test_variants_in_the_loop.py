"""SAEs of every architecture through the pipeline at nano size: trained, read, steered, labelled, their labels put to
the test. What comes after knows nothing of the architecture: test_pipeline.py and test_matrix.py train rounds on every
kind that sae-lens keeps."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from copies import copied, run
from tiny import ROOT

from saeexplainer.records import EvaluationRow, FeatureRow
from saeexplainer.runs.storage import read_json, read_rows
from tasks import evaluate, extract_activations, label_features, prepare_sae, probe_features
from tasks.settings import params as settings_params

CHOICES = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "conf/sae").glob("*.yaml")}
KINDS = {name: chosen["prepare_sae"]["architecture"]["kind"] for name, chosen in CHOICES.items()}
ARCHITECTURES = sorted(name for name, kind in KINDS.items() if name == kind)  # the others are sizes of these
NANO = ["size=nano", "rounds=one", "extract_activations.max_density=1.0"]
SMALL = {"meta": ["prepare_sae.architecture.meta_k=2"]}  # what 64 latents allow
READ = [prepare_sae, extract_activations, probe_features, label_features]


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
    assert params.prepare_sae.architecture.kind == architecture
    for stage in READ:
        torch.set_grad_enabled(True)  # each stage may switch it off for its own process
        stage.run(params)
    report = read_json(Path("reports/sae.json"))
    assert set(report) == {"main", "lender1"} and 0 < report["main"]["fraction_variance_unexplained"] < 1
    assert 0 < report["main"]["coverage"] < 1 and 0 < report["main"]["stability"] <= 1
    features = read_rows(Path("data/activations/features.parquet"), FeatureRow)
    assert {row.sae for row in features} == {"main", "lender1"}
    evaluate.run(params, "open_loop")
    rows = read_rows(Path("data/evaluations/open_loop.parquet"), EvaluationRow)
    assert len(rows) == params.extract_activations.test_features and all(row.texts for row in rows if row.explanation)
