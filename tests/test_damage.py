"""Kinds of damage to a preference set, one by one: each is caught, by the expectation meant for it and no other.

The sets are whole ones, made by the pairing rules; the limits are the committed ones. Damage to rows sends those rows
to quarantine and no others; damage to the set stops the round before training.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preference_sets import NOUNS, UNKEPT, PreferenceSet, lay_out, preference_set, reworded, scored, settings
from tiny import ROOT

from saeexplainer.config.parts import PairingRule
from saeexplainer.errors import UserError
from saeexplainer.records import DroppedFeature, PreferencePair, QuarantinedPair
from saeexplainer.runs.storage import read_rows
from tasks import validate_preferences
from tasks.stage import main
from tasks.validation.data_docs import Validator

SETS = {rule: preference_set(settings(rule).build_preferences) for rule in PairingRule}
EARLIER = {rule: preference_set(settings(rule).build_preferences, seed=1) for rule in PairingRule}
GOOD = SETS[PairingRule.best_worst]
Damaged = tuple[PreferenceSet, set[int]]  # the set, and the rows that must go to quarantine


def lone(found: PreferenceSet, split: str = "dpo") -> int:
    """The row of a feature that has one pair: what befalls it concerns no other row."""
    pairs = Counter(pair.feature_id for pair in found.pairs)
    return next(
        row for row, pair in enumerate(found.pairs)
        if pairs[pair.feature_id] == 1 and pair.split == split and pair.relative_gap > 0.7
    )  # fmt: skip


def double(found: PreferenceSet) -> int:
    """The row of the first of a feature's two pairs."""
    rows = enumerate(zip(found.pairs, found.pairs[1:], strict=False))
    return next(row for row, (pair, following) in rows if pair.feature_id == following.feature_id)


def changed(found: PreferenceSet, row: int, **changes) -> Damaged:
    pairs = list(found.pairs)
    pairs[row] = replace(pairs[row], **changes)
    return replace(found, pairs=pairs), {row}


def one(of: str = "dpo", /, **changes) -> Callable[[PreferenceSet], Damaged]:
    """Damage that sets fields of a feature's only pair; a function is given the pair."""

    def damage(found: PreferenceSet) -> Damaged:
        row = lone(found, of)
        pair = found.pairs[row]
        return changed(found, row, **{name: to(pair) if callable(to) else to for name, to in changes.items()})

    return damage


def rewarded(**rewards: Callable[[PreferencePair], float]) -> Callable[[PreferenceSet], Damaged]:
    """Damage that draws all numbers of a feature's only pair anew from three rewards: consistent, but not right."""

    def damage(found: PreferenceSet) -> Damaged:
        row = lone(found)
        return changed(found, row, **scored(**{name: of(found.pairs[row]) for name, of in rewards.items()}))

    return damage


def again(**changes) -> Callable[[PreferenceSet], Damaged]:
    """Damage that repeats a pair at the end."""

    def damage(found: PreferenceSet) -> Damaged:
        pair = found.pairs[lone(found)]
        copy = replace(pair, **{name: to(pair) for name, to in changes.items()})
        return replace(found, pairs=[*found.pairs, copy]), {len(found.pairs)}

    return damage


def reversed_pair(found: PreferenceSet) -> Damaged:
    """The second of a feature's pairs prefers what the first rejects."""
    row = double(found)
    first, second = found.pairs[row : row + 2]
    texts = {"chosen_explanation": first.rejected_explanation, "rejected_explanation": second.chosen_explanation}
    return changed(found, row + 1, **texts)[0], {row, row + 1}


def two_bests(found: PreferenceSet) -> Damaged:
    row = double(found)
    return changed(found, row + 1, chosen_explanation="another best")[0], {row, row + 1}


def third_pair(found: PreferenceSet) -> Damaged:
    pair = replace(found.pairs[double(found)], rejected_explanation="one more that is worse")
    return replace(found, pairs=[*found.pairs, pair]), {len(found.pairs)}


def other_split(found: PreferenceSet) -> Damaged:
    """A feature of the test split passed off as one of dpo."""
    test = next(feature.feature_id for feature in found.features if feature.split == "test")
    return changed(found, lone(found), feature_id=test)


