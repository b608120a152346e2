"""Whole preference sets of realistic size, made from synthetic scores by the pairing rules themselves."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from tiny import ROOT

from saeexplainer.config import BuildPreferences, Params
from saeexplainer.config.parts import PairingRule
from saeexplainer.preferences.pairs import pairs_of_feature
from saeexplainer.preferences.sets import figures
from saeexplainer.records import DroppedFeature, FeatureRow, PreferencePair, ScoreRow
from saeexplainer.runs.storage import write_json, write_rows
from tasks.settings import params

LEADS = ("the word", "any", "words ending in", "a text about", "a plural", "the name")
NOUNS = tuple(f"{start}{end}" for start in ("bar", "cel", "dor", "fen", "gal", "hum", "lin", "mor") for end in
              ("ack", "el", "ish", "oon", "ur", "ya"))  # fmt: skip
FEATURES = 240  # that candidates were made for
UNKEPT = "sandbox-llama/main/700"  # a latent of the SAE that never fired, so that it is no row of the feature table


@dataclass(frozen=True)
class PreferenceSet:
    """Everything that validate_preferences reads of one round."""

    pairs: list[PreferencePair]
    dropped: list[DroppedFeature]
    features: list[FeatureRow]
    scores: list[ScoreRow]


def settings(rule: PairingRule = PairingRule.best_worst) -> Params:
    """The committed parameters under one of the pairing rules."""
    loaded = params.load(ROOT / "params.yaml")
    return replace(loaded, build_preferences=replace(loaded.build_preferences, rule=rule))


def preference_set(build: BuildPreferences, seed: int = 0) -> PreferenceSet:
    """An undamaged set: about half of the features dropped, one or two pairs a kept feature, every seventh in valid."""
    draw = random.Random(seed)
    features = list(_feature_table())
    scored = [row for row in features if row.split in ("dpo", "valid")]
    scores = [row for number, feature in enumerate(scored) for row in _candidates(feature, number, draw)]
    pairs: list[PreferencePair] = []
    dropped: list[DroppedFeature] = []
    for _, rows in groupby(scores, key=lambda row: row.feature_id):
        found = pairs_of_feature(list(rows), build)
        if isinstance(found, DroppedFeature):
            dropped.append(found)
        else:
            pairs += found
    return PreferenceSet(pairs, dropped, features, scores)


def _feature_table() -> Iterator[FeatureRow]:
    splits = ["valid" if number % 7 == 6 else "dpo" for number in range(FEATURES)] + ["sft", "test"] * 10
    for number, split in enumerate(splits):
        sae = "main" if split in ("valid", "test") or number % 2 else "lender1"
        yield FeatureRow(f"sandbox-llama/{sae}/{number}", sae, number, split, 2.0, 0.01)


def _candidates(feature: FeatureRow, number: int, draw: random.Random) -> Iterator[ScoreRow]:
    """Eight of them: worthless for a third of the features, weak for some, one clear loser for others."""
    for rank in range(8):
        share = draw.random()
        if number % 4 == 1 or number % 9 == 3:
            share = 0.0
        elif number % 5 == 2:
            share *= 0.3
        elif number % 6 == 0:
            share = 0.2 if rank == 3 else 0.95 + 0.01 * share
        words = [
            draw.choice(LEADS),
            draw.choice(NOUNS),
            *(["with the word", draw.choice(NOUNS)] * (draw.random() < 0.5)),
        ]
        texts = [f"the {draw.choice(NOUNS)} sleeps .", "does it ?"]
        yield ScoreRow(
            feature.feature_id, feature.split, rank, " ".join(words), texts, [share, share / 2], [0.0, 0.0], 1.3 * share
        )


def lay_out(root: Path, found: PreferenceSet, item: str, before: PreferenceSet | None = None) -> Path:
    """The tables that the stage reads, and the figures of an earlier round's set beside the explainer it trained."""
    folder = root / "data/rounds" / item
    write_rows(root / "data/activations/features.parquet", found.features, FeatureRow)
    write_rows(folder / "scores.parquet", found.scores, ScoreRow)
    write_rows(folder / "pairs.parquet", found.pairs, PreferencePair)
    write_rows(folder / "dropped.parquet", found.dropped, DroppedFeature)
    if before is not None:
        write_json(root / "data/explainers/r1/preferences.json", figures(before.pairs, before.pairs, before.dropped))
    return folder


def scored(chosen: float, rejected: float, worst: float) -> dict[str, float]:
    """The numbers that follow from three rewards."""
    return {
        "chosen_score": chosen,
        "rejected_score": rejected,
        "score_gap": chosen - rejected,
        "relative_gap": (chosen - rejected) / chosen,
        "spread_ratio": (chosen - worst) / chosen,
    }


def reworded(found: PreferenceSet, say: Callable[[str, str, str], str]) -> PreferenceSet:
    """Every explanation of a pair replaced by `say(side, feature_id, text)`, among the candidates too."""
    new: dict[tuple[str, str], str] = {}
    pairs = []
    for pair in found.pairs:
        for side in ("chosen", "rejected"):
            text = getattr(pair, f"{side}_explanation")
            new[pair.feature_id, text] = say(side, pair.feature_id, text)
        texts = (new[pair.feature_id, pair.chosen_explanation], new[pair.feature_id, pair.rejected_explanation])
        pairs.append(replace(pair, chosen_explanation=texts[0], rejected_explanation=texts[1]))
    scores = [
        replace(row, explanation=new.get((row.feature_id, row.explanation), row.explanation)) for row in found.scores
    ]
    return replace(found, pairs=pairs, scores=scores)
