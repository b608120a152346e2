"""The stages that read text, on a corpus: features without concepts, labels from a table, no warm-up."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from tiny import WIDTH, tiny_model, tiny_tokenizer

from saeexplainer.config import Corpus, Params
from saeexplainer.config.parts import Architecture, DomainName
from saeexplainer.domains.sandbox.world import World
from saeexplainer.models.loading import load_model
from saeexplainer.records import ContextRow, ExplanationRow, FeatureRow
from saeexplainer.runs.storage import read_rows, write_rows
from tasks import extract_activations, label_features, probe_features, train_sft
from tasks.settings import compose, params

IMPORTED = Path("data/imported/labels.parquet")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A subject, SAEs, and a corpus of the sandbox's sentences, which the subject's tokenizer can read."""
    folder = tmp_path_factory.mktemp("workspace")
    tiny_model(Architecture.llama).save_pretrained(folder / "data/subject")
    tiny_tokenizer().save_pretrained(folder / "data/subject")
    for seed, name in enumerate(("main", "lender1")):
        torch.manual_seed(seed)
        site = SAEMetadata(hook_name="blocks.1.hook_resid_post")
        sae = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=64, k=4, metadata=site))
        torch.nn.init.normal_(sae.W_enc)
        sae.save_model(folder / "data/saes" / name)
    rows = (json.dumps({"text": document.text}) for document in World(0).documents("subject", 400))
    (folder / "texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


def settings() -> Params:
    """The nano experiment on that corpus."""
    nano = params.build(OmegaConf.create(compose.composed(["experiment=nano"])), "conf")
    subject = replace(
        nano.prepare_subject,
        domain=DomainName.corpus,
        corpus=Corpus("texts.jsonl", None, None, None, "text", packed=True),
    )
    return replace(
        nano,
        prepare_subject=subject,
        label_features=replace(nano.label_features, source=str(IMPORTED)),
        train_sft=replace(nano.train_sft, warmup_examples=0, replay_share=0.0),
    )


def test_a_corpus_goes_through_the_stages(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    given = settings()
    extract_activations.run(given)
    contexts = read_rows(Path("data/activations/contexts.parquet"), ContextRow)
    text = "\n\n".join(
        json.loads(line)["text"] for line in Path("texts.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert contexts and not any(context.concepts for context in contexts)
    # A context may lie across two documents of the stream, which are no neighbours in the file.
    assert all(part in text for context in contexts for part in context.text.split("\n\n"))
    assert not Path("data/activations/truth.safetensors").exists()
    torch.set_grad_enabled(True)
    assert probe_features.neutral_prompts(given, tiny_tokenizer()).shape == (
        given.probe_features.steer.prompts, given.probe_features.steer.prompt_tokens,
    )  # fmt: skip

    features = read_rows(Path("data/activations/features.parquet"), FeatureRow)
    write_rows(
        IMPORTED, [ExplanationRow(row.feature_id, row.split, "the word dog") for row in features], ExplanationRow
    )
    assert label_features.run(given).metrics["labels_missing"] == 0

    train_sft.run(given)
    weights = [
        load_model(Path(f"data/{name}")).state_dict() for name in ("subject", "explainers/warmup", "explainers/sft")
    ]
    start, warmup, sft = weights
    assert all(torch.equal(start[name], warmup[name]) for name in start)
    assert not all(torch.equal(start[name], sft[name]) for name in start)
    assert Path("reports/training/sft.csv").read_text(encoding="utf-8").count("\n") > 1
