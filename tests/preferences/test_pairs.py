"""The pairing rules by hand (docs/METHOD.md section 6), and what no pair may be."""

from dataclasses import asdict, replace

import pytest
from hypothesis import given, strategies as st

from saeexplainer.config import BuildPreferences
from saeexplainer.config.parts import PairingRule
from saeexplainer.preferences.pairs import pairs_of_feature
from saeexplainer.records import DroppedFeature, ScoreRow
from tasks.build_preferences import single_text_pairs

REFERENCE = BuildPreferences(PairingRule.reference, floor=0.5, min_spread=0.1, min_gap=0.15, max_pairs=1)
WORST = replace(REFERENCE, rule=PairingRule.best_worst, max_pairs=2)


def candidates(*rewards: float | None, texts: list[str] | None = None) -> list[ScoreRow]:
    """One candidate a reward, None where its texts failed, in order of sampling; `texts` replaces the explanations."""
    said = texts or [f"the word {name}" for name in "abcdefgh"]
    rows = []
    for rank, value in enumerate(rewards):
        texts, found = ([], []) if value is None else ([f"weak {rank}", f"strong {rank}"], [0.1, value])
        rows.append(ScoreRow("subject/main/7", "dpo", rank, said[rank], texts, found, [], value))
    return rows


def rejected_ranks(rows: list[ScoreRow], config: BuildPreferences) -> list[int]:
    found = pairs_of_feature(rows, config)
    assert isinstance(found, list)
    rank_of = {row.explanation: row.rank for row in rows}
    return [rank_of[pair.rejected_explanation] for pair in found]


def test_the_reference_rejects_the_highest_of_the_lower_half_with_enough_gap():
    # Best first: 1.0 .95 .9 | .87 .8 .2. Of the lower half .87 lacks the gap of .15, .8 has it: the hard negative.
    assert rejected_ranks(candidates(0.2, 0.9, 1.0, 0.87, 0.95, 0.8), REFERENCE) == [5]
    # The upper half is never rejected, however low.
    assert rejected_ranks(candidates(1.0, 0.3, 0.25, 0.2, 0.1, 0.0), REFERENCE) == [3]


def test_the_gap_must_be_exceeded():
    # Gaps of exactly .25: representable, and not more than asked.
    config = replace(REFERENCE, min_gap=0.25)
    assert rejected_ranks(candidates(1.0, 0.9, 0.75, 0.5), config) == [3]
    assert rejected_ranks(candidates(1.0, 0.9, 0.74, 0.5), config) == [2]


def test_the_reference_falls_back_to_the_lowest():
    # All within .15 of the best, but spread over more than .10: the lowest, 0.88.
    assert rejected_ranks(candidates(1.0, 0.95, 0.94, 0.93, 0.88, 0.92), REFERENCE) == [4]


def test_best_worst_rejects_the_lowest_first():
    assert rejected_ranks(candidates(0.2, 0.9, 1.0, 0.3, 0.1), WORST) == [4, 0]
    assert rejected_ranks(candidates(1.0, 0.9, 0.5), WORST) == [2]


def test_of_equal_rewards_the_earlier_sample_is_best():
    (pair,) = pairs_of_feature(candidates(0.2, 1.0, 1.0), replace(WORST, max_pairs=1))
    assert (pair.chosen_explanation, pair.rejected_explanation) == ("the word b", "the word a")


def test_every_figure_of_a_pair():
    (pair,) = pairs_of_feature(candidates(0.25, 1.6, 1.2, 0.8, 1.5, 0.4), REFERENCE)
    assert asdict(pair) == {
        "feature_id": "subject/main/7",
        "split": "dpo",
        "chosen_explanation": "the word b",
        "rejected_explanation": "the word d",
        "chosen_score": 1.6,
        "rejected_score": 0.8,
        "score_gap": pytest.approx(0.8),
        "relative_gap": pytest.approx(0.5),
        "spread_ratio": pytest.approx((1.6 - 0.25) / 1.6),
        "chosen_best_text": "strong 1",
        "rejected_best_text": "strong 3",
    }


