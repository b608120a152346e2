"""The latents that a feature is easily taken for: nearest by decoder row, and most often active on the same tokens."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_matrix
from torch import Tensor

from saeexplainer.records import FeatureRow, NeighbourRow

if TYPE_CHECKING:
    from saeexplainer.writer import TextActivations


# Whose activations a feature's reward may be made of: of no feature that is held out from it.
TRAINED = frozenset({"sft", "dpo"})
MAY_KNOW = {"sft": TRAINED, "dpo": TRAINED, "valid": TRAINED | {"valid"}}  # others: everyone


class CoFiring:
    """Running counts of the tokens on which two latents of one SAE are active together; sparse, as activity is."""

    def __init__(self, d_sae: int) -> None:
        self.together = csr_matrix((d_sae, d_sae), dtype=np.int64)

    def update(self, codes: Float[Tensor, "valid_tokens d_sae"]) -> None:
        """Add one batch of tokens."""
        fires = csr_matrix((codes > 0).numpy().astype(np.int64))
        self.together = self.together + fires.T @ fires

    def overlap(self, latents: Sequence[int]) -> Float[np.ndarray, "features features"]:
        """For every two of some latents: tokens on which both are active over tokens on which one is."""
        both = self.together[list(latents)][:, list(latents)].toarray()
        own = both.diagonal()
        either = own[:, None] + own[None, :] - both
        return np.divide(both, either, out=np.zeros(both.shape), where=either > 0)


def nearest(
    rows: Sequence[FeatureRow], decoder: Float[Tensor, "d_sae d_model"], firing: CoFiring, count: int
) -> list[NeighbourRow]:
    """Up to `count` neighbours of each feature among `rows`, which are all live features of one SAE.

    Half of them, rounded up, have the largest decoder cosine, the rest the largest overlap of firing among those left.
    Neighbours of a training feature are training features, those of a valid one are no test features.
    """
    latents = [row.index for row in rows]
    units = torch.nn.functional.normalize(decoder[latents].detach(), dim=1)
    cosine, overlap = (units @ units.T).numpy(), firing.overlap(latents)
    found = []
    for at, row in enumerate(rows):
        known = MAY_KNOW.get(row.split)
        others = [other for other in range(len(rows)) if other != at and (known is None or rows[other].split in known)]
        others = np.array(others, dtype=np.int64)
        alike = _largest(cosine[at], others, (count + 1) // 2)
        together = _largest(overlap[at], np.setdiff1d(others, alike), count - len(alike))
        found += [
            NeighbourRow(row.feature_id, latents[other], float(cosine[at, other]), float(overlap[at, other]))
            for other in [*alike, *together]
        ]
    return found


def _largest(values: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """The members of `among` with the largest values, largest first, ties by number."""
    return among[np.argsort(-values[among], kind="stable")][:count]


@dataclass(frozen=True)
class Responses:
    """What some texts do to a feature and to those it is easily taken for; empty where there is no text."""

    own: list[float]  # each text's maximum activation, in units of the feature's corpus maximum
    neighbours: list[float]  # of each text: the hardest that a neighbour fires, in units of that neighbour's maximum


class Neighbourhoods:
    """Features, their neighbours and everyone's corpus maxima: what turns activations into comparable numbers."""

    def __init__(self, features: Sequence[FeatureRow], neighbours: Sequence[NeighbourRow]) -> None:
        self.features = {row.feature_id: row for row in features}
        self.maxima = {(row.sae, row.index): row.maximum for row in features}
        self.of: Mapping[str, list[int]] = defaultdict(list)
        for row in neighbours:
            self.of[row.feature_id].append(row.neighbour)

    def responses(self, feature_id: str, texts: Sequence[str], read: "TextActivations") -> Responses:
        """Read off what texts of one explanation do; `read` holds them all."""
        if not texts:
            return Responses([], [])
        feature, near = self.features[feature_id], self.of[feature_id]
        maxima = read.of(feature.sae, texts)
        own = maxima[:, feature.index] / feature.maximum
        scale = np.array([self.maxima[feature.sae, latent] for latent in near])
        others = (maxima[:, near] / scale).max(axis=1) if near else np.zeros(len(texts))
        return Responses([float(value) for value in own], [float(value) for value in others])
