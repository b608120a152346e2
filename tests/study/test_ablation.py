"""docs/ABLATION.md: what is paired with what, the verdicts, and figures derived by hand."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from rows import evaluated

from saeexplainer.figures.comparison import ACCURACY, METRICS
from saeexplainer.figures.intervals import pooled_mean
from saeexplainer.records import EvaluationRow
from saeexplainer.study import ablation as study_ablation, page as study_page
from saeexplainer.study.ablation import BASE, HELPS, HURTS, NO_DIFFERENCE, NOT_RUN, ONE_RUN
from saeexplainer.study.figures import COMPLETE, Variant, absent, as_json

DOCS = Path(__file__).resolve().parents[2] / "docs"
LEVELS = [0.25, 0.5, 0.0, 0.75]  # generative accuracy of the default's last round
Evaluations = dict[str, list[EvaluationRow]]


def variant(name: str, group: str, evaluations: Evaluations, source: str | None = None, **changes) -> Variant:
    fields = {
        "name": name, "group": group, "source": source, "changes": [f"{group}=on"] if source else [],
        "status": COMPLETE, "seed": 0, "split": "valid", "contexts": 4, "subject": {"loss": 2.5}, "sae": {"l0": 8.0},
        "seconds": 10.0, "own_seconds": 5.0, "outdated": [], "evaluations": evaluations,
    }  # fmt: skip
    return Variant(**(fields | changes))


def rounds(accuracies: list[float], **columns: list) -> Evaluations:
    return {"sft": evaluated([0.0] * len(accuracies)), "r1": evaluated(LEVELS), "r2": evaluated(accuracies, **columns)}


def base(seed: int = 0) -> Variant:
    return variant(f"base{seed}", BASE, rounds(LEVELS), seed=seed)


def ablated(*variants: Variant) -> dict:
    return study_ablation.summarise([base(), *variants], 200)


def test_a_setting_is_paired_with_its_base_by_feature_and_judged_by_the_interval() -> None:
    # Every feature gains a quarter, however far features lie apart: the interval is the difference itself.
    up, down = (
        [
            variant(f"{name}{seed}", name, rounds([value + by for value in LEVELS]), f"base{seed}", seed=seed)
            for seed in (0, 1)
        ]
        for name, by in (("up", 0.25), ("down", -0.25))
    )
    # Resampled means of +1/4, -1/4, 0, 0 lie on both sides of zero.
    even = [variant(f"even{at}", "even", rounds([0.5, 0.25, 0.0, 0.75]), f"base{at}", seed=at) for at in (0, 1)]
    # One seed gains a lot and the other loses a little: beyond the interval, but not what every run says.
    split = [
        variant(f"split{seed}", "split", rounds([value + by for value in LEVELS]), f"base{seed}", seed=seed)
        for seed, by in ((0, 0.75), (1, -0.01))
    ]
    found = ablated(base(1), *up, *down, *even, *split)
    gain = found["settings"]["up"]["differences"]["generative_accuracy"]
    assert gain == {"value": 0.25, "low": 0.25, "high": 0.25, "n": 8}
    assert found["settings"]["split"]["differences"]["generative_accuracy"]["low"] > 0
    assert {name: one["verdict"] for name, one in found["settings"].items()} == {
        "up": HELPS, "down": HURTS, "even": NO_DIFFERENCE, "split": NO_DIFFERENCE,
    }  # fmt: skip
    assert found["preferred"] == "up"
    assert "(split0 +75.0, split1 -1.0)" in "\n".join(study_ablation.verdict_lines(found))
    assert ablated(base(1), *down, *even)["preferred"] is None
    assert ablated(up[0])["settings"]["up"]["verdict"] == ONE_RUN and ablated(up[0])["preferred"] is None


def test_seeds_are_pooled_each_against_its_own_base() -> None:
    variants = [
        base(1),
        variant("one0", "one", rounds([value + 0.25 for value in LEVELS]), "base0"),
        variant("one1", "one", rounds(LEVELS), "base1", seed=1),
    ]
    one = ablated(*variants)["settings"]["one"]
    assert one["paired"] == ["one0", "one1"] and one["unpaired"] == {}
    gain = one["differences"]["generative_accuracy"]
    assert (gain["value"], gain["n"]) == (0.125, 8)
    assert (gain["low"], gain["high"]) == (0.125, 0.125), (
        "resampled inside each seed: four gain a quarter, four nothing"
    )


def test_the_last_rounds_are_compared_even_where_one_has_more() -> None:
    third = rounds(LEVELS) | {"r3": evaluated([value + 0.125 for value in LEVELS])}
    found = ablated(variant("third0", "third", third, "base0"))
    assert found["settings"]["third"]["differences"]["generative_accuracy"]["value"] == 0.125
    assert found["variants"]["third0"]["round"] == "r3" and found["variants"]["base0"]["round"] == "r2"


UNPAIRED = {
    "another seed": (
        variant("odd0", "odd", rounds(LEVELS), "base0", seed=1),
        "its seed is 1, that of base0 is 0",
    ),
    "no base": (variant("odd0", "odd", rounds(LEVELS)), "it comes from no variant"),
    "not run": (absent("odd0", "odd", "base0", ["odd=on"], "not run"), "not run"),
    "base not run": (variant("odd0", "odd", rounds(LEVELS), "base1", seed=1), "base1: not run"),
    "no round": (variant("odd0", "odd", {"sft": evaluated(LEVELS)}, "base0"), "it has no round"),
}


@pytest.mark.parametrize(("odd", "why"), UNPAIRED.values(), ids=UNPAIRED)
def test_what_cannot_be_paired_is_said_and_does_not_count(odd: Variant, why: str) -> None:
    found = ablated(absent("base1", BASE, None, [], "not run"), odd)
    one = found["settings"]["odd"]
    assert (one["unpaired"], one["paired"], one["verdict"]) == ({"odd0": why}, [], NOT_RUN)
    assert set(one["differences"].values()) == {None}
    assert f"): odd0: {why}" in "\n".join(study_ablation.sections(found)).split("### Not run")[1]


@pytest.mark.parametrize(
    "odd",
    [
        variant("odd0", "odd", rounds([1.0, 0.5, 0.5, 1.0]), "base0", sae={"l0": 9.0}),
        variant("odd0", "odd", rounds([1.0, 0.5]), "base0"),
    ],
    ids=["another SAE", "fewer features"],
)
def test_a_setting_with_other_features_is_compared_by_means(odd: Variant) -> None:
    found = ablated(odd)
    one = found["settings"]["odd"]
    assert (one["paired"], one["verdict"]) == ([], ONE_RUN)
    assert one["by_run"]["odd0"] == one["differences"][ACCURACY] == one["apart"][ACCURACY]
    assert one["differences"][ACCURACY]["value"] == pytest.approx(0.75 - 0.375)
    (line,) = study_ablation.verdict_lines(found)
    assert "generative accuracy" in line and "+37.5 (" in line and "1 run, " in line
    assert line.endswith("odd0: its subject, SAE or features are not those of base0")


def test_a_missing_seed_leaves_the_others_and_is_named() -> None:
    helps = variant("up0", "up", rounds([value + 0.25 for value in LEVELS]), "base0")
    found = ablated(base(1), helps, absent("up1", "up", "base1", ["up=on"], "not run"))
    assert study_ablation.verdict_lines(found) == [
        "one run only: `up` (`up=on`): generative accuracy **+25.0 (+25.0 to +25.0)**, 1 run, 4 features; "
        "also better: mean activation **+12.5 (+12.5 to +12.5)**; up1: not run"
    ]


def test_metrics_are_those_of_the_comparison_and_the_sign_of_each_is_its_own() -> None:
    plain = variant("base0", BASE, rounds(LEVELS, collision=[1.0] * 4, input_accuracy=[1.0] * 4))
    other = variant("odd0", "odd", rounds(LEVELS, collision=[0.0] * 4, input_accuracy=[0.0] * 4), "base0")
    found = study_ablation.summarise([plain, other], 200)
    one = found["settings"]["odd"]
    assert list(one["differences"]) == list(METRICS.values())
    assert one["differences"]["truth_f1"] is None, "nobody knows the truth here"
    assert one["by_run"]["odd0"]["value"] == 0.0 and one["verdict"] == ONE_RUN
    (line,) = study_ablation.verdict_lines(found)
    assert "; also better: collision rate **-100.0 (-100.0 to -100.0)**; worse: input accuracy **-100.0" in line
    text = "\n".join(study_ablation.sections(found))
    assert "| input accuracy ↑ |" in text and "collision rate ↓" in text and "truth f1" not in text


def test_a_pooled_mean_of_one_seed_is_its_mean_and_no_values_are_refused() -> None:
    assert pooled_mean([[1.0, 1.0], [0.0, 0.0]], 100, 0).value == 0.5
    with pytest.raises(ValueError, match="no values"):
        pooled_mean([], 100, 0)


def test_the_page_needs_only_the_json_and_nothing_measured_is_a_page_too() -> None:
    found = ablated(variant("up0", "up", rounds([value + 0.25 for value in LEVELS]), "base0"))
    assert study_ablation.page(json.loads(as_json(found))) == study_ablation.page(found)
    nothing = [absent("base0", BASE, None, [], "not run"), absent("up0", "up", "base0", ["up=on"], "not run")]
    page = study_ablation.page(study_ablation.summarise(nothing, 100))
    other = study_ablation.page(study_ablation.summarise(nothing, 100), "explainer")
    assert "# Other explainers" in other and '--plan explainer"' in other and "explainer.json" in other
    assert "nothing is preferred yet" in page and "- `up` (`up=on`): up0: not run" in page
    assert str(math.nan) not in page.split()


COMMITTED = {"study": study_page.page, "real": partial(study_page.page, plan="real"), "ablation": study_ablation.page}


@pytest.mark.parametrize(("name", "page"), COMMITTED.items())
def test_the_committed_page_is_what_the_committed_figures_say(name: str, page: Callable[[dict], str]) -> None:
    figures = json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8"))
    assert (DOCS / f"{name.upper()}.md").read_text(encoding="utf-8") == page(figures)
