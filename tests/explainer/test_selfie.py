"""SelfIE adapters: what stands in place of a feature's token, what is trained, what is kept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import WIDTH, settings, tiny_model, tiny_tokenizer

from saeexplainer.config import Round
from saeexplainer.config.explainers import Affine
from saeexplainer.config.parts import Architecture
from saeexplainer.errors import UserError
from saeexplainer.explainer import folder as explainer_folder
from saeexplainer.explainer.explainer import Explainer, Prompts, attach
from saeexplainer.explainer.feature_tokens import AffineMap, new_affine_map
from saeexplainer.models.blocks import embedding_of
from saeexplainer.records import PreferencePair
from saeexplainer.training import dpo, sft
from saeexplainer.training.sft import trained_weights
from saeexplainer.training.start import open_start

PARAMS = settings()
CONFIG = replace(PARAMS.explainer, adapter=Affine(length=2.0), direction_noise=0.0)
PLAIN = tiny_tokenizer()
FEATURES = 4
DIRECTIONS = 5.0 * torch.randn(FEATURES, WIDTH, generator=torch.Generator().manual_seed(2))
SAID = [
    ("any animal", "a question"),
    ("a question", "the word dog"),
    ("the word dog", "any animal"),
    ("the subject", "any"),
]
PROMPTS = Prompts(PLAIN, len(PLAIN), CONFIG)


@pytest.fixture(scope="module", params=list(Architecture))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param).save_pretrained(folder)
    PLAIN.save_pretrained(folder)
    return folder


def test_a_feature_is_embedded_as_its_scaled_and_shifted_direction(subject):
    parts = explainer_folder.start(CONFIG, subject, WIDTH, seed=0)
    rows = embedding_of(parts.model)
    assert float(parts.projection.scale) == pytest.approx(2.0 * float(rows.norm(dim=1).mean()), rel=1e-5)
    with torch.no_grad():
        parts.projection.bias.copy_(torch.arange(WIDTH) / 10)
    ids = PROMPTS.ids(2)
    place = ids.index(len(PLAIN) + 2)
    embedded = rows[torch.tensor([min(token, len(PLAIN) - 1) for token in ids])].detach().clone()
    embedded[place] = parts.projection.scale * DIRECTIONS[2] / DIRECTIONS[2].norm() + torch.arange(WIDTH) / 10
    with torch.no_grad():
        expected = parts.model(inputs_embeds=embedded[None]).logits
        hooks = attach(parts.model, PLAIN, DIRECTIONS, CONFIG, projection=parts.projection)
        found = parts.model(input_ids=torch.tensor([ids])).logits
        hooks.remove()
    torch.testing.assert_close(found, expected)


def supervised(subject: Path, folder: Path) -> explainer_folder.Parts:
    """Some steps on labels, saved."""
    parts = explainer_folder.start(CONFIG, subject, WIDTH, seed=0)
    hooks = attach(parts.model, parts.tokenizer, DIRECTIONS, CONFIG, projection=parts.projection)
    assert list(trained_weights(parts.model)) == ["feature_projection.scale", "feature_projection.bias"]
    examples = [PROMPTS.example(feature, chosen) for feature, (chosen, _) in enumerate(SAID)]
    sft.supervised_fine_tuning(
        parts.model, parts.tokenizer, examples, CONFIG, epochs=20.0, learning_rate=0.02, batch_size=4,
        section="train_sft", seed=0, scratch=folder,
    )  # fmt: skip
    hooks.remove()
    (folder / "sft").mkdir()
    explainer_folder.save(parts, folder / "sft")
    return parts


def test_only_the_map_is_trained_and_kept_and_an_explainer_opens_it_again(subject, tmp_path, monkeypatch):
    start = new_affine_map(tiny_model(Architecture.llama), 2.0)
    parts = supervised(subject, tmp_path)
    assert not torch.equal(parts.projection.bias, start.bias)
    kept = {path.name for path in (tmp_path / "sft").iterdir()}
    assert kept == {"affine.safetensors", "pretrained.json"}, "a number and a vector, and where the model is"
    again = explainer_folder.open_parts(tmp_path / "sft")
    assert isinstance(again.projection, AffineMap) and not list(trained_weights(again.projection))
    assert torch.equal(again.projection.scale, parts.projection.scale)
    assert torch.equal(again.projection.bias, parts.projection.bias)
    for name, weight in tiny_model(Architecture(again.model.config.model_type)).named_parameters():
        assert torch.equal(again.model.get_parameter(name), weight)
    generation = replace(PARAMS.generate_explanations, max_new_tokens=4)
    vectors = {CONFIG.direction: DIRECTIONS}
    said = Explainer(tmp_path / "sft", vectors, CONFIG, generation).explain([0, 1, 2, 3], temperature=0.0)
    zero = Explainer(tmp_path / "sft", {CONFIG.direction: 0 * DIRECTIONS}, CONFIG, generation).explain([0, 1], 0.0)
    assert len(set(said)) > 1 == len(set(zero)), "what it says is of the direction"


def test_a_round_goes_on_from_it_with_its_start_as_reference(subject, tmp_path):
    supervised(subject, tmp_path)
    start = open_start(tmp_path / "sft", DIRECTIONS, CONFIG, noise=0.0)
    pairs = [
        PreferencePair(f"s/main/{feature}", "dpo", *said, 1.0, 0.5, 0.5, 0.5, 0.5, "a", "b")
        for feature, said in enumerate(SAID)
    ]
    data = dpo.preference_dataset(pairs, PROMPTS, lambda feature_id: int(feature_id[-1]), lambda: False)
    training = replace(PARAMS.train_dpo, epochs=10.0, batch_size=4, sft_weight=0.0, evaluations_per_epoch=1)
    params = replace(PARAMS, train_dpo=training, explainer=CONFIG)
    history = dpo.train(start, data, data, Round("sft", 0.2, 0.02), params, seed=0, scratch=tmp_path)
    margins = [entry["eval_rewards/margins"] for entry in history if "eval_rewards/margins" in entry]
    assert max(margins) > 0
    kept = explainer_folder.open_parts(tmp_path / "sft").projection
    assert torch.equal(start.reference.feature_projection.bias, kept.bias)
    assert not torch.equal(start.parts.projection.bias, kept.bias)


def test_another_width_is_one_line(subject):
    with pytest.raises(UserError, match=r"explainer\.adapter: scales and shifts vectors of 24 .* has embeddings of 16"):
        explainer_folder.start(CONFIG, subject, 24, seed=0)
