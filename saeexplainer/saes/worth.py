"""What a dictionary is worth beside its reconstruction: figures of its directions and of what fires with what. Pure.

docs/METHOD.md section 14 says what each tells and where it comes from. `saeexplainer.saes.quality` has those that need
the subject.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment, nnls
from scipy.sparse import csc_matrix
from scipy.stats import spearmanr
from torch import Tensor

CONTAINED = 0.9  # of a direction's variance: what "so many atoms rebuild it" means


def mean_absolute_cosine(decoder: Float[Tensor, "d_sae d_in"]) -> float:
    """c_dec: the mean |cosine| over pairs of different rows; 0 of a single row (arXiv 2508.16560)."""
    unit = torch.nn.functional.normalize(decoder.double(), dim=1)
    count = len(unit)
    cosines = (unit @ unit.T).abs()
    return float((cosines.sum() - cosines.diagonal().sum()) / max(count * (count - 1), 1))


def decoder_projection(
    activations: Float[Tensor, "tokens d_in"],
    decoder: Float[Tensor, "d_sae d_in"],
    bias: Float[Tensor, " d_in"],
    n: int,
) -> float:
    """s_n^dec: of all projections of activations less the decoder's bias on unit rows, in falling order, the one at n
    times the number of activations (arXiv 2508.16560). With n well above the right L0 it is small if rows are pure."""
    unit = torch.nn.functional.normalize(decoder, dim=1)
    projections = ((activations - bias) @ unit.T).flatten()
    return float(projections.topk(min(n * len(activations), len(projections))).values[-1])


def mean_absolute_phi(fires: Bool[np.ndarray, "tokens latents"]) -> float:
    """The mean |phi| over pairs of different latents: how much two fire together, or apart, more than by chance.
    Latents that never fire or always do are left out; NaN where fewer than two are left."""
    tokens, counts = len(fires), fires.sum(axis=0)
    table = fires[:, (counts > 0) & (counts < tokens)].astype(np.float32)  # counts stay whole
    counts = table.sum(axis=0, dtype=np.float64)
    if len(counts) < 2:
        return float("nan")
    together = (table.T @ table).astype(np.float64)
    spread = np.sqrt(counts * (tokens - counts))
    phi = np.abs(tokens * together - np.outer(counts, counts)) / np.outer(spread, spread)
    return float((phi.sum() - np.trace(phi)) / (len(counts) * (len(counts) - 1)))


def coverage(f1: Float[np.ndarray, "latents concepts"]) -> float:
    """The mean over concepts of the best latent's F1 (arXiv 2408.00113)."""
    return float(f1.max(axis=0).mean())


def reconstruction(
    fires: csc_matrix, holds: csc_matrix, fires_later: csc_matrix, holds_later: csc_matrix, precision: float = 0.95
) -> float:
    """The mean F1 over concepts of "some latent of high precision for it fires" (arXiv 2408.00113).

    The first sample of tokens, [tokens, latents] and [tokens, concepts], says which latents these are; the F1 is of the
    later one."""
    right = (fires.T @ holds).toarray()
    fired = np.asarray(fires.sum(axis=0)).ravel()[:, None]
    trusted = np.divide(right, fired, out=np.zeros_like(right), where=fired > 0) >= precision
    predicted = (fires_later @ csc_matrix(trusted.astype(np.float64))) > 0
    both = np.asarray(predicted.multiply(holds_later).sum(axis=0)).ravel()
    sizes = np.asarray(predicted.sum(axis=0)).ravel() + np.asarray(holds_later.sum(axis=0)).ravel()
    return float(np.divide(2 * both, sizes, out=np.zeros(len(both)), where=sizes > 0).mean())


def monosemanticity(
    activations: Float[np.ndarray, "inputs latents"], similarity: Float[np.ndarray, "inputs inputs"]
) -> Float[np.ndarray, " latents"]:
    """Of each latent the mean similarity over pairs of different inputs, each pair weighted by the product of the
    latent's activations on both, scaled to 0 to 1 (arXiv 2504.02821). NaN of a latent that tells no inputs apart."""
    low, high = activations.min(axis=0), activations.max(axis=0)
    scaled = np.divide(activations - low, high - low, out=np.zeros_like(activations), where=high > low)
    apart = similarity * (1 - np.eye(len(similarity)))
    weighted = (scaled * (apart @ scaled)).sum(axis=0)
    weight = scaled.sum(axis=0) ** 2 - (scaled**2).sum(axis=0)
    return np.divide(weighted, weight, out=np.full(len(weight), np.nan), where=weight > 0)


@dataclass(frozen=True)
class Containment:
    """How far a cone of atoms holds one direction."""

    r2: float  # share of the squared length that a sum of atoms with weights of 0 or more rebuilds
    alignment: float  # the largest |cosine| with a single atom
    atoms: int | None  # how many atoms rebuild CONTAINED of it, taken in falling order of their share; None: all do not


def containment(direction: Float[np.ndarray, " d_in"], decoder: Float[np.ndarray, "d_sae d_in"]) -> Containment:
    """By non-negative least squares (arXiv 2512.07355)."""
    weights, rest = nnls(decoder.T, direction)
    length = float(direction @ direction)
    cosines = decoder @ direction / np.linalg.norm(decoder, axis=1) / np.sqrt(length)
    shares = weights * np.linalg.norm(decoder, axis=1)
    atoms = None
    for count, last in enumerate(np.argsort(-shares)[: np.count_nonzero(weights)], start=1):
        kept = np.where(shares >= shares[last], weights, 0.0)
        if 1 - float(((direction - kept @ decoder) ** 2).sum()) / length >= CONTAINED:
            atoms = count
            break
    return Containment(1 - rest**2 / length, float(np.abs(cosines).max()), atoms)


@dataclass(frozen=True)
class Match:
    """Two dictionaries of the same width, row by row."""

    stability: float  # mean |cosine| of matched rows (sae-lens calls it the mean correlation coefficient)
    orderedness: float  # Spearman's correlation of the places of matched rows


def matched(a: Float[Tensor, "d_sae d_in"], b: Float[Tensor, "other d_in"]) -> Match:
    """The best one-to-one matching of rows (arXiv 2512.02194). Raises ValueError if the widths differ."""
    if a.shape != b.shape:
        raise ValueError(f"dictionaries of {tuple(a.shape)} and {tuple(b.shape)} cannot be matched row by row")
    unit = [torch.nn.functional.normalize(one.double(), dim=1) for one in (a, b)]
    cosines = (unit[0] @ unit[1].T).abs().numpy()
    rows, columns = linear_sum_assignment(-cosines)
    order = float(spearmanr(rows, columns).statistic) if len(rows) > 1 else float("nan")
    return Match(float(cosines[rows, columns].mean()), order)


def elbow(l0: Sequence[float], values: Sequence[float]) -> float | None:
    """The L0 of a sweep after which values stop falling as fast: the point farthest below the straight line from the
    first to the last, both axes scaled to 0 to 1. None where no point is below it."""
    order = np.argsort(l0)
    x, y = np.asarray(l0, dtype=float)[order], np.asarray(values, dtype=float)[order]
    if len(x) < 3 or x[-1] == x[0] or y.max() == y.min():
        return None
    x_unit, y_unit = (x - x[0]) / (x[-1] - x[0]), (y - y.min()) / (y.max() - y.min())
    below = y_unit[0] + (y_unit[-1] - y_unit[0]) * x_unit - y_unit
    at = int(below.argmax())
    return float(x[at]) if below[at] > 1e-9 else None
