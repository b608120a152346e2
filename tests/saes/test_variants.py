"""Every architecture of SAE trains, its folder is one of sae-lens' own, and what sae-lens lacks does as published."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.sae import TrainStepInput
from tiny import WIDTH

from saeexplainer.config import PrepareSae
from saeexplainer.config.saes import (
    ArchitectureOfSae,
    BatchTopK,
    Gated,
    JumpRelu,
    Matryoshka,
    Meta,
    Ordered,
    PAnneal,
    Standard,
    TopK,
    TrainedSae,
)
from saeexplainer.saes import loading, training
from saeexplainer.saes.variants import gated, meta, ordered, p_anneal
from saeexplainer.saes.variants.opening import training_sae

LATENTS, STEPS = 32, 400
SPEC = TrainedSae("main", d_sae=LATENTS, seed=0)
# Each architecture, and how sae-lens keeps what it gives.
ARCHITECTURES: list[tuple[ArchitectureOfSae, str]] = [
    (TopK("topk", 3), "topk"),
    (BatchTopK("batchtopk", 3), "jumprelu"),
    (Matryoshka("matryoshka", 3, [0.25, 0.5]), "jumprelu"),
    (Standard("standard", 0.3), "standard"),
    (Gated("gated", 1.0), "gated"),
    (JumpRelu("jumprelu", 0.3, 0.1, 0.1), "jumprelu"),
    (PAnneal("p_anneal", 0.05, 0.2), "standard"),
    (Ordered("ordered", 3, 5, 0.125), "topk"),
    (Meta("meta", 3, 0.3, 0.2, 4), "topk"),
]
STEP = TrainStepInput(torch.randn(16, WIDTH), {"l1": 0.5}, None, 0, False)


@pytest.fixture(scope="module")
def activations() -> torch.Tensor:
    """Sums of two of twenty directions, away from the origin."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(20, WIDTH, generator=generator)
    chosen = torch.rand(4000, 20, generator=generator).topk(2).indices
    return directions[chosen].sum(dim=1) + 3.0


@pytest.mark.parametrize(("architecture", "kept"), ARCHITECTURES, ids=[one.kind for one, _ in ARCHITECTURES])
def test_it_trains_and_plain_sae_lens_reads_its_folder(architecture, kept, activations, tmp_path):
    torch.manual_seed(0)
    config = PrepareSae(
        hook_block=1, architecture=architecture, saes=[SPEC], seed=0, documents=1, steps=STEPS, batch_tokens=128,
        learning_rate=1e-2, text_encoder=None,
    )  # fmt: skip
    training.train_and_save(activations, config, SPEC, 0, tmp_path / "main")
    plain, own = SAE.load_from_disk(tmp_path / "main"), loading.load(tmp_path / "main", WIDTH)
    assert plain.cfg.architecture() == kept
    with torch.no_grad():
        codes = plain.encode(activations)
        rebuilt = plain.decode(codes)
        torch.testing.assert_close(own.encode(activations), codes)
        torch.testing.assert_close(own.decode(own.encode(activations)), rebuilt)
    variance = (activations - activations.mean(dim=0)).square().sum()
    assert (rebuilt - activations).square().sum() / variance < 0.5
    assert 0.5 < float((codes > 0).float().sum(dim=1).mean()) < LATENTS / 2


def new(architecture: ArchitectureOfSae, steps: int = 100):
    torch.manual_seed(0)
    return training_sae(architecture, steps=steps, d_in=WIDTH, d_sae=LATENTS)


