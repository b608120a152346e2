"""Steering: the strength by closed form, the residual by hand, the error term untouched."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import CONTEXT, WIDTH as FAMILY_WIDTH, save_family
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from tiny import WIDTH, read_residual, tiny_model, tiny_tokenizer

from saeexplainer.config import Steer
from saeexplainer.config.parts import Architecture
from saeexplainer.models.loading import load_model
from saeexplainer.models.tokenizers import load_tokenizer
from saeexplainer.saes.reading import Reader
from saeexplainer.saes.sites import Place, Site
from saeexplainer.saes.steering import Steering, bisect, steer

STEER = Steer(
    divergences=[0.05, 0.2], prompts=2, prompt_tokens=3, max_new_tokens=4, temperature=0.75, top_p=0.95, batch_size=3
)  # fmt: skip
PROMPTS = torch.tensor([tiny_tokenizer()(text)["input_ids"][:3] for text in ("the dogs chase", "does the cat")])


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "rescaled"])
def sae(request: pytest.FixtureRequest) -> SAE:
    torch.manual_seed(0)
    shape = TopKSAEConfig(d_in=WIDTH, d_sae=8, k=3, device="cpu", rescale_acts_by_decoder_norm=request.param)
    made = TopKSAE(shape)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.5)
    return made.eval()


@pytest.fixture(params=[Architecture.llama, Architecture.gpt2], ids=str)
def steering(request: pytest.FixtureRequest, sae: SAE) -> Steering:
    reader = Reader(tiny_model(request.param), tiny_tokenizer(), Site(1, Place.resid_post), 64)
    return Steering(reader, sae)


def test_bisection_finds_the_strength_where_the_divergence_is_known():
    # Two gaussians of unit variance a distance v apart: KL = v^2 / 2, so v = sqrt(2 KL).
    targets = torch.tensor([0.25, -0.25, 0.5, -0.5, 8.0])
    found = bisect(lambda values: values**2 / 2, targets, torch.full((5,), 0.1), doublings=12, halvings=20)
    torch.testing.assert_close(found, targets.sign() * (2 * targets.abs()).sqrt(), rtol=1e-4, atol=1e-4)


def test_a_target_out_of_reach_ends_at_the_largest_strength():
    found = bisect(lambda values: values.abs().clamp_max(0.1), torch.tensor([0.5, 0.05]), torch.ones(2), 3, 20)
    assert found[0] == pytest.approx(8.0, rel=1e-3)
    assert found[1] == pytest.approx(0.05, rel=1e-3)


@torch.no_grad()
def test_the_feature_is_set_and_the_error_term_stays(steering: Steering, sae: SAE):
    ids = PROMPTS.repeat_interleave(2, 0)
    features, values = torch.tensor([0, 5, 5, 7]), torch.tensor([2.0, -1.0, 0.0, 3.0])
    clean = read_residual(steering.model, 1, ids, torch.ones_like(ids))
    with steering.held(features, values):
        steered = read_residual(steering.model, 1, ids, torch.ones_like(ids))
    codes = sae.encode(clean)
    wanted = codes.clone()
    for row in range(4):
        wanted[row, 1:, features[row]] = values[row]  # the first token is BOS
    torch.testing.assert_close(steered, sae.decode(wanted) + (clean - sae.decode(codes)), rtol=1e-4, atol=1e-4)
    again = read_residual(steering.model, 1, ids, torch.ones_like(ids))
    torch.testing.assert_close(again, clean)  # and the hook is off again


@torch.no_grad()
def test_divergence_is_kl_by_hand(steering: Steering):
    features, values = torch.tensor([1, 2]), torch.tensor([3.0, -3.0])
    found = steering.divergence(PROMPTS, features, values)
    for row in range(2):
        total = 0.0
        for prompt in PROMPTS:
            clean = torch.distributions.Categorical(logits=steering.model(input_ids=prompt[None]).logits[0, 1:])
            with steering.held(features[row : row + 1], values[row : row + 1]):
                changed = torch.distributions.Categorical(logits=steering.model(input_ids=prompt[None]).logits[0, 1:])
            total += torch.distributions.kl_divergence(clean, changed).mean().item()
        assert found[row].item() == pytest.approx(total / 2, rel=1e-4)


def test_every_feature_is_steered_up_and_down_to_every_size(steering: Steering):
    torch.manual_seed(0)
    found = steer(steering, tiny_tokenizer(), PROMPTS, [0, 3, 6], [1.0, 1.0, 1.0], STEER)
    assert [[one.target for one in ones] for ones in found] == [[0.05, -0.05, 0.2, -0.2]] * 3
    for ones in found:
        assert all(one.value * one.target > 0 and len(one.texts) == 2 for one in ones)
        assert sum(one.divergence == pytest.approx(abs(one.target), rel=0.1) for one in ones) >= 2


@torch.no_grad()
def test_every_row_is_written_under_its_own_feature(steering: Steering):
    """Alone or in a batch that is cut in the middle of a feature's targets, greedily, a row writes the same."""
    greedy = replace(STEER, temperature=1e-6, max_new_tokens=6)
    together = steer(steering, tiny_tokenizer(), PROMPTS, [0, 3, 6], [1.0, 2.0, 3.0], greedy)
    alone = [
        steer(steering, tiny_tokenizer(), PROMPTS, [index], [maximum], replace(greedy, batch_size=1))[0]
        for index, maximum in ((0, 1.0), (3, 2.0), (6, 3.0))
    ]
    assert [[one.texts for one in ones] for ones in together] == [[one.texts for one in ones] for ones in alone]
    assert len({tuple(one.texts) for ones in together for one in ones}) > 3


