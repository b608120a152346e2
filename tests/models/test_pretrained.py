"""Pretrained subjects and SAEs through the stages: what is measured equals a plain run, and misfits are one line."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import huggingface_hub
import published
import pytest
import sae_lens as lens
import torch
import transformers
from families import CONTEXT, NO_SUBJECTS, STATE_SPACE, TOKENIZERS, WIDTH, save, save_family
from published import D_SAE
from sae_lens.load_model import load_model
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file
from tiny import settings
from torch import Tensor

from saeexplainer.config import Evaluation, Params
from saeexplainer.config.parts import EvaluationKind, Pretrained
from saeexplainer.config.saes import PretrainedSae, TakenSae, TrainedSae
from saeexplainer.domains.opening import open_domain
from saeexplainer.errors import UserError
from saeexplainer.models import tokenizers
from saeexplainer.records import (
    CandidateRow,
    ContextRow,
    EvaluationRow,
    ExplanationRow,
    FeatureId,
    FeatureRow,
    ProbeRow,
    ScoreRow,
    SteeredRow,
)
from saeexplainer.runs.storage import read_json, read_rows, write_rows
from saeexplainer.saes import loading
from saeexplainer.saes.reading import open_reader
from saeexplainer.saes.sites import Place, Site, parse_site
from tasks import (
    beginnings,
    bench,
    evaluate,
    extract_activations,
    prepare_sae,
    prepare_subject,
    probe_features,
    score_explanations,
)
from tasks.cli import exchange

SETTINGS = settings()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FAMILIES = {"llama": True, "gemma2": True, "gpt2": False, "qwen3": None}  # to prepend_bos
KINDS = {  # to hook name
    "standard": "blocks.1.hook_resid_post",
    "topk": "blocks.2.hook_resid_pre",
    "jumprelu": "blocks.0.hook_resid_post",
    "gated": "blocks.1.hook_resid_pre",
}


one_world = cache(open_domain)  # it takes a second to build, and every stage opens it


def texts(stream: str, count: int) -> list[str]:
    """Documents of the domain that every stage here reads."""
    domain = one_world(SETTINGS.prepare_subject.domain, SETTINGS.seed, None)
    return [document.text for document in islice(domain.documents(stream, count), count)]


def save_sae(model: Path, prepend_bos: bool | None, kind: str, folder: Path, **more: object) -> Path:
    """An SAE that fits what it reads of this domain, at the architecture's hook unless another is given."""
    hook = str(more.pop("hook", KINDS[kind]))
    return published.save_sae(model, prepend_bos, kind, folder, hook, texts("sae", 20), **more)


