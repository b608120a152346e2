"""What a preference set must be before anything trains on it, as Great Expectations suites.

Two suites: one about single pairs, whose failures go to quarantine, and one about what is left as a set, whose failure
stops the round. The suite about pairs starts from the fields of `PreferencePair`: a new field is checked for nulls,
empty text and finite values without an edit here. What GX has no expectation for becomes a derived column first
(`pair_columns`), so that every verdict is one of GX's and shows in Data Docs.
"""

import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeexplainer.config import BuildPreferences, PairingRule, Params
from saeexplainer.domain import SPECIAL_TOKENS
from saeexplainer.records import DroppedFeature, FeatureRow, PreferencePair

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.expectations import Expectation

TRAINING_SPLITS = ("dpo", "valid")
# Scores are differences and quotients of rewards near 1: far above their rounding, far below any gap that matters.
TOLERANCE = 1e-6
ROW = "row"  # position of a pair in pairs.parquet


@dataclass(frozen=True)
class Outcome:
    """The verdict of one expectation."""

    name: str  # of the rule; what quarantine.parquet gives as the reason
    column: str  # of the table that GX saw, derived columns included
    expectation: str  # GX's type
    level: str  # pair or set
    success: bool
    unexpected_count: int  # pairs that fail; for a set 0 or 1
    observed: float | None  # share of pairs that fail, or the value of the set; None if there is nothing to look at
    rows: tuple[int, ...]  # the pairs that fail


def pair_columns(pairs: Sequence[PreferencePair], features: Sequence[FeatureRow], params: Params) -> "pd.DataFrame":
    """One line a pair: its own fields, and what the expectations derive from them and from the feature table."""
    import pandas as pd

    split_of = {feature.feature_id: feature.split for feature in features}
    seen: Counter = Counter()
    lines = []
    for row, pair in enumerate(pairs):
        identity = (pair.feature_id, _normal(pair.chosen_explanation), _normal(pair.rejected_explanation))
        chosen, rejected, gap = (_number(v) for v in (pair.chosen_score, pair.rejected_score, pair.score_gap))
        relative, spread = _number(pair.relative_gap), _number(pair.spread_ratio)
        derived = {
            ROW: row,
            "recorded_split": split_of.get(pair.feature_id),
            "wordings": len(set(identity[1:])),
            "copies_before": seen[identity],
            "chosen_words": len(identity[1].split()),
            "rejected_words": len(identity[2].split()),
            "score_gap_error": abs(gap - (chosen - rejected)),
            "relative_gap_error": abs(relative - gap / chosen) if chosen else math.inf,
            "gap_over_required": relative - _required_gap(relative, spread, params.build_preferences),
            "spread_over_gap": spread - relative,
        }
        seen[identity] += 1
        lines.append(asdict(pair) | derived)
    names = [field.name for field in fields(PreferencePair)]
    return pd.DataFrame(lines, columns=names + [name for name in _DERIVED if name not in names])


_DERIVED = (
    ROW, "recorded_split", "wordings", "copies_before", "chosen_words", "rejected_words", "score_gap_error",
    "relative_gap_error", "gap_over_required", "spread_over_gap",
)  # fmt: skip


def _normal(text: str | None) -> str:
    return " ".join((text or "").casefold().split())


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _required_gap(relative: float, spread: float, settings: BuildPreferences) -> float:
    """The least relative gap that the rule promises for this pair.

    The reference falls back to the lowest candidate when none shows the gap (METHOD section 1, step 5): its gap is then
    the whole spread, and the spread is what is promised.
    """
    fell_back = settings.rule is PairingRule.reference and abs(relative - spread) <= TOLERANCE
    return min(settings.min_gap, settings.min_spread) if fell_back else settings.min_gap


def pair_expectations(params: Params) -> "list[Expectation]":
    """The suite about single pairs, over the columns of `pair_columns`; `meta` has the names of the rules."""
    about_values = [*_field_expectations(), *_text_expectations(params), *_score_expectations(params)]
    return [*about_values, *_feature_expectations()]


def _named(rule: str, limit: str = "") -> dict:
    """How an expectation carries its rule's name (Data Docs show the note) and a set's limit in words."""
    return {"meta": {"rule": rule, "limit": limit}, "notes": rule.replace("_", " ")}


