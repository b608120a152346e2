"""A good preference set passes; each kind of damage is caught by the expectation meant for it, and by no silence."""

import json
import math
import random
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from saeexplainer.config import BuildPreferences, PairingRule, Params, ValidatePreferences
from saeexplainer.domain import SPECIAL_TOKENS
from saeexplainer.errors import UserError
from saeexplainer.pairs import pairs_of_feature
from saeexplainer.records import DroppedFeature, FeatureRow, PreferencePair, QuarantinedPair, ScoreRow
from saeexplainer.storage import read_rows, write_rows
from tasks import expectations, params, validate_preferences

PARAMS_FILE = Path(__file__).parents[1] / "params.yaml"
BUILD = BuildPreferences(PairingRule.best_worst, floor=0.5, min_spread=0.1, min_gap=0.15, max_rejected=2)
LIMITS = ValidatePreferences(min_pairs=3, max_dropped_share=0.5, max_length_bias=6.0, max_words=8)
PROMPT = "Please write one short text about: {description}\n"


@pytest.fixture(scope="module")
def settings() -> Params:
    loaded = params.load(PARAMS_FILE)
    score = replace(loaded.score_explanations, writer=replace(loaded.score_explanations.writer, prompt=PROMPT))
    return replace(loaded, build_preferences=BUILD, validate_preferences=LIMITS, score_explanations=score)


def pair(index: int = 0, **changes) -> PreferencePair:
    """A pair as build_preferences makes it: 1.0 against 0.5, the lowest candidate at 0.25."""
    good = PreferencePair(
        feature_id=f"sandbox/main/{index}",
        split="valid" if index % 4 == 3 else "dpo",
        chosen_explanation="the word dog in a question",
        rejected_explanation="animals",
        chosen_score=1.0,
        rejected_score=0.5,
        score_gap=0.5,
        relative_gap=0.5,
        spread_ratio=0.75,
        chosen_best_text="does the dog sleep ?",
        rejected_best_text="the cat sleeps .",
    )
    return replace(good, **changes)


def scored(chosen: float, rejected: float, worst: float) -> dict[str, float]:
    """The numbers that follow from three rewards."""
    return {
        "chosen_score": chosen,
        "rejected_score": rejected,
        "score_gap": chosen - rejected,
        "relative_gap": (chosen - rejected) / chosen,
        "spread_ratio": (chosen - worst) / chosen,
    }


def lay_out(root: Path, pairs: list[PreferencePair], dropped: int = 1) -> Path:
    """The tables that the stage reads, for round r1; feature 50 belongs to the test split."""
    folder = root / "data/rounds/r1"
    features = [FeatureRow(f"sandbox/main/{i}", "main", i, pair(i).split, 2.0, 0.01) for i in range(50)]
    features.append(FeatureRow("sandbox/main/50", "main", 50, "test", 2.0, 0.01))
    write_rows(root / "data/activations/features.parquet", features, FeatureRow)
    write_rows(folder / "pairs.parquet", pairs, PreferencePair)
    gone = [DroppedFeature(f"sandbox/main/{100 + i}", "dpo", "no gap") for i in range(dropped)]
    write_rows(folder / "dropped.parquet", gone, DroppedFeature)
    return folder


