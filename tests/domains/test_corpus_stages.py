"""The stages that read text, on a corpus: labels from a table or by lexical hypotheses, and a warm-up on these."""

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from omegaconf import OmegaConf
from tiny import WIDTH, random_sae, tiny_model, tiny_tokenizer

from saeexplainer.config import Corpus, Params
from saeexplainer.config.parts import Architecture, DomainName, Promotion
from saeexplainer.domains.corpus.domain import CorpusDomain
from saeexplainer.domains.sandbox.world import World
from saeexplainer.errors import UserError
from saeexplainer.features import truth
from saeexplainer.features.promoted import by_clamp, by_lens, promoted
from saeexplainer.models.loading import load_model
from saeexplainer.records import ContextRow, ExplanationRow, FeatureRow, PromotedRow
from saeexplainer.runs.storage import read_rows, write_rows
from saeexplainer.saes.loading import write_site
from saeexplainer.saes.reading import open_reader
from saeexplainer.saes.sites import Place, Site
from saeexplainer.saes.subset import decoder_rows
from saeexplainer.training import warmup
from tasks import effects, extract_activations, label_features, probe_features, sources, train_sft, warm_up
from tasks.beginnings import beginnings
from tasks.bench import Bench
from tasks.places import ACTIVATIONS, SAES, SITE, SUBJECT, WARMUP
from tasks.settings import compose, params

