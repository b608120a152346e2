"""From rewards to preference pairs: pure (docs/METHOD.md section 6).

A candidate without a reward, because the calls for its texts failed, is on neither side: nothing is known about it.
"""

from collections.abc import Sequence

from saeexplainer.config import BuildPreferences
from saeexplainer.config.parts import PairingRule
from saeexplainer.records import DroppedFeature, DropReason, PreferencePair, ScoreRow


def pairs_of_feature(rows: Sequence[ScoreRow], config: BuildPreferences) -> list[PreferencePair] | DroppedFeature:
    """The pairs of one feature's candidates, or why it has none."""
    measured = [row for row in rows if row.reward is not None]
    if _sentences(measured) < min(2, _sentences(rows)):
        return DroppedFeature(rows[0].feature_id, rows[0].split, DropReason.calls_failed)
    best_first = sorted(_distinct(measured), key=lambda row: (-_reward(row), row.rank))
    best, worst = best_first[0], best_first[-1]
    reason = _why_dropped(best, worst, config)
    if reason:
        return DroppedFeature(best.feature_id, best.split, reason)
    if config.rule is PairingRule.all_pairs:
        sides = _all_sides(best_first, config)
    else:
        choose = _reference_rejected if config.rule is PairingRule.reference else _worst_rejected
        sides = [(best, row) for row in choose(best_first, config)]
    if not sides:
        return DroppedFeature(best.feature_id, best.split, DropReason.no_gap)
    spread = _gap(best, worst)
    return [_pair(chosen, rejected, spread) for chosen, rejected in sides]


def _sentences(rows: Sequence[ScoreRow]) -> int:
    """Different explanations, without the empty one, which no pair has."""
    return len({_words(row) for row in rows} - {()})


def _words(row: ScoreRow) -> tuple[str, ...]:
    return tuple(row.explanation.lower().split())


def _reward(row: ScoreRow) -> float:
    assert row.reward is not None  # `pairs_of_feature` leaves out the candidates that have none
    return row.reward


def _distinct(rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """One candidate for each explanation: the best rewarded, so that no sentence is both chosen and rejected."""
    kept: dict[tuple[str, ...], ScoreRow] = {}
    for row in rows:
        key = _words(row)
        if key not in kept or _reward(row) > _reward(kept[key]):
            kept[key] = row
    return list(kept.values())


def _why_dropped(best: ScoreRow, worst: ScoreRow, config: BuildPreferences) -> DropReason | None:
    if _reward(best) <= 0:
        return DropReason.best_is_zero
    if _reward(best) < config.floor:
        return DropReason.below_floor
    if not best.explanation.strip():
        return DropReason.best_is_empty
    if _gap(best, worst) <= config.min_spread:
        return DropReason.no_spread
    return None


def _gap(best: ScoreRow, row: ScoreRow) -> float:
    return (_reward(best) - _reward(row)) / _reward(best)


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


def _all_sides(best_first: Sequence[ScoreRow], config: BuildPreferences) -> list[tuple[ScoreRow, ScoreRow]]:
    """Every (better, worse) with enough gap, widest relative gaps first: one candidate may stand on either side.

    Whatever is chosen reaches the floor that the best must reach.
    """
    sides = [
        (chosen, rejected)
        for at, chosen in enumerate(best_first)
        if _reward(chosen) > 0 and _reward(chosen) >= config.floor and chosen.explanation.strip()
        for rejected in _usable(chosen, best_first[at + 1 :], config)
    ]
    return sorted(sides, key=lambda side: -_gap(*side))[: config.max_pairs]


def _best_text(row: ScoreRow) -> str:
    strongest = max(range(len(row.activations)), key=row.activations.__getitem__, default=None)
    return "" if strongest is None else row.texts[strongest]


def _pair(chosen: ScoreRow, rejected: ScoreRow, spread: float) -> PreferencePair:
    return PreferencePair(
        feature_id=chosen.feature_id,
        split=chosen.split,
        chosen_explanation=chosen.explanation,
        rejected_explanation=rejected.explanation,
        chosen_score=_reward(chosen),
        rejected_score=_reward(rejected),
        score_gap=_reward(chosen) - _reward(rejected),
        relative_gap=_gap(chosen, rejected),
        spread_ratio=spread,
        chosen_best_text=_best_text(chosen),
        rejected_best_text=_best_text(rejected),
    )