def swapped_texts(found: PreferenceSet) -> Damaged:
    """The sentences of a pair change sides, its numbers do not."""
    row = lone(found)
    pair = found.pairs[row]
    texts = {"chosen_explanation": pair.rejected_explanation, "rejected_explanation": pair.chosen_explanation}
    return changed(found, row, **texts)


# Damage to rows: what is done, the expectations that must name it, all of them.
ROWS: dict[str, tuple[Callable[[PreferenceSet], Damaged], set[str]]] = {
    "empty chosen explanation": (one(chosen_explanation=""), {"chosen_explanation_not_empty"}),
    "rejected explanation of invisible spaces": (
        one(rejected_explanation="\u00a0\u200b\u3000"),
        {"rejected_explanation_not_empty"},
    ),
    "blank best text": (one(chosen_best_text=" \t"), {"chosen_best_text_not_empty"}),
    "empty split": (one(split=""), {"split_not_empty", "split_may_be_trained_on", "split_as_recorded"}),
    "same but for case and spaces": (
        one(rejected_explanation=lambda pair: f"  {pair.chosen_explanation.upper().replace(' ', '  ')}"),
        {"explanations_differ"},
    ),
    "same but for punctuation": (
        one(rejected_explanation=lambda pair: f"“{pair.chosen_explanation}”."),
        {"explanations_differ"},
    ),
    "same but for the form of its letters": (
        one(chosen_explanation="the word ﬁne", rejected_explanation="the word fine"),
        {"explanations_differ"},
    ),
    "score is NaN": (one(chosen_score=math.nan), {"chosen_score_known"}),
    "score is infinite": (one(rejected_score=math.inf), {"rejected_score_finite_non_negative"}),
    "score is minus infinity": (one(spread_ratio=-math.inf), {
        "spread_ratio_finite_non_negative", "spread_as_promised",
    }),
    "score is negative": (
        rewarded(chosen=lambda _: 1.0, rejected=lambda _: -1e-3, worst=lambda _: -1e-3),
        {"rejected_score_finite_non_negative", "spread_at_most_the_whole"},
    ),
    "best below the floor": (
        rewarded(chosen=lambda _: 0.39, rejected=lambda _: 0.1, worst=lambda _: 0.1), {"chosen_score_at_least_floor"},
    ),
    "scores changed sides": (
        rewarded(chosen=lambda _: 0.5, rejected=lambda _: 1.0, worst=lambda _: 0.2),
        {"chosen_scores_higher", "score_gap_finite_non_negative", "relative_gap_finite_non_negative",
         "relative_gap_as_promised"},
    ),
    "gap is not the difference": (
        one(score_gap=lambda pair: pair.score_gap + 0.01),
        {"score_gap_is_the_difference", "relative_gap_is_the_quotient"},
    ),
    "relative gap is not the quotient": (
        one(relative_gap=lambda pair: pair.relative_gap - 0.01), {"relative_gap_is_the_quotient"},
    ),
    "gap below the promise": (
        rewarded(chosen=lambda _: 1.0, rejected=lambda _: 0.86, worst=lambda _: 0.1), {"relative_gap_as_promised"},
    ),
    "spread below the promise": (
        rewarded(chosen=lambda _: 1.0, rejected=lambda _: 0.91, worst=lambda _: 0.91),
        {"spread_as_promised", "relative_gap_as_promised"},
    ),
    "spread below its own gap": (
        one(spread_ratio=lambda pair: pair.relative_gap - 0.1), {"spread_covers_gap"},
    ),
    "spread above the whole": (one(spread_ratio=1.5), {"spread_at_most_the_whole"}),
    "split of the supervised labels": (one(split="sft"), {"split_may_be_trained_on", "split_as_recorded"}),
    "validation feature trained on": (one("valid", split="dpo"), {"split_as_recorded"}),
    "test feature trained on": (other_split, {"split_as_recorded"}),
    "latent that never fired": (one(feature_id=UNKEPT), {"feature_in_feature_table"}),
    "latent beyond the SAE": (one(feature_id="sandbox-llama/main/768"), {"latent_within_sae"}),
    "feature of no SAE we have": (one(feature_id="sandbox-llama/other/3"), {"sae_known"}),
    "feature of another subject": (
        one(feature_id=lambda pair: pair.feature_id.replace("llama", "gpt2")), {"feature_in_feature_table"},
    ),
    "id without its SAE": (one(feature_id="sandbox-llama/3"), {"feature_id_names_subject_sae_and_latent"}),
    "same pair again": (again(), {"pair_only_once"}),
    "same pair in capitals": (again(chosen_explanation=lambda pair: pair.chosen_explanation.upper()), {
        "pair_only_once",
    }),
    "chosen here and rejected there": (reversed_pair, {"never_both_chosen_and_rejected"}),
    "two bests of one feature": (two_bests, {"one_best_of_a_feature"}),
    "more pairs than the rule makes": (third_pair, {"few_enough_pairs_of_a_feature"}),
    "explanation too long": (one(chosen_explanation="very " * 25), {"chosen_explanation_short_enough"}),
    "explanation one endless word": (one(rejected_explanation="ab" * 101), {
        "rejected_explanation_few_enough_characters",
    }),
    "explanation without a word": (one(rejected_explanation="... !"), {"rejected_explanation_long_enough"}),
    "special token": (one(chosen_explanation="the word dog<eos>"), {"chosen_explanation_plain_text"}),
    "feature token": (one(rejected_explanation="the < feature : 17 >"), {"rejected_explanation_plain_text"}),
    "prompt of the writer": (one(rejected_explanation="<ABOUT> the word dog"), {"rejected_explanation_plain_text"}),
    "prompt of the explainer": (one(chosen_explanation="<explain> dog"), {"chosen_explanation_plain_text"}),
    "id of a feature": (one(chosen_explanation="same as sandbox-llama/main/12"), {"chosen_explanation_plain_text"}),
    "two lines": (one(chosen_explanation="the word dog\nand its name"), {"chosen_explanation_readable"}),
    "bytes that are no text": (one(rejected_explanation="the word d\ufffdg"), {"rejected_explanation_readable"}),
    "sentences changed sides": (swapped_texts, {"chosen_score_as_measured", "rejected_score_as_measured"}),
    "sentence that nobody scored": (one(chosen_explanation="a new thought"), {"chosen_score_as_measured"}),
    "scores made up": (
        rewarded(chosen=lambda pair: pair.chosen_score, rejected=lambda _: 0.01, worst=lambda _: 0.0),
        {"rejected_score_as_measured"},
    ),
}  # fmt: skip


