"""From rewards to preference pairs: pure (METHOD section 1, step 5)."""

from collections.abc import Sequence

from saeexplainer.config import BuildPreferences, PairingRule
from saeexplainer.records import DroppedFeature, PreferencePair, ScoreRow


def pairs_of_feature(rows: Sequence[ScoreRow], config: BuildPreferences) -> list[PreferencePair] | DroppedFeature:
    """The pairs of one feature's candidates, or why it has none."""
    best_first = sorted(_distinct(rows), key=lambda row: (-row.reward, row.rank))
    best, worst = best_first[0], best_first[-1]
    reason = _why_dropped(best, worst, config)
    if reason:
        return DroppedFeature(best.feature_id, best.split, reason)
    choose = _reference_rejected if config.rule is PairingRule.reference else _worst_rejected
    rejected = choose(best_first, config)
    if not rejected:
        return DroppedFeature(best.feature_id, best.split, "no gap")
    return [_pair(best, row, worst) for row in rejected]


def _distinct(rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """One candidate for each explanation: the best rewarded, so that no sentence is both chosen and rejected."""
    kept: dict[str, ScoreRow] = {}
    for row in rows:
        key = " ".join(row.explanation.lower().split())
        if key not in kept or row.reward > kept[key].reward:
            kept[key] = row
    return list(kept.values())


def _why_dropped(best: ScoreRow, worst: ScoreRow, config: BuildPreferences) -> str:
    if best.reward <= 0:
        return "best is zero"
    if best.reward < config.floor:
        return "below floor"
    if not best.explanation.strip():
        return "best is empty"
    if (best.reward - worst.reward) / best.reward <= config.min_spread:
        return "no spread"
    return ""


def _gap(best: ScoreRow, row: ScoreRow) -> float:
    return (best.reward - row.reward) / best.reward


def _usable(best: ScoreRow, rows: Sequence[ScoreRow], config: BuildPreferences) -> list[ScoreRow]:
    return [row for row in rows if row.explanation.strip() and _gap(best, row) > config.min_gap]


def _reference_rejected(best_first: Sequence[ScoreRow], config: BuildPreferences) -> list[ScoreRow]:
    """The highest of the lower half with enough gap, a hard negative; if none, the lowest."""
    lower = best_first[(len(best_first) + 1) // 2 :]
    hard = _usable(best_first[0], lower, config)
    fallback = [row for row in best_first[-1:] if row.explanation.strip()]
    return (hard or fallback)[: config.max_pairs]


def _worst_rejected(best_first: Sequence[ScoreRow], config: BuildPreferences) -> list[ScoreRow]:
    """The lowest candidates with enough gap, lowest first."""
    return _usable(best_first[0], best_first[1:], config)[::-1][: config.max_pairs]


def _best_text(row: ScoreRow) -> str:
    strongest = max(range(len(row.activations)), key=row.activations.__getitem__, default=None)
    return "" if strongest is None else row.texts[strongest]


def _pair(best: ScoreRow, rejected: ScoreRow, worst: ScoreRow) -> PreferencePair:
    return PreferencePair(
        feature_id=best.feature_id,
        split=best.split,
        chosen_explanation=best.explanation,
        rejected_explanation=rejected.explanation,
        chosen_score=best.reward,
        rejected_score=rejected.reward,
        score_gap=best.reward - rejected.reward,
        relative_gap=_gap(best, rejected),
        spread_ratio=_gap(best, worst),
        chosen_best_text=_best_text(best),
        rejected_best_text=_best_text(rejected),
    )
