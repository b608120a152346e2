"""The metrics (docs/METHOD.md section 8) as pure functions: numbers in, one number a feature out.

The first three ask what an explanation's own texts make the feature do. The others ask what a list of trigger words
cannot answer: which contexts the feature is silent in, on which tokens it fires and how hard, and what it does to the
output. Activations of a feature are in units of its corpus maximum, but for those of `input_accuracy`, where any one
unit will do.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

FIRING = 0.5  # share of the corpus maximum from which a feature fires: METHOD section 2, T_f
CHANCE_AUC = 0.5  # of a judge that knows nothing, and so of a missing explanation


def generative_accuracy(activations: Sequence[float] | Float[np.ndarray, "texts"]) -> float:
    """Share of an explanation's texts that make the feature fire; 0 without a text. `activations` are each text's
    maximum over the corpus maximum."""
    return float(np.mean(np.asarray(activations) >= FIRING)) if len(activations) else 0.0


def hallucination(activations: Sequence[float] | Float[np.ndarray, "texts"]) -> float:
    """1.0 if no text of an explanation makes the feature fire, or there is none; else 0.0."""
    return float(not (np.asarray(activations) >= FIRING).any())


def collides(relative: Float[np.ndarray, "texts live"], target: int, rivals: Bool[np.ndarray, "live"]) -> bool:
    """Whether some rival's mean activation on the texts, relative to its own maximum, is above the target's."""
    means = relative.mean(axis=0)
    return bool((means[rivals] > means[target]).any())


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
