"""The suites' numbers by hand, and what the stage leaves behind. Whole sets and their damage are in test_damage.py."""

import html
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pairs_by_hand
import pytest
from pairs_by_hand import BUILD, HOSTILE, LIMITS, hostile_set, lay_out, pair
from prefect.logging import disable_run_logger
from preference_sets import scored
from pydantic import ValidationError
from tiny import ROOT

from flows import artifacts
from saeexplainer.config import Params
from saeexplainer.config.parts import PairingRule
from saeexplainer.errors import UserError
from saeexplainer.preferences import sets
from saeexplainer.preferences.pairs import pairs_of_feature
from saeexplainer.preferences.sets import Figures
from saeexplainer.records import DroppedFeature, DropReason, FeatureRow, PreferencePair, QuarantinedPair, ScoreRow
from saeexplainer.runs.storage import read_json, read_rows, write_json, write_rows
from tasks import validate_preferences
from tasks.settings import checks
from tasks.validation import data_docs, pair_suite, set_suite


@pytest.fixture(scope="module")
def settings() -> Params:
    return pairs_by_hand.settings()


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("field", [field.name for field in fields(PreferencePair)])
def test_nulls_are_caught_in_every_field(settings, tmp_path, field):
    # Into the table, not into the record: a record with None does not pass the type checks of these tests.
    table = pair_suite.pair_columns([pair(0), pair(1)], [], settings)
    table[field] = table[field].astype(object)
    table.loc[1, field] = None
    known = [rule for rule in pair_suite.pair_expectations(settings, "r1") if rule.meta["rule"] == f"{field}_known"]
    (outcome,) = data_docs.Validator(tmp_path).check("pair", table, known)
    assert (outcome.success, outcome.rows, outcome.unexpected_count) == (False, (1,), 1)


def test_undamaged_set_passes_twice_with_the_same_bytes(settings, workspace):
    folder = lay_out(workspace, [pair(index) for index in range(8)])
    report = validate_preferences.run(settings, "r1")
    assert report.metrics == {"validated": 8, "quarantined": 0}
    assert read_rows(folder / "quarantine.parquet", QuarantinedPair) == []
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert first["validated.parquet"] == first["pairs.parquet"]
    found = json.loads(first["validation.json"])
    assert all(entry["success"] and entry["unexpected_count"] == 0 for entry in found["expectations"])
    by_name = {entry["name"]: entry["observed"] for entry in found["expectations"]}
    # Features 3 and 7 are valid; "the word dog in a question" has five words more than "animals".
    assert (by_name["enough_pairs"], by_name["enough_valid_pairs"], by_name["no_length_bias"]) == (6.0, 2.0, 5.0)
    assert (by_name["chosen_not_collapsed"], by_name["chosen_diverse"]) == (1.0, pytest.approx(1 / 6))
    assert by_name["few_enough_dropped_because_no_gap"] == pytest.approx(1 / 9)
    assert "pair only once" in (workspace / "reports/data_docs/r1/expectations/pairs.html").read_text()
    validate_preferences.run(settings, "r1")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_features_dropped_because_calls_failed_are_counted_and_held_against_the_share_of_all(settings, workspace):
    folder = lay_out(workspace, [pair(index) for index in range(8)])
    failed = [DroppedFeature(f"sandbox/main/{100 + i}", "dpo", "calls failed") for i in range(2)]
    write_rows(folder / "dropped.parquet", failed, DroppedFeature)
    validate_preferences.run(settings, "r1")
    found = {entry["name"]: entry for entry in json.loads((folder / "validation.json").read_text())["expectations"]}
    assert found["few_enough_dropped_because_calls_failed"]["observed"] == pytest.approx(2 / 10)
    assert found["few_enough_dropped"]["observed"] == pytest.approx(2 / 10) and found["reasons_known"]["observed"] == 0
    strict = replace(settings, validate_preferences=replace(LIMITS, max_dropped_share=0.1))
    with pytest.raises(UserError, match="few_enough_dropped_because_calls_failed: .* is 0.2, must be at most 0.1"):
        validate_preferences.run(strict, "r1")


def test_a_pair_with_a_candidate_that_has_no_reward_goes_to_quarantine(settings, workspace):
    folder = lay_out(workspace, [pair(index) for index in range(8)])
    scores = read_rows(folder / "scores.parquet", ScoreRow)
    write_rows(folder / "scores.parquet", [scores[0], replace(scores[1], reward=None), *scores[2:]], ScoreRow)
    validate_preferences.run(settings, "r1")
    (held,) = read_rows(folder / "quarantine.parquet", QuarantinedPair)
    assert (held.feature_id, held.reason) == ("sandbox/main/0", "rejected_score_as_measured")


def test_the_first_round_says_that_drift_does_not_apply(settings, workspace):
    folder = lay_out(workspace, [pair(index) for index in range(8)])
    report = validate_preferences.run(settings, "r1")
    found = read_json(folder / "validation.json")
    assert set(found["not_applicable"]) == set(set_suite.DRIFT_RULES)
    assert not {entry["name"] for entry in found["expectations"]} & set(set_suite.DRIFT_RULES)
    assert any("the round starts from sft, which no preference set has trained" in line for line in report.lines)
    assert "not applicable" in (workspace / "reports/data_docs/index.html").read_text()