# The damage to one pair, and the expectation that must name it.
DAMAGE = {
    "empty explanation": ({"rejected_explanation": ""}, "rejected_explanation_not_empty"),
    "blank text": ({"chosen_best_text": " \t"}, "chosen_best_text_not_empty"),
    "same but for case and spaces": (
        {"chosen_explanation": "the  Dog ", "rejected_explanation": "The dog"},
        "explanations_differ",
    ),
    "score is NaN": ({"chosen_score": math.nan}, "chosen_score_known"),
    "score is infinite": ({"rejected_score": math.inf}, "rejected_score_finite_non_negative"),
    "score is negative": (scored(1.0, -0.5, -0.5), "rejected_score_finite_non_negative"),
    "under the floor": (scored(0.4, 0.1, 0.0), "chosen_score_at_least_floor"),
    "sides swapped": (scored(0.6, 1.0, 0.5), "chosen_scores_higher"),
    "gap is not the difference": ({"score_gap": 0.4}, "score_gap_is_the_difference"),
    "relative gap is not the quotient": ({"relative_gap": 0.6}, "relative_gap_is_the_quotient"),
    "gap under the promise": (scored(1.0, 0.9, 0.5), "relative_gap_as_promised"),
    "spread under the promise": (scored(1.0, 0.95, 0.95), "spread_as_promised"),
    "spread below its own gap": ({"spread_ratio": 0.3}, "spread_covers_gap"),
    "split of SFT": ({"split": "sft"}, "split_may_be_trained_on"),
    "test feature as dpo": ({"feature_id": "sandbox/main/50"}, "split_as_recorded"),
    "unknown feature": ({"feature_id": "sandbox/main/999"}, "feature_in_feature_table"),
    "same pair again": ({"feature_id": "sandbox/main/0"}, "pair_only_once"),
    "chosen too long": ({"chosen_explanation": "word " * 9}, "chosen_explanation_short_enough"),
    "rejected too long": ({"rejected_explanation": "word " * 9}, "rejected_explanation_short_enough"),
    "special token": ({"chosen_explanation": f"dog{SPECIAL_TOKENS[1]}"}, "chosen_explanation_plain_text"),
    "feature token": ({"rejected_explanation": "<feature_17> dog"}, "rejected_explanation_plain_text"),
    "prompt leaked": (
        {"chosen_explanation": "please write one short text about: dog"},
        "chosen_explanation_plain_text",
    ),
}
GOOD = 12