IMPORTED = Path("data/imported/labels.parquet")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A subject, SAEs, and a corpus of the sandbox's sentences, which the subject's tokenizer can read."""
    folder = tmp_path_factory.mktemp("workspace")
    tiny_model(Architecture.llama).save_pretrained(folder / "data/subject")
    tiny_tokenizer().save_pretrained(folder / "data/subject")
    for seed, name in enumerate(("main", "lender1")):
        random_sae(folder / "data/saes" / name, seed=seed)
    write_site(folder / SITE, Site(1, Place.resid_post))
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
        warm_up=replace(nano.warm_up, examples=0),
        train_sft=replace(nano.train_sft, replay_share=0.0),
    )


def test_a_corpus_goes_through_the_stages(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    given = settings()
    extract_activations.run(given)
    contexts = read_rows(Path("data/activations/contexts.parquet"), ContextRow)
    text = "\n\n".join(
        json.loads(line)["text"] for line in Path("texts.jsonl").read_text(encoding="utf-8").splitlines()
    )
    assert contexts and all(context.concepts for context in contexts)
    # A context may lie across two documents of the stream, which are no neighbours in the file.
    assert all(part in text for context in contexts for part in context.text.split("\n\n"))
    domain = CorpusDomain(given.seed, given.prepare_subject.corpus, None)
    table, columns = Path("data/activations/truth.safetensors"), [0, 2]
    scores = truth.f1_of_all(truth.load(table, domain.concepts()))[columns]
    best = sources.from_truth(cast("Bench", SimpleNamespace(domain=domain, live_columns=lambda: columns)), table)
    for row, explanation in zip(scores, best, strict=True):
        (concept,) = domain.parse(explanation.text)
        assert row[domain.concepts().index(concept)] == max(
            score for score, known in zip(row, domain.concepts(), strict=True) if domain.can_lead(known)
        )
    torch.set_grad_enabled(True)
    assert probe_features.neutral_prompts(given, tiny_tokenizer()).shape == (
        given.probe_features.steer.prompts, given.probe_features.steer.prompt_tokens,
    )  # fmt: skip

    features = read_rows(Path("data/activations/features.parquet"), FeatureRow)
    write_rows(
        IMPORTED, [ExplanationRow(row.feature_id, row.split, "the word dog") for row in features], ExplanationRow
    )
    assert label_features.run(given).metrics["labels_missing"] == 0

    warm_up.run(given)
    train_sft.run(given)
    weights = [
        load_model(Path(f"data/{name}")).state_dict() for name in ("subject", "explainers/warmup", "explainers/sft")
    ]
    start, warmup, sft = weights
    assert all(torch.equal(start[name], warmup[name]) for name in start)
    assert not all(torch.equal(start[name], sft[name]) for name in start)
    assert Path("reports/training/sft.csv").read_text(encoding="utf-8").count("\n") > 1


def test_a_corpus_labels_itself_and_warms_up(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    given = settings()
    given = replace(
        given,
        label_features=replace(given.label_features, source="data/activations/contexts.parquet"),
        warm_up=replace(given.warm_up, examples=60, batch_size=30, places=1),
        explainer=replace(given.explainer, prompt=replace(given.explainer.prompt, shown_contexts=0)),
        train_sft=replace(given.train_sft, replay_share=0.3),
    )
    torch.set_grad_enabled(False)
    extract_activations.run(given)
    torch.set_grad_enabled(True)
    domain = CorpusDomain(given.seed, given.prepare_subject.corpus, None)
    found = label_features.run(given).metrics
    assert found["labels_missing"] < 0.2 * found["labels"]  # features of an untrained SAE may share nothing sayable
    labels = [row.explanation for row in read_rows(Path("data/labels.parquet"), ExplanationRow) if row.explanation]
    assert all(domain.parse(label) for label in labels) and len(set(labels)) > 10

    reader = warm_up.opened(given)
    warmup = warm_up.raw_activations(given, reader, random.Random(0))
    assert warmup.vectors.shape == (60, WIDTH) and all(map(domain.parse, warmup.descriptions)) and not warmup.contexts
    shown = replace(given.explainer, prompt=replace(given.explainer.prompt, shown_contexts=1, shown_promoted=2))
    lines = [
        one.splitlines()
        for one in warm_up.raw_activations(replace(given, explainer=shown), reader, random.Random(0)).contexts
    ]
    assert len(lines) == 60 and all(own[0].startswith("- ") and own[1].startswith("promotes: ") for own in lines)
    assert all(len(own) == 2 and own[1].count(", ") == 1 for own in lines) and len({own[1] for own in lines}) > 30
    assert warm_up.run(given).lines == ["warm-up on 60 raw activations"]
    rows = read_rows(Path("data/labels.parquet"), ExplanationRow)
    count = sum(row.split == "sft" and bool(row.explanation) for row in rows)
    replayed = min(60, round(count * 0.3 / 0.7))
    assert train_sft.run(given).lines == [f"{count} labels, {replayed} warm-up examples among them"]
    trained = ("subject", "explainers/warmup", "explainers/sft")
    weights = [load_model(Path(f"data/{name}")).state_dict() for name in trained]
    assert all(any(not torch.equal(a[name], b[name]) for name in a) for a, b in zip(weights, weights[1:]))


def test_clamped_tokens_are_shown_of_features_and_of_warm_up_examples(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is what the stage's own parts say of its feature; a corpus of short texts is a mistake in one line."""
    monkeypatch.chdir(workspace)
    given = settings()
    prompt = replace(given.explainer.prompt, shown_promoted=2)
    given = replace(
        given,
        explainer=replace(given.explainer, prompt=prompt),
        extract_activations=replace(given.extract_activations, promoted_by=Promotion.clamp),
    )
    torch.set_grad_enabled(True)
    extract_activations.run(given)
    written = read_rows(ACTIVATIONS / "promoted.parquet", PromotedRow)
    rows = read_rows(ACTIVATIONS / "features.parquet", FeatureRow)
    reader = open_reader(SUBJECT, SAES, ["main", "lender1"], given.prepare_subject.context_length)
    begun = torch.tensor(beginnings(given, reader.tokenizer, "clamping", effects.BEGINNINGS, effects.TOKENS))
    strongest = torch.stack([row.maximum * decoder_rows(reader.saes[row.sae])[row.index] for row in rows])
    assert [row.tokens for row in written] == promoted(by_clamp(reader, begun, strongest), reader.tokenizer, 10)
    assert written[0].tokens != promoted(by_lens(reader.model, strongest[:1]), reader.tokenizer, 10)[0]
    warm_up.run(given)
    assert all("promotes: " in shown for shown in warmup.load(WARMUP).contexts)

    lines = (json.dumps({"text": f"the dog {number}"}) for number in range(1000))
    Path("short.jsonl").write_text("\n".join(lines), encoding="utf-8")
    corpus = Corpus("short.jsonl", None, None, None, "text", packed=False)
    short = replace(given, prepare_subject=replace(given.prepare_subject, corpus=corpus))
    with pytest.raises(UserError, match=r"extract_activations\.promoted_by: is clamp.*say lens"):
        effects.effects(short, reader, strongest)
