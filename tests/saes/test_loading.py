"""The SAE as sae-lens trains and stores it, against the mathematics; and its report against hand-derived figures."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import WIDTH, read_residual, settings, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from saeexplainer.config import PrepareSae
from saeexplainer.config.parts import Architecture
from saeexplainer.config.saes import TopK, TrainedSae
from saeexplainer.errors import UserError
from saeexplainer.models.batches import encode_batch
from saeexplainer.saes import loading, quality, training
from saeexplainer.saes.reading import Reader
from saeexplainer.saes.sites import Place, Site

SPEC, K = TrainedSae("main", d_sae=24, seed=0), 3
CONFIG = PrepareSae(
    hook_block=1, architecture=TopK("topk", K), saes=[SPEC], seed=0, documents=1, steps=150, batch_tokens=128,
    learning_rate=2e-2, text_encoder=None,
)  # fmt: skip
TOKENIZER = tiny_tokenizer()
TEXTS = ["the dog chases the cat .", "the dog", "does the dog chase the cat in the garden ?", "not the cat"]


@pytest.fixture(scope="module")
def activations() -> torch.Tensor:
    """Sums of two of twenty directions, away from the origin."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(20, WIDTH, generator=generator)
    chosen = torch.rand(2000, 20, generator=generator).topk(2).indices
    return directions[chosen].sum(dim=1) + 3.0


@pytest.fixture(scope="module")
def folder(activations: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sae") / "main"
    torch.manual_seed(0)
    training.train_and_save(activations, CONFIG, SPEC, 0, path)
    return path


def topk_by_hand(folder: Path, x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and reconstruction from the stored weights alone: rows of the decoder count as unit vectors."""
    weights = load_file(folder / "sae_weights.safetensors")
    norms = weights["W_dec"].norm(dim=1)
    before = ((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]) * norms
    codes = torch.zeros_like(before)
    for row, values in enumerate(before):
        for latent in sorted(range(len(values)), key=lambda at: -values[at])[:k]:
            codes[row, latent] = max(values[latent], torch.tensor(0.0))
    rebuilt = codes @ (weights["W_dec"] / norms[:, None]) + weights["b_dec"]
    return codes, rebuilt


def test_a_saved_sae_is_topk_of_its_weights(folder, activations):
    loaded = loading.load(folder, WIDTH)
    x = activations[:50]
    codes, rebuilt = topk_by_hand(folder, x, K)
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode(x), codes, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(loaded.decode(loaded.encode(x)), rebuilt, rtol=1e-4, atol=1e-4)
    assert (codes > 0).sum(dim=1).max() == K


def test_training_explains_most_of_the_variance(folder, activations):
    _, rebuilt = topk_by_hand(folder, activations[:500], K)
    error = (rebuilt - activations[:500]).square().sum()
    variance = (activations[:500] - activations[:500].mean(dim=0)).square().sum()
    assert error / variance < 0.5


def test_training_repeats_with_the_seed(activations, tmp_path):
    decoders = []
    for number, order_seed in enumerate((0, 0, 1)):
        torch.manual_seed(0)
        path = tmp_path / str(number)
        training.train_and_save(activations, replace(CONFIG, steps=10), SPEC, order_seed, path)
        decoders.append(load_file(path / "sae_weights.safetensors")["W_dec"])
    assert torch.equal(decoders[0], decoders[1]) and not torch.equal(decoders[0], decoders[2])


def test_another_width_or_no_sae_is_one_line(folder, tmp_path):
    with pytest.raises(UserError, match=f"d_in is {WIDTH}, the subject's width 99") as caught:
        loading.load(folder, 99)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not an SAE folder"):
        loading.load(tmp_path, WIDTH)


@dataclass(frozen=True)
class Width:
    d_sae: int


class Mirror:
    """Codes are the positive and negative part of the input and a latent that never fires; scale 1 loses nothing."""

    cfg = Width(2 * WIDTH + 1)

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.clamp_min(0), (-x).clamp_min(0), torch.zeros(len(x), 1)], dim=1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.scale * (codes[:, :WIDTH] - codes[:, WIDTH:-1])


def reader(model: PreTrainedModel, saes: dict | None = None) -> Reader:
    return Reader(model, TOKENIZER, Site(1, Place.resid_post), 64, saes)


def measured(scale: float, architecture: Architecture = Architecture.llama) -> quality.SaeReport:
    saes = {"other": Mirror(0.3), "measured": Mirror(scale)}
    return quality.evaluate(reader(tiny_model(architecture), saes), TEXTS)["measured"]


@pytest.mark.parametrize("architecture", list(Architecture))
def test_a_lossless_sae_recovers_everything(architecture):
    report = measured(1.0, architecture)
    assert report.fraction_variance_unexplained == pytest.approx(0.0, abs=1e-9)
    assert report.cross_entropy_recovered == pytest.approx(1.0, abs=1e-5)
    assert report.l0 == pytest.approx(WIDTH)  # of each coordinate, one of its two parts
    assert report.dead_features >= 1


def test_an_sae_that_says_nothing_recovers_nothing():
    assert measured(0.0).cross_entropy_recovered == pytest.approx(0.0, abs=1e-6)


def test_half_the_residual_leaves_a_quarter_of_its_square():
    ids, mask, valid = encode_batch(TOKENIZER, TEXTS, settings().prepare_subject.context_length)
    x = read_residual(tiny_model(Architecture.llama), 1, ids, mask)[valid].double()
    expected = 0.25 * x.square().sum() / (x - x.mean(dim=0)).square().sum()
    assert measured(0.5).fraction_variance_unexplained == pytest.approx(float(expected), rel=1e-5)


def test_special_tokens_are_neither_counted_nor_read():
    model = tiny_model(Architecture.llama)
    found = torch.cat(list(reader(model).activations(TEXTS)))
    ids, mask, valid = encode_batch(TOKENIZER, TEXTS, 64)
    expected = read_residual(model, 1, ids, mask)[valid]
    assert len(found) == sum(len(text.split()) for text in TEXTS) + sum(text.count("chases") for text in TEXTS)
    key = lambda rows: rows[rows[:, 0].argsort()]  # noqa: E731
    torch.testing.assert_close(key(found), key(expected), rtol=1e-4, atol=1e-5)
