"""From activations to a reward: pure."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from saeexplainer.config import Reward
from saeexplainer.records import ScoreRow


def reward(activations: Sequence[float], neighbours: Sequence[float], config: Reward, words: int = 0) -> float:
    """The reward of one explanation from what its texts do to its feature and to the hardest firing neighbour of each
    text, all in units of the latent's own corpus maximum, and from its number of words.

    With weight_max 1 and the others 0 this is the paper's reward (docs/METHOD.md section 5), normalised; raw and
    normalised maxima rank the candidates of a feature alike. The neighbours' term makes it discriminative; that of
    the words takes back what an addition earns that hardly helps. No text, as of an empty explanation, earns 0, and no
    reward is below 0.
    """
    if not activations:
        return 0.0
    firing = [value >= config.threshold for value in activations]
    earned = (
        config.weight_share * sum(firing) / len(firing)
        + config.weight_any * any(firing)
        + config.weight_mean * _clipped_mean(activations)
        + config.weight_max * max(activations)
    )
    return max(0.0, earned - config.weight_neighbours * _clipped_mean(neighbours) - config.weight_words * words)


def _clipped_mean(values: Sequence[float]) -> float:
    return sum(min(value, 1.0) for value in values) / max(len(values), 1)


def shuffled(rows: Sequence[ScoreRow], seed: int) -> list[ScoreRow]:
    """The control: rewards permuted among the candidates of each feature, everything else untouched; a candidate
    without a reward stays without."""
    rewards = permuted([row.feature_id for row in rows], [row.reward for row in rows], random.Random(seed))
    return [replace(row, reward=reward) for row, reward in zip(rows, rewards, strict=True)]


def permuted(groups: Sequence[str], rewards: Sequence[float | None], draw: random.Random) -> list[float | None]:
    """Rewards permuted within each group, given entry by entry; None stays where it is."""
    places: dict[str, list[int]] = defaultdict(list)
    for at, (group, reward) in enumerate(zip(groups, rewards, strict=True)):
        if reward is not None:
            places[group].append(at)
    found = list(rewards)
    for own in places.values():
        moved = [rewards[at] for at in own]
        draw.shuffle(moved)
        for at, reward in zip(own, moved, strict=True):
            found[at] = reward
    return found
