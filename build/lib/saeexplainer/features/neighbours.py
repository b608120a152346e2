"""The latents that a feature is easily taken for: nearest by decoder row, and most often active on the same tokens."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_matrix
from torch import Tensor

from saeexplainer.records import FeatureRow, NeighbourRow
from saeexplainer.runs import processes

if TYPE_CHECKING:
    from saeexplainer.saes.text_activations import TextActivations


# Whose activations a feature's reward may be made of: of no feature that is held out from it.
TRAINED = frozenset({"sft", "dpo", "spare"})
MAY_KNOW = {"sft": TRAINED, "dpo": TRAINED, "valid": TRAINED | {"valid"}}  # others: everyone
PAIRS = 2**26  # of latents, whose co-firing is counted: 0.8 GB
AT_ONCE = 1024  # features that are compared with all others


class CoFiring:
    """Running counts of the tokens on which two latents of one SAE are active together; sparse, as activity is.

    Takes 12 bytes a pair that was seen, twice that while a batch is added. Where PAIRS of them are known, counting
    ends: an overlap is a ratio, and that of the first tokens of the corpus stands for the rest.
    """

    def __init__(self, d_sae: int) -> None:
        self.together = csr_matrix((d_sae, d_sae), dtype=np.int64)

    def update(self, codes: Float[Tensor, "valid_tokens d_sae"]) -> None:
        """Add one batch of tokens."""
        token, latent = (codes > 0).nonzero(as_tuple=True)
        fired = (np.ones(len(token), dtype=np.int64), (token.cpu().numpy(), latent.cpu().numpy()))
        fires = csr_matrix(fired, shape=tuple(codes.shape))
        # A token adds as many pairs as the square of what is active on it.
        pairs = np.cumsum(fires.getnnz(axis=1).astype(np.int64) ** 2)
        for group in np.split(np.arange(len(pairs)), np.flatnonzero(np.diff(pairs // PAIRS)) + 1):
            if self.together.nnz < PAIRS:
                self.together = self.together + fires[group].T @ fires[group]

    def state(self) -> dict[str, Tensor]:
        """The counts, for `restore`."""
        counts = self.together
        return {name: torch.from_numpy(getattr(counts, name)) for name in ("data", "indices", "indptr")}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        parts = tuple(state[name].numpy() for name in ("data", "indices", "indptr"))
        self.together = csr_matrix(parts, shape=self.together.shape)

    def gathered(self) -> "CoFiring":
        """The counts of all processes together."""
        found = CoFiring(self.together.shape[0])
        found.together = sum(processes.gather([self.together]), found.together)
        return found

    def overlap(self, latents: Sequence[int], others: Sequence[int]) -> Float[np.ndarray, "latents others"]:
        """For every one of some latents and of others: tokens on which both are active over tokens on which one is."""
        both = self.together[list(latents)][:, list(others)].toarray()
        own = self.together.diagonal()
        either = own[list(latents)][:, None] + own[list(others)][None, :] - both
        return np.divide(both, either, out=np.zeros(both.shape), where=either > 0)


def nearest(
    rows: Sequence[FeatureRow], decoder: Float[Tensor, "d_sae d_model"], firing: CoFiring, count: int
) -> list[NeighbourRow]:
    """Up to `count` neighbours of each feature among `rows`, which are all live features of one SAE.

    Half of them, rounded up, have the largest decoder cosine, the rest the largest overlap of firing among those left.
    Neighbours of a training feature are training features, those of a valid one are no test features. Takes some 40
    bytes a feature for each of AT_ONCE others.
    """
    from tqdm.auto import tqdm

    latents = [row.index for row in rows]
    units = torch.nn.functional.normalize(decoder[latents].detach(), dim=1)
    splits = np.array([row.split for row in rows])
    may_be = {split: np.isin(splits, list(known)) for split, known in MAY_KNOW.items()}
    found = []
    for start in tqdm(range(0, len(rows), AT_ONCE), desc="neighbours"):
        here = slice(start, start + AT_ONCE)
        cosine = (units[here] @ units.T).cpu().numpy()
        overlap = firing.overlap(latents[here], latents)
        for at, row in enumerate(rows[here]):
            others = np.flatnonzero(may_be.get(row.split, np.ones(len(rows), dtype=bool)))
            others = others[others != start + at]
            alike = _largest(cosine[at], others, (count + 1) // 2)
            together = _largest(overlap[at], others[~np.isin(others, alike)], count - len(alike))
            found += [
                NeighbourRow(row.feature_id, latents[other], float(cosine[at, other]), float(overlap[at, other]))
                for other in [*alike, *together]
            ]
    return found


def _largest(values: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
    """The members of `among`, which ascends, with the largest values, largest first, ties by number."""
    if 0 < count < len(among):
        given = values[among]
        least = torch.from_numpy(given).topk(count).values[-1].item()  # numpy's partition is slow where many tie
        above = np.flatnonzero(given > least)  # fewer than `count`; the first of those that tie for the rest follow
        equal = np.flatnonzero(given == least)[: count - len(above)]
        among = among[np.union1d(above, equal)]
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

    def asked(self, feature_ids: Iterable[str]) -> dict[str, set[int]]:
        """The latents that `responses` looks at for these features, by SAE."""
        found: dict[str, set[int]] = defaultdict(set)
        for feature_id in feature_ids:
            feature = self.features[feature_id]
            found[feature.sae] |= {feature.index, *self.of[feature_id]}
        return dict(found)

    def responses(self, feature_id: str, texts: Sequence[str], read: "TextActivations") -> Responses:
        """Read off what texts of one explanation do; `read` holds them all, and the latents that are `asked`."""
        if not texts:
            return Responses([], [])
        feature, near = self.features[feature_id], self.of[feature_id]
        own = read.of(feature.sae, texts, [feature.index])[:, 0] / feature.maximum
        scale = np.array([self.maxima[feature.sae, latent] for latent in near])
        others = (read.of(feature.sae, texts, near) / scale).max(axis=1) if near else np.zeros(len(texts))
        return Responses([float(value) for value in own], [float(value) for value in others])