def brought(model: Path | str, folders: dict[str, Path], prepend_bos: bool | None, **more: object) -> Params:
    """Settings of a run on a pretrained model and SAEs, small."""
    given, small = SETTINGS, {"context_length": 40, "held_out_documents": 6}
    pretrained = Pretrained(**{"source": str(model), "revision": None, "dtype": "float32", "device_map": None,
                               "attention": None, **more})  # fmt: skip
    saes = [
        TakenSae(name, D_SAE, PretrainedSae(str(path), None, None))
        for name, path in (folders or {"unread": Path("unread")}).items()  # a subject alone reads none
    ]
    return replace(
        given,
        prepare_subject=replace(given.prepare_subject, pretrained=pretrained, prepend_bos=prepend_bos, **small),
        prepare_sae=replace(given.prepare_sae, saes=saes),
        extract_activations=replace(
            given.extract_activations, documents=10, truth_documents=3, batch_size=4, top_contexts=4, min_density=0.0,
            max_density=1.0, valid_features=3, test_features=4, direction_contexts=2,
        ),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace to be in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare_sae, "MEASURED_DOCUMENTS", 20)
    for module in (prepare_subject, prepare_sae, extract_activations, beginnings, bench):
        monkeypatch.setattr(module, "open_domain", one_world)
    with torch.enable_grad():  # which a stage switches off for its process
        yield tmp_path


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a published checkpoint, by the name of its family."""
    folder = tmp_path_factory.mktemp("published") / request.param
    save_family(request.param, folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2") / "tiny-gpt2"
    save_family("gpt2", folder)
    return folder


@torch.no_grad()
def plainly(model: Path, sae_folder: Path, prepend_bos: bool | None) -> list[Tensor]:
    """Activations [valid_tokens, d_sae] of each document of the pass, by transformers and sae-lens alone."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = tokenizers.load_tokenizer(model, prepend_bos=prepend_bos)
    one = lens.SAE.load_from_disk(sae_folder)
    site = parse_site(one.cfg.metadata.hook_name)
    state = site.block if site.place is Place.resid_pre else site.block + 1
    found = []
    for text in texts("extract", 10):
        ids = tokenizer(text, truncation=True, max_length=40)["input_ids"]
        states = plain(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[state][0]
        valid = [at for at, token in enumerate(ids) if token not in tokenizers.special_ids(tokenizer)]
        found.append(one.encode(states[valid]))
    return found


@pytest.mark.parametrize("kind", list(KINDS))
def test_activations_are_those_of_a_plain_run(family: Path, kind: str, here: Path) -> None:
    bos = FAMILIES[family.name]
    folder = save_sae(family, bos, kind, here / "published")
    params = brought(family, {"main": folder}, bos)
    prepare_subject.run(params)
    prepare_sae.run(params)
    extract_activations.run(params)
    codes = plainly(family, folder, bos)
    rows = read_rows(Path("data/activations/features.parquet"), FeatureRow)
    contexts = read_rows(Path("data/activations/contexts.parquet"), ContextRow)
    assert len(rows) > 20 and rows[0].feature_id == f"{family.name}/main/{rows[0].index}"
    together = torch.cat(codes)
    for row in rows:
        assert row.maximum == pytest.approx(float(together[:, row.index].max()), rel=1e-4)
        assert row.density == pytest.approx(float((together[:, row.index] > 0).double().mean()), abs=0.01)
        own = [context for context in contexts if context.feature_id == row.feature_id]
        peaks = sorted((float(one[:, row.index].max()) for one in codes), reverse=True)[: len(own)]
        assert [max(context.activations) for context in own] == pytest.approx(peaks, rel=1e-4, abs=2e-5)


def test_the_subject_is_pointed_to_and_measured(family: Path, here: Path) -> None:
    bos = FAMILIES[family.name]
    report = prepare_subject.run(brought(family, {}, bos))
    assert [path.name for path in Path("data/subject").iterdir()] == ["pretrained.json"]
    stored = read_json(Path("reports/subject.json"))
    assert (stored["tokens_seen"], stored["entropy_floor"]) == (0, None) and report.metrics["loss"] == stored["loss"]
    plain = transformers.AutoModelForCausalLM.from_pretrained(family, dtype=torch.float32).eval()
    assert stored["parameters"] == plain.num_parameters()
    tokenizer, nats, count = tokenizers.load_tokenizer(family, prepend_bos=bos), 0.0, 0
    for text in texts("held_out", 6):
        ids = tokenizer(text, truncation=True, max_length=40)["input_ids"]
        with torch.no_grad():
            logits = plain(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        nats -= sum(float(logits[at, token]) for at, token in enumerate(ids[1:]))
        count += len(ids) - 1
    assert stored["loss"] == pytest.approx(nats / count, rel=1e-4)


def test_a_subject_has_one_word_in_the_ids_of_its_features(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "tiny").mkdir()
    monkeypatch.chdir(here / "tiny")
    for source, said in (("my own  model", "my-own-model"), (".", "tiny"), ("openai/gpt2", "gpt2"), ("../b/", "b")):
        name = extract_activations.subject_name(brought(source, {}, None))
        assert name == said and FeatureId.parse(f"{name}/main/3").subject == said


def test_what_was_folded_is_stored_and_loads_again_unchanged(gpt2: Path, here: Path) -> None:
    plain = save_sae(gpt2, False, "standard", here / "plain")
    save_sae(gpt2, False, "standard", here / "scaled", normalize_activations="expected_average_only_in")
    weights = here / "scaled/sae_weights.safetensors"
    stretched = {name: 4 * tensor if "dec" in name else tensor / 4 for name, tensor in load_file(weights).items()}
    save_file(stretched, weights)  # which the scale of 4 undoes
    params = brought(gpt2, {"main": here / "scaled"}, False)
    spec = replace(params.prepare_sae.saes[0], pretrained=PretrainedSae(str(here / "scaled"), None, 4.0))
    params = replace(params, prepare_sae=replace(params.prepare_sae, saes=[spec]))
    prepare_subject.run(params)
    prepare_sae.run(params)
    stored, x = loading.load(Path("data/saes/main"), WIDTH), torch.randn(5, WIDTH)
    torch.testing.assert_close(stored.encode(x), loading.load(plain, WIDTH).encode(x), rtol=1e-4, atol=1e-4)
    assert stored.cfg.normalize_activations == "none"


def test_bfloat16_is_read_in_float32_by_the_sae(gpt2: Path, here: Path) -> None:
    folder = save_sae(gpt2, False, "jumprelu", here / "published")
    reports = {}
    for dtype in ("float32", "bfloat16"):
        params = brought(gpt2, {"main": folder}, False, dtype=dtype)
        prepare_subject.run(params)
        reports[dtype] = prepare_sae.run(params).metrics
        extract_activations.run(params)
        reader = open_reader(Path("data/subject"), Path("data/saes"), ["main"], 40, whole=False)
        assert reader.model.dtype == getattr(torch, dtype)
        assert reader.read(["the dog"]).activations.dtype == torch.float32
    assert reports["bfloat16"] == pytest.approx(reports["float32"], abs=0.02, rel=0.05)


@pytest.mark.parametrize(
    ("name", "place"), [*(("gpt2", place) for place in Place), ("mamba", "hook_resid_post"), ("jamba", "hook_mlp_out")]
)
def test_every_later_stage_runs_where_the_sae_reads(gpt2: Path, here: Path, name: str, place: str) -> None:
    model = gpt2 if name == "gpt2" else here / f"tiny-{name}"
    if name != "gpt2":
        save(STATE_SPACE[name], TOKENIZERS["gpt2"](), model)
    folder = save_sae(model, False, "standard", here / "published", hook=f"blocks.1.{place}")
    params = brought(model, {"main": folder}, False)
    steer = replace(params.probe_features.steer, divergences=[0.1], prompts=1, prompt_tokens=4, max_new_tokens=3)
    writer = replace(params.evaluate.writer, texts=2, temperature=0.7, max_new_tokens=4)
    params = replace(
        params,
        probe_features=replace(params.probe_features, first_rank=2, contexts=2, silent=2, steer=steer),
        score_explanations=replace(params.score_explanations, writer=writer),
        evaluate=replace(params.evaluate, writer=writer, negatives=1),
        evaluations={"table": Evaluation(EvaluationKind.table, "labels.parquet")},
    )
    prepare_subject.run(params)
    report = prepare_sae.run(params).metrics
    assert report["fraction_variance_unexplained"] < 1e-4  # it loses nothing
    assert report["cross_entropy_recovered"] == pytest.approx(1.0, abs=1e-3)
    extract_activations.run(params)
    probe_features.run(params)
    assert read_rows(Path("data/probes/contexts.parquet"), ProbeRow)
    steered = read_rows(Path("data/probes/steered.parquet"), SteeredRow)
    assert sum(row.divergence == pytest.approx(0.1, rel=0.1) for row in steered) >= len(steered) / 2
    rows = read_rows(Path("data/activations/features.parquet"), FeatureRow)
    asked = [CandidateRow(row.feature_id, row.split, 0, "the word dog") for row in rows if row.split == "dpo"][:5]
    write_rows(Path("data/rounds/r1/candidates.parquet"), asked, CandidateRow)
    score_explanations.run(params, "r1")
    assert len(read_rows(Path("data/rounds/r1/scores.parquet"), ScoreRow)) == 5
    said = [
        ExplanationRow(row.feature_id, row.split, "the word dog" if row.index % 2 else "any animal") for row in rows
    ]
    write_rows(Path("labels.parquet"), said, ExplanationRow)
    evaluate.run(params, "table")
    assert len(read_rows(Path("data/evaluations/table.parquet"), EvaluationRow)) == 4
    told = exchange.metadata(rows[0].feature_id, params)
    assert (told["target_model"], told["hook_name"]) == (f"tiny-{name}", f"blocks.1.{place}")
    assert (told["layer"], told["hook_layer"], told["d_in"], told["d_sae"]) == (1, 1, WIDTH, D_SAE)


MODULES = {  # an SAE's hook as sae-lens takes it from a transformers model, to what it is in the residual stream
    "llama/model.layers.1": "blocks.1.hook_resid_post",
    "llama/model.layers.2.mlp": "blocks.2.hook_mlp_out",
    "llama/model.layers.0.self_attn": "blocks.0.hook_attn_out",
    "gpt2/transformer.h.2": "blocks.2.hook_resid_post",
    "gemma2/model.layers.1.post_feedforward_layernorm": "blocks.1.hook_mlp_out",
    "gemma3_with_images/model.language_model.layers.1": "blocks.1.hook_resid_post",
}


@pytest.mark.parametrize(("where", "hook"), MODULES.items(), ids=MODULES)
def test_an_sae_that_was_trained_on_a_module_of_a_transformers_model_is_read_there(
    here: Path, where: str, hook: str
) -> None:
    name, _, module = where.partition("/")
    bos = name != "gpt2"
    save_family(name, here / name)
    folder = published.trained_by_sae_lens(here / name, module, here / "trained", texts("sae", 200), bos)
    params = brought(here / name, {"main": folder}, bos)
    prepare_subject.run(params)
    prepare_sae.run(params)
    stored = read_json(Path("data/saes/main/cfg.json"))["metadata"]
    assert (stored["hook_name"], stored["model_class_name"]) == (hook, "HookedTransformer")
    # sae-lens' own way to the same activations.
    theirs = load_model("AutoModelForCausalLM", str(here / name), device="cpu")
    ids = torch.tensor([[5, 7, 9, 11, 40]])
    with torch.no_grad():
        expected = theirs.run_with_cache(ids, names_filter=[module])[1][module]
        found = open_reader(Path("data/subject"), Path("data/saes"), ["main"], 40, whole=False)
        torch.testing.assert_close(found.site(ids, torch.ones_like(ids)), expected, rtol=1e-4, atol=1e-4)
        own = lens.SAE.load_from_disk(folder)
        torch.testing.assert_close(found.saes["main"].encode(expected), own.encode(expected), rtol=1e-3, atol=1e-3)


def test_a_module_that_is_no_place_of_the_residual_stream_is_one_line_and_the_one_named_is_read(here: Path) -> None:
    save_family("gemma2", here / "gemma2")
    folder = save_sae(here / "gemma2", True, "standard", here / "given", hook="blocks.1.hook_mlp_out")
    params = brought(here / "gemma2", {"main": folder}, True)
    prepare_subject.run(params)
    settings, file = read_json(folder / "cfg.json"), folder / "cfg.json"
    for wrong, said in (
        ("model.layers.1.mlp", "model.layers.1.post_attention_layernorm or model.layers.1.post_feedforward_layernorm"),
        ("model.norm", "choose an SAE on one of model.layers.0 to model.layers.3"),
        ("model.layers.9", "choose an SAE on one of model.layers.0 to model.layers.3"),
        (7, "hook_name: is 7 in the metadata of the SAE's cfg.json"),
        (None, "hook_name: is None in the metadata"),
    ):
        file.write_text(json.dumps(settings | {"metadata": settings["metadata"] | {"hook_name": wrong}}))
        assert said in fails(prepare_sae.run, params)
    right = settings["metadata"] | {"hook_name": "model.layers.1.post_feedforward_layernorm"}
    file.write_text(json.dumps(settings | {"metadata": right}))
    prepare_sae.run(params)


def fails(run: Callable[[Params], object], params: Params) -> str:
    """The one line that a stage ends with, having stored nothing."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as caught:
        run(params)
    assert "\n" not in str(caught.value) and sorted(Path().rglob("*")) == before
    return str(caught.value)


def test_a_model_that_cannot_be_had_fails_at_once(gpt2: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", "hub")
    absent = fails(prepare_subject.run, brought("owner/gated", {}, None, revision=COMMIT))
    assert absent.startswith("owner/gated: ") and "a gated model needs its licence accepted and HF_TOKEN" in absent
    assert "needs a pinned revision" in fails(prepare_subject.run, brought("owner/gated", {}, None))
    assert "a folder has no revision" in fails(prepare_subject.run, brought(gpt2, {}, None, revision=COMMIT))


def test_a_context_longer_than_the_models_fails_at_once(gpt2: Path) -> None:
    params = brought(gpt2, {}, None)
    params = replace(params, prepare_subject=replace(params.prepare_subject, context_length=CONTEXT + 1))
    said = f"prepare_subject.context_length: {CONTEXT + 1} tokens, but the model reads {CONTEXT} at most; lower it"
    assert fails(prepare_subject.run, params) == said


def test_a_model_that_takes_padding_for_text_fails_at_once(here: Path) -> None:
    save(NO_SUBJECTS["rwkv"][0], TOKENIZERS["gpt2"](), here / "rwkv")
    said = fails(prepare_subject.run, brought(here / "rwkv", {}, None))
    assert said.startswith(f"prepare_subject.pretrained.source: {here / 'rwkv'} (RwkvForCausalLM): padding before ")


@pytest.mark.parametrize("wrong", [{"num_hidden_layers": -1}, {"num_hidden_layers": 0}, {"num_attention_heads": 0}])
def test_a_configuration_that_makes_no_model_fails_at_once(here: Path, wrong: dict[str, int]) -> None:
    save_family("llama", here / "llama")
    config = here / "llama/config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | wrong), encoding="utf-8")
    assert str(here / "llama") in fails(prepare_subject.run, brought(here / "llama", {}, None))


def test_a_tokenizer_that_cannot_pad_fails_at_once(gpt2: Path, here: Path) -> None:
    save_family("gpt2", here / "bare")
    bare = transformers.PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS["gpt2"]().backend_tokenizer)
    for path in (here / "bare").glob("*token*"):
        path.unlink()
    bare.save_pretrained(here / "bare")
    assert "neither a padding token nor EOS" in fails(prepare_subject.run, brought(here / "bare", {}, None))


def test_an_sae_that_does_not_fit_is_one_line(gpt2: Path, here: Path) -> None:
    fits, other = here / "fits", here / "other"
    save_sae(gpt2, False, "standard", fits)
    save_sae(gpt2, False, "standard", other, hook="blocks.2.hook_resid_pre")
    wrong = here / "wrong"
    save_sae(gpt2, False, "standard", wrong, trained_with_bos=True)
    narrow = lens.StandardSAE(lens.StandardSAEConfig(WIDTH // 2, D_SAE, metadata=SAEMetadata(hook_name=KINDS["topk"])))
    narrow.save_model(here / "narrow")
    prepare_subject.run(brought(gpt2, {}, False))
    said = fails(prepare_sae.run, brought(gpt2, {"main": here / "narrow"}, False))
    assert f"d_in is {WIDTH // 2}, the subject's width {WIDTH}" in said
    said = fails(prepare_sae.run, brought(gpt2, {"main": fits, "lender": other}, False))
    assert said.startswith("prepare_sae.saes: main reads blocks.1.hook_resid_post, lender blocks.2.hook_resid_pre;")
    said = fails(prepare_sae.run, brought(gpt2, {"main": wrong}, False))
    assert said.startswith("prepare_subject.prepend_bos: is false and texts begin without BOS") and "main" in said
    assert said.endswith("set it to true")
    params = brought(gpt2, {"main": fits}, False)
    spec = replace(params.prepare_sae.saes[0], d_sae=99)
    said = fails(prepare_sae.run, replace(params, prepare_sae=replace(params.prepare_sae, saes=[spec])))
    assert said == f"prepare_sae.saes[0].d_sae: is 99, but {fits} has {D_SAE} latents; give that"


def test_an_sae_of_another_model_is_found_out(gpt2: Path, here: Path) -> None:
    folder = save_sae(gpt2, False, "standard", here / "other")
    weights = load_file(folder / "sae_weights.safetensors")
    save_file(weights | {"W_dec": -weights["W_dec"]}, folder / "sae_weights.safetensors")
    params = brought(gpt2, {"main": folder}, False)
    prepare_subject.run(params)
    said = fails(prepare_sae.run, params)
    assert said.startswith(f"prepare_sae.saes[0].pretrained: {folder} leaves ")
    assert (
        "of the variance unexplained, more than their mean does; choose an SAE that was trained on this model" in said
    )


def test_one_trained_here_stands_beside_one_of_others_at_the_same_site(gpt2: Path, here: Path) -> None:
    params = brought(gpt2, {"main": save_sae(gpt2, False, "standard", here / "main")}, False)
    own = TrainedSae("own", d_sae=16, seed=1)
    config = replace(params.prepare_sae, saes=[*params.prepare_sae.saes, own], documents=20, steps=3, batch_tokens=64)
    prepare_subject.run(params)
    prepare_sae.run(replace(params, prepare_sae=replace(config, hook_block=1)))
    stored = [json.loads(Path(f"data/saes/{name}/cfg.json").read_text()) for name in ("main", "own")]
    assert [one["architecture"] for one in stored] == ["standard", "gated"]
    assert len({one["metadata"]["hook_name"] for one in stored}) == 1
    said = fails(prepare_sae.run, replace(params, prepare_sae=replace(config, hook_block=2)))
    assert said.startswith("prepare_sae.saes: main reads blocks.1.hook_resid_post, own blocks.2.hook_resid_post;")
    assert open_reader(Path("data/subject"), Path("data/saes"), [], 40, whole=False).site(
        torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.long)
    ).shape == (1, 3, WIDTH)
    assert loading.stored_site(Path("data/saes/own")) == Site(1, Place.resid_post)