def _field_expectations() -> "list[Expectation]":
    import great_expectations.expectations as gxe

    found: list[Expectation] = []
    for field in fields(PreferencePair):
        name = field.name
        found.append(gxe.ExpectColumnValuesToNotBeNull(column=name, **_named(f"{name}_known")))
        if field.type is str:
            found.append(
                gxe.ExpectColumnValuesToNotMatchRegex(column=name, regex=r"^\s*$", **_named(f"{name}_not_empty"))
            )
        if field.type is float:
            found.append(
                gxe.ExpectColumnValuesToBeBetween(
                    column=name, min_value=0, max_value=sys.float_info.max, **_named(f"{name}_finite_non_negative")
                )
            )
    return found


def _text_expectations(params: Params) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    most, forbidden = params.validate_preferences.max_words, forbidden_text(params)
    found: list[Expectation] = [
        gxe.ExpectColumnValuesToBeInSet(column="wordings", value_set=[2], **_named("explanations_differ")),
        gxe.ExpectColumnValuesToBeInSet(column="copies_before", value_set=[0], **_named("pair_only_once")),
    ]
    for side in ("chosen", "rejected"):
        found += [
            gxe.ExpectColumnValuesToBeBetween(
                column=f"{side}_words", max_value=most, **_named(f"{side}_explanation_short_enough")
            ),
            gxe.ExpectColumnValuesToNotMatchRegex(
                column=f"{side}_explanation", regex=forbidden, **_named(f"{side}_explanation_plain_text")
            ),
        ]
    return found


def forbidden_text(params: Params) -> str:
    """A regular expression for what no explanation may hold: special and feature tokens, and pieces of the prompts.

    A piece of a prompt counts if it is a token in angle brackets or at least three words: less is ordinary language.
    """
    prompts = (params.score_explanations.writer.prompt, params.evaluate.writer.prompt)
    pieces = {" ".join(piece.split()) for prompt in prompts for piece in prompt.split("{description}")}
    telling = {piece for piece in pieces if len(piece.split()) >= 3 or re.fullmatch(r"<\S+>", piece)}
    literal = "|".join(re.escape(text) for text in sorted({*SPECIAL_TOKENS, *telling}))
    return rf"(?i)(?:{literal}|<feature[^>]*>)"


def _score_expectations(params: Params) -> "list[Expectation]":
    import great_expectations.expectations as gxe

    def between(column: str, rule: str, **limits: Any) -> "Expectation":
        return gxe.ExpectColumnValuesToBeBetween(column=column, **limits, **_named(rule))

    settings = params.build_preferences
    return [
        between("chosen_score", "chosen_score_at_least_floor", min_value=settings.floor),
        between("score_gap", "chosen_scores_higher", min_value=0, strict_min=True),
        between("score_gap_error", "score_gap_is_the_difference", max_value=TOLERANCE),
        between("relative_gap_error", "relative_gap_is_the_quotient", max_value=TOLERANCE),
        between("gap_over_required", "relative_gap_as_promised", min_value=-TOLERANCE),
        between("spread_ratio", "spread_as_promised", min_value=settings.min_spread, strict_min=True),
        between("spread_over_gap", "spread_covers_gap", min_value=-TOLERANCE),
    ]


def _feature_expectations() -> "list[Expectation]":
    import great_expectations.expectations as gxe

    return [
        gxe.ExpectColumnValuesToBeInSet(
            column="split", value_set=list(TRAINING_SPLITS), **_named("split_may_be_trained_on")
        ),
        gxe.ExpectColumnValuesToNotBeNull(column="recorded_split", **_named("feature_in_feature_table")),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="split", column_B="recorded_split", ignore_row_if="either_value_is_missing",
            **_named("split_as_recorded"),
        ),
    ]  # fmt: skip


