"""GRPO over feature tokens: rewards reach the features they belong to, the start holds the model back, nothing is
learnt from what is not known."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from starts import started
from tiny import WIDTH, settings, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from saeexplainer.config import Reinforcement, TrainGrpo
from saeexplainer.config.parts import Architecture
from saeexplainer.errors import UserError
from saeexplainer.explainer.explainer import Prompts, attach
from saeexplainer.training import grpo
from saeexplainer.training.grpo import Rewards

FEATURES = ["subject/main/0", "subject/main/1"]
PARAMS = settings()
EXPLAINER = PARAMS.explainer
DIRECTIONS = torch.randn(len(FEATURES), WIDTH, generator=torch.Generator().manual_seed(3))
PLAIN = tiny_tokenizer()
PROMPTS = Prompts(PLAIN, len(PLAIN), EXPLAINER)
SAMPLING = replace(PARAMS.generate_explanations, candidates=16, max_new_tokens=1, temperature=1.0)
CONFIG = TrainGrpo(features=2, direction_noise=0.0)
REINFORCEMENT = Reinforcement(start="sft", epochs=60.0, beta=0.0, learning_rate=1e-2)
SIGN = {FEATURES[0]: -1.0, FEATURES[1]: 1.0}


def explainer(architecture: Architecture) -> PreTrainedModel:
    model = tiny_model(architecture)
    attach(model, PLAIN, DIRECTIONS, EXPLAINER)
    return model


def trained(
    folder: Path,
    rewards: Rewards,
    architecture: Architecture = Architecture.llama,
    reinforcement: Reinforcement = REINFORCEMENT,
    config: TrainGrpo = CONFIG,
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    start = started(architecture, DIRECTIONS, EXPLAINER)
    params = replace(PARAMS, train_grpo=config, generate_explanations=SAMPLING)
    questions = {feature_id: PROMPTS.ids(number) for number, feature_id in enumerate(FEATURES)}
    history = grpo.train(start, questions, rewards, reinforcement, params, seed=0, scratch=folder)
    again = explainer(architecture)  # a trained one answers as its trainer has it
    again.load_state_dict(start.parts.model.state_dict())
    return again, [entry for entry in history if "reward" in entry]


@torch.no_grad()
def mean_place(model: PreTrainedModel, feature_id: str) -> float:
    """Where in the alphabet the first word of an answer begins, in expectation: 0 is a, 25 z."""
    logits = model(input_ids=torch.tensor([PROMPTS.ids(FEATURES.index(feature_id))])).logits[0, -1, : len(PLAIN)]
    return float(logits.softmax(dim=-1) @ torch.tensor(PLACES))


def place(text: str) -> float:
    return float(ord((text or "m").lower()[0]) - ord("a"))


PLACES = [place(PLAIN.decode([token]).strip()) for token in range(len(PLAIN))]


@pytest.mark.parametrize("architecture", list(Architecture))
def test_each_feature_learns_what_it_is_rewarded_for(architecture, tmp_path):
    asked: list[tuple[str, str]] = []

    def rewards(now: list[tuple[str, str]]) -> list[float | None]:
        """The first feature is paid for words early in the alphabet, the second for late ones."""
        asked.extend(now)
        return [SIGN[feature_id] * place(text) for feature_id, text in now]

    start = explainer(architecture)
    model, history = trained(tmp_path, rewards, architecture)
    assert history[-1]["reward"] > history[0]["reward"] + 1
    assert mean_place(model, FEATURES[0]) < mean_place(start, FEATURES[0]) - 1
    assert mean_place(model, FEATURES[1]) > mean_place(start, FEATURES[1]) + 1
    assert len(asked) == REINFORCEMENT.epochs * len(FEATURES) * SAMPLING.candidates
    for at in range(0, len(asked), SAMPLING.candidates):
        assert len({feature_id for feature_id, _ in asked[at : at + SAMPLING.candidates]}) == 1, (
            "a group is one feature"
        )
    assert {feature_id for feature_id, _ in asked} == set(FEATURES)
    assert not any(text != text.strip() or "<" in text for _, text in asked), "explanations as a round has them"


def test_the_start_holds_back(tmp_path):
    def rewards(now: list[tuple[str, str]]) -> list[float | None]:
        return [place(text) for _, text in now]

    free, _ = trained(tmp_path / "free", rewards)
    held, history = trained(tmp_path / "held", rewards, reinforcement=replace(REINFORCEMENT, beta=1.0))
    start = explainer(Architecture.llama)
    for feature_id in FEATURES:
        first, bound, loose = (mean_place(model, feature_id) for model in (start, held, free))
        assert first < bound < loose - 1
    assert history[0]["kl"] < history[-1]["kl"]


def test_nothing_is_learnt_from_rewards_that_are_not_known(tmp_path):
    with pytest.raises(RuntimeError, match="left every weight"):
        trained(tmp_path, lambda asked: [None] * len(asked))


def test_equal_rewards_teach_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="left every weight"):
        trained(tmp_path, lambda asked: [0.5] * len(asked))


def test_too_few_features_for_two_steps(tmp_path):
    with pytest.raises(UserError, match=r"train_grpo\.features: is 64.*lower it or raise epochs"):
        trained(tmp_path, lambda asked: [0.0] * len(asked), config=TrainGrpo(64, 0.0))