def test_a_later_round_is_held_against_the_set_its_start_was_trained_on(settings, workspace):
    first = lay_out(workspace, [pair(index) for index in range(8)])
    validate_preferences.run(settings, "r1")
    lay_out(workspace, [pair(index, **scored(1.6, 0.8, 0.4)) for index in range(8)], item="r2")
    with pytest.raises(UserError, match=r"data/explainers/r1/preferences.json: no such file; run `dvc repro`"):
        validate_preferences.run(settings, "r2")
    # What train_dpo leaves with the explainer.
    write_json(workspace / "data/explainers/r1/preferences.json", read_json(first / "validation.json")["figures"])
    with pytest.raises(UserError, match=r"train: scores_as_before: score_drift is 0.6, must be at most 0.5 \(max_sc"):
        validate_preferences.run(settings, "r2")
    listed = (workspace / "reports/data_docs/index.html").read_text()
    assert listed.index("r1/index.html") < listed.index("r2/index.html")
    assert "may train" in listed and "refused: scores as before" in listed
    # A reward of another kind is no drift.
    scoring = replace(settings.score_explanations, by_sentence={"r2": "r1"})
    report = validate_preferences.run(replace(settings, score_explanations=scoring), "r2")
    assert any("of r2 and r1 one is rewarded by the sentence alone" in line for line in report.lines)
    (workspace / "data/explainers/r1/preferences.json").write_text('{"features": 0}')
    with pytest.raises(UserError, match=r"preferences.json: holds no figures of a preference set"):
        validate_preferences.run(settings, "r2")


def test_drift_by_hand():
    before = Figures(3, {"1": 2, "2": 1}, 1.0, 0.5, {"a": 2, "b": 2})
    # Lengths 1, 1, 2 to 1, 2, 3: one word moves twice among three features. Half the vocabulary stays: frequencies
    # (1/2, 1/2, 0) and (1/2, 0, 1/2), mean (1/2, 1/4, 1/4), divergence 1/2 bit.
    now = Figures(3, {"1": 1, "2": 1, "3": 1}, 1.2, 0.2, {"a": 3, "c": 3})
    found = sets.drift(now, before)
    assert found.words == pytest.approx(2 / 3)
    assert found.score == pytest.approx(0.2)
    assert found.dropped == pytest.approx(0.3)
    assert found.vocabulary == pytest.approx(math.sqrt(0.5))
    same = sets.drift(now, now)
    assert (same.words, same.score, same.dropped, same.vocabulary) == (0.0, 0.0, 0.0, 0.0)


def test_figures_count_each_feature_of_the_dpo_split_once():
    pairs = [pair(0), pair(0, rejected_explanation="cats"), pair(1, chosen_explanation="Dogs, dogs"), pair(3)]
    found = sets.figures(pairs, pairs, [DroppedFeature("sandbox/main/9", "dpo", "no gap")])
    assert found == Figures(
        features=2, lengths={"2": 1, "6": 1}, mean_score=1.0, dropped_share=0.25,
        vocabulary={"a": 1, "dog": 1, "dogs": 2, "in": 1, "question": 1, "the": 1, "word": 1},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("The  Dog.", "the dog"),
        ("“dog”", "dog"),
        ("ﬁne", "fine"),
        ("anti-pattern", "anti-pattern"),
        ("the word .", "the word ."),
        ("👩\u200d🚀!", "👩\u200d🚀"),
    ],
)
def test_what_makes_no_difference_between_texts(text, same):
    assert sets.normal(text) == same


def test_words_are_more_than_punctuation():
    assert sets.words("the word ... dog's 🐶 + !") == ["the", "word", "dog's", "🐶", "+"]


def test_what_quarantine_empties_counts_as_dropped():
    pairs = [pair(0), pair(1), pair(2), pair(2, rejected_explanation="cats")]
    gone = [DroppedFeature("sandbox/main/9", "dpo", "no gap")]
    assert sets.dropped_share(pairs[:1], pairs, gone) == 0.75


def test_every_reason_to_drop_a_feature_has_a_limit():
    """Failed calls are no explainer's doing: the share of all dropped features is their limit."""
    assert {*sets.REASONS, DropReason.calls_failed} == set(DropReason)


def test_limits_that_contradict_each_other_are_one_line(settings):
    for changes, message in (
        (
            {"min_words": 9},
            r"validate_preferences.min_words: is 9; must be at most validate_preferences.max_words \(8\)",
        ),
        ({"max_characters": 7}, r"validate_preferences.max_words: is 8; must be at most .*max_characters \(7\)"),
    ):
        with pytest.raises(UserError, match=message):
            checks.check(replace(settings, validate_preferences=replace(LIMITS, **changes)))
    with pytest.raises(ValidationError, match="no_gap"):
        replace(LIMITS.max_reason_share, no_gap=1.5)