def without(found: PreferenceSet, keep: Callable[[str, str], bool]) -> PreferenceSet:
    """Only the features for which `keep(feature_id, split)` holds."""
    return replace(
        found,
        pairs=[pair for pair in found.pairs if keep(pair.feature_id, pair.split)],
        dropped=[row for row in found.dropped if keep(row.feature_id, row.split)],
    )


def with_dropped(found: PreferenceSet, count: int, *reasons: str) -> PreferenceSet:
    rows = [
        DroppedFeature(f"sandbox-llama/lender2/{number}", "dpo", reasons[number % len(reasons)])
        for number in range(count)
    ]
    return replace(found, dropped=[*found.dropped, *rows])


def for_one_reason(reason: str) -> Callable[[PreferenceSet], PreferenceSet]:
    """As many dropped features as before, all for the same reason."""
    return lambda found: replace(found, dropped=[replace(row, reason=reason) for row in found.dropped])


def saying(say: Callable[[str, str, str], str]) -> Callable[[PreferenceSet], PreferenceSet]:
    return lambda found: reworded(found, say)


def one_worst(found: PreferenceSet) -> PreferenceSet:
    """The first of every feature's rejected explanations is the same."""
    first = {pair.feature_id: pair.rejected_explanation for pair in reversed(found.pairs)}
    return reworded(found, lambda side, name, text: "a cat" if (side, text) == ("rejected", first[name]) else text)


