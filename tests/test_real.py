"""A real language model through the whole chain: SmolLM2-135M from the package index, at the smallest size that means
something. It takes minutes, so it runs where SAE_EXPLAINER_REAL=1 asks for it, as .ci/run does after the suite, and
where the index can be reached."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from copies import copied, run

from saeexplainer.domains.corpus.installed import documents, standard_library_source
from saeexplainer.errors import UserError
from saeexplainer.records import EvaluationRow, ExplanationRow, PreferencePair
from saeexplainer.runs.storage import read_json, read_rows
from tasks import (
    build_preferences,
    compare_rounds,
    evaluate,
    extract_activations,
    generate_explanations,
    label_features,
    prepare_sae,
    prepare_subject,
    probe_features,
    score_explanations,
    train_dpo,
    train_sft,
    validate_preferences,
    warm_up,
)
from tasks.settings import params as settings_params, precision
from tasks.workspace import weights

TEXT = "text"  # a folder of the user's own
ASKED = [
    "experiment=smollm2", "size=taste", f"prepare_subject.corpus.source={TEXT}", "prepare_sae.hook_block=5",
]  # fmt: skip
BEFORE = [prepare_subject, prepare_sae, extract_activations, probe_features, label_features, warm_up, train_sft]
ROUND = [generate_explanations, score_explanations, build_preferences, validate_preferences, train_dpo]


@pytest.fixture(scope="module")
def weights_of_smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return weights.fetch("smollm2", tmp_path_factory.mktemp("models"))
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.skipif(os.environ.get("SAE_EXPLAINER_REAL") != "1", reason="minutes: SAE_EXPLAINER_REAL=1")
def test_a_real_model_goes_through_the_chain(
    weights_of_smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage after stage in this process, because each by itself would first import for seconds."""
    folder = copied(tmp_path / "work")
    (folder / weights.MODELS).mkdir(parents=True)
    shutil.copy(weights_of_smollm2, folder / weights.MODELS)
    (folder / TEXT).mkdir()
    lines = (json.dumps({"text": document.text}) for document in documents([standard_library_source()]))
    (folder / TEXT / "library.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run(folder, sys.executable, "-m", "tasks.cli.main", "compose", *ASKED, *precision.overrides().split())
    monkeypatch.chdir(folder)
    params = settings_params.load()
    for stage in BEFORE:
        torch.set_grad_enabled(True)  # each stage may switch it off for its own process
        stage.run(params)
    for stage in ROUND:
        torch.set_grad_enabled(True)
        stage.run(params, "r1")
    for name in params.evaluations:
        evaluate.run(params, name)
    compare_rounds.run(params)

    sae = read_json(folder / "reports/sae.json")["main"]
    assert sae["fraction_variance_unexplained"] < 0.6 and sae["cross_entropy_recovered"] > 0.5, sae
    labels = [row.explanation for row in read_rows(folder / "data/labels.parquet", ExplanationRow)]
    assert sum(label.startswith(("the word ", "words ", "a ", "an ")) for label in labels) > len(labels) / 2
    assert read_rows(folder / "data/rounds/r1/pairs.parquet", PreferencePair)
    found = {name: read_rows(folder / f"data/evaluations/{name}.parquet", EvaluationRow) for name in params.evaluations}
    assert {name: len(rows) for name, rows in found.items()} == dict.fromkeys(("open_loop", "lexical", "sft", "r1"), 10)
    # What fits the tokens best, put to the model as its own writer, moves the features; so the chain is whole.
    assert sum(row.mean_activation for row in found["lexical"]) > 0.05 * 10
    assert all(row.texts for row in found["r1"] if row.explanation)
    assert "SmolLM2-135M-Instruct.Q4_1" in (folder / "reports/results.md").read_text(encoding="utf-8")
