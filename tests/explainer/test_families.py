"""Explainers made of other families: adapters, chat prompts, another width than the subject's, padded vocabularies."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
from alone import installed_alone
from families import TOKENIZERS, WIDTH, save_family
from peft import PeftModel
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from tiny import ROOT, WIDTH as SUBJECT_WIDTH, settings, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

from saeexplainer.config import ExplainerSettings, Round, TrainSft
from saeexplainer.config.explainers import Adapter, AskedPrompt, TokensPrompt
from saeexplainer.config.parts import Architecture, Direction, Pretrained
from saeexplainer.errors import UserError
from saeexplainer.explainer import folder as explainer_folder
from saeexplainer.explainer.explainer import Explainer, Prompts, attach, placeholder_id
from saeexplainer.explainer.feature_tokens import first_feature_id
from saeexplainer.explainer.table import FeatureTable
from saeexplainer.models.blocks import transformer_blocks
from saeexplainer.models.pointer import POINTER, open_model, open_tokenizer, write_pointer
from saeexplainer.records import CandidateRow, ContextRow, ExplanationRow, FeatureRow, PreferencePair
from saeexplainer.runs.storage import read_json, read_rows, read_tensors, write_json, write_rows, write_tensors
from saeexplainer.saes.loading import write_site
from saeexplainer.saes.sites import parse_site
from saeexplainer.serving import ServedExplainer, write_served
from saeexplainer.training import dpo, sft
from saeexplainer.training.start import open_start
from tasks import generate_explanations, train_dpo, train_sft, warm_up
from tasks.places import SITE
from tasks.tracking import registry

NAMES = ("gpt2", "llama", "gemma2", "qwen3")
FEATURES, BETA = 4, 0.2
TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[model] {% endif %}"
)
PARAMS = settings()
GENERATION = replace(PARAMS.generate_explanations, max_new_tokens=4)
SAID = [("a dog", "a cat"), ("the garden", "a dog"), ("any cat", "the dog"), ("a chase", "the cat")]


def make(name: str, folder: Path, template: str | None = TEMPLATE) -> Path:
    """A checkpoint whose embedding has more rows than its tokenizer has tokens."""
    save_family(name, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    if name != "gpt2":  # rotary positions: more of them need no weights
        model.config.max_position_embeddings = 256
    model.resize_token_embeddings(len(tokenizer) + 5)
    model.save_pretrained(folder)
    return folder


def settings_of(folder: Path, **changes: object) -> ExplainerSettings:
    own = {
        "pretrained": Pretrained(folder.as_posix(), None, "float32", None, None),
        "adapter": Adapter(rank=4, alpha=8.0, dropout=0.05),
        "prompt": AskedPrompt("chat", "What is {feature}?", 0, 0, 0, 0),
        "direction": Direction.decoder, "injection_block": 1, "direction_noise": 0.0,
    }  # fmt: skip
    return replace(PARAMS.explainer, **own | changes)


def directions(width: int) -> torch.Tensor:
    return torch.randn(FEATURES, width, generator=torch.Generator().manual_seed(2))


def frozen(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All but the adapters and the projection."""
    return {
        name: weight.detach().clone() for name, weight in model.named_parameters()
        if "lora_" not in name and "projection" not in name
    }  # fmt: skip


def supervised(config: ExplainerSettings, width: int, folder: Path, scratch: Path) -> dict[str, torch.Tensor]:
    """Two steps on labels, saved; the base's weights as they came out."""
    torch.manual_seed(0)
    parts = explainer_folder.start(config, scratch / "no subject", width, seed=3)
    hooks = attach(parts.model, parts.tokenizer, directions(width), config, projection=parts.projection)
    prompts = Prompts(parts.tokenizer, first_feature_id(parts.model, parts.tokenizer), config)
    examples = [prompts.example(feature, chosen) for feature, (chosen, _) in enumerate(SAID)]
    sft.supervised_fine_tuning(
        parts.model, parts.tokenizer, examples, config, epochs=2.0, learning_rate=0.02, batch_size=4,
        section="train_sft", seed=0, scratch=scratch,
    )  # fmt: skip
    hooks.remove()
    explainer_folder.save(parts, folder)
    return frozen(parts.model)