@pytest.mark.parametrize("config", [REFERENCE, WORST], ids=["reference", "best_worst"])
@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (candidates(0.0, 0.0, 0.0), "best is zero"),
        (candidates(0.49, 0.1, 0.0), "below floor"),
        (candidates(1.0, 0.95, 0.9), "no spread"),
        (candidates(1.0, 0.2, texts=["  ", "the dog"]), "best is empty"),
        (candidates(1.0, 0.0, texts=["the dog", ""]), "no gap"),
        (candidates(1.0, 0.2, 0.1, texts=["the dog", "The  dog", "the dog "]), "no spread"),
    ],
)
def test_why_a_feature_has_no_pair(rows, reason, config):
    assert pairs_of_feature(rows, config) == DroppedFeature("subject/main/7", "dpo", reason)


def test_best_worst_drops_a_feature_whose_gaps_are_small():
    assert pairs_of_feature(candidates(1.0, 0.9, 0.88), WORST) == DroppedFeature("subject/main/7", "dpo", "no gap")


@pytest.mark.parametrize("rule", list(PairingRule))
def test_a_candidate_whose_texts_failed_is_on_neither_side(rule):
    """The pairs are those of the others: of 1.0 .9 .2 .1 the lower half is .2 .1. With 0 for the failed one, .2 and 0
    would be candidates for rejection beside .1, and best_worst would reject the failed one first."""
    config = replace(REFERENCE, rule=rule, max_pairs=2)
    rows = candidates(0.2, None, 1.0, None, 0.1, 0.9)
    rejected = {PairingRule.reference: [0, 4], PairingRule.best_worst: [4, 0], PairingRule.all_pairs: [4, 4]}
    assert rejected_ranks(rows, config) == rejected[rule]
    assert pairs_of_feature(rows, config) == pairs_of_feature([row for row in rows if row.reward is not None], config)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (candidates(None, None, None), "calls failed"),
        (candidates(1.0, None, None), "calls failed"),  # it might be the best or the worst
        (candidates(0.0, None), "calls failed"),
        (candidates(1.0, None, 0.9, texts=["the dog", "a cat", "The  dog"]), "calls failed"),  # one sentence, twice
        (candidates(1.0, None, 0.0, texts=["the dog", "a cat", ""]), "calls failed"),  # no pair has an empty one
        # Who would have had no pair in any case, or has none for what is known.
        (candidates(1.0, None, texts=["the dog", "The  dog"]), "no spread"),
        (candidates(None, 0.0, 0.0), "best is zero"),
        (candidates(None, 1.0, 0.95), "no spread"),
    ],
)
def test_why_a_feature_whose_calls_failed_has_no_pair(rows, reason):
    assert pairs_of_feature(rows, REFERENCE) == DroppedFeature("subject/main/7", "dpo", reason)


WORDINGS = ["the dog", "The dog", "the  dog ", "any animal", "a question", ""]
ROWS = st.lists(st.tuples(st.sampled_from(WORDINGS), st.floats(0, 2)), min_size=1, max_size=8)


@given(drawn=ROWS, lost=st.lists(st.booleans(), min_size=8, max_size=8), rule=st.sampled_from(list(PairingRule)))
def test_no_side_of_a_pair_is_a_sentence_that_nobody_measured(drawn, lost, rule):
    texts = [text for text, _ in drawn]
    rewards = [None if gone and text else value for (text, value), gone in zip(drawn, lost)]
    found = pairs_of_feature(candidates(*rewards, texts=texts), replace(REFERENCE, rule=rule, max_pairs=3))
    measured = {text for text, reward in zip(texts, rewards) if reward is not None}
    for pair in [] if isinstance(found, DroppedFeature) else found:
        assert {pair.chosen_explanation, pair.rejected_explanation} <= measured