def test_reference_rule_may_fall_back_to_the_lowest_candidate(settings):
    fallen = pair(0, **scored(1.0, 0.88, 0.88))  # relative gap 0.12: below min_gap 0.15, above min_spread 0.10
    reference = replace(settings, build_preferences=replace(BUILD, rule=PairingRule.reference))
    tables = [pair_suite.pair_columns([fallen], [], rule) for rule in (settings, reference)]
    assert [table["gap_over_required"][0] for table in tables] == pytest.approx([-0.03, 0.02])


def test_ordinary_words_of_a_prompt_are_not_forbidden(settings):
    short = replace(settings.evaluate.writer, prompt="about {description} .")
    pattern = pair_suite.forbidden_text(replace(settings, evaluate=replace(settings.evaluate, writer=short)))
    assert not re.search(pattern, "questions about a dog .")
    for leaked in ("a dog <TEXT>", "please write one short text about: dog", "<feature:3>", "<Feature_17>"):
        assert re.search(pattern, leaked)


def test_data_docs_need_no_network_and_show_every_value_as_text(settings, workspace):
    hostile_set(workspace)
    validate_preferences.run(settings, "r1")
    pages = {path: path.read_text() for path in (workspace / "reports/data_docs").rglob("*.html")}
    assert len(pages) == 8, "the index over rounds, the round's own, three suites and their results"
    for path, text in pages.items():
        assert "<script" not in text and "<img" not in text and not re.search(r"https?://|url\(|@import", text)
        assert "Content-Security-Policy" in text and not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
        for address in re.findall(r'(?:href|src)="([^"]*)"', text):
            assert address == "data:," or (path.parent / address).is_file(), (path, address)
    (results,) = (text for path, text in pages.items() if path.name == "preferences-pairs.html")
    assert HOSTILE in html.unescape(results), "the text that failed, as it is"
    assert "\\x00\\x1b" in results and "✗ failed" in results
    index = pages[workspace / "reports/data_docs/index.html"]
    for suite in ("single pairs", "measured rewards", "the set"):
        assert re.search(f'href="r1/validations/[^"]+">{suite}</a>', index), suite


def test_docs_are_made_where_they_are_missing_and_their_place_is_printed(settings, workspace):
    """As after a clone and a `dvc pull`: the artifacts are there, the pages are not."""
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    (workspace / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    command = [sys.executable, "-m", "tasks.cli.data_docs"]

    def docs() -> subprocess.CompletedProcess:
        return subprocess.run(
            command, cwd=workspace, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    nothing = docs()
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert nothing.stderr == "error: reports/data_docs: there is no preference set yet; `dvc repro` makes them\n"
    lay_out(workspace, [pair(index) for index in range(8)])
    made = docs()
    index = workspace / "reports/data_docs/index.html"
    assert made.stdout.splitlines() == ["r1: writing its Data Docs again", str(index.resolve())], made.stderr
    for page in re.findall(r'href="([^"]+html)"', index.read_text()):
        assert (index.parent / page).is_file()
    # The committed limits refuse eight pairs; to look at them does not make them fit to train on.
    assert "refused: enough pairs" in index.read_text()
    assert not (workspace / "data/rounds/r1/validated.parquet").exists()
    assert docs().stdout == f"{index.resolve()}\n"


def test_a_flow_run_writes_the_docs_of_restored_pairs_again(settings, workspace):
    """DVC brings the pairs back; the pages, which it does not keep, are still those of the experiment before."""
    (workspace / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    lay_out(workspace, [pair(index) for index in range(8)])
    page = data_docs.DATA_DOCS / "r1/index.html"
    page.parent.mkdir(parents=True)
    page.write_text("the experiment before")
    (page.parent / "verdict.json").write_text('{"pairs": "others"}')
    with disable_run_logger():
        assert artifacts._data_docs(["r1", "r2"]) == {"r1": page}, "r2 has no pairs, so nothing to show"
        assert "the experiment before" not in page.read_text()
        written = page.stat().st_mtime
        assert artifacts._data_docs(["r1"]) == {"r1": page} and page.stat().st_mtime == written


@pytest.mark.parametrize("rule", PairingRule)
def test_rewards_at_the_edge_of_the_rule_pass(settings, tmp_path, rule):
    """Best 1.0, the others just below the promised gap and just beyond it: what the rule makes, the suite accepts."""
    built = replace(BUILD, rule=rule)
    rewards = [1.0, 0.9, 0.85, 0.8499999, 0.84, 0.0]
    rows = [
        ScoreRow("sandbox/main/0", "dpo", i, f"the word w{i}", ["a text"], [r], [0.0], r) for i, r in enumerate(rewards)
    ]
    pairs = pairs_of_feature(rows, built)
    settings = replace(settings, build_preferences=built)
    features = [FeatureRow("sandbox/main/0", "main", 0, "dpo", 2.0, 0.01)]
    table = pair_suite.pair_columns(pairs, features, settings)
    outcomes = data_docs.Validator(tmp_path).check("pair", table, pair_suite.pair_expectations(settings, "r1"))
    assert len(pairs) == 2 and [outcome.name for outcome in outcomes if not outcome.success] == []
