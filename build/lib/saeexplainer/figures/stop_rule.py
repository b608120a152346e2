"""Was a preference round worth it, as far as features tell that neither train nor report.

A round's explainer is first measured when the next round samples its candidates and has them scored. So the candidates
that the next round's start wrote are compared with those that this round's start wrote, feature by feature.

Only valid features count. On the dpo features the explainer was trained, so that it gains there by fitting alone. The
test features are those of the report: a rule that looked at them would stop at the round that was lucky on them, and
the reported figure would be too good. Valid features give no gradient. But `train_dpo` picks its checkpoint by the
preferences among them, so a gain here may be a little too good: that can cost a round too many, and no reported figure.

The measure is the share of texts that reach the threshold, not the reward: a reward may weigh other things as well.
"""

from collections import defaultdict
from collections.abc import Sequence

from saeexplainer.errors import UserError
from saeexplainer.figures.intervals import Interval, bootstrap_mean, paired_difference
from saeexplainer.records import ScoreRow

SPLIT = "valid"


def gain(
    before: Sequence[ScoreRow], after: Sequence[ScoreRow], threshold: float, resamples: int, seed: int
) -> Interval:
    """Mean over valid features of `after`'s share minus `before`'s, paired, with its 95 % interval.

    `threshold` is in units of a feature's corpus maximum. A candidate without a reward, whose texts failed, is left
    out; a feature that has no other in one of the two is left out of both. Raises UserError if the two hold different
    valid features, or fewer than two that are measured in both: one has no interval.
    """
    unknown = _unmeasured(before) | _unmeasured(after)
    known = [[row for row in rows if row.feature_id not in unknown] for rows in (after, before)]
    difference = paired_difference(*(shares(rows, threshold) for rows in known))
    if len(difference) < 2:
        raise UserError(
            f"rounds: {len(difference)} {SPLIT} features are measured before and after, and a decision needs 2; raise "
            f"extract_activations.{SPLIT}_features, or mend the writer if its calls failed"
        )
    return bootstrap_mean(list(difference.values()), resamples, seed)


def shares(rows: Sequence[ScoreRow], threshold: float) -> dict[str, float]:
    """Valid feature_id -> mean over its candidates of the share of texts at or over the threshold.

    An empty candidate has no texts and share 0, one without a reward does not count.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.split == SPLIT and row.reward is not None:
            firing = [value >= threshold for value in row.activations]
            found[row.feature_id].append(sum(firing) / max(len(firing), 1))
    return {feature_id: sum(values) / len(values) for feature_id, values in found.items()}


def _unmeasured(rows: Sequence[ScoreRow]) -> set[str]:
    """Features none of whose candidates has a reward."""
    return {row.feature_id for row in rows} - {row.feature_id for row in rows if row.reward is not None}
