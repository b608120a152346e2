"""What a preference set must be before anything trains on it, as Great Expectations suites (docs/PREFERENCES.md).

Three suites. `pair_expectations` is about single pairs and about pairs of one feature; `measured_expectations` holds
what is left against the rewards that were measured; the pairs that fail either go to quarantine. `set_expectations` is
about what is left as a set, drift against the round before included, and its failure stops the round. The first suite
starts from the fields of `PreferencePair`: a new field is checked for nulls, empty text and finite values without an
edit here. What GX has no expectation for becomes a derived column first, so that every verdict is one of GX's and shows
in Data Docs. A derived column is empty where another expectation already says what is wrong: one damage, one reason.
"""

import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from saeexplainer.config import BuildPreferences, Params
from saeexplainer.config.parts import PairingRule
from saeexplainer.domains.domain import SPECIAL_TOKENS
from saeexplainer.preferences.sets import normal, words
from saeexplainer.records import FEATURE_ID, FeatureId, FeatureRow, PreferencePair, ScoreRow
from tasks.validation.data_docs import ROW

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.expectations import Expectation


TRAINING_SPLITS = ("dpo", "valid")
# Scores are differences and quotients of rewards near 1: far above their rounding, far below any gap that matters.
TOLERANCE = 1e-6
SIDES = ("chosen", "rejected")
BEST_TEXTS = tuple(f"{side}_best_text" for side in SIDES)  # empty in a round that is rewarded by the sentence
# GX hands patterns to one of two engines, and in one of them \s is ASCII: the others are spelt out.
BLANK = "\\s" + "".join(map(chr, (0x85, 0xA0, 0x1680, *range(0x2000, 0x2010), 0x2028, 0x2029, 0x202F, 0x205F, 0x2060,
                                  0x3000, 0xFEFF)))  # fmt: skip
UNREADABLE = (
    "[\\x00-\\x1f\\x7f-\\x9f\u2028\u2029\ufffd]"  # more than one line, control characters, bytes that are no text
)


def pair_columns(pairs: Sequence[PreferencePair], features: Sequence[FeatureRow], params: Params) -> "pd.DataFrame":
    """One line a pair: its own fields, and what the expectations derive from them and from the feature table."""
    import pandas as pd

    split_of = {feature.feature_id: feature.split for feature in features}
    sides = _Sides(pairs)
    lines = [
        {ROW: row}
        | asdict(pair)
        | _text_columns(pair)
        | sides.columns(pair)
        | _score_columns(pair, params.build_preferences)
        | _feature_columns(pair, split_of, params)
        for row, pair in enumerate(pairs)
    ]
    return pd.DataFrame(lines, columns=_PAIR_COLUMNS)


_PAIR_COLUMNS = [
    ROW, *(field.name for field in fields(PreferencePair)),
    "chosen_words", "rejected_words", "wordings", "copies_before", "pairs_before", "contradictions", "chosen_texts",
    "score_difference", "score_gap_error", "relative_gap_error", "gap_over_required", "spread_over_gap",
    "sae", "latents_above", "in_feature_table", "recorded_split",
]  # fmt: skip


def _text_columns(pair: PreferencePair) -> dict[str, Any]:
    """Words of either side and different wordings; None where there is no text."""
    texts = [normal(pair.chosen_explanation), normal(pair.rejected_explanation)]
    said = [not re.fullmatch(f"[{BLANK}]*", text) for text in texts]
    return {
        "chosen_words": len(words(texts[0])) if said[0] else None,
        "rejected_words": len(words(texts[1])) if said[1] else None,
        "wordings": len(set(texts)) if any(said) else None,
    }


class _Sides:
    """What the pairs of one feature say together; `columns` is to be asked once for each pair, in order."""

    def __init__(self, pairs: Sequence[PreferencePair]) -> None:
        self._chosen: dict[str, set[str]] = defaultdict(set)
        self._rejected: dict[str, set[str]] = defaultdict(set)
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._of_feature: Counter[str] = Counter()
        for feature, chosen, rejected in map(_identity, pairs):
            if chosen != rejected:  # or it would make every other pair of its feature contradict it
                self._chosen[feature] |= {chosen} - {""}
                self._rejected[feature] |= {rejected} - {""}

    def columns(self, pair: PreferencePair) -> dict[str, Any]:
        """Copies of the pair and other pairs of its feature that came before; texts that stand on both sides;
        explanations that are chosen for the feature."""
        identity = feature, chosen, rejected = _identity(pair)
        copies = self._seen[identity]
        before = None if copies else self._of_feature[feature]
        self._seen[identity] += 1
        self._of_feature[feature] += not copies
        whole = chosen != rejected and "" not in identity
        both = (chosen in self._rejected[feature]) + (rejected in self._chosen[feature]) if whole else None
        return {
            "copies_before": copies,
            "pairs_before": before,
            "contradictions": both,
            "chosen_texts": len(self._chosen[feature]) if whole and not both else None,
        }