@pytest.fixture(scope="module")
def damaged(settings, tmp_path_factory):
    """One run over twelve good pairs and one of every damage; the folder of the round."""
    root = tmp_path_factory.mktemp("damaged")
    hurt = [pair(GOOD + 4 * (index // 3) + index % 3, **change) for index, (change, _) in enumerate(DAMAGE.values())]
    folder = lay_out(root, [*map(pair, range(GOOD)), *hurt])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        validate_preferences.run(replace(settings, validate_preferences=replace(LIMITS, max_dropped_share=0.9)), "r1")
    return folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_caught_by_the_expectation_meant_for_it(damaged, kind):
    quarantined = read_rows(damaged / "quarantine.parquet", QuarantinedPair)
    assert len(quarantined) == len(DAMAGE)
    reasons = quarantined[list(DAMAGE).index(kind)].reason.split("; ")
    assert DAMAGE[kind][1] in reasons
    assert len(reasons) <= 5, "an expectation that fails on everything says nothing"


def test_the_good_pairs_of_a_damaged_set_are_left_as_they_were(damaged):
    assert read_rows(damaged / "validated.parquet", PreferencePair) == [pair(index) for index in range(GOOD)]


@pytest.mark.parametrize("field", [field.name for field in fields(PreferencePair)])
def test_nulls_are_caught_in_every_field(settings, tmp_path, field):
    # Into the table, not into the record: a record with None does not pass the type checks of these tests.
    table = expectations.pair_columns([pair(0), pair(1)], [], settings)
    table[field] = table[field].astype(object)
    table.loc[1, field] = None
    known = [rule for rule in expectations.pair_expectations(settings) if rule.meta["rule"] == f"{field}_known"]
    (outcome,) = expectations.Validator(tmp_path).check("pair", table, known)
    assert (outcome.success, outcome.rows, outcome.unexpected_count) == (False, (1,), 1)


def test_every_expectation_about_pairs_can_fail(damaged):
    found = json.loads((damaged / "validation.json").read_text())["expectations"]
    meant = {rule for _, rule in DAMAGE.values()}
    failed = {entry["name"] for entry in found if entry["level"] == "pair" and not entry["success"]}
    assert meant <= failed
    # What is left is the same check on another field.
    never = {entry["name"] for entry in found if entry["level"] == "pair"} - failed
    assert all(name.endswith(("_known", "_not_empty", "_finite_non_negative")) for name in never), never


def test_undamaged_set_passes_twice_with_the_same_bytes(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = lay_out(tmp_path, [pair(index) for index in range(8)])
    report = validate_preferences.run(settings, "r1")
    assert report.metrics == {"validated": 8, "quarantined": 0}
    assert read_rows(folder / "quarantine.parquet", QuarantinedPair) == []
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(first) == {
        "pairs.parquet", "dropped.parquet", "validated.parquet", "quarantine.parquet", "validation.json",
    }  # fmt: skip
    assert first["validated.parquet"] == first["pairs.parquet"]
    found = json.loads(first["validation.json"])
    assert all(entry["success"] and entry["unexpected_count"] == 0 for entry in found["expectations"])
    by_name = {entry["name"]: entry["observed"] for entry in found["expectations"]}
    # Features 3 and 7 are valid; "the word dog in a question" has five words more than "animals".
    assert (by_name["enough_pairs"], by_name["no_length_bias"]) == (6.0, 5.0)
    assert "pair only once" in (tmp_path / "reports/data_docs/r1/expectations/pairs.html").read_text()
    validate_preferences.run(settings, "r1")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


SET_DAMAGE = {
    "too few pairs": ({"min_pairs": 7}, 1, "enough_pairs: dpo_pairs is 6, must be at least 7 (min_pairs)"),
    "too many dropped": ({}, 24, "few_enough_dropped: dropped_share is 0.75, must be at most 0.5 (max_dropped_share)"),
    "length gives it away": ({"max_length_bias": 1.0}, 1, "no_length_bias: length_bias is 5, must be at most 1 words"),
}


@pytest.mark.parametrize("kind", SET_DAMAGE)
def test_a_set_that_may_not_train_is_one_line_and_leaves_no_table(settings, tmp_path, monkeypatch, kind):
    limits, dropped, message = SET_DAMAGE[kind]
    monkeypatch.chdir(tmp_path)
    folder = lay_out(tmp_path, [pair(index) for index in range(8)], dropped)
    (folder / "validated.parquet").write_text("left by an earlier run")
    with pytest.raises(UserError) as caught:
        validate_preferences.run(replace(settings, validate_preferences=replace(LIMITS, **limits)), "r1")
    assert str(caught.value).startswith("round r1: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == ["dropped.parquet", "pairs.parquet"]


def test_an_empty_set_is_too_small_not_a_crash(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path, [])
    with pytest.raises(UserError, match="dpo_pairs is 0"):
        validate_preferences.run(settings, "r1")


def test_what_quarantine_empties_counts_as_dropped():
    pairs = [pair(0), pair(1), pair(2), pair(2, rejected_explanation="cats")]
    line = expectations.set_columns(pairs[:1], pairs, [DroppedFeature("sandbox/main/9", "dpo", "no gap")])
    assert line["dropped_share"].tolist() == [0.75]


def test_reference_rule_may_fall_back_to_the_lowest_candidate(settings):
    fallen = pair(0, **scored(1.0, 0.88, 0.88))  # relative gap 0.12: below min_gap 0.15, above min_spread 0.10
    reference = replace(settings, build_preferences=replace(BUILD, rule=PairingRule.reference))
    tables = [expectations.pair_columns([fallen], [], rule) for rule in (settings, reference)]
    assert [table["gap_over_required"][0] for table in tables] == pytest.approx([-0.03, 0.02])


def test_ordinary_words_of_a_prompt_are_not_forbidden(settings):
    short = replace(settings.evaluate.writer, prompt="about {description} .")
    pattern = expectations.forbidden_text(replace(settings, evaluate=replace(settings.evaluate, writer=short)))
    assert not re.search(pattern, "questions about a dog .")
    assert re.search(pattern, "a dog <TEXT>")


@pytest.mark.parametrize("rule", PairingRule)
def test_what_the_pairing_rules_build_passes(settings, tmp_path, rule):
    built, draw = replace(BUILD, rule=rule), random.Random(0)
    pairs = []
    for index in range(50):
        identity, split = f"sandbox/main/{index}", pair(index).split
        rewards = [draw.random() * 1.6 for _ in range(6)]
        rows = [ScoreRow(identity, split, i, f"the word w{i}", ["a text"], [r], r) for i, r in enumerate(rewards)]
        found = pairs_of_feature(rows, built)
        pairs += [] if isinstance(found, DroppedFeature) else found
    features = [FeatureRow(f"sandbox/main/{i}", "main", i, pair(i).split, 2.0, 0.01) for i in range(50)]
    settings = replace(settings, build_preferences=built)
    table = expectations.pair_columns(pairs, features, settings)
    outcomes = expectations.Validator(tmp_path).check("pair", table, expectations.pair_expectations(settings))
    assert len(pairs) > 30 and [outcome.name for outcome in outcomes if not outcome.success] == []
