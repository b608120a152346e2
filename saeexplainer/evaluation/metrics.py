"""The cores of the metrics that were not the reward (docs/METHOD.md section 8): numbers in, one number a feature out.

What an explanation is asked here a list of trigger words cannot answer: which contexts the feature is silent in, on
which tokens it fires and how hard, and what it does to the output.
"""

from collections.abc import Sequence

import numpy as np

CHANCE_AUC = 0.5  # of whoever knows nothing, and so of a missing explanation


def input_accuracy(positives: Sequence[float] | np.ndarray, negatives: Sequence[float] | np.ndarray) -> float:
    """1.0 if the mean activation on texts of the explanation is strictly above that on texts of others; a tie fails."""
    if not len(positives) or not len(negatives):
        return 0.0
    return float(np.mean(positives) > np.mean(negatives))


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Chance that a positive scores above a negative, ties half; chance level if one of the two is missing."""
    from scipy.stats import rankdata

    labels = np.asarray(positive, dtype=bool)
    above, below = int(labels.sum()), int((~labels).sum())
    if not above or not below:
        return CHANCE_AUC
    return float((rankdata(scores)[labels].sum() - above * (above + 1) / 2) / (above * below))


def correlation(predicted: Sequence[float], true: Sequence[float]) -> float:
    """Pearson's r; 0.0 where one of them is constant, which predicts nothing."""
    a, b = np.asarray(predicted, dtype=float), np.asarray(true, dtype=float)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def picked(scores: Sequence[float], right: int) -> float:
    """1.0 if the right one alone scores highest; a tie fails."""
    others = [score for at, score in enumerate(scores) if at != right]
    return float(all(scores[right] > score for score in others))
