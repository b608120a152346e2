"""Rewards to preference pairs, and every feature without a pair with its reason.

    python -m tasks.build_preferences r1

Writes data/rounds/<round>/pairs.parquet and dropped.parquet.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from saeexplainer.config import Params
from saeexplainer.preferences.pairs import pairs_of_feature
from saeexplainer.records import DroppedFeature, PreferencePair, ScoreRow
from saeexplainer.runs.storage import read_rows, write_rows
from tasks.places import ROUNDS
from tasks.stage import Report, main

MANY = 0.25  # share of the pairs above which a higher floor is advised; the default has 0.01 (docs/LOG.md)
RAISE = ": luck teaches nothing; raise build_preferences.floor above what one text earns"


def run(params: Params, item: str) -> Report:
    """Apply the pairing rule feature by feature."""
    folder = ROUNDS / item
    rows = sorted(read_rows(folder / "scores.parquet", ScoreRow), key=lambda row: (row.feature_id, row.rank))
    pairs: list[PreferencePair] = []
    dropped: list[DroppedFeature] = []
    for _, group in groupby(rows, key=lambda row: row.feature_id):
        outcome = pairs_of_feature(list(group), params.build_preferences)
        if isinstance(outcome, DroppedFeature):
            dropped.append(outcome)
        else:
            pairs.extend(outcome)
    write_rows(folder / "pairs.parquet", pairs, PreferencePair)
    write_rows(folder / "dropped.parquet", dropped, DroppedFeature)
    reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(row.reason for row in dropped).most_common())
    features = len({pair.feature_id for pair in pairs})
    lucky = single_text_pairs(pairs, rows, params.score_explanations.reward.threshold)
    return Report(
        {"pairs": float(len(pairs)), "dropped": float(len(dropped)), "single_text_pairs": float(lucky)},
        [
            f"{len(pairs)} pairs of {features} features, {len(dropped)} features dropped ({reasons or 'none'})",
            f"{lucky} pairs chosen on a single firing text" + (RAISE if lucky > MANY * len(pairs) else ""),
        ],
    )


def single_text_pairs(pairs: Sequence[PreferencePair], rows: Sequence[ScoreRow], threshold: float) -> int:
    """Pairs whose chosen explanation made the feature fire in a single text; `threshold` is in units of its maximum."""
    firing = {(row.feature_id, row.explanation): sum(one >= threshold for one in row.activations) for row in rows}
    return sum(firing[pair.feature_id, pair.chosen_explanation] == 1 for pair in pairs)


if __name__ == "__main__":
    main(run)
