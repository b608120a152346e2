"""The plan of an experiment: sizes against transformers, peft, sae-lens and autograd, counts against a finished run."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from functools import cache
from math import isclose
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings as effort, strategies as st
from omegaconf import OmegaConf
from tiny import ROOT, settings as read_settings, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from saeexplainer.config import Reinforcement
from saeexplainer.config.parts import AgentPrompts, Architecture, ChatAgentSpec, EvaluationKind, Pretrained
from saeexplainer.costs import bills, memory, workload
from saeexplainer.costs.memory import Memory, Setup
from saeexplainer.costs.plan import Held, Measured, Models, Rate, fitting, memories, plan, table
from saeexplainer.costs.shapes import Shape, adapter_parameters, parameters, shape_of, trained_config
from saeexplainer.costs.workload import Features, Load
from saeexplainer.errors import UserError
from saeexplainer.judges.chat import OF_TEXT, OF_TOKEN
from saeexplainer.models import batches
from saeexplainer.runs.storage import read_json
from saeexplainer.training.subject import build_model
from tasks.cli import plan as asked
from tasks.cli.main import main

settings = cache(read_settings)
FULL = Setup(weight_bytes=4, lora_rank=0, checkpointing=False)
LORA = Setup(weight_bytes=2, lora_rank=32, checkpointing=True)
PUBLISHED = {
    "gpt2": 124_439_808, "llama-3.1-8b": 8_030_261_248, "gemma-2-2b": 2_614_341_888, "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "gemma-2-9b": 9_241_705_984,
}  # fmt: skip
ROTARY = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 112, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": False,
}  # fmt: skip
TINY = {
    "llama": ROTARY,
    "mistral": ROTARY,
    "qwen3": ROTARY | {"head_dim": 16},
    "gemma2": ROTARY | {"head_dim": 16, "tie_word_embeddings": True},
    "gpt2": {
        "n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64, "vocab_size": 64, "attn_pdrop": 0.0,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "tie_word_embeddings": True,
    },
}  # fmt: skip


def playing(name: str, setup: Setup = FULL) -> Models:
    """One model in all parts."""
    held = Held(shapes()[name], setup, name)
    return Models(held, held, held, held, [held])


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def built(family: str, config: dict, device: str = "cpu"):
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))


def shape(family: str, **changes) -> Shape:
    return shape_of(TINY[family] | {"model_type": family} | changes, family)


@cache
def shapes() -> dict[str, Shape]:
    return asked.known_shapes()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_size(name: str) -> None:
    assert parameters(shapes()[name]).total == PUBLISHED[name]
    config = asked._read(asked.SHAPES)[name]
    plain = {key: value for key, value in config.items() if key not in ("hub", "published", "model_type")}
    assert count(built(config["model_type"], plain, "meta")) == PUBLISHED[name]


@pytest.mark.parametrize("family", TINY)
def test_every_part_is_counted_as_transformers_builds_it(family: str) -> None:
    model, found = built(family, TINY[family], "meta"), parameters(shape(family))
    assert found.total == count(model)
    assert found.embedding == count(model.get_input_embeddings())
    read_back = shape_of(model.config.to_dict(), "a config that transformers wrote")
    assert read_back == shape(family)


@pytest.mark.parametrize("family", TINY)
def test_adapters_are_as_large_as_pefts(family: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(built(family, TINY[family]), LoraConfig(r=3, target_modules="all-linear"))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert adapter_parameters(shape(family), 3) == trained


def saved_bytes(family: str, dtype: torch.dtype, layers: int) -> int:
    """Bytes that autograd saves in a forward pass over 3 sequences of 20 tokens, weights left out."""
    name = "n_layer" if family == "gpt2" else "num_hidden_layers"
    model = built(family, TINY[family] | {name: layers}).to(dtype).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.Tensor] = {}  # by storage; kept, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=torch.arange(60).reshape(3, 20) % 64, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", TINY)
def test_blocks_keep_what_autograd_saves_within_a_factor_of_two(family: str, dtype: torch.dtype) -> None:
    """A further block, so that what lies outside of the blocks does not count."""
    further = saved_bytes(family, dtype, 2) - saved_bytes(family, dtype, 1)
    planned = memory.kept(shape(family), replace(FULL, weight_bytes=dtype.itemsize), 60)
    assert further / 2 <= planned / 2 <= 2 * further


def test_the_cache_is_as_large_as_transformers() -> None:
    model = built("qwen3", TINY["qwen3"]).eval()
    with torch.no_grad():
        cache = model(input_ids=torch.ones(3, 20, dtype=torch.long), use_cache=True).past_key_values
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert memory.generation(shape("qwen3"), FULL, 3, 4, 20).cache == stored


def test_memory_by_hand() -> None:
    llama = shapes()["llama-3.1-8b"]
    # 7 matrices a block read or give 4096, 1024 or 14336: 32 blocks * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432).
    assert adapter_parameters(llama, 32) == 32 * 32 * (2 * 8192 + 2 * 5120 + 3 * 18432) == 83_886_080
    assert memory.held(llama, LORA) == 2 * 8_030_261_248
    # A token's keys and values: 2 * 32 blocks * 8 heads * 128, two bytes each: 128 KiB.
    assert memory.generation(llama, LORA, 4, 10, 100).cache == 4 * 100 * 128 * 1024
    step = memory.training(llama, LORA, 20, copies=4)
    assert step.weights == 2 * 8_030_261_248 + 4 * 4 * 83_886_080 and step.optimizer == 3 * 4 * 83_886_080
    assert memory.training(llama, FULL, 20, copies=4).weights == 4 * 4 * 8_030_261_248
    read = memory.reading(llama, LORA, 10, [32768], table=7)
    assert read.sae == 4 * (2 * 4096 * 32768 + 32768 + 4096)
    # A residual in bfloat16 and in float32; what is encoded before and after TopK. A block needs less than that.
    assert read.activations == 10 * (4096 * 6 + 2 * 32768 * 4) + 4 * 7
    assert memory.reading(llama, LORA, 10, [1]).activations == memory.working(llama, LORA, 10)
    bounded = memory.reading(llama, LORA, 10, [32768], room=200_000)
    assert bounded.activations == 10 * 4096 * 6 + 2 * 200_000 * 4 and memory.ROOM == batches.ROOM
    # Block inputs, then a block again, and logits.
    block = 2 * (2 * 8192 + 2 * 5120 + 3 * 18432) + 2 * 4096 * 4
    assert step.activations == 20 * (32 * 4096 * 2 + block) + 2**27 * 2


def test_the_muon_half_has_one_moment() -> None:
    found, pretrained = parameters(shape("llama")), memory.pretraining(shape("llama"), FULL, 1)
    moments = found.attention + found.mlp + 2 * (found.embedding + found.norms + found.head)
    assert pretrained.optimizer == 4 * (found.total + moments)


@effort(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 65_536), name=st.sampled_from(sorted(PUBLISHED)))
def test_what_saves_memory_saves_it(tokens: int, name: str) -> None:
    def total(**changes) -> int:
        return memory.training(shapes()[name], replace(FULL, **changes), tokens, copies=4).total

    assert total(lora_rank=32) < total() and total(weight_bytes=2) < total()
    assert total(checkpointing=True) <= total()
    assert total() <= memory.training(shapes()[name], FULL, tokens + 1, copies=4).total


def test_the_largest_phase_counts() -> None:
    assert memory.largest([Memory(weights=1, cache=5), Memory(weights=4), Memory(optimizer=3)]) == Memory(1, cache=5)


def spent() -> bills.Costs:
    return bills.from_json(read_json(ROOT / "reports/costs.json"))


def planned(split: Features, **changes) -> dict[str, Load]:
    return workload.loads(replace(settings(), **changes), asked.measured()[0]["sandbox"], split, trained_here=True)


def test_calls_are_those_of_the_finished_run_but_for_duplicates() -> None:
    """The plan takes every description to be distinct, so it errs upwards, by the share of duplicates."""
    texts = settings().score_explanations.writer.texts
    for name, found in spent().rounds.items():
        loads = planned(Features(sft=0, dpo=found.features - 120, valid=120, test=280))
        assert loads[f"generate_explanations@{name}"].calls == found.sampling.calls
        prompts = loads[f"generate_explanations@{name}"].prompt_tokens
        # A context whose strongest token is among the first words of its text is shorter.
        assert 0.98 * prompts <= found.sampling.prompt_tokens <= prompts
        distinct = found.scoring.calls / texts
        assert distinct.is_integer()
        duplicates = 1 - distinct / found.sampling.calls
        most = loads[f"score_explanations@{name}"].calls
        assert 0 <= duplicates < 1 and most * (1 - duplicates) == pytest.approx(found.scoring.calls)
    for name, found in spent().evaluations.items():
        load = planned(Features(0, 0, 120, found.explanations))[f"evaluate@{name}"]
        most = found.explanations * (1 + settings().evaluate.writer.texts)
        assert load.calls == most and found.calls == found.explanations
        assert found.calls + found.measuring.calls <= most


def test_a_round_of_sentences_writes_nothing() -> None:
    scoring = replace(settings().score_explanations, by_sentence={"r2": "r1"})
    loads = planned(Features(sft=0, dpo=100, valid=120, test=280), score_explanations=scoring)
    assert "score_explanations@r1" in loads and "score_explanations@r2" not in loads
    assert loads["generate_explanations@r2"].calls == loads["generate_explanations@r1"].calls


def test_lengths_give_the_tokens_of_the_finished_run() -> None:
    """A token of the run and of the plan are the same thing, so the means agree: within a fifth, as distinct
    descriptions are longer than all of them. A text is read once: three quarters of their tokens were in distinct
    ones."""
    for name, found in spent().rounds.items():
        loads = planned(Features(sft=0, dpo=found.features - 120, valid=120, test=280))
        for stage, work in (("generate_explanations", found.sampling), ("score_explanations", found.scoring)):
            load = loads[f"{stage}@{name}"]
            assert load.call_tokens / load.calls == pytest.approx(work.call_tokens / work.calls, rel=0.2)
            distinct = 0.75 if stage == "score_explanations" else 1  # docs/SCALE.md
            assert work.read_tokens / work.calls == pytest.approx(distinct * load.read_tokens / load.calls, rel=0.1)


def test_the_share_for_training_is_that_of_the_run() -> None:
    found = workload.features(settings(), asked.measured()[0]["sandbox"].training_share)
    measured = spent().rounds["r1"].features
    assert workload.asked_about(found) == pytest.approx(measured, rel=0.1)
    most = workload.features(settings(), 1.0)
    assert most.sft + most.dpo + most.valid + most.test == sum(spec.d_sae for spec in settings().prepare_sae.saes)


def test_baselines_by_hand() -> None:
    """10 test features; best of 6 with 6 texts each; an agent of 3 turns with 2 hypotheses; 10 measuring texts each."""
    evaluations = {
        kind.value: replace(settings().evaluations["sft"], kind=kind)
        for kind in (EvaluationKind.best_of_n, EvaluationKind.agent, EvaluationKind.truth, EvaluationKind.other_feature)
    }
    loads = planned(Features(0, 0, 0, 10), evaluations=evaluations)
    calls = {kind: loads[f"evaluate@{kind}"].calls - 100 for kind in evaluations}
    assert calls == {"best_of_n": 10 * 6 * 7, "agent": 10 * 6 * 7, "truth": 0, "other_feature": 10}


def test_an_agent_that_is_a_model_by_hand() -> None:
    """10 features, 6 hypotheses each: as many calls as ever, and what they are told is in their tokens. A prompt has 40
    bytes and BOS; 2 contexts of 33 tokens with marks of 15 bytes; before it, on average 2.5 others of 40 + 7 tokens
    with 3 of their texts, 60 + 15 tokens each."""
    prompts = AgentPrompts(first="{contexts}", next=" " * 40 + "{contexts}{tested}")
    model = Pretrained("folder", None, "float32", None, None)
    agent = ChatAgentSpec(
        kind="chat", model=model, temperature=0.0, max_new_tokens=7, batch_size=1, prompts=prompts, contexts=2, texts=3
    )
    given = settings()
    scoring = replace(given.score_explanations, writer=replace(given.score_explanations.writer, max_new_tokens=60))
    extract = replace(given.extract_activations, context_tokens=16)
    baseline = {"agent": replace(given.evaluations["sft"], kind=EvaluationKind.agent)}
    more = {"score_explanations": scoring, "extract_activations": extract, "evaluations": baseline}
    plain, asked = (
        planned(Features(0, 0, 0, 10), **more, evaluate=replace(given.evaluate, agent=one))["evaluate@agent"]
        for one in (None, agent)
    )
    assert plain.calls == asked.calls and plain.read_tokens == asked.read_tokens
    assert asked.prompt_tokens - plain.prompt_tokens == 60 * (41 + 2 * (33 + 15) + 2.5 * (40 + 7 + 3 * (60 + 15)))


def test_training_tokens_by_hand() -> None:
    lengths = replace(workload.limits(settings()), label=5.0, description=6.0, training=20.0)
    loads = workload.loads(settings(), lengths, Features(100, 10, 5, 5), trained_here=True)
    assert loads["prepare_subject"].trained_tokens == 1200 * 64 * 20
    # 30,000 examples once; 100 labels and as many replayed, twice; 4 tokens of prompt, six contexts of a mark and five
    # words, and 5 of label each.
    assert loads["warm_up"].trained_tokens == 30_000 * (4 + 36 + 5)
    assert loads["train_sft"].trained_tokens == 2 * 200 * (4 + 36 + 5)
    # 10 features of two pairs, both sides of 40 + 6 tokens, two epochs; the reference reads the same.
    assert loads["train_dpo@r1"].trained_tokens == loads["train_dpo@r1"].read_tokens == 2 * 10 * 2 * 2 * 46
    assert "prepare_subject" not in workload.loads(settings(), lengths, Features(1, 1, 1, 1), trained_here=False)


def test_a_reinforcement_by_hand() -> None:
    """Three epochs over 10 features, 8 samples each; 6 texts of a sample; 40 tokens of prompt and 6 of
    explanation, which the policy learns from and the reference reads; texts of 7 tokens are read once."""
    lengths = replace(workload.limits(settings()), description=6.0, text=7.0, prompt=2.0)
    found = {"g": Reinforcement(start="sft", epochs=3.0, beta=0.0, learning_rate=1e-4)}
    params = replace(settings(), reinforcements=found)
    load = workload.loads(params, lengths, Features(100, 10, 5, 5), trained_here=True)["train_grpo@g"]
    assert load.calls == 240 + 240 * 6 and load.trained_tokens == 240 * 46
    assert load.read_tokens == 240 * 46 + 240 * 6 * 7


def test_limits_are_never_exceeded_by_the_run() -> None:
    most, lengths = asdict(workload.limits(settings())), asdict(asked.measured()[0]["sandbox"])
    assert all(lengths[name] <= most[name] for name in most)


def test_the_subject_made_here_is_the_one_that_is_planned() -> None:
    config = settings().prepare_subject
    model = build_model(config, tiny_tokenizer())
    assert shape_of(model.config.to_dict(), "subject") == asked._made_here(settings()) == shapes()["sandbox"]
    assert count(model) == parameters(shapes()["sandbox"]).total
    gpt2 = replace(config, architecture=Architecture.gpt2, d_model=32, heads=2)
    made = build_model(gpt2, tiny_tokenizer())
    assert parameters(shape_of(trained_config(gpt2, len(tiny_tokenizer())), "subject")).total == count(made)


RATE = Rate(tokens=1000, seconds=36.0)


def run_of(**changes) -> Measured:
    saes = [spec.d_sae for spec in settings().prepare_sae.saes]
    stages = dict.fromkeys(asked.measured()[1][0].stages, RATE)
    return replace(Measured("here", "sandbox", saes, ["likelihood"], FULL, "by hand", stages), **changes)


def plan_of(measured: Measured | None, machine_hour: float = 0.0):
    prices = replace(settings().compare_rounds.prices, machine_hour=machine_hour)
    params = replace(settings(), compare_rounds=replace(settings().compare_rounds, prices=prices))
    return plan(params, playing("sandbox"), workload.limits(params), measured, trained_here=True)


def test_hours_and_money_by_hand() -> None:
    found = plan_of(run_of(), machine_hour=2.0)
    for stage in found.stages.values():  # 1000 tokens take .01 hours
        assert isclose(stage.hours, stage.load.tokens / 100_000) and isclose(stage.usd, 2 * stage.hours)
    assert isclose(found.total.hours, sum(stage.hours for stage in found.stages.values()))
    assert found.total.load.calls == sum(stage.load.calls for stage in found.stages.values())
    assert found.total.memory == max((stage.memory for stage in found.stages.values()), key=lambda one: one.total)
    assert "USD" in table(found)[0] and "USD" not in table(plan_of(run_of()))[0]
    assert len(set(map(len, table(found)))) == 1


def test_what_was_not_measured_is_unknown() -> None:
    nothing = plan_of(None, machine_hour=2.0)
    assert nothing.total.hours is None and nothing.total.usd is None
    assert {stage.hours for stage in nothing.stages.values()} == {None}
    assert all(line.split()[-2:] == ["unknown", "unknown"] for line in table(nothing)[1:])
    some = run_of()
    part = plan_of(replace(some, stages={"prepare_sae": RATE}))
    assert part.stages["prepare_sae"].hours and part.stages["train_sft"].hours is None and part.total.hours is None
    assert plan_of(some).total.usd is None, "no price, no money"


def fits(run: Measured, models: Models, hardware: str = "here") -> bool:
    return fitting([run], settings(), shapes(), models, hardware) is run


def test_a_rate_holds_for_what_it_was_measured_on() -> None:
    run, own = run_of(), playing("sandbox")
    assert fits(run, own) and not fits(run, own, "elsewhere")
    assert not fits(run, playing("gpt2")) and not fits(run, playing("sandbox", LORA))
    assert not fits(run_of(saes=[768]), own) and not fits(run_of(judges=["chat"]), own)
    assert not fits(run, replace(own, explainer=playing("gpt2").explainer))
    assert not fits(run, replace(own, writer=None)), "an endpoint's speed is not the machine's"


def test_every_planned_stage_is_one_of_the_pipeline() -> None:
    split = Features(1, 1, 1, 1)
    loads = planned(split)
    assert set(loads) == set(memories(settings(), playing("sandbox"), split, trained_here=True))
    assert {name.partition("@")[0] for name in loads} == set(asked.measured()[1][0].stages)


def test_the_maxima_of_the_asked_latents_are_in_the_plan() -> None:
    """score_explanations keeps a float32 for every text and latent that a feature or neighbour is, here all of them: a
    further feature has 8 candidates of 6 texts."""

    def peak(dpo: int) -> int:
        split = Features(sft=1, dpo=dpo, valid=1, test=1)
        found = memories(settings(), playing("sandbox"), split, trained_here=True)
        return found["score_explanations@r1"].total

    assert peak(1001) - peak(1000) == 8 * 6 * 4 * 768 * 4


ASKED = asked.Choice(model=None, dtype=None, lora_rank=None, checkpointing=False, hardware="cpu-2-cores")
OTHERS = [
    "prepare_subject.pretrained={source: meta-llama/Llama-3.1-8B, revision: null, dtype: bfloat16, device_map: cuda, "
    "attention: null}",
    "prepare_sae.saes=[{name: main, pretrained: {source: release, sae_id: l15, norm_scaling_factor: null}, "
    "d_sae: 32768}]",
]


def test_a_model_and_an_sae_of_others_are_planned_by_their_names() -> None:
    found = asked.answer(OTHERS, ASKED)
    assert found.parameters == PUBLISHED["llama-3.1-8b"] and found.dtype == "bfloat16"
    stages = found.plan.stages
    assert "prepare_subject" not in stages and stages["prepare_sae"].load.tokens == 0
    assert stages["extract_activations"].memory.weights == 2 * PUBLISHED["llama-3.1-8b"]
    assert stages["extract_activations"].memory.sae == 4 * memory.sae_parameters(4096, 32768)
    assert found.plan.total.hours is None


def test_what_stands_on_the_command_line_goes_before_the_settings() -> None:
    found = asked.answer(OTHERS, replace(ASKED, model="google/gemma-2-9b-it", dtype="float32", lora_rank=32))
    assert found.parameters == PUBLISHED["gemma-2-9b"] and found.dtype == "float32"
    trained = found.plan.stages["train_dpo@r1"].memory
    assert trained.optimizer == 12 * adapter_parameters(shapes()["gemma-2-9b"], 32)


REAL = ["gpt2_small", "gemma2_2b", "llama31_8b_l15", "qwen3"]


@pytest.mark.parametrize("experiment", REAL)
def test_an_experiment_of_a_real_model_says_what_the_plan_says(experiment: str) -> None:
    """Nothing is downloaded: sizes are in conf/shapes.yaml, and the header has the figures of the plan."""
    total = asked.answer([f"experiment={experiment}"], ASKED).plan.total
    said = (ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8")
    peak, tokens = total.memory.total / memory.GIB, total.load.tokens / 10**6
    assert f"{peak:.1f} GiB at the peak, {total.load.calls:,} calls, {tokens:.0f} million tokens" in said
    assert total.hours is None and "hours unknown" in said


def test_every_part_is_played_by_the_model_that_the_settings_name() -> None:
    """GPT-2 is read; Qwen3-0.6B explains with adapters of rank 32, and is opened once to write and to judge."""
    found = asked.answer(["experiment=gpt2_small"], ASKED).plan.stages
    gpt2, qwen = 4 * PUBLISHED["gpt2"], 2 * PUBLISHED["qwen3-0.6b"]
    assert found["train_dpo@r1"].memory.optimizer == 12 * adapter_parameters(shapes()["qwen3-0.6b"], 32)
    assert found["train_dpo@r1"].memory.weights == qwen + 16 * adapter_parameters(shapes()["qwen3-0.6b"], 32)
    assert found["extract_activations"].memory.weights == gpt2
    assert found["generate_explanations@r1"].memory.weights == qwen
    assert found["score_explanations@r1"].memory.weights == found["evaluate@r1"].memory.weights == gpt2 + qwen
    rank = asked.answer(["experiment=gpt2_small"], replace(ASKED, lora_rank=8)).plan.stages["train_sft"].memory
    assert rank.optimizer == 12 * adapter_parameters(shapes()["qwen3-0.6b"], 8)


def test_a_chat_judges_questions_by_hand() -> None:
    """The longest question fits; two judges, asked about 4 contexts of 3 tokens and 2 steered texts a bundle."""
    assert max(len(text.replace("{description}", "").encode()) for text in (OF_TEXT, OF_TOKEN)) <= workload.QUESTION
    params = asked.settings_params.build(OmegaConf.create(asked.compose.composed(["judge=chat"])), "conf")
    probes = replace(params.probe_features, contexts=3, silent=1)
    probes = replace(probes, steer=replace(probes.steer, divergences=[0.5], prompts=1, max_new_tokens=5))
    extract = replace(params.extract_activations, context_tokens=1)
    params = replace(params, probe_features=probes, extract_activations=extract)
    lengths = replace(workload.limits(params), description=11, prompt=2)
    # The chat model: 4 texts, 12 tokens, and 3 bundles of 2 texts; then likelihood: 4 texts after 12 tokens.
    chat = (4 + 12) * (workload.QUESTION + 10 + 3) + 6 * (workload.QUESTION + 10 + 5)
    assert workload._judged(params, lengths, 7).read_tokens == 7 * (chat + 4 * 12 + 12)
    # The likelihood judge reads the 4 texts of 3 tokens and the 2 steered of 5 alone, once for all evaluations.
    split = workload.Features(0, 0, 0, 7)
    assert workload._probes(params, split).read_tokens == 7 * (12 + 12 + 2 * 5)


def test_no_more_features_are_planned_than_are_trained_on() -> None:
    limited = replace(settings(), extract_activations=replace(settings().extract_activations, max_features=50))
    found = workload.features(limited, 1.0)
    assert found.sft + found.dpo == 50 and found.test == settings().extract_activations.test_features
    assert workload.features(limited, 0.001).sft < 50


def test_ids_of_the_hub_name_one_size_each() -> None:
    listed = [source for config in asked._read(asked.SHAPES).values() for source in config["hub"]]
    assert len(set(listed)) == len(listed) == len(asked.hub_names())


def test_parts_that_no_model_here_plays_take_nothing() -> None:
    """A remote writer leaves the reading, and the explainer's answers in an evaluation."""
    split, large = Features(1, 1, 1, 1), playing("llama-3.1-8b", LORA)
    remote = replace(playing("gpt2"), writer=None, measuring=None)
    found = memories(settings(), remote, split, trained_here=False)
    assert found["score_explanations@r1"].weights == 4 * PUBLISHED["gpt2"]
    wide = memories(settings(), replace(remote, explainer=large.explainer), split, trained_here=False)
    assert wide["score_explanations@r1"] == found["score_explanations@r1"]
    assert wide["generate_explanations@r1"].weights == 2 * PUBLISHED["llama-3.1-8b"]
    assert wide["evaluate@r1"].weights == 2 * PUBLISHED["llama-3.1-8b"] + found["score_explanations@r1"].weights
    assert wide["train_sft"].optimizer == 12 * adapter_parameters(shapes()["llama-3.1-8b"], 32)