def blank_best_texts(found: PreferenceSet) -> PreferenceSet:
    every = range(0, len(found.pairs), 4)
    pairs = [replace(pair, chosen_best_text="") if row in every else pair for row, pair in enumerate(found.pairs)]
    return replace(found, pairs=pairs)


def rewards_doubled(found: PreferenceSet) -> PreferenceSet:
    pairs = [
        replace(pair, chosen_score=2 * pair.chosen_score, rejected_score=2 * pair.rejected_score,
                score_gap=2 * pair.score_gap)
        for pair in found.pairs
    ]  # fmt: skip
    return replace(found, pairs=pairs, scores=[replace(row, reward=2 * row.reward) for row in found.scores])


def number_of(feature_id: str) -> int:
    return int(feature_id.rpartition("/")[2])


# Damage to the set: what is done, in which round (r1 has no round before it), the expectations that must name it.
SET: dict[str, tuple[Callable[[PreferenceSet], PreferenceSet], str, set[str]]] = {
    "too few pairs": (
        lambda found: without(found, lambda name, split: split == "valid" or number_of(name) < 40), "r1",
        {"enough_pairs"},
    ),
    "nothing to choose the checkpoint by": (
        lambda found: without(found, lambda _, split: split == "dpo"), "r1", {"enough_valid_pairs"},
    ),
    "too much of it in quarantine": (blank_best_texts, "r1", {"few_enough_quarantined"}),
    "hardly a feature left": (
        lambda found: with_dropped(found, 1500, "best is zero", "below floor"), "r1", {"few_enough_dropped"},
    ),
    "no writer to speak of": (
        lambda found: with_dropped(for_one_reason("best is zero")(found), 500, "best is zero"), "r1",
        {"few_enough_dropped_because_best_is_zero"},
    ),
    "floor out of reach": (
        lambda found: with_dropped(for_one_reason("below floor")(found), 500, "below floor"), "r1",
        {"few_enough_dropped_because_below_floor"},
    ),
    "silence rewarded": (
        lambda found: with_dropped(found, 20, "best is empty"), "r1", {"few_enough_dropped_because_best_is_empty"},
    ),
    "candidates all worth the same": (for_one_reason("no spread"), "r1", {"few_enough_dropped_because_no_spread"}),
    "no candidate far enough behind": (for_one_reason("no gap"), "r1", {"few_enough_dropped_because_no_gap"}),
    "reason that no rule gives": (lambda found: with_dropped(found, 1, "gremlins"), "r1", {"reasons_known"}),
    "dropped and paired": (
        lambda found: replace(
            found, dropped=[*found.dropped, DroppedFeature(found.pairs[0].feature_id, "dpo", "no gap")]
        ), "r1", {"no_feature_both_paired_and_dropped"},
    ),
    "chosen are the longer ones": (
        saying(lambda side, _, text: f"{text} in {NOUNS[3]} with care" if side == "chosen" else text), "r1",
        {"no_length_bias"},
    ),
    "rejected are the longer ones": (
        saying(lambda side, _, text: f"{text} in {NOUNS[3]} with care" if side == "rejected" else text), "r1",
        {"no_length_bias"},
    ),
    "one sentence is the best of everything": (
        saying(lambda side, name, text: "the word dog" if side == "chosen" and number_of(name) % 3 == 0 else text),
        "r1", {"chosen_not_collapsed"},
    ),
    "one sentence is the worst of everything": (one_worst, "r1", {"rejected_not_collapsed"}),
    "a handful of sentences are the best of everything": (
        saying(lambda side, name, it: f"a text about the {NOUNS[number_of(name) % 10]}" if side == "chosen" else it),
        "r1", {"chosen_diverse"},
    ),
    "all sentences longer than a round ago": (
        saying(lambda _, name, text: f"{text} the word any {NOUNS[number_of(name) % 40]}"), "r2", {"lengths_as_before"},
    ),
    "rewards of another scale than a round ago": (rewards_doubled, "r2", {"scores_as_before"}),
    "more dropped than a round ago": (
        lambda found: with_dropped(found, 1000, "best is zero", "below floor"), "r2", {"dropped_as_before"},
    ),
    "other words than a round ago": (
        saying(lambda _side, _name, text: " ".join(f"{word}x" for word in text.split())), "r2",
        {"vocabulary_as_before"},
    ),
}  # fmt: skip


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def unrendered(workspace, monkeypatch) -> Path:
    """Without the pages, which take most of a run's time and decide nothing."""
    monkeypatch.setattr(Validator, "write_docs", lambda _: None)
    return workspace


