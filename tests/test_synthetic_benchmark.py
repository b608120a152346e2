"""The benchmark on known features at a tiny size: the pipeline's SAEs through sae-lens' own measurement."""

import sys
from dataclasses import replace

import pytest
import torch
from tiny import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import synthetic

from saeexplainer.errors import UserError

TINY = synthetic.Size(
    features=170, d_model=32, trees=2, d_sae=64, samples=4096, steps=40, batch=256, measured=1000
)  # fmt: skip


def test_the_coefficient_is_found_whose_l0_is_the_target() -> None:
    asked: list[float] = []

    def l0_of(coefficient: float) -> float:
        asked.append(coefficient)
        return 64 / coefficient  # 8 at a coefficient of 8

    assert synthetic.tuned(l0_of, 0.5, target=8) == 8 and asked == [0.5, 1, 2, 4, 8]
    asked.clear()
    assert 64 / synthetic.tuned(l0_of, 30, target=10) == pytest.approx(10, rel=synthetic.TOLERANCE)
    assert asked[:3] == [30, 15, 7.5] and len(asked) <= synthetic.TRIALS


def test_directions_that_are_the_features_score_best_and_random_ones_do_not() -> None:
    model = synthetic.world(TINY)
    activations = synthetic.drawn(model, TINY)
    assert activations.shape == (4096, 32)
    sae, seconds = synthetic.trained(synthetic.settings("topk"), activations, TINY, seed=0)
    assert seconds > 0
    learned = synthetic.measured(sae, model, TINY)
    assert synthetic.measured(sae, model, TINY) == learned
    rows = torch.nn.functional.normalize(torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    scores = {}
    for name, directions in {"planted": model.feature_dict.feature_vectors[:64], "random": rows}.items():
        sae.W_dec.data, sae.W_enc.data = directions.clone(), directions.T.clone()
        scores[name] = synthetic.measured(sae, model, TINY)
    assert scores["planted"]["mcc"] == pytest.approx(1, abs=1e-5) and scores["planted"]["uniqueness"] == 1
    assert scores["random"]["mcc"] < 0.6 and scores["random"]["f1"] < 0.5 * scores["planted"]["f1"]


def test_architectures_stand_beside_topk_at_one_l0() -> None:
    figures = synthetic.run(["ordered"], [0], replace(TINY, steps=20))
    assert list(figures["architectures"]) == ["topk", "ordered"]
    k = round(figures["true_l0"])
    for found in figures["architectures"].values():
        assert found["told"] == f"k {k}" and found["seeds"]["0"]["l0"] == pytest.approx(k, abs=0.5)
    assert figures["architectures"]["topk"]["times_topk"] == 1
    assert "| `topk` | k " in synthetic.page(figures)


@pytest.mark.parametrize("given", (["--only", "huge"], ["--seeds", "a"]))
def test_what_is_unknown_is_refused(given: list[str]) -> None:
    with pytest.raises(UserError, match=f"^{given[0]}: {given[1]}: "):
        synthetic.main(given)
