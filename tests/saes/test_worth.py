"""What a dictionary is worth: each figure by hand, and on directions that were planted and others that were not."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix

from saeexplainer.saes import worth


def test_mean_absolute_cosine_by_hand():
    rows = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 1.0]])
    assert worth.mean_absolute_cosine(rows) == pytest.approx((0 + 1 / math.sqrt(2) + 1 / math.sqrt(2)) / 3)
    assert worth.mean_absolute_cosine(rows[:1]) == 0.0


def test_decoder_projection_by_hand():
    # Less the bias the activations are (3, 0) and (0, 1); on unit rows e1 and e2 that is 3, 0, 0, 1.
    found = [
        worth.decoder_projection(
            torch.tensor([[4.0, 1.0], [1.0, 2.0]]), torch.tensor([[5.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 1.0]), n
        )
        for n in (1, 2, 9)
    ]
    assert found == [1.0, 0.0, 0.0]


def test_phi_by_hand():
    first, second = [1, 1, 0, 0], [1, 0, 0, 0]
    # (4 * 1 - 2 * 1) / sqrt(2 * 2 * 1 * 3)
    expected = 2 / math.sqrt(12)
    never, always = [0] * 4, [1] * 4
    fires = np.array([first, second, never, always], dtype=bool).T
    assert worth.mean_absolute_phi(fires) == pytest.approx(expected)
    assert worth.mean_absolute_phi(np.array([first, [0, 0, 1, 1]], dtype=bool).T) == pytest.approx(1.0), (
        "apart is together"
    )
    assert math.isnan(worth.mean_absolute_phi(np.array([first, never], dtype=bool).T))


def test_independent_latents_have_a_phi_near_chance():
    fires = np.random.default_rng(0).random((4000, 10)) < 0.3
    assert worth.mean_absolute_phi(fires) == pytest.approx(math.sqrt(2 / math.pi / 4000), rel=0.3)


def test_coverage_is_the_best_latent_of_each_concept():
    assert worth.coverage(np.array([[0.2, 0.9], [0.6, 0.1]])) == pytest.approx((0.6 + 0.9) / 2)


def table(rows: list[list[int]]) -> csc_matrix:
    return csc_matrix(np.array(rows, dtype=float))


def test_reconstruction_trusts_the_latents_that_were_precise_and_is_measured_later():
    # Latents 0 and 1 fire on tokens of the concept alone, latent 2 on others too.
    fires = table([[1, 0, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]])
    holds = table([[1], [1], [0], [1]])
    later, truth = table([[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]]), table([[1], [1], [0], [1]])
    # Predicted: tokens 0 and 2; true: 0, 1 and 3; both: 0.
    assert worth.reconstruction(fires, holds, later, truth) == pytest.approx(2 * 1 / (2 + 3))
    assert worth.reconstruction(table([[0]] * 4), holds, table([[0]] * 4), truth) == 0.0


def test_monosemanticity_by_hand():
    activations = np.array([[0.0, 1.0, 5.0], [2.0, 3.0, 5.0], [4.0, 1.0, 5.0]])
    similarity = np.array([[1.0, 0.2, 0.4], [0.2, 1.0, 0.8], [0.4, 0.8, 1.0]])
    found = worth.monosemanticity(activations, similarity)
    # Scaled, the first is 0, 0.5, 1: one pair counts. The second is 0, 1, 0: none does. The third is constant.
    assert found[0] == pytest.approx(0.8) and math.isnan(found[1]) and math.isnan(found[2])


def test_a_latent_of_one_kind_of_input_beats_one_of_all_kinds():
    draw = np.random.default_rng(1)
    kind = np.repeat([0, 1, 2, 3], 25)
    similarity = np.where(kind[:, None] == kind[None, :], 0.9, 0.1)
    pure, mixed = draw.random(100) * (kind == 2), draw.random(100)
    found = worth.monosemanticity(np.stack([pure, mixed], axis=1), similarity)
    assert found[0] == pytest.approx(0.9, abs=1e-6) and found[1] == pytest.approx(0.3, abs=0.05)


def test_containment_by_hand():
    atoms = np.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    found = worth.containment(np.array([3.0, 4.0, 0.0]), atoms)
    assert (found.r2, found.alignment, found.atoms) == (pytest.approx(1.0), pytest.approx(0.8), 2)
    half = worth.containment(np.array([3.0, -4.0, 0.0]), atoms)  # a cone has no negative weights
    assert half.r2 == pytest.approx(9 / 25) and half.alignment == pytest.approx(0.8) and half.atoms is None
    alone = worth.containment(np.array([0.0, 5.0, 1.0]), atoms)
    assert alone.r2 == pytest.approx(25 / 26) and alone.atoms == 1


def test_planted_directions_are_contained_and_random_ones_are_not():
    draw = np.random.default_rng(2)
    truth = draw.standard_normal((8, 64))
    random = draw.standard_normal((8, 64))
    for direction in truth:
        assert worth.containment(direction, truth).alignment == pytest.approx(1.0)
        assert worth.containment(direction, random).r2 < 0.4


def test_the_same_rows_in_another_order_are_stable_and_unordered():
    rows = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    moved = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    same, mixed = worth.matched(rows, -2 * rows), worth.matched(rows, rows[moved])
    assert (same.stability, same.orderedness) == (pytest.approx(1.0), pytest.approx(1.0))
    assert mixed.stability == pytest.approx(1.0) and abs(mixed.orderedness) < 0.5
    other = worth.matched(rows, torch.randn(40, 64, generator=torch.Generator().manual_seed(3)))
    assert other.stability < 0.5
    with pytest.raises(ValueError, match="40, 64.*30, 64"):
        worth.matched(rows, rows[:30])


def test_stability_is_sae_lens_mean_correlation_coefficient():
    from sae_lens.synthetic.evals import mean_correlation_coefficient

    a, b = (torch.randn(12, 8, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5))
    assert worth.matched(a, b).stability == pytest.approx(mean_correlation_coefficient(a, b), rel=1e-5)


def test_the_elbow_by_hand_and_a_sweep_without_one():
    assert worth.elbow([32.0, 2.0, 8.0, 16.0, 4.0], [0.1, 1.0, 0.2, 0.15, 0.5]) == 8
    assert (
        worth.elbow([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) is None and worth.elbow([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]) is None
    )
    assert worth.elbow([1.0, 2.0], [2.0, 1.0]) is None