@torch.no_grad()
@pytest.mark.parametrize("prepend_bos", [True, False])
@pytest.mark.parametrize("place", list(Place))
@pytest.mark.parametrize("norm", ["none", "layer_norm"])
def test_what_an_sae_of_others_reads_is_steered_where_it_reads_it(
    published: Path, place: Place, prepend_bos: bool, norm: str
):
    tokenizer = load_tokenizer(published, prepend_bos=prepend_bos)
    reader = Reader(load_model(published), tokenizer, Site(1, place), CONTEXT)
    torch.manual_seed(0)
    sae = JumpReLUSAE(JumpReLUSAEConfig(FAMILY_WIDTH, 24, normalize_activations=norm)).eval()
    for name, parameter in sae.named_parameters():
        parameter.normal_(0.0, 0.3)
        if name == "threshold":
            parameter.abs_()
    ids = torch.tensor([tokenizer("the dog chases the cat")["input_ids"][:6]] * 3)
    features, values = torch.tensor([0, 5, 23]), torch.tensor([2.0, -1.0, 3.0])
    steering, mask = Steering(reader, sae), torch.ones_like(ids)
    clean, before = reader.site(ids, mask), reader.model(input_ids=ids).logits
    with steering.held(features, values):
        steered, after = reader.site(ids, mask), reader.model(input_ids=ids).logits
        step = reader.site(ids[:, :1], mask[:, :1])  # one token alone is a step of generation, never BOS
    codes = sae.encode(clean)
    wanted = codes.clone()
    for row in range(3):
        wanted[row, :, features[row]] = values[row]
    error = clean - sae.decode(codes)
    sae.encode(clean)  # which norms its next reconstruction
    expected = sae.decode(wanted) + error
    if prepend_bos:
        expected[:, 0] = clean[:, 0]
    torch.testing.assert_close(steered, expected, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(after[:, 1:], before[:, 1:], atol=1e-3)
    assert not torch.allclose(step, clean[:, :1], atol=1e-3)
    torch.testing.assert_close(reader.model(input_ids=ids).logits, before)
    assert torch.allclose(
        steering.divergence(ids[:1], features, values), divergence_by_hand(before, after, prepend_bos), rtol=1e-3
    )


def divergence_by_hand(before: torch.Tensor, after: torch.Tensor, first_is_bos: bool) -> torch.Tensor:
    clean, steered = (
        torch.distributions.Categorical(logits=logits[:, int(first_is_bos) :]) for logits in (before, after)
    )
    return torch.distributions.kl_divergence(clean, steered).mean(dim=1)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "gpt2"
    save_family("gpt2", folder)
    return folder