def test_what_trains_the_gates_leaves_the_decoder_alone():
    sae = new(Gated("gated", 0.3))
    assert isinstance(sae, gated.DetachedGatedSae)
    losses = sae.calculate_aux_loss(STEP, torch.zeros(16, LATENTS), torch.zeros(16, LATENTS), STEP.sae_in)
    sum(losses.values()).backward()
    assert sae.W_dec.grad is None and sae.W_enc.grad.abs().sum() > 0 and sae.b_gate.grad.abs().sum() > 0
    gates = torch.relu((STEP.sae_in - sae.b_dec) @ sae.W_enc + sae.b_gate)
    expected = 0.5 * (gates * sae.W_dec.norm(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(losses["l1_loss"], expected)


def test_p_falls_in_ten_steps_over_the_second_half():
    values = [p_anneal.p_at(step, 200, 0.2) for step in range(200)]
    assert values[:100] == [1.0] * 100 and values[-1] == pytest.approx(0.2)
    assert sorted(set(values), reverse=True) == pytest.approx([1.0 - 0.08 * fallen for fallen in range(11)])
    assert set(Counter(round(value, 6) for value in values[100:]).values()) == {10}


def test_the_penalty_by_hand_and_its_gradient_is_finite():
    codes = torch.tensor([[0.0, 4.0, 9.0], [0.0, 0.0, 1.0]], requires_grad=True)
    assert float(p_anneal.penalty(codes, 1.0).detach()) == pytest.approx((13 + 1) / 2)
    found = p_anneal.penalty(codes, 0.5)
    assert float(found.detach()) == pytest.approx((2 + 3 + 1) / 2)
    found.backward()
    # Half of x ** -0.5 over two rows; an inactive latent is not pushed.
    assert codes.grad.tolist() == [pytest.approx([0.0, 0.125, 1 / 12]), pytest.approx([0.0, 0.0, 0.25])]


def test_the_penalty_goes_on_where_it_was_when_p_falls():
    sae = new(PAnneal("p_anneal", 0.1, 0.2), steps=20)
    found = {}
    for step in (9, 10):  # p is 1, then 0.92
        output = sae.training_forward_pass(replace(STEP, n_training_steps=step))
        found[step] = float(output.losses["p_loss"])
    assert sae.p == pytest.approx(0.92) and found[10] == pytest.approx(found[9], rel=1e-4)
    codes = sae.encode(STEP.sae_in)
    unscaled = 0.5 * float(p_anneal.penalty(codes, 0.92))
    assert sae.scale != 1.0 and found[10] == pytest.approx(sae.scale * unscaled, rel=1e-4)
    rebuilt = sae.decode(codes)
    assert float(output.losses["norm_loss"]) == pytest.approx(
        float((rebuilt - STEP.sae_in).norm(dim=1).mean()), rel=1e-5
    )


def test_cuts_are_uniform_in_groups_that_are_drawn_alike():
    ends = ordered.group_ends(80, 5, 0.125)
    assert ends == [10, 28, 45, 62, 80]  # an eighth, then 17.5 each
    torch.manual_seed(0)
    cuts = [ordered.draw_cut(80, 5, 0.125) for _ in range(5000)]
    assert min(cuts) == 1 and max(cuts) == 80
    groups = Counter(next(at for at, end in enumerate(ends) if cut <= end) for cut in cuts)
    assert all(800 < count < 1200 for count in groups.values()) and len(groups) == 5
    assert ordered.group_ends(80, 1, 0.125) == [80]


def test_latents_from_the_cut_on_are_off_in_training_and_k_comes_down():
    sae = new(Ordered("ordered", 3, 5, 0.125), steps=100)
    assert [ordered.k_at(step, 100, 3, LATENTS) for step in (0, 25, 50, 99)] == [6, 4, 3, 3]
    seen = set()
    for step in range(100):
        output = sae.training_forward_pass(replace(STEP, n_training_steps=step))
        assert not output.feature_acts[:, sae.kept :].any()
        assert (output.feature_acts > 0).sum(dim=1).max() <= ordered.k_at(step, 100, 3, LATENTS)
        seen.add(sae.kept)
    assert len(seen) > 10


def test_predictability_by_hand():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert float(meta.predictability(rows, rows)) == 1.0
    assert float(meta.predictability(rows, torch.tensor([[1.0, 0.0], [0.0, -1.0]]))) == pytest.approx(
        (1 + math.exp(-4)) / 2
    )
    assert torch.equal(meta.unit(3.0 * rows), rows)


def test_the_small_sae_learns_the_rows_and_is_no_part_of_the_sae():
    sae = new(Meta("meta", 3, 0.3, 0.25, 2))
    assert sae.small.cfg.d_sae == 8 and not any("small" in name for name, _ in sae.named_parameters())
    assert not any("small" in name for name in sae.state_dict())
    rows = meta.unit(sae.W_dec.detach())

    def error() -> float:
        with torch.no_grad():
            return float((sae.small.decode(sae.small.encode(rows)) - rows).square().sum())

    before = error()
    for step in range(0, 2000, 10):
        losses = sae.training_forward_pass(replace(STEP, n_training_steps=step)).losses
    assert error() < before
    held = {name: weight.clone() for name, weight in sae.small.named_parameters()}
    losses = sae.training_forward_pass(replace(STEP, n_training_steps=1)).losses
    assert all(torch.equal(weight, held[name]) for name, weight in sae.small.named_parameters()), "not in every step"
    with torch.no_grad():
        rebuilt = sae.small.decode(sae.small.encode(rows))
    torch.testing.assert_close(losses["meta_loss"], 0.3 * meta.predictability(rows, rebuilt))
    losses["meta_loss"].backward()
    assert sae.W_dec.grad.abs().sum() > 0