def validated(rule: PairingRule, found: PreferenceSet, item: str = "r2") -> Path:
    """Run the stage in the current folder; the round's folder."""
    folder = lay_out(Path.cwd(), found, item, EARLIER[rule])
    validate_preferences.run(settings(rule), item)
    return folder


def refused(error: UserError) -> set[str]:
    """The rules that the one line of a refusal names."""
    (listed,) = re.findall(r"may not train: (.*?); quarantined: ", str(error))
    return {part.partition(":")[0] for part in listed.split("; ")}


def test_there_are_twenty_kinds_and_more():
    assert len(ROWS) + len(SET) >= 60


@pytest.mark.parametrize("item", ["r1", "r2"])
@pytest.mark.parametrize("rule", PairingRule)
def test_an_undamaged_set_passes(workspace, rule, item):
    folder = validated(rule, SETS[rule], item)
    assert read_rows(folder / "validated.parquet", PreferencePair) == SETS[rule].pairs
    assert read_rows(folder / "quarantine.parquet", QuarantinedPair) == []
    assert all(entry["success"] for entry in json.loads((folder / "validation.json").read_text())["expectations"])


@pytest.mark.parametrize("kind", ROWS)
def test_damaged_rows_go_to_quarantine_with_the_reason_meant_for_them(unrendered, kind):
    damage, meant = ROWS[kind]
    found, rows = damage(GOOD)
    folder = validated(PairingRule.best_worst, found)
    quarantined = read_rows(folder / "quarantine.parquet", QuarantinedPair)
    assert len(quarantined) == len(rows)
    assert [set(pair.reason.split("; ")) for pair in quarantined] == [meant] * len(rows)
    good = [pair for row, pair in enumerate(found.pairs) if row not in rows]
    assert read_rows(folder / "validated.parquet", PreferencePair) == good


REFERENCE = [
    "gap below the promise",
    "spread below the promise",
    "scores changed sides",
    "more pairs than the rule makes",
]


@pytest.mark.parametrize("kind", REFERENCE)
def test_the_reference_rule_is_held_to_its_own_promises(unrendered, kind):
    damage, meant = ROWS[kind]
    found, rows = damage(SETS[PairingRule.reference])
    folder = validated(PairingRule.reference, found)
    quarantined = read_rows(folder / "quarantine.parquet", QuarantinedPair)
    # A gap that is the whole spread is a fall-back to the lowest candidate, and then the spread is what is promised.
    assert [set(pair.reason.split("; ")) for pair in quarantined] == [meant] * len(rows)


def test_the_reference_rule_may_fall_back_to_the_lowest_candidate(unrendered):
    fallen = rewarded(chosen=lambda _: 1.0, rejected=lambda _: 0.88, worst=lambda _: 0.88)
    for rule, meant in (
        (PairingRule.reference, {"chosen_score_as_measured", "rejected_score_as_measured"}),
        (PairingRule.best_worst, {"relative_gap_as_promised"}),
    ):
        folder = validated(rule, fallen(SETS[rule])[0])
        (pair,) = read_rows(folder / "quarantine.parquet", QuarantinedPair)
        assert set(pair.reason.split("; ")) == meant


@pytest.mark.parametrize("kind", SET)
def test_a_damaged_set_is_refused_by_the_expectation_meant_for_it(unrendered, kind):
    damage, item, meant = SET[kind]
    with pytest.raises(UserError) as caught:
        validated(PairingRule.best_worst, damage(GOOD), item)
    assert refused(caught.value) == meant
    assert "\n" not in str(caught.value)


