"""TRL's log-probabilities over feature tokens against a plain forward pass, and the checkpoint that a round keeps."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from starts import started
from tiny import WIDTH, settings, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel, TrainerState

from saeexplainer.config import Round, TrainDpo
from saeexplainer.config.parts import Architecture, DpoLoss
from saeexplainer.errors import UserError
from saeexplainer.explainer.explainer import Prompts, attach
from saeexplainer.records import PreferencePair
from saeexplainer.training import dpo
from saeexplainer.training.sft import check_trained, on_one_device, trained_weights

FEATURES = 4
PARAMS = settings()
EXPLAINER = PARAMS.explainer
DIRECTIONS = torch.randn(FEATURES, WIDTH, generator=torch.Generator().manual_seed(3))
PLAIN = tiny_tokenizer()
PROMPTS = Prompts(PLAIN, len(PLAIN), EXPLAINER)
BETA = 0.2
SAID = [
    ("the word dog", "any animal in a question"), ("the subject", "the word cat"),
    ("a question", "any animal"), ("the word dog in a negation", "the object"),
]  # fmt: skip


def pair(feature: int, chosen: str, rejected: str) -> PreferencePair:
    figures = (1.0, 0.5, 0.5, 0.5, 0.5)
    return PreferencePair(f"subject/main/{feature}", "dpo", chosen, rejected, *figures, "the dog", "the cat")


PAIRS = [pair(feature, *said) for feature, said in enumerate(SAID)]


def dataset(pairs: list[PreferencePair]):
    return dpo.preference_dataset(pairs, PROMPTS, lambda feature_id: int(feature_id.rpartition("/")[2]), lambda: False)


def explainer(architecture: Architecture) -> PreTrainedModel:
    model = tiny_model(architecture)
    attach(model, PLAIN, DIRECTIONS, EXPLAINER)
    return model


@torch.no_grad()
def by_hand(model: PreTrainedModel, feature: int, answer: str) -> float:
    """Summed log-probability of one answer and its end, unbatched."""
    prompt = PROMPTS.ids(feature)
    said = PLAIN(" " + answer, add_special_tokens=False)["input_ids"] + [PLAIN.eos_token_id]
    logits = model(input_ids=torch.tensor([prompt + said]), use_cache=False).logits[0].log_softmax(dim=-1)
    return sum(float(logits[len(prompt) - 1 + at, token]) for at, token in enumerate(said))


def all_by_hand(model: PreTrainedModel) -> list[tuple[float, float]]:
    """(chosen, rejected) of every pair."""
    model.eval()
    return [tuple(by_hand(model, feature, answer) for answer in said) for feature, said in enumerate(SAID)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("architecture", list(Architecture))
def test_log_probabilities_are_those_of_a_plain_forward_pass(architecture, tmp_path):
    from trl import DPOConfig

    data = dataset(PAIRS)
    model = explainer(architecture)
    arguments = DPOConfig(
        output_dir=str(tmp_path), beta=BETA, per_device_eval_batch_size=4, report_to="none", bf16=False, use_cpu=True,
        max_length=None, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = dpo.prepared_trainer()(
        model=model, ref_model=explainer(architecture), args=arguments, train_dataset=data, eval_dataset=data,
        processing_class=tiny_tokenizer(),
    )  # fmt: skip
    found = trainer.evaluate()
    expected = all_by_hand(explainer(architecture))
    assert found["eval_logps/chosen"] == pytest.approx(mean([chosen for chosen, _ in expected]), rel=1e-4)
    assert found["eval_logps/rejected"] == pytest.approx(mean([rejected for _, rejected in expected]), rel=1e-4)
    # The reference is the start: before any training nothing is preferred to anything.
    assert found["eval_rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert found["eval_loss"] == pytest.approx(math.log(2), rel=1e-5)


CONFIG = replace(PARAMS.train_dpo, epochs=3.0, batch_size=2, direction_noise=0.0, evaluations_per_epoch=1)
ROUND = Round(start="sft", beta=BETA, learning_rate=1e-3)


def trained(
    architecture: Architecture,
    folder: Path,
    validation: list[PreferencePair] = PAIRS,
    config: TrainDpo = CONFIG,
    round_: Round = ROUND,
):
    start = started(architecture, DIRECTIONS, EXPLAINER)
    data = [dataset(pairs) for pairs in (PAIRS, validation)]
    torch.manual_seed(0)
    params = replace(PARAMS, train_dpo=config)
    history = dpo.train(start, *data, round_, params, seed=0, scratch=folder)
    return start.parts.model, start.reference, [entry for entry in history if "eval_rewards/margins" in entry]


@pytest.mark.parametrize("architecture", list(Architecture))
def test_a_round_prefers_the_chosen_and_keeps_its_best_checkpoint(architecture, tmp_path):
    model, reference, evaluations = trained(architecture, tmp_path)
    start = all_by_hand(explainer(architecture))
    assert all_by_hand(reference) == start  # the reference is frozen
    margins = [
        BETA * ((chosen - first) - (rejected - second))
        for (chosen, rejected), (first, second) in zip(all_by_hand(model), start)
    ]
    key = (mean([float(margin > 0) for margin in margins]), pytest.approx(mean(margins), rel=1e-3, abs=1e-4))
    best = max((entry["eval_rewards/accuracies"], entry["eval_rewards/margins"]) for entry in evaluations)
    assert best == key and best[1] > 0.05
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pt", ".bin", ".pth")]  # nothing is pickled
    assert len(evaluations) > 1 and len({entry["eval_rewards/margins"] for entry in evaluations}) > 1


@pytest.mark.parametrize(("loss", "expected"), [(DpoLoss.sigmoid, math.log(2)), (DpoLoss.ipo, (1 / (2 * BETA)) ** 2)])
def test_the_loss_asked_for_is_the_loss_that_is_minimised(loss, expected, tmp_path):
    """At the start nothing is preferred: -log sigmoid(0), or (0 - 1 / (2 beta))^2; steps this small stay there."""
    config = replace(CONFIG, loss=loss, sft_weight=0.0)
    _, _, evaluations = trained(Architecture.llama, tmp_path, config=config, round_=replace(ROUND, learning_rate=1e-6))
    assert evaluations[0]["eval_loss"] == pytest.approx(expected, rel=1e-2)


def test_an_early_checkpoint_comes_back_if_it_was_the_best(tmp_path):
    """Validation wants the opposite of training, so that every step makes it worse."""
    turned = [pair(feature, rejected, chosen) for feature, (chosen, rejected) in enumerate(SAID)]
    model, _, evaluations = trained(Architecture.llama, tmp_path, turned)
    start = all_by_hand(explainer(Architecture.llama))
    margin = mean(
        [
            BETA * ((rejected - second) - (chosen - first))
            for (chosen, rejected), (first, second) in zip(all_by_hand(model), start)
        ]
    )
    assert margin == pytest.approx(evaluations[0]["eval_rewards/margins"], rel=1e-3, abs=1e-4)
    assert evaluations[-1]["eval_rewards/margins"] < margin - 0.05


def test_rows_are_what_trl_makes_of_the_text():
    """TRL's own tokenizing, of a tokenizer that knows the feature tokens as words, gives the same token ids."""
    from datasets import Dataset
    from tokenizers import AddedToken
    from trl import DPOConfig, DPOTrainer

    tokenizer = tiny_tokenizer()
    names = [f"<feature:{row}>" for row in range(len(DIRECTIONS))]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    prompts = [f"<explain>{name}<about>" for name in names]
    chosen, rejected = ([f" {said[side]}" for said in SAID] for side in (0, 1))
    text = Dataset.from_dict({"prompt": prompts, "chosen": chosen, "rejected": rejected})
    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer._tokenizer = tokenizer
    wanted = trainer._prepare_dataset(text, tokenizer, DPOConfig(max_length=None, bf16=False, use_cpu=True), "train")
    found = dataset(PAIRS)
    for name in found.column_names:
        assert found[name] == wanted[name], name


