"""docs/RESULTS.md: what is paired with what, the verdicts, and figures derived by hand."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from rows import evaluated

from saeexplainer.figures.comparison import METRICS
from saeexplainer.figures.intervals import pooled_mean, pooled_ratio
from saeexplainer.records import EvaluationRow
from saeexplainer.reports import results
from saeexplainer.study import ablation as study_ablation
from saeexplainer.study import confirmation as study_confirmation
from saeexplainer.study import page as study_page
from saeexplainer.study import targets
from saeexplainer.study.ablation import BASE, HELPS, HURTS, NO_DIFFERENCE, NOT_RUN, ONE_RUN
from saeexplainer.study.confirmation import REWARD
from saeexplainer.study.figures import COMPLETE, SEEDS, Variant, absent, as_json

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
        [variant(f"{name}{seed}", name, rounds([value + by for value in LEVELS]), f"base{seed}", seed=seed) for seed in (0, 1)]
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
    assert (gain["low"], gain["high"]) == (0.125, 0.125), "resampled inside each seed: four gain a quarter, four nothing"


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
    "another SAE": (
        variant("odd0", "odd", rounds(LEVELS), "base0", sae={"l0": 9.0}),
        "its subject, SAE or features are not those of base0",
    ),
    "other features": (
        variant("odd0", "odd", rounds(LEVELS[:3]), "base0"),
        "its subject, SAE or features are not those of base0",
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


def test_a_missing_seed_leaves_the_others_and_is_named() -> None:
    helps = variant("up0", "up", rounds([value + 0.25 for value in LEVELS]), "base0")
    found = ablated(base(1), helps, absent("up1", "up", "base1", ["up=on"], "not run"))
    assert study_ablation.verdict_lines(found) == [
        "one run only: `up` (`up=on`): generative accuracy **+25.0 (+25.0 to +25.0)**, 1 run, 4 features; also better: mean activation **+12.5 (+12.5 to +12.5)**; up1: not run"
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


def with_costs(rows: list[EvaluationRow], calls: int, tokens: int) -> list[EvaluationRow]:
    return [replace(row, calls=calls, call_tokens=tokens) for row in rows]


def seed(number: int, last: list[float] = LEVELS, collision: float = 1.0) -> Variant:
    evaluations = {
        "open_loop": with_costs(evaluated([0.25] * 4), 0, 0),
        "sft": evaluated([0.0] * 4),
        "r1": evaluated([0.25] * 4),
        "r2": with_costs(evaluated(last, collision=[collision] * 4), 1, 20),
        "best_of_6": with_costs(evaluated([2 * value for value in last]), 42, 1000),
        "agent": with_costs(evaluated([1.0] * 4), 30, 900),
    }
    return variant(f"seed{number}", SEEDS, evaluations, seed=number, split="test")


def confirmed(*variants: Variant) -> dict:
    return study_confirmation.summarise(variants, 200)


def test_confirmation_pools_the_seeds_and_subtracts_every_baseline_from_the_last_round() -> None:
    found = confirmed(seed(3), seed(4, [1.0] * 4), absent("seed5", SEEDS, None, [], "not run"))
    assert found["last"] == "r2" and found["seeds"]["seed5"] == "not run"
    # Means of the seeds are 3/8 and 1.
    level = found["evaluations"]["r2"]["generative_accuracy"]
    assert (level["value"], level["n"]) == (0.6875, 8)
    assert list(found["differences"]) == ["open_loop", "r1", "best_of_6", "agent"]
    assert [found["gains"][name]["generative_accuracy"]["value"] for name in ("r1", "r2")] == [0.25, 0.6875]
    assert found["differences"]["open_loop"]["generative_accuracy"]["value"] == 0.4375
    assert found["differences"]["best_of_6"]["generative_accuracy"]["value"] == -0.6875
    assert list(found["evaluations"]["sft"]) == list(METRICS.values())
    text = "\n".join(study_confirmation.sections(found))
    assert "`seed5` (not run)" in text and "| `r2 − agent` |" in text


def test_costs_are_means_an_explanation_and_the_share_reached_is_a_ratio_of_means() -> None:
    reached = seed(3, [0.25, 0.5, 0.25, 0.5])
    found = confirmed(reached)["costs"]
    # best_of_6 has twice r2's accuracy on every feature: the ratio is 1/2 in each resample.
    assert found["best_of_6"]["reached"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 4}
    assert found["sft"]["reached"] is None, "a share of nothing"
    assert (found["best_of_6"]["calls"], found["best_of_6"]["call_tokens"]) == (42.0, 1000.0)
    text = "\n".join(study_confirmation.sections(confirmed(reached)))
    assert "| `best_of_6` | 42.0 | 1,000 | 42.0 times | 50.0 times | 50.0 (50.0 to 50.0) |" in text
    assert "`r2` reaches 50.0 (50.0 to 50.0) percent of the generative accuracy of `best_of_6`" in text


def lower(number: int, accuracies: list[float], collision: float) -> Variant:
    evaluations = rounds(accuracies, collision=[collision] * 4)
    return variant(f"other{number}", REWARD, evaluations, f"seed{number}", seed=number, split="test")


def reward_answer(*variants: Variant) -> str:
    return "\n".join(study_confirmation.sections(confirmed(*variants))).split("no loss of generative accuracy?\n")[1]


def test_whether_another_reward_lowers_collisions_at_no_loss_is_answered_by_both_intervals() -> None:
    fewer = reward_answer(seed(3), lower(3, LEVELS, 0.0))
    assert fewer.startswith("Yes. `reward=on` against the default, pooled over 1 run,")
    assert "collisions fall (-100.0 (" in fewer
    assert "generative accuracy is not shown to change (+0.0 (+0.0 to +0.0) points)" in fewer
    worse = reward_answer(seed(3), lower(3, [value - 0.25 for value in LEVELS], 0.0))
    assert worse.startswith("No. ") and "generative accuracy is lost (-25.0" in worse
    more = reward_answer(seed(3, collision=0.0), lower(3, LEVELS, 1.0))
    assert more.startswith("No. ") and "collisions rise (+100.0" in more
    still = reward_answer(seed(3), lower(3, LEVELS, 0.0), absent("other4", REWARD, "seed4", ["reward=on"], "not run"))
    assert still.startswith("Open. ") and "Not every run is there: other4: not run." in still
    assert reward_answer(seed(3)).startswith("Open (no run listed): not run.")


def test_a_ratio_is_of_means_over_the_same_features_and_agrees_with_a_plain_bootstrap() -> None:
    draw = np.random.default_rng(0)
    strata = [(draw.random(60), draw.random(60) + 0.5), (draw.random(30) + 1, draw.random(30) + 2)]
    pairs = [tuple({f"{at:03d}": float(value) for at, value in enumerate(side)} for side in both) for both in strata]
    found = pooled_ratio(pairs, 2000, 0)
    assert found.value == pytest.approx(sum(a.sum() for a, _ in strata) / sum(b.sum() for _, b in strata))
    ratios = []
    for _ in range(2000):
        places = [draw.integers(0, len(a), len(a)) for a, _ in strata]
        tops, bottoms = (sum(both[side][at].sum() for both, at in zip(strata, places)) for side in (0, 1))
        ratios.append(tops / bottoms)
    low, high = np.percentile(ratios, [2.5, 97.5])
    assert (found.low, found.high, found.n) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01), 90)
    assert pooled_ratio([({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 0.0})], 100, 0) is None


def test_a_pooled_mean_of_one_seed_is_its_mean_and_no_values_are_refused() -> None:
    assert pooled_mean([[1.0, 1.0], [0.0, 0.0]], 100, 0).value == 0.5
    with pytest.raises(ValueError, match="no values"):
        pooled_mean([], 100, 0)


def test_a_seed_that_measured_one_feature_or_none_has_no_interval_and_ends_no_report() -> None:
    """Of seed 4 the writer failed for all features but one, of seed 5 for all: seed 3 alone tells."""
    whole = {name: evaluated([value] * 4) for name, value in (("sft", 0.25), ("r2", 0.5), ("best_of_6", 1.0))}
    seeds = [variant("seed3", SEEDS, whole, seed=3, split="test")]
    for seed, known in ((4, 1), (5, 0)):
        partly = {
            name: [replace(row, generative_accuracy=math.nan) if at >= known else row for at, row in enumerate(rows)]
            for name, rows in whole.items()
        }
        seeds.append(variant(f"seed{seed}", SEEDS, partly, seed=seed, split="test"))
    found = confirmed(*seeds)
    assert found["evaluations"]["r2"]["generative_accuracy"]["n"] == 4
    assert found["gains"]["r2"]["generative_accuracy"] == {"value": 0.25, "low": 0.25, "high": 0.25, "n": 4}
    assert found["gains"]["r2"]["hallucination_rate"]["n"] == 12
    assert found["costs"]["best_of_6"]["reached"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 4}


def test_the_page_needs_only_the_json_and_nothing_measured_is_a_page_too() -> None:
    ablation = ablated(variant("up0", "up", rounds([value + 0.25 for value in LEVELS]), "base0"))
    confirmation = confirmed(seed(3), lower(3, LEVELS, 0.0))
    again = [json.loads(as_json(one)) for one in (ablation, confirmation)]
    assert results.page(*again) == results.page(ablation, confirmation)
    nothing = [absent("base0", BASE, None, [], "not run"), absent("up0", "up", "base0", ["up=on"], "not run")]
    page = results.page(
        study_ablation.summarise(nothing, 100), confirmed(absent("seed3", SEEDS, None, [], "not run"))
    )
    assert "nothing is preferred yet" in page and "- `up` (`up=on`): up0: not run" in page
    assert "Not run: no figures." in page and str(math.nan) not in page.split()


def test_the_committed_page_is_what_the_committed_figures_say() -> None:
    ablation, confirmation = (
        json.loads((DOCS / f"{name}.json").read_text(encoding="utf-8")) for name in ("ablation", "confirmation")
    )
    assert (DOCS / "RESULTS.md").read_text(encoding="utf-8") == results.page(ablation, confirmation)


def test_the_committed_study_is_what_its_committed_figures_say() -> None:
    study = json.loads((DOCS / "study.json").read_text(encoding="utf-8"))
    assert (DOCS / "STUDY.md").read_text(encoding="utf-8") == study_page.page(study)
    assert study["targets"] == [asdict(target) for target in targets.of_study(study)]


def test_targets_are_judged_by_the_pooled_interval_and_open_while_a_run_is_missing() -> None:
    better = dict(input_accuracy=[1.0] * 4, detection_auc=[0.9] * 4, collision=[0.0] * 4)
    evaluations = {
        "sft": evaluated([0.0] * 4, truth=0.0, collision=[1.0] * 4, fuzzing_auc=[0.6] * 4),
        "r2": evaluated([0.5] * 4, truth=1.0, fuzzing_auc=[0.5] * 4, **better),
        "best_of_6": evaluated([0.5] * 4, truth=1.0),
        "other_feature": evaluated([0.0] * 4, output_accuracy=[0.0, 1.0, 0.0, 0.0], detection_auc=[0.6] * 4),
    }
    one = variant("seed3", SEEDS, evaluations, seed=3, split="test")
    told = [target.line for target in targets.of_confirmation(confirmed(one))]
    assert [line.split(":")[0] for line in told] == [
        "reached", "reached", "NOT reached", "reached", "reached", "reached", "NOT reached",
    ]  # fmt: skip
    assert "input accuracy" in told[1] and "detection auc" in told[1] and "fuzzing auc -10.0" in told[2]
    assert "detection auc 60.0" in told[6]  # of the floor: it is above chance
    missing = confirmed(one, absent("seed4", SEEDS, None, [], "not run"))
    assert {target.reached for target in targets.of_confirmation(missing)} == {None}