def preferred(
    config: ExplainerSettings, width: int, start: Path, folder: Path, scratch: Path
) -> list[dict[str, float]]:
    """One round on all pairs at once with a lot of noise, saved; the log."""
    torch.manual_seed(0)
    opened = open_start(start, directions(width), config, noise=0.5)
    parts = opened.parts
    prompts = Prompts(parts.tokenizer, first_feature_id(parts.model, parts.tokenizer), config)
    pairs = [
        PreferencePair(f"s/main/{feature}", "dpo", *said, 1.0, 0.5, 0.5, 0.5, 0.5, "a", "b")
        for feature, said in enumerate(SAID)
    ]
    data = dpo.preference_dataset(pairs, prompts, lambda feature_id: int(feature_id[-1]), lambda: False)
    training = replace(PARAMS.train_dpo, epochs=2.0, batch_size=4, sft_weight=0.0, evaluations_per_epoch=1)
    params = replace(PARAMS, train_dpo=training, explainer=config)
    history = dpo.train(opened, data, data, Round("sft", BETA, 0.02), params, seed=0, scratch=scratch)
    opened.hooks.remove()
    explainer_folder.save(parts, folder)
    return history


@dataclass(frozen=True)
class Trained:
    """What one family went through: folder/sft, folder/r1, folder/r2."""

    folder: Path
    base: Path
    config: ExplainerSettings
    width: int  # of the subject
    after_sft: dict[str, torch.Tensor]
    history: list[dict[str, float]]  # of r2