@given(drawn=ROWS)
def test_all_pairs_keeps_the_promises_that_are_made_of_every_rule(drawn):
    rows = candidates(*(value for _, value in drawn), texts=[text for text, _ in drawn])
    found = pairs_of_feature(rows, replace(REFERENCE, rule=PairingRule.all_pairs, max_pairs=4))
    for pair in [] if isinstance(found, DroppedFeature) else found:
        assert pair.chosen_score >= REFERENCE.floor and pair.chosen_score > pair.rejected_score
        assert REFERENCE.min_gap < pair.relative_gap <= pair.spread_ratio + 1e-9
        assert "" not in (pair.chosen_explanation, pair.rejected_explanation)


@given(drawn=ROWS, config=st.sampled_from([REFERENCE, WORST, replace(REFERENCE, max_pairs=3)]))
def test_no_sentence_is_on_both_sides_and_every_promise_is_kept(drawn, config):
    rows = candidates(*(value for _, value in drawn), texts=[text for text, _ in drawn])
    found = pairs_of_feature(rows, config)
    if isinstance(found, DroppedFeature):
        return
    assert 1 <= len(found) <= config.max_pairs
    best = max(value for _, value in drawn)
    chosen, rejected = (
        {" ".join(text.lower().split()) for text in side}
        for side in ([pair.chosen_explanation for pair in found], [pair.rejected_explanation for pair in found])
    )
    assert len(chosen) == 1 and len(rejected) == len(found) and not chosen & rejected and "" not in chosen | rejected
    for pair in found:
        assert pair.chosen_score == best >= config.floor and pair.spread_ratio > config.min_spread
        assert pair.relative_gap > config.min_gap or (
            config.rule is PairingRule.reference and pair.relative_gap == pair.spread_ratio
        )


ALL = replace(REFERENCE, rule=PairingRule.all_pairs, max_pairs=10)


def test_all_pairs_takes_every_better_one_over_every_worse_one_with_enough_gap():
    # The floor is .5. Gaps: 1.0>.9 lacks one; 1.0>.5 .5, 1.0>.2 .8, .9>.5 .444, .9>.2 .778, .5>.2 .6. Widest first.
    rows = candidates(0.5, 1.0, 0.2, 0.9)
    found = pairs_of_feature(rows, ALL)
    rank_of = {row.explanation: row.rank for row in rows}
    sides = [(rank_of[pair.chosen_explanation], rank_of[pair.rejected_explanation]) for pair in found]
    assert sides == [(1, 2), (3, 2), (0, 2), (1, 0), (3, 0)]
    assert [round(pair.relative_gap, 3) for pair in found] == [0.8, 0.778, 0.6, 0.5, 0.444]
    assert {pair.spread_ratio for pair in found} == {0.8}
    assert pairs_of_feature(rows, replace(ALL, max_pairs=2)) == found[:2]


def test_all_pairs_never_prefers_what_earned_nothing_or_says_nothing():
    rows = candidates(1.0, 0.0, 0.0, 0.5, texts=["the word a", "the word b", "the word c", " "])
    found = pairs_of_feature(rows, ALL)
    assert [(pair.chosen_explanation, pair.rejected_explanation) for pair in found] == [
        ("the word a", "the word b"),
        ("the word a", "the word c"),
    ]


def test_pairs_whose_chosen_explanation_fired_in_one_text_are_counted():
    once = candidates(0.9, 0.5, 0.1)  # each has a second text, which never fires
    twice = [replace(row, feature_id="subject/main/8", activations=[0.5, 0.9]) for row in once]
    pairs = [pair for rows in (once, twice) for pair in pairs_of_feature(rows, WORST)]
    assert len(pairs) == 4
    assert single_text_pairs(pairs, once + twice, threshold=0.5) == 2
    assert single_text_pairs(pairs, once + twice, threshold=0.6) == 4