def _identity(pair: PreferencePair) -> tuple[str, str, str]:
    return pair.feature_id or "", normal(pair.chosen_explanation), normal(pair.rejected_explanation)


def _score_columns(pair: PreferencePair, settings: BuildPreferences) -> dict[str, float | None]:
    """What the numbers of a pair make of each other; None where one of them is no number."""
    chosen, rejected, gap = _number(pair.chosen_score), _number(pair.rejected_score), _number(pair.score_gap)
    relative, spread = _number(pair.relative_gap), _number(pair.spread_ratio)
    derived = {
        "score_difference": chosen - rejected,
        "score_gap_error": abs(gap - (chosen - rejected)),
        "relative_gap_error": abs(relative - gap / chosen) if chosen else math.nan,
        "gap_over_required": relative - _required_gap(relative, spread, settings),
        "spread_over_gap": spread - relative,
    }
    return {name: value if math.isfinite(value) else None for name, value in derived.items()}


def _number(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) else value


def _required_gap(relative: float, spread: float, settings: BuildPreferences) -> float:
    """The least relative gap that the rule promises for this pair.

    The paper's rule falls back to the lowest candidate when none shows the gap (docs/METHOD.md section 6): its gap is
    then the whole spread, and the spread is what is promised.
    """
    fell_back = settings.rule is PairingRule.reference and abs(relative - spread) <= TOLERANCE
    return min(settings.min_gap, settings.min_spread) if fell_back else settings.min_gap


def _feature_columns(pair: PreferencePair, split_of: dict[str, str], params: Params) -> dict[str, Any]:
    """The parts of a feature's id: each is looked at only if the one before is right."""
    width = {sae.name: sae.d_sae for sae in params.prepare_sae.saes}
    identity = pair.feature_id or ""
    feature = FeatureId.parse(identity) if re.fullmatch(FEATURE_ID, identity) else None
    above = width[feature.sae] - 1 - feature.index if feature and feature.sae in width else None
    exists = above is not None and above >= 0
    return {
        "sae": feature and feature.sae,
        "latents_above": above,
        "in_feature_table": ("yes" if pair.feature_id in split_of else "no") if exists else None,
        "recorded_split": split_of.get(pair.feature_id),
    }


def pair_expectations(params: Params, item: str) -> "list[Expectation]":
    """The suite about single pairs of a round, over the columns of `pair_columns`; `meta` names the rules."""
    unwritten = BEST_TEXTS if item in params.score_explanations.by_sentence else ()
    about_texts = [*_field_expectations(unwritten), *_text_expectations(params), *_side_expectations(params)]
    return [*about_texts, *_score_expectations(params), *_feature_expectations(params)]


def named(rule: str, limit: str = "") -> dict:
    """How an expectation carries its rule's name (Data Docs show the note) and a set's limit in words."""
    return {"meta": {"rule": rule, "limit": limit}, "notes": f"{rule.replace('_', ' ')} {limit}".strip()}


def _field_expectations(unwritten: Sequence[str]) -> "list[Expectation]":
    """`unwritten` are columns that may be empty."""
    import great_expectations.expectations as gxe

    found: list[Expectation] = []
    for column in fields(PreferencePair):
        name = column.name
        found.append(gxe.ExpectColumnValuesToNotBeNull(column=name, **named(f"{name}_known")))
        if column.type is str and name not in unwritten:
            found.append(
                gxe.ExpectColumnValuesToNotMatchRegex(column=name, regex=f"^[{BLANK}]*$", **named(f"{name}_not_empty"))
            )
        if column.type is float:
            found.append(
                gxe.ExpectColumnValuesToBeBetween(
                    column=name, min_value=0, max_value=sys.float_info.max, **named(f"{name}_finite_non_negative")
                )
            )
    return found


def _text_expectations(params: Params) -> "list[Expectation]":
    """About either side's text alone."""
    import great_expectations.expectations as gxe

    limits, forbidden = params.validate_preferences, forbidden_text(params)
    found: list[Expectation] = []
    for side in SIDES:
        count, text = f"{side}_words", f"{side}_explanation"
        found += [
            gxe.ExpectColumnValuesToBeBetween(column=count, min_value=limits.min_words, **named(f"{text}_long_enough")),
            gxe.ExpectColumnValuesToBeBetween(
                column=count, max_value=limits.max_words, **named(f"{text}_short_enough")
            ),
            gxe.ExpectColumnValueLengthsToBeBetween(
                column=text, max_value=limits.max_characters, **named(f"{text}_few_enough_characters")
            ),
            gxe.ExpectColumnValuesToNotMatchRegex(column=text, regex=forbidden, **named(f"{text}_plain_text")),
            gxe.ExpectColumnValuesToNotMatchRegex(column=text, regex=UNREADABLE, **named(f"{text}_readable")),
        ]
    return found