def set_columns(
    left: Sequence[PreferencePair], pairs: Sequence[PreferencePair], dropped: Sequence[DroppedFeature]
) -> "pd.DataFrame":
    """One line about the set that is left of `pairs`: what a single pair cannot show.

    dpo_pairs; dropped_share: features without a pair, those that quarantine emptied included, over all features;
    length_bias: words by which chosen explanations are longer (or shorter) on average, over the dpo split.
    """
    import pandas as pd

    trained = [pair for pair in left if pair.split == "dpo"]
    features = {row.feature_id for row in (*pairs, *dropped) if row.feature_id}
    kept = {pair.feature_id for pair in left}
    longer = [len(pair.chosen_explanation.split()) - len(pair.rejected_explanation.split()) for pair in trained]
    return pd.DataFrame(
        {
            "dpo_pairs": [len(trained)],
            "dropped_share": [1 - len(kept) / len(features) if features else 1.0],
            "length_bias": [abs(sum(longer) / len(longer)) if longer else 0.0],
        }
    )


def set_expectations(params: Params) -> "list[Expectation]":
    """The suite about the set, over the columns of `set_columns`; `meta` carries the name and the limit in words."""
    import great_expectations.expectations as gxe

    limits = params.validate_preferences
    return [
        gxe.ExpectColumnMinToBeBetween(
            column="dpo_pairs",
            min_value=limits.min_pairs,
            **_named("enough_pairs", f"at least {limits.min_pairs} (min_pairs)"),
        ),
        gxe.ExpectColumnMaxToBeBetween(
            column="dropped_share",
            max_value=limits.max_dropped_share,
            **_named("few_enough_dropped", f"at most {limits.max_dropped_share:g} (max_dropped_share)"),
        ),
        gxe.ExpectColumnMaxToBeBetween(
            column="length_bias",
            max_value=limits.max_length_bias,
            **_named("no_length_bias", f"at most {limits.max_length_bias:g} words (max_length_bias)"),
        ),
    ]


class Validator:
    """One GX context in memory, whose Data Docs go to a folder."""

    def __init__(self, docs: Path) -> None:
        """`docs` receives the HTML; it is overwritten with every `check`."""
        import great_expectations as gx
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            InMemoryStoreBackendDefaults,
            ProgressBarsConfig,
        )

        site = {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())},
        }
        config = DataContextConfig(
            data_docs_sites={"preferences": site},
            # Its own site would leave a temporary folder behind with every run.
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            analytics_enabled=False,
            progress_bars=ProgressBarsConfig(globally=False),
        )
        self._context = gx.get_context(mode="ephemeral", project_config=config)
        self._source = self._context.data_sources.add_pandas("preferences")

    def check(self, level: str, frame: "pd.DataFrame", expectations: "Sequence[Expectation]") -> list[Outcome]:
        """Run one suite on one table; outcomes in the order of the expectations.

        Raises RuntimeError if GX fails to evaluate an expectation, which is not the data's fault.
        """
        import great_expectations as gx

        rows = [ROW] if level == "pair" else []
        suite = self._context.suites.add(gx.ExpectationSuite(name=f"{level}s", expectations=list(expectations)))
        batch = self._source.add_dataframe_asset(f"{level}s").add_batch_definition_whole_dataframe("all")
        definition = gx.ValidationDefinition(name=f"{level}s", data=batch, suite=suite)
        checkpoint = gx.Checkpoint(
            name=f"{level}s",
            validation_definitions=[self._context.validation_definitions.add(definition)],
            actions=[gx.checkpoint.UpdateDataDocsAction(name="docs", site_names=["preferences"])],
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": rows},
        )
        run = self._context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": frame})
        (validation,) = run.run_results.values()
        found = {result.expectation_config.meta["rule"]: result for result in validation.results}
        return [_outcome(level, len(frame), found[expectation.meta["rule"]]) for expectation in expectations]


def _outcome(level: str, lines: int, result: Any) -> Outcome:
    config, details = result.expectation_config, result.result
    rows = tuple(sorted({int(entry[ROW]) for entry in details.get("unexpected_index_list") or []}))
    observed = details.get("observed_value") if level == "set" else (len(rows) / lines if lines else None)
    if not result.success and (observed is None if level == "set" else not rows):
        raise RuntimeError(f"Great Expectations could not evaluate {config.meta['rule']}: {result.exception_info}")
    return Outcome(
        name=config.meta["rule"],
        column=config.kwargs.get("column") or config.kwargs["column_A"],
        expectation=config.type,
        level=level,
        success=bool(result.success),
        unexpected_count=int(not result.success) if level == "set" else len(rows),
        observed=None if observed is None else float(observed),
        rows=rows,
    )