def test_a_finished_runs_hours_are_planned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own rates the stages of what was measured come out near the seconds they took; duplicates and pairs err
    upwards. Its TopK SAEs had fewer features to train on, and other things were said of them."""
    lengths, runs = asked.measured()
    sandbox = replace(lengths["sandbox"], label=4.2, description=5.2, text=9.5, training_share=0.551)
    then = lengths | {"sandbox": sandbox}
    monkeypatch.setattr(asked, "measured", lambda: (then, runs))
    found = asked.answer(["rounds=two", "explainer=vector"], ASKED)
    rates = asked.measured()[1][0].stages
    for name in ("prepare_subject", "prepare_sae", "extract_activations"):
        assert found.plan.stages[name].hours * 3600 == pytest.approx(rates[name].seconds, rel=0.02)
    supervised = sum(found.plan.stages[name].hours for name in ("warm_up", "train_sft"))  # one stage when it was run
    assert supervised * 3600 == pytest.approx(rates["train_sft"].seconds, rel=0.02)
    for name in ("score_explanations", "train_dpo", "evaluate", "probe_features"):
        seconds = sum(stage.hours * 3600 for key, stage in found.plan.stages.items() if key.partition("@")[0] == name)
        assert rates[name].seconds <= seconds <= 3 * rates[name].seconds


def test_answers_in_text_and_json_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "experiment=nano", "--model", "llama-3.1-8b", "--dtype", "bfloat16"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("8,030,261,248 parameters, bfloat16") and "unknown" in shown
    assert main(["plan", "--json", "prepare_sae.steps=900"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["stages"]["prepare_sae"]["hours"] > 0 and found["plan"]["total"]["usd"] is None
    assert found["parameters"] == parameters(shapes()["sandbox"]).total
    assert list(tmp_path.iterdir()) == []


def test_no_model_library_is_loaded() -> None:
    """Which is what makes the answer quick."""
    program = (
        "import sys; from tasks.cli.main import main; code = main(['plan', 'experiment=pydoc']);"
        "heavy = {'torch', 'transformers', 'sae_lens', 'trl'} & set(sys.modules);"
        "sys.exit(code or (str(heavy) if heavy else 0))"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_a_folder_says_its_own_shape(tmp_path: Path) -> None:
    built("qwen3", TINY["qwen3"]).config.save_pretrained(tmp_path)
    assert asked._named(str(tmp_path), "--model") == shape("qwen3")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: not JSON"):
        asked._named(str(tmp_path), "--model")


WRONG = {
    "a model": (["--model", "gpt5"], "--model: gpt5: size unknown; choose from sandbox, gpt2"),
    "a type": (["--dtype", "int4"], "--dtype int4: unknown; choose from float32, bfloat16, float16"),
    "an override": (["train_sft.epoch=1"], "did you mean train_sft.epochs?"),
    "an experiment": (["experiment=nope"], "choose from decoder_row"),
    "a pretrained subject": (
        [
            "subject=corpus", "label_features.source=data/imported/x.parquet", "warm_up.examples=0",
            "train_sft.replay_share=0", "prepare_subject.pretrained.source=nobody/model",
        ],
        "prepare_subject.pretrained.source: nobody/model: size unknown; choose from",
    ),
    "a rank": (["--lora-rank", "-1"], "Invalid value for '--lora-rank'"),
}  # fmt: skip


@pytest.mark.parametrize(("command", "said"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_line(command: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *command]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and said in shown.err and shown.err.startswith("error: ") and shown.err.count("\n") == 1


BROKEN = {
    "a family": ({"model_type": "mamba"}, "x: model_type is 'mamba'; sizes are known for llama"),
    "a key": ({"model_type": "llama", "num_attention_heads": 2, "hidden_size": 4}, "x: num_hidden_layers: missing"),
    "a number": (ROTARY | {"model_type": "llama", "vocab_size": "many"}, "x: vocabulary is 'many'; must be"),
}


@pytest.mark.parametrize(("config", "said"), BROKEN.values(), ids=BROKEN)
def test_a_config_that_says_no_size_is_refused(config: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        shape_of(config, "x")


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(UserError, match="^--hardware a-gpu: unknown; choose from cpu-2-cores, or add"):
        asked.answer([], replace(ASKED, hardware="a-gpu"))


@pytest.mark.parametrize("text", ["", "lengths: {sandbox: {document: 3}}", "runs: [{hardware: x}]", "a: ["])
def test_a_broken_table_is_named(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "throughput.yaml"
    path.write_text(text)
    monkeypatch.setattr(asked, "THROUGHPUT", path)
    with pytest.raises(UserError, match="conf/throughput.yaml: "):
        asked.measured()