def test_the_best_checkpoint_is_by_accuracy_then_margin():
    model = torch.nn.Linear(1, 1, bias=False)
    best = dpo.best_checkpoint()
    # The first is that of the start, whose learning rate was 0.
    found = ((0.0, 1.0, 9.9), (1.0, 0.5, 9.0), (2.0, 0.75, 0.1), (3.0, 0.75, 0.2), (4.0, 0.75, 0.2), (5.0, 0.5, 8.0))
    for step, (weight, accuracy, margin) in enumerate(found, start=1):
        torch.nn.init.constant_(model.weight, weight)
        figures = {"eval_rewards/accuracies": accuracy, "eval_rewards/margins": margin}
        best.on_evaluate(None, TrainerState(global_step=step), None, figures, model)
    best.restore(model)
    assert model.weight.item() == 3.0


def test_a_round_of_one_step_is_one_line(tmp_path):
    """Its learning rate is 0, so it would leave the start as it was."""
    few, start = dataset(PAIRS[:2]), started(Architecture.llama, DIRECTIONS, EXPLAINER)
    once = replace(CONFIG, epochs=1.0, batch_size=2, accumulate=1)
    with pytest.raises(UserError, match="^train_dpo: one step in all, and the first one's learning rate is 0; lower"):
        dpo.train(start, few, few, ROUND, replace(PARAMS, train_dpo=once), seed=0, scratch=tmp_path)


@pytest.mark.parametrize(("training", "validation"), [(0, 4), (4, 0)])
def test_a_side_without_pairs_is_one_line(training, validation, tmp_path):
    sides = [dataset(PAIRS[:count]) for count in (training, validation)]
    start = started(Architecture.llama, DIRECTIONS, EXPLAINER)
    with pytest.raises(UserError, match=f"{training} training and {validation} validation pairs"):
        dpo.train(start, *sides, ROUND, PARAMS, seed=0, scratch=tmp_path)


def test_a_machine_with_several_gpus_trains_on_one(tmp_path):
    from trl import SFTConfig

    arguments = SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert arguments.n_gpu <= 1
    arguments._n_gpu = 4
    assert on_one_device(arguments).n_gpu == 1


def test_training_is_seen_in_another_number_type():
    model = torch.nn.Linear(2, 2)
    before = trained_weights(model)
    model.bfloat16()
    with torch.no_grad():
        model.weight.copy_(before["weight"] + 1.0)
    check_trained(model, before, 9, "train_dpo")
    model.float().load_state_dict(before)
    with pytest.raises(RuntimeError, match="left every weight as it was"):
        check_trained(model, before, 9, "train_dpo")