def forbidden_text(params: Params) -> str:
    """A regular expression for what no explanation may hold: special and feature tokens, feature ids, prompts' pieces.

    A piece of a prompt counts if it is a token in angle brackets or at least three words: less is ordinary language.
    """
    prompts = (params.score_explanations.writer.prompt, params.evaluate.writer.prompt)
    pieces = {" ".join(piece.split()) for prompt in prompts for piece in prompt.split("{description}")}
    telling = {piece for piece in pieces if len(piece.split()) >= 3 or re.fullmatch(r"<\S+>", piece)}
    literal = "|".join(re.escape(text) for text in sorted({*SPECIAL_TOKENS, *telling}))
    saes = "|".join(re.escape(sae.name) for sae in params.prepare_sae.saes)
    return rf"(?i)(?:{literal}|<\s*feature[^>]*>|[^\s/]/(?:{saes})/[0-9])"


def _side_expectations(params: Params) -> "list[Expectation]":
    """About one side against the other, and the pairs of one feature against each other."""
    import great_expectations.expectations as gxe

    most = params.build_preferences.max_pairs
    one_best = [
        gxe.ExpectColumnValuesToBeInSet(
            column="contradictions", value_set=[0], **named("never_both_chosen_and_rejected")
        ),
        gxe.ExpectColumnValuesToBeInSet(column="chosen_texts", value_set=[1], **named("one_best_of_a_feature")),
    ]
    return [
        gxe.ExpectColumnValuesToBeInSet(column="wordings", value_set=[2], **named("explanations_differ")),
        gxe.ExpectColumnValuesToBeInSet(column="copies_before", value_set=[0], **named("pair_only_once")),
        gxe.ExpectColumnValuesToBeBetween(
            column="pairs_before", max_value=most - 1, **named("few_enough_pairs_of_a_feature")
        ),
        # All pairs by intent put a middling candidate on both sides.
        *([] if params.build_preferences.rule is PairingRule.all_pairs else one_best),
    ]


def _score_expectations(params: Params) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    def between(column: str, rule: str, **limits: Any) -> "Expectation":
        return gxe.ExpectColumnValuesToBeBetween(column=column, **limits, **named(rule))

    settings = params.build_preferences
    return [
        between("chosen_score", "chosen_score_at_least_floor", min_value=settings.floor),
        between("score_difference", "chosen_scores_higher", min_value=0, strict_min=True),
        between("score_gap_error", "score_gap_is_the_difference", max_value=TOLERANCE),
        between("relative_gap_error", "relative_gap_is_the_quotient", max_value=TOLERANCE),
        between("gap_over_required", "relative_gap_as_promised", min_value=-TOLERANCE),
        between("spread_ratio", "spread_as_promised", min_value=settings.min_spread, strict_min=True),
        between("spread_over_gap", "spread_covers_gap", min_value=-TOLERANCE),
        between("spread_ratio", "spread_at_most_the_whole", max_value=1 + TOLERANCE),
    ]


def _feature_expectations(params: Params) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="split", value_set=list(TRAINING_SPLITS), **named("split_may_be_trained_on")
        ),
        gxe.ExpectColumnValuesToMatchRegex(
            column="feature_id", regex=f"^{FEATURE_ID}$", **named("feature_id_names_subject_sae_and_latent")
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="sae", value_set=[sae.name for sae in params.prepare_sae.saes], **named("sae_known")
        ),
        gxe.ExpectColumnValuesToBeBetween(column="latents_above", min_value=0, **named("latent_within_sae")),
        gxe.ExpectColumnValuesToBeInSet(
            column="in_feature_table", value_set=["yes"], **named("feature_in_feature_table")
        ),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="split", column_B="recorded_split", ignore_row_if="either_value_is_missing",
            **named("split_as_recorded"),
        ),
    ]  # fmt: skip


def measured_columns(
    pairs: Sequence[PreferencePair], scores: Sequence[ScoreRow], rows: Sequence[int]
) -> "pd.DataFrame":
    """One line for each of `rows` of `pairs`: how far its scores are from the best reward of the same candidate.

    Infinite for an explanation that was no candidate of the feature, or one without a reward.
    """
    import pandas as pd

    best: dict[tuple[str, str], float] = {}
    for score in scores:
        key = (score.feature_id, score.explanation)
        if score.reward is not None:
            best[key] = max(score.reward, best.get(key, score.reward))
    lines = []
    for row in rows:
        pair = pairs[row]
        measured = [best.get((pair.feature_id, text)) for text in (pair.chosen_explanation, pair.rejected_explanation)]
        errors = [
            math.inf if reward is None else abs(score - reward)
            for score, reward in zip((pair.chosen_score, pair.rejected_score), measured, strict=True)
        ]
        lines.append(asdict(pair) | {ROW: row, "chosen_score_error": errors[0], "rejected_score_error": errors[1]})
    names = [ROW, *(column.name for column in fields(PreferencePair)), "chosen_score_error", "rejected_score_error"]
    return pd.DataFrame(lines, columns=names)


def measured_expectations() -> "list[Expectation]":
    """The suite about what was measured, over the columns of `measured_columns`."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnValuesToBeBetween(
            column=f"{side}_score_error", max_value=TOLERANCE, **named(f"{side}_score_as_measured")
        )
        for side in SIDES
    ]
