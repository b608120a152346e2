"""Rules about a whole preference set."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from saeexplainer.config import Params
from saeexplainer.preferences.sets import (
    REASONS,
    Drift,
    distinct_share,
    dropped_share,
    length_bias,
    reason_shares,
    top_share,
)
from saeexplainer.records import DroppedFeature, DropReason, PreferencePair
from tasks.validation.pair_suite import TOLERANCE, named

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.expectations import Expectation


@dataclass(frozen=True)
class SetRule:
    """One expectation about the set: the number it looks at, and the limit it must keep."""

    name: str  # of the rule
    column: str  # name of the number
    value: float
    limit: str  # in words, with the field of params.validate_preferences
    least: float | None = field(default=None, kw_only=True)
    most: float | None = field(default=None, kw_only=True)


def set_rules(
    left: Sequence[PreferencePair],
    pairs: Sequence[PreferencePair],
    dropped: Sequence[DroppedFeature],
    drifted: Drift | None,
    params: Params,
) -> list[SetRule]:
    """What is left of `pairs` as a set: what a single pair cannot show. Without `drifted` nothing is said of drift."""
    limits = params.validate_preferences
    trained = [pair for pair in left if pair.split == "dpo"]
    chosen = list({pair.feature_id: pair.chosen_explanation for pair in trained}.values())
    rejected = [pair.rejected_explanation for pair in trained]
    both = {row.feature_id for row in pairs} & {row.feature_id for row in dropped}
    return [
        _at_least("enough_pairs", "dpo_pairs", len(trained), limits.min_pairs, "min_pairs"),
        _at_least(
            "enough_valid_pairs", "valid_pairs", len(left) - len(trained), limits.min_valid_pairs, "min_valid_pairs"
        ),
        _at_most(
            "few_enough_quarantined", "quarantined_share", 1 - len(left) / len(pairs) if pairs else 0.0,
            limits.max_quarantined_share, "max_quarantined_share",
        ),
        _at_most(
            "few_enough_dropped", "dropped_share", dropped_share(left, pairs, dropped), limits.max_dropped_share,
            "max_dropped_share",
        ),
        *_reason_rules(reason_shares(pairs, dropped), params),
        _at_most("no_feature_both_paired_and_dropped", "paired_and_dropped", len(both), 0),
        _at_most("no_length_bias", "length_bias", abs(length_bias(trained)), limits.max_length_bias, "max_length_bias"),
        _at_most("chosen_not_collapsed", "top_chosen_share", top_share(chosen), limits.max_top_share, "max_top_share"),
        _at_most(
            "rejected_not_collapsed", "top_rejected_share", top_share(rejected), limits.max_top_share, "max_top_share"
        ),
        _at_least(
            "chosen_diverse", "distinct_chosen_share", distinct_share(chosen), limits.min_distinct_share,
            "min_distinct_share",
        ),
        *(_drift_rules(drifted, params) if drifted else []),
    ]  # fmt: skip


def _reason_rules(shares: dict[str, float], params: Params) -> list[SetRule]:
    limits = params.validate_preferences.max_reason_share
    found = [
        _at_most(f"few_enough_dropped_because_{name}", f"{name}_share", shares[reason], getattr(limits, name),
                 f"max_reason_share.{name}")
        for reason, name in REASONS.items()
    ]  # fmt: skip
    if DropReason.calls_failed in shares:  # not an explainer's doing: the share of all dropped features is the limit
        most = params.validate_preferences.max_dropped_share
        name, share = DropReason.calls_failed.name, shares[DropReason.calls_failed]
        found.append(_at_most(f"few_enough_dropped_because_{name}", f"{name}_share", share, most, "max_dropped_share"))
    unknown = [reason for reason in shares if reason not in list(DropReason)]
    return [*found, _at_most("reasons_known", "unknown_reasons", len(unknown), 0)]


DRIFT_RULES = ("lengths_as_before", "scores_as_before", "dropped_as_before", "vocabulary_as_before")


def _drift_rules(drifted: Drift, params: Params) -> list[SetRule]:
    limits = params.validate_preferences
    found = (
        ("words_drift", drifted.words, limits.max_words_drift),
        ("score_drift", drifted.score, limits.max_score_drift),
        ("dropped_drift", drifted.dropped, limits.max_dropped_drift),
        ("vocabulary_drift", drifted.vocabulary, limits.max_vocabulary_drift),
    )
    return [
        _at_most(rule, name, value, limit, f"max_{name}")
        for rule, (name, value, limit) in zip(DRIFT_RULES, found, strict=True)
    ]


def _at_least(name: str, column: str, value: float, limit: float, setting: str) -> SetRule:
    return SetRule(name, column, value, f"at least {limit:g} ({setting})", least=limit)


def _at_most(name: str, column: str, value: float, limit: float, setting: str = "") -> SetRule:
    in_words = f"at most {limit:g}" + (f" ({setting})" if setting else "")
    return SetRule(name, column, value, in_words, most=limit + TOLERANCE)  # 1 - 0.9 is a little over 0.1


def set_columns(rules: Sequence[SetRule]) -> "pd.DataFrame":
    """One line, a column a rule."""
    import pandas as pd

    return pd.DataFrame({rule.column: [float(rule.value)] for rule in rules})


def set_expectations(rules: Sequence[SetRule]) -> "list[Expectation]":
    """The suite about the set, over the columns of `set_columns`."""
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnMaxToBeBetween(
            column=rule.column, min_value=rule.least, max_value=rule.most, **named(rule.name, rule.limit)
        )
        for rule in rules
    ]