@pytest.fixture(scope="module", params=NAMES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Gemma's and Qwen's subject are of another width, one wider, one narrower."""
    folder = tmp_path_factory.mktemp(request.param)
    base = make(request.param, folder / "base")
    width = {"gemma2": 24, "qwen3": 40}.get(request.param, WIDTH)
    config = settings_of(base)
    after = supervised(config, width, folder / "sft", folder)
    preferred(config, width, folder / "sft", folder / "r1", folder)
    history = preferred(config, width, folder / "r1", folder / "r2", folder)
    return Trained(folder, base, config, width, after, history)


def explainer(trained: Trained, name: str, **changes: torch.Tensor) -> Explainer:
    tensors = {"decoder": directions(trained.width)} | changes
    return Explainer(trained.folder / name, tensors, trained.config, GENERATION)


def test_plain_peft_reads_what_was_saved(trained):
    ids = torch.tensor([open_tokenizer(trained.folder / "r2")("the dog chases")["input_ids"]])
    found = {}
    for name in ("sft", "r1", "r2"):
        named = json.loads((trained.folder / name / "adapter_config.json").read_text())["base_model_name_or_path"]
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(named), trained.folder / name).eval()
        with torch.no_grad():
            found[name] = plain(input_ids=ids).logits
            assert torch.equal(found[name], open_model(trained.folder / name)(input_ids=ids).logits)
        assert named == trained.base.as_posix()
        assert not list((trained.folder / name).glob("model*")), "the base is stored once"
    assert not torch.allclose(found["sft"], found["r1"]) and not torch.allclose(found["r1"], found["r2"])


def test_only_the_adapter_is_trained(trained):
    before = frozen(open_model(trained.folder / "sft"))
    assert before.keys() == trained.after_sft.keys() and len(before) > 10
    assert all(torch.equal(before[name], weight) for name, weight in trained.after_sft.items())
    weights = read_tensors(trained.folder / "sft" / "adapter_model.safetensors")
    adapted = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in weights}
    base = AutoModelForCausalLM.from_pretrained(trained.base)
    linear = {name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)}
    assert adapted == linear - {"lm_head"}


def test_the_reference_is_the_rounds_start_without_noise(trained):
    """Rewards are beta times the distance to the reference, so the log gives the reference's log-probability."""
    start = explainer(trained, "r1")
    for side, name in ((0, "chosen"), (1, "rejected")):
        texts = [said[side] for said in SAID]
        means = start.log_probabilities(range(FEATURES), texts)
        sums = [mean * len(start.prompts.answer(text)) for mean, text in zip(means, texts, strict=True)]
        for prefix in ("", "eval_"):
            entries = [entry for entry in trained.history if f"{prefix}logps/{name}" in entry]
            assert len(entries) > 1
            for entry in entries:
                reference = entry[f"{prefix}logps/{name}"] - entry[f"{prefix}rewards/{name}"] / BETA
                assert reference == pytest.approx(sum(sums) / FEATURES, rel=1e-3)


def test_generation_reads_the_direction(trained):
    """Its neighbour's direction in the table changes nothing; its own does, and so answers differ by feature."""
    texts = ["a dog"] * FEATURES
    plain = explainer(trained, "r2").log_probabilities(range(FEATURES), texts)
    turned = directions(trained.width)
    turned[0] = -turned[0]
    other = explainer(trained, "r2", decoder=turned)
    found = other.log_probabilities(range(FEATURES), texts)
    assert found[0] != pytest.approx(plain[0], rel=1e-4) and found[1:] == pytest.approx(plain[1:], rel=1e-4)
    assert len(other.explain([0, 1], temperature=0.0)) == 2


def test_a_projection_is_learned_once_and_kept(trained):
    files = [trained.folder / name / explainer_folder.PROJECTION for name in ("sft", "r1", "r2")]
    if trained.width == WIDTH:
        assert not any(file.is_file() for file in files)
        return
    first, *later = [read_tensors(file)["weight"] for file in files]
    torch.manual_seed(9)
    start = explainer_folder.start(trained.config, Path("nowhere"), trained.width, seed=3).projection.weight
    smaller = start if trained.width > WIDTH else start.T
    torch.testing.assert_close(smaller @ smaller.T, torch.eye(len(smaller)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first, start, atol=1e-3) and all(torch.equal(first, weight) for weight in later)


def test_ids_of_features_lie_beyond_a_padded_vocabulary(trained):
    model, tokenizer = open_model(trained.folder / "sft"), open_tokenizer(trained.folder / "sft")
    rows = model.get_input_embeddings().weight.shape[0]
    assert rows == len(tokenizer) + 5 and first_feature_id(model, tokenizer) == rows
    ids = explainer(trained, "sft").prompts.ids(2)
    assert [number for number in ids if number >= rows] == [rows + 2]


def test_what_is_added_after_the_block_is_by_hand(trained):
    """With the saved projection: h + c ||h|| Wv / ||Wv||."""
    asked = explainer(trained, "r1")
    ids = torch.tensor([asked.prompts.ids(1)])
    at = int((ids[0] >= asked.prompts.first_id).nonzero())
    plain = open_model(trained.folder / "r1")
    replaced = ids.where(ids < asked.prompts.first_id, placeholder_id(asked.tokenizer))
    with torch.no_grad():
        h = plain(input_ids=replaced, output_hidden_states=True).hidden_states[2][0, at]
    v = directions(trained.width)[1]
    if trained.width != WIDTH:
        v = read_tensors(trained.folder / "r1" / explainer_folder.PROJECTION)["weight"] @ v
    seen = []
    block = transformer_blocks(asked.model)[2]
    handle = block.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        asked.model(input_ids=ids)
    handle.remove()
    expected = h + trained.config.injection_scale * h.norm() * v / v.norm()
    torch.testing.assert_close(seen[0][0, at], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_chat_prompt_is_the_template_with_the_features_ids_in_it(name):
    tokenizer = TOKENIZERS[name]()
    mark = tokenizer.all_special_tokens[0]
    tokenizer.chat_template = mark + TEMPLATE
    prompts = Prompts(tokenizer, 1000, settings_of(Path("base")))
    ids = prompts.ids(3)
    at = ids.index(1003)
    assert ids[0] == tokenizer.all_special_ids[0]
    assert tokenizer.decode(ids[:at]) == mark + "[user] What is " and tokenizer.decode(ids[at + 1 :]) == "?\n[model] "
    assert all(number < 1000 for number in ids[:at] + ids[at + 1 :])
    answer = prompts.answer("a dog")
    assert answer[-1] == tokenizer.eos_token_id and tokenizer.decode(answer[:-1]) == "a dog"
    assert tokenizer.decode([placeholder_id(tokenizer)]) == "?"


def test_what_the_tokenizer_lacks_is_one_line():
    tokenizer = TOKENIZERS["qwen"]()
    with pytest.raises(UserError, match=r"explainer.prompt.kind: chat, .* no chat template; name an instruction-tuned"):
        Prompts(tokenizer, 1000, settings_of(Path("base")))
    with pytest.raises(UserError, match=r"explainer.prompt.kind: tokens, .* has no <explain>; give chat"):
        Prompts(tokenizer, 1000, replace(settings_of(Path("base")), prompt=TokensPrompt("tokens", 0, 5, 0, 0)))


def context(feature: int, rank: int, text: str, tokens: list[str], peak: int) -> ContextRow:
    return ContextRow(f"s/main/{feature}", rank, text, tokens, [1.0] * len(tokens), peak, [])


def test_contexts_stand_in_the_prompt_strongest_first_and_end_no_turn(tmp_path):
    rows = [FeatureRow(f"s/main/{at}", "main", at, "sft", 1.0, 0.01) for at in range(2)]
    write_rows(tmp_path / "features.parquet", rows, FeatureRow)
    found = [
        context(0, 1, "a dog\nand a dog<|endoftext|>", ["a", " dog", "\n", "and", " a", " dog", "<|endoftext|>"], 5),
        context(0, 0, "the cat .", ["the", "cat", "."], 1),
        context(0, 2, "never shown", ["never", "shown"], 0),
        context(1, 0, "the cat", ["the", "cat"], 0),
    ]
    write_rows(tmp_path / "contexts.parquet", found, ContextRow)
    prompt = AskedPrompt("chat", "{contexts}\nWhat is {feature}?", 2, 0, 0, 0)
    config = replace(settings_of(Path("base")), prompt=prompt)
    shown = FeatureTable(tmp_path).contexts(config.prompt)
    assert shown == ["- the <<cat>> .\n- a dog and a <<dog>><|endoftext|>", "- <<the>> cat"]
    tokenizer = TOKENIZERS["qwen"]()
    tokenizer.chat_template = TEMPLATE
    ids = Prompts(tokenizer, 1000, config, shown).ids(0)
    text = "[user] - the <<cat>> .\n- a dog and a <<dog>>\nWhat is "
    assert tokenizer.decode(ids[: ids.index(1000)]) == text
    shorter = Prompts(tokenizer, 1000, replace(config, prompt=replace(prompt, shown_words=1)), shown).ids(0)
    assert tokenizer.decode(shorter[: shorter.index(1000)]) == "[user] - <<cat>>\n- <<dog>>\nWhat is "
    assert FeatureTable(tmp_path).contexts(replace(prompt, shown_contexts=0)) == []


@pytest.mark.parametrize("trained", ["llama"], indirect=True)
def test_an_adapter_that_is_not_whole_or_of_another_model_is_one_line(trained, tmp_path):
    folder = tmp_path / "r1"
    folder.mkdir()
    for name in ("adapter_config.json", "pretrained.json"):
        (folder / name).write_bytes((trained.folder / "r1" / name).read_bytes())
    with pytest.raises(UserError, match="an adapter without weights"):
        open_model(folder)
    weights = read_tensors(trained.folder / "r1" / "adapter_model.safetensors")
    write_tensors(folder / "adapter_model.safetensors", {name: weight[:, :3] for name, weight in weights.items()})
    with pytest.raises(UserError, match="the adapter does not fit"):
        open_model(folder)


@pytest.mark.parametrize("trained", ["llama"], indirect=True)
def test_an_explainer_starts_where_the_subjects_pointer_says(trained, tmp_path):
    write_pointer(tmp_path, replace(trained.config.pretrained, dtype="bfloat16", attention="eager"), None)
    config = replace(trained.config, pretrained=None)
    adapted = explainer_folder.start(config, tmp_path, WIDTH, seed=0)
    assert adapted.model.peft_config["default"].base_model_name_or_path == trained.base.as_posix()
    assert adapted.model.dtype is torch.bfloat16
    whole = explainer_folder.start(replace(config, adapter=None), tmp_path, WIDTH, seed=0)
    explainer_folder.save(whole, tmp_path / "whole")
    again = open_model(tmp_path / "whole")
    assert again.dtype is torch.float32 and again.config._attn_implementation == "eager"
    write_json(tmp_path / POINTER, read_json(tmp_path / POINTER) | {"quantize": False})
    with pytest.raises(UserError, match="pretrained.json: from another version of this library"):
        open_model(tmp_path)


def write_workspace(base: Path) -> list[FeatureRow]:
    """What the stages before the explainer leave: a sandbox subject, its features, labels and pairs."""
    tiny_model(Architecture.llama).save_pretrained("data/subject")
    tiny_tokenizer().save_pretrained("data/subject")
    site = SAEMetadata(hook_name="blocks.1.hook_resid_post")
    TopKSAE(TopKSAEConfig(d_in=SUBJECT_WIDTH, d_sae=8, k=2, metadata=site)).save_model(Path("data/saes/main"))
    write_site(SITE, parse_site(site.hook_name))
    splits = ["sft"] * 4 + ["dpo"] * 4 + ["valid"] * 2
    rows = [FeatureRow(f"s/main/{at}", "main", at, split, 1.0, 0.01) for at, split in enumerate(splits)]
    generator = torch.Generator().manual_seed(1)
    tensors = {"decoder": torch.randn(len(rows), SUBJECT_WIDTH, generator=generator)}
    activations = Path("data/activations")
    write_tensors(activations / "directions.safetensors", tensors | {"corpus_mean": torch.zeros(SUBJECT_WIDTH)})
    write_rows(activations / "features.parquet", rows, FeatureRow)
    write_rows(
        activations / "contexts.parquet", [context(at, 0, "a dog", ["a", "dog"], 1) for at in range(10)], ContextRow
    )
    labels = [ExplanationRow(row.feature_id, row.split, "a dog") for row in rows]
    write_rows(Path("data/labels.parquet"), labels, ExplanationRow)
    pairs = [
        PreferencePair(row.feature_id, row.split, "a dog", "the cat", 1.0, 0.5, 0.5, 0.5, 0.5, "a", "b")
        for row in rows if row.split != "sft"
    ]  # fmt: skip
    for name in ("r1", "r2"):
        write_rows(Path(f"data/rounds/{name}/validated.parquet"), pairs, PreferencePair)
        write_json(Path(f"data/rounds/{name}/validation.json"), {"figures": {}})
    return rows


def test_the_stages_train_an_explainer_of_another_family(tmp_path, monkeypatch):
    """As on a large model: bfloat16, gradient checkpointing, accumulation; contexts in the prompt, another width. Then
    it is served from one folder."""
    monkeypatch.chdir(tmp_path)
    base = make("gemma2", Path("base"))
    rows = write_workspace(base)
    config = settings_of(
        base, pretrained=Pretrained(base.as_posix(), None, "bfloat16", None, None), bf16=True,
        prompt=AskedPrompt("chat", "{contexts}\n{feature}?", 1, 0, 0, 0), gradient_checkpointing=True, accumulate=2,
        contexts_dropped=0.0,
    )  # fmt: skip
    round_ = replace(PARAMS.rounds["r1"], learning_rate=0.01)
    params = replace(
        PARAMS, explainer=config, warm_up=replace(PARAMS.warm_up, examples=8, batch_size=2, learning_rate=0.01),
        train_sft=TrainSft(epochs=3.0, learning_rate=0.01, batch_size=2, replay_share=0.1),
        generate_explanations=replace(GENERATION, candidates=2),
        train_dpo=replace(PARAMS.train_dpo, batch_size=1, accumulate=2, epochs=2.0),
        rounds={"r1": round_, "r2": replace(round_, start="r1")},
    )  # fmt: skip
    warm_up.run(params)
    train_sft.run(params)
    train_dpo.run(params, "r1")
    train_dpo.run(params, "r2")
    generate_explanations.run(params, "r2")
    assert len(read_rows(Path("data/rounds/r2/candidates.parquet"), CandidateRow)) == 2 * 6
    served = tmp_path / "served"
    tensors = read_tensors(Path("data/activations/directions.safetensors"))
    contexts = FeatureTable(Path("data/activations")).contexts(config.prompt)
    write_served(served, Path("data/explainers/r2"), rows, tensors, config, params.generate_explanations, [], contexts)
    loaded = ServedExplainer(served)
    asked = Explainer(Path("data/explainers/r2"), tensors, config, params.generate_explanations, contexts)
    assert [one.explanation for one in loaded.explain([1, 3])] == asked.explain([1, 3], temperature=0.0)
    assert loaded.width == SUBJECT_WIDTH
    (refused,) = loaded.reply([{"decoder": [1.0] * SUBJECT_WIDTH}])
    assert refused.error.startswith("decoder: this explainer reads a feature's contexts too")
    check_fresh(served, tmp_path, loaded.explain([1])[0])


FRESH = """
import sys
import mlflow.pyfunc, pandas
print(mlflow.pyfunc.load_model(sys.argv[1]).predict(pandas.DataFrame({"index": [1]})).to_json(orient="records"))
"""


def check_fresh(served: Path, scratch: Path, wanted: object) -> None:
    """Registered as an MLflow model, it answers where its requirements are all that is installed, in another folder."""
    requirements, locked = registry.requirements(served), (ROOT / "requirements.lock").read_text()
    assert any(line.startswith("peft==") and line in locked for line in requirements)
    registry.save_model(scratch / "model", served, "s/main/1", "m-0")
    listed = (scratch / "model/requirements.txt").read_text().split()
    assert set(requirements) <= set(listed)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(installed_alone(listed, scratch / "site"))}
    elsewhere = scratch / "elsewhere"
    elsewhere.mkdir()
    process = subprocess.run(
        [sys.executable, "-S", "-c", FRESH, str(scratch / "model")],
        cwd=elsewhere, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1]) == [asdict(wanted) | {"error": None}]


def test_a_copy_holds_the_subject_on_which_its_adapter_stands(tmp_path, monkeypatch):
    """The next run puts another subject in its place."""
    monkeypatch.chdir(tmp_path)
    tiny_model(Architecture.llama, seed=1).save_pretrained("data/subject")
    tiny_tokenizer().save_pretrained("data/subject")
    write_pointer(Path("copy"), Pretrained("data/subject", None, "float32", None, None), None)
    wanted = open_model(Path("copy")).lm_head.weight
    explainer_folder.keep_base(Path("copy"), Path("data/subject"))
    tiny_model(Architecture.llama, seed=2).save_pretrained("data/subject")
    Path("copy").rename("moved")
    assert torch.equal(open_model(Path("moved")).lm_head.weight, wanted)
    assert open_tokenizer(Path("moved")).name_or_path == "moved/base"
