"""What every evaluation asks its explanations about a feature: contexts where it fires, contexts where it is silent.

They depend on the feature alone, so all evaluations are asked the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from saeexplainer.records import ContextRow, FeatureRow, ProbeRow, SteeredRow

TOLERANCE = 0.1  # of a target: seven halvings of the last interval end far nearer, unless the target was out of reach


@dataclass(frozen=True)
class ProbeFigures:
    """reports/probes.json: what the probes are made of."""

    features: int  # asked about
    firing_contexts: int  # in which the feature fires
    silent_contexts: int  # in which it does not
    steering_targets_missed: float  # share of (feature, divergence) that no strength reached: its texts say little


def figures(contexts: Sequence[ProbeRow], steered: Sequence[SteeredRow]) -> ProbeFigures:
    """Count both tables. Raises ValueError if nothing was steered."""
    if not steered:
        raise ValueError("no steered texts to count")
    firing = sum(max(row.activations) > 0 for row in contexts)
    reached = {(row.feature_id, row.target): row.divergence for row in steered}
    missed = sum(abs(divergence - abs(target)) > TOLERANCE * abs(target) for (_, target), divergence in reached.items())
    features = len({feature_id for feature_id, _ in reached})
    return ProbeFigures(features, firing, len(contexts) - firing, missed / len(reached))


def held_out_contexts(
    contexts: Sequence[ContextRow], features: Sequence[FeatureRow], first_rank: int, count: int
) -> list[tuple[FeatureRow, str]]:
    """For each feature, texts of up to `count` top contexts from `first_rank` on: labels and directions saw others.

    A text that is also an earlier context of the feature, as a corpus that starts over gives it, is left out.
    """
    by_id = {feature.feature_id: feature for feature in features}
    seen = {(context.feature_id, context.text) for context in contexts if context.rank < first_rank}
    return [
        (by_id[context.feature_id], context.text)
        for context in contexts
        if context.feature_id in by_id
        and first_rank <= context.rank < first_rank + count
        and (context.feature_id, context.text) not in seen
    ]


def silent_texts(
    features: Sequence[FeatureRow],
    pool: Sequence[str],
    maxima: Float[np.ndarray, "texts features"],
    count: int,
    seed: int,
) -> list[tuple[FeatureRow, str]]:
    """For each feature up to `count` texts of the pool on no token of which it fires, drawn without replacement."""
    draw = np.random.default_rng(seed)
    found = []
    for feature, on_texts in zip(features, maxima.T, strict=True):
        silent = np.flatnonzero(on_texts == 0)
        chosen = np.sort(draw.permutation(silent)[:count])
        found += [(feature, pool[at]) for at in chosen]
    return found


def probe_rows(
    asked: Sequence[tuple[FeatureRow, str]], read: Sequence[tuple[list[str], list[float]]]
) -> list[ProbeRow]:
    """One row a probe with the feature's activation on each token; a text that is empty when read is left out."""
    return [
        ProbeRow(feature.feature_id, text, [round(value / feature.maximum, 4) for value in values])
        for (feature, text), (tokens, values) in zip(asked, read, strict=True)
        if tokens
    ]
