"""A preference set of pairs that are easy to reckon with, as its stage finds it."""

from dataclasses import replace
from pathlib import Path

from tiny import ROOT

from saeexplainer.config import BuildPreferences, Params, ReasonShares, ValidatePreferences
from saeexplainer.config.parts import PairingRule
from saeexplainer.records import DroppedFeature, FeatureRow, PreferencePair, ScoreRow
from saeexplainer.runs.storage import write_rows
from tasks.settings import params

BUILD = BuildPreferences(PairingRule.best_worst, floor=0.5, min_spread=0.1, min_gap=0.15, max_pairs=2)
LIMITS = ValidatePreferences(
    min_words=1, max_words=8, max_characters=80, min_pairs=3, min_valid_pairs=1, max_quarantined_share=0.5,
    max_dropped_share=0.5, max_reason_share=ReasonShares(1.0, 1.0, 1.0, 1.0, 1.0), max_length_bias=6.0,
    max_top_share=1.0, min_distinct_share=0.0, max_words_drift=1.0, max_score_drift=0.5, max_dropped_drift=0.3,
    max_vocabulary_drift=0.7,
)  # fmt: skip
PROMPT = "Please write one short text about: {description}\n"


def settings() -> Params:
    """The committed parameters with these limits."""
    loaded = params.load(ROOT / "params.yaml")
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


def lay_out(root: Path, pairs: list[PreferencePair], dropped: int = 1, item: str = "r1") -> Path:
    """The tables that the stage reads, each pair's explanations among the candidates."""
    folder = root / "data/rounds" / item
    features = [FeatureRow(f"sandbox/main/{i}", "main", i, pair(i).split, 2.0, 0.01) for i in range(50)]
    write_rows(root / "data/activations/features.parquet", features, FeatureRow)
    write_rows(folder / "pairs.parquet", pairs, PreferencePair)
    gone = [DroppedFeature(f"sandbox/main/{100 + i}", "dpo", "no gap") for i in range(dropped)]
    write_rows(folder / "dropped.parquet", gone, DroppedFeature)
    scores = [
        ScoreRow(row.feature_id, row.split, rank, text, ["a text"], [reward], [0.0], reward)
        for row in pairs
        for rank, (text, reward) in enumerate(
            [(row.chosen_explanation, row.chosen_score), (row.rejected_explanation, row.rejected_score)]
        )
    ]
    write_rows(folder / "scores.parquet", scores, ScoreRow)
    return folder


# What a model may write: markup, the ends of attributes, and what templates of jinja and Python would fill in.
HOSTILE = (
    """<script>alert(1)</script> "'><img src=x onerror=alert(2)> {{ 7 * 7 }} ${x} $column $$ %s {0} [a](javascript:b)"""
)


def hostile_set(root: Path) -> Path:
    """A set of which three pairs go to quarantine, with HOSTILE in texts, ids and splits; the round's folder."""
    bad = {1: {"chosen_explanation": HOSTILE}, 2: {"feature_id": HOSTILE, "split": HOSTILE}}
    bad[4] = {"rejected_explanation": f"{HOSTILE}\x00\x1b"}
    return lay_out(root, [pair(index, **bad.get(index, {})) for index in range(10)])