def test_every_expectation_is_the_answer_to_some_damage(unrendered):
    folder = validated(PairingRule.best_worst, GOOD)
    known = {entry["name"] for entry in json.loads((folder / "validation.json").read_text())["expectations"]}
    meant = set().union(*(rules for _, rules in ROWS.values()), *(rules for _, _, rules in SET.values()))
    assert meant <= known
    # What is left is the same check on another field or the other side.
    generic = r".*_(known|not_empty|finite_non_negative)|(chosen|rejected)_explanation_.*"
    assert [name for name in sorted(known - meant) if not re.fullmatch(generic, name)] == []


def test_a_refused_set_leaves_what_was_found_and_nothing_to_train_on(workspace, capfd):
    damaged, rows = changed(GOOD, lone(GOOD), chosen_explanation=" ")
    folder = lay_out(workspace, without(damaged, lambda _, split: split == "dpo"), "r1")
    for name in ("validated.parquet", "quarantine.parquet", "validation.json"):
        (folder / name).write_text("of an earlier run")
    (workspace / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    with pytest.raises(SystemExit) as caught:
        main(validate_preferences.run, ["r1"])
    assert caught.value.code == 2
    assert not (folder / "validated.parquet").exists()
    # What the message names is there: that is where one looks now.
    assert str(Path("data/rounds/r1/quarantine.parquet")) in capfd.readouterr().err
    (held,) = read_rows(folder / "quarantine.parquet", QuarantinedPair)
    assert len(rows) == 1 and held.reason == "chosen_explanation_not_empty"
    found = json.loads((folder / "validation.json").read_text())
    assert (found["refused"], found["validated"], found["quarantined"]) == (["enough_valid_pairs"], 0, 1)
    assert "enough valid pairs" in (workspace / "reports/data_docs/r1/expectations/sets.html").read_text()
    assert "refused: enough valid pairs" in (workspace / "reports/data_docs/index.html").read_text()


def test_nulls_in_the_table_are_quarantined_by_name(workspace):
    """In a process of its own: here the records' types are checked, and None is no text."""
    folder = lay_out(workspace, GOOD, "r1")
    table = pq.read_table(folder / "pairs.parquet")
    rows = {"chosen_explanation": 0, "rejected_score": 4, "feature_id": 8, "split": 12, "rejected_best_text": 16}
    for name, row in rows.items():
        values = table[name].to_pylist()
        values[row] = None
        table = table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, folder / "pairs.parquet")
    (workspace / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    command = [sys.executable, "-m", "tasks.validate_preferences", "r1"]
    process = subprocess.run(
        command, cwd=workspace, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    reasons = pq.read_table(folder / "quarantine.parquet")["reason"].to_pylist()
    assert reasons == [f"{name}_known" for name in rows]


def test_an_empty_set_is_refused_in_one_line(unrendered):
    empty = replace(GOOD, pairs=[], dropped=[])
    with pytest.raises(UserError) as caught:
        validated(PairingRule.best_worst, empty)
    assert refused(caught.value) == {"enough_pairs", "enough_valid_pairs", "few_enough_dropped"}


def test_a_set_of_one_pair_is_too_small_and_otherwise_judged(unrendered):
    single = replace(GOOD, pairs=[GOOD.pairs[lone(GOOD)]])
    with pytest.raises(UserError, match="dpo_pairs is 1, must be at least 50") as caught:
        validated(PairingRule.best_worst, single, "r1")
    assert {"enough_pairs", "enough_valid_pairs"} <= refused(caught.value)


def test_text_of_any_script_and_emoji_may_train(unrendered):
    texts = ("слово собака 🐶", "狗这个词", "le mot « été »", "👩\u200d🚀 und ihr Raumanzug", "x ≠ y", "the word .")
    found = GOOD
    for row, text in zip(range(0, 2 * len(texts), 2), texts, strict=True):
        name = found.pairs[row].feature_id
        best = found.pairs[row].chosen_explanation
        found = reworded(found, lambda _, at, old, name=name, best=best, text=text: text if (at, old) == (name, best)
                         else old)  # fmt: skip
    folder = validated(PairingRule.best_worst, found)
    assert set(texts) <= {pair.chosen_explanation for pair in read_rows(folder / "validated.parquet", PreferencePair)}
    assert read_rows(folder / "quarantine.parquet", QuarantinedPair) == []
