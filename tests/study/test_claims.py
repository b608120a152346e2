"""Published claims, asked of runs whose answer is known."""

from dataclasses import replace

import pytest
from rows import evaluated

from saeexplainer.figures.intervals import difference_of_means
from saeexplainer.study import claims, plans
from saeexplainer.study.figures import Variant
from saeexplainer.study.saes import FIGURES
from tests.study.test_saes import ROOT, variant


def runs(group: str, accuracy: float, **sae: float) -> list[Variant]:
    found = [variant(f"{group}{seed}", group, seed, [accuracy] * 20, **sae) for seed in (0, 1)]
    rows = [replace(row, output_accuracy=accuracy * (at % 2)) for at, row in enumerate(evaluated([accuracy] * 20))]
    return [replace(one, evaluations=one.evaluations | {"r1": rows}) for one in found]


def verdicts(variants: list[Variant]) -> dict[tuple[str, str, str], tuple[float | None, str]]:
    found = claims.summarise(variants, 200)
    return {
        (one["a"], one["b"], one["figure"]): (one["difference"] and one["difference"]["value"], one["verdict"])
        for one in found
    }


def test_a_claim_is_held_against_the_runs():
    found = verdicts(
        runs("gated", 0.5, l0=8.0, fraction_variance_unexplained=0.06, coverage=0.5)
        + runs("standard", 0.5, l0=16.0, fraction_variance_unexplained=0.05, coverage=0.4)
        + runs("p_anneal", 0.5, coverage=0.5)
        + runs("topk", 0.5, coverage=0.3)
        + runs("ordered", 1.0, stability=0.9)
    )
    assert found["gated", "standard", "l0"] == (-8.0, claims.YES)
    assert found["gated", "standard", "fraction_variance_unexplained"] == (pytest.approx(0.01), claims.NO)
    assert found["p_anneal", "gated", "coverage"] == (0.0, claims.YES)
    assert found["topk", "standard", "coverage"] == (pytest.approx(-0.1), claims.NO)
    assert found["ordered", "topk", "output_accuracy"][0] == pytest.approx(0.25)  # 0.5 and 0.25 on average
    assert found["topk", "standard", "output_accuracy"] == (0.0, claims.YES)
    assert found["ordered", "topk", "stability"] == (None, "–"), "one side does not know it"
    assert found["meta", "topk", "phi"] == (None, "–"), "not run"


def test_a_claim_that_the_interval_does_not_settle_is_not_shown():
    mixed = [replace(one, sae={"phi": value}) for one, value in zip(runs("meta", 0.5), (0.1, 0.3), strict=True)]
    found = verdicts(mixed + [replace(one, sae={"phi": 0.2}) for one in runs("topk", 0.5)])
    assert found["meta", "topk", "phi"] == (pytest.approx(0.0), claims.OPEN)


def test_the_table_has_every_claim():
    summed = claims.summarise(runs("gated", 0.5, l0=8.0) + runs("standard", 0.5, l0=16.0), 200)
    *_, shown = claims.sections(summed, FIGURES)
    assert shown.count("\n") == 1 + len(claims.CLAIMS) and "| L0 | -8.0 (-8.0 to -8.0) | 2 | yes |" in shown


def test_groups_and_figures_of_claims_are_the_plans():
    specs, _ = plans.load_specs(ROOT / "conf/saes.yaml")
    for claim in claims.CLAIMS:
        assert {claim.a, claim.b} <= {spec.group for spec in specs}
        assert claim.figure in FIGURES or hasattr(evaluated([0.5])[0], claim.figure)


def test_means_of_unpaired_features():
    found = difference_of_means([1.0, 3.0], [0.0, 0.0, 3.0], 500, 0)
    assert (found.value, found.n) == (1.0, 5) and found.low < 1.0 < found.high
    same = difference_of_means([2.0, 2.0], [0.5, 0.5], 100, 0)
    assert (same.value, same.low, same.high) == (1.5, 1.5, 1.5)
