"""What each SAE of a reader is worth on one sample of documents, by the figures of `saeexplainer.saes.worth`.

Concepts are the domain's: the truth in the sandbox, hypotheses about the surface of words elsewhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csc_matrix, csr_matrix, vstack
from torch import Tensor

from saeexplainer.domains.domain import Document, Domain
from saeexplainer.features import truth
from saeexplainer.features.token_stream import concepts_at, token_batches
from saeexplainer.models.sentences import Embed, by_tokens
from saeexplainer.saes import worth

if TYPE_CHECKING:
    from sae_lens import SAE

    from saeexplainer.saes.reading import Reader

AT_ONCE = 32  # documents read, and thousands of tokens encoded, at once
PAIRED = 4096  # latents at most whose pairs are looked at, evenly spaced
PROJECTED = 2000  # tokens at most whose projections are sorted
CONES = 50  # concepts at most that are looked for in the cone, evenly spaced
FREQUENT = 20  # tokens that such a concept must hold at, and must not hold at
SPARE = 2  # s_n^dec is taken at so many times the SAE's own L0


@dataclass(frozen=True)
class DictionaryReport:
    """One SAE; None is unknown."""

    c_dec: float  # mean absolute cosine of pairs of decoder rows
    s_dec: float  # projection at SPARE times its L0
    phi: float | None  # mean absolute phi of pairs of latents
    coverage: float | None  # mean over concepts of the best latent's F1
    reconstruction: float | None  # mean F1 of concepts predicted by latents that were precise on the first half
    cone_rows: float | None  # mean over frequent concepts of how many rows it takes to rebuild 90 % of their direction
    monosemanticity: float | None  # how much more alike documents are on which one latent fires than any two are
    stability: float | None  # with the next SAE of the same shape
    orderedness: float | None  # with the same one


@dataclass(frozen=True)
class Sample:
    """Tokens of some documents."""

    residual: Float[Tensor, "tokens d_model"]  # on the CPU
    concepts: list[str]
    holds: csc_matrix  # [tokens, concepts]
    document: Int[np.ndarray, " tokens"]  # its number
    alike: Float[np.ndarray, "documents documents"]  # cosines of their vectors


def measure(
    reader: "Reader", documents: Sequence[Document], domain: Domain, embed: Embed | None = None
) -> dict[str, DictionaryReport]:
    """All SAEs of the reader, on documents that they were not trained on. `embed` says which of them are alike; None:
    the subject's token embeddings do."""
    sample = read(reader, documents, domain, embed or by_tokens(reader.model, reader.tokenizer, reader.context_length))
    names = list(reader.saes)
    return {name: report(reader.saes[name], _next_alike(reader, names, at), sample) for at, name in enumerate(names)}


def read(reader: "Reader", documents: Sequence[Document], domain: Domain, embed: Embed) -> Sample:
    """The tokens of documents with the concepts at each."""
    residuals, found, numbers = [], [], []
    for batch in token_batches(documents, reader, AT_ONCE):
        residuals.append(batch.residual.cpu())
        numbers.append(batch.first + batch.document)
        for local, document in enumerate(batch.documents):
            offsets = batch.offsets[batch.document == local].tolist()
            found.extend(concepts_at(domain.annotate(document), offsets))
    concepts = domain.concepts()
    vectors = embed([document.text for document in documents])
    return Sample(
        residual=torch.cat(residuals),
        concepts=concepts,
        holds=truth.build(concepts, found, []).holds,
        document=torch.cat(numbers).numpy(),
        alike=(vectors @ vectors.T).double().numpy(),
    )


def _next_alike(reader: "Reader", names: list[str], at: int) -> "SAE | None":
    """The SAE after number `at`, around the end, that has its shape."""
    own = reader.saes[names[at]].W_dec.shape
    others = [reader.saes[name] for name in [*names[at + 1 :], *names[:at]]]
    return next((one for one in others if one.W_dec.shape == own), None)


@torch.no_grad()
def report(sae: "SAE", other: "SAE | None", sample: Sample) -> DictionaryReport:
    """One SAE, and another of its shape to match its rows with."""
    codes = _codes(sae, sample.residual)
    decoder, tokens = sae.W_dec.float().cpu(), codes.shape[0]
    pairs = np.unique(np.linspace(0, len(decoder) - 1, min(PAIRED, len(decoder))).astype(int))
    wanted = SPARE * max(1, round(codes.nnz / tokens))
    match = worth.matched(decoder, other.W_dec.float().cpu()) if other is not None and len(decoder) <= PAIRED else None
    known = sample.holds.nnz > 0
    return DictionaryReport(
        c_dec=worth.mean_absolute_cosine(decoder[pairs]),
        s_dec=worth.decoder_projection(sample.residual[:PROJECTED], decoder, sae.b_dec.float().cpu(), wanted),
        phi=_known(worth.mean_absolute_phi(codes[:, pairs].toarray() > 0)),
        coverage=_coverage(codes, sample) if known else None,
        reconstruction=_reconstruction(codes, sample) if known else None,
        cone_rows=_cone_rows(decoder, sample),
        monosemanticity=_known(_monosemanticity(codes[:, pairs], sample)),
        stability=match.stability if match else None,
        orderedness=_known(match.orderedness) if match else None,
    )


def _codes(sae: "SAE", residual: Float[Tensor, "tokens d_model"]) -> csc_matrix:
    parts = residual.split(1000 * AT_ONCE // 8)
    return vstack([csr_matrix(sae.encode(part.to(sae.W_dec.device)).cpu().numpy()) for part in parts]).tocsc()


def _fires(codes: csc_matrix) -> csc_matrix:
    """Where each latent reaches half of its maximum."""
    half = np.asarray(codes.max(axis=0).todense()).ravel() / 2
    strong = codes.copy()
    strong.data = (codes.data >= half[np.repeat(np.arange(codes.shape[1]), np.diff(codes.indptr))]).astype(float)
    strong.eliminate_zeros()
    return strong


def _coverage(codes: csc_matrix, sample: Sample) -> float:
    """Over the concepts that hold somewhere."""
    there = np.asarray(sample.holds.sum(axis=0)).ravel() > 0
    return worth.coverage(truth.f1_of_all(truth.TruthTable(sample.concepts, sample.holds, _fires(codes)))[:, there])


def _reconstruction(codes: csc_matrix, sample: Sample) -> float:
    half = codes.shape[0] // 2
    fires, holds = _fires(codes).tocsr(), sample.holds.tocsr()
    there = np.asarray(holds[half:].sum(axis=0)).ravel() > 0
    return worth.reconstruction(
        fires[:half].tocsc(), holds[:half].tocsc()[:, there], fires[half:].tocsc(), holds[half:].tocsc()[:, there]
    )


def _cone_rows(decoder: Float[Tensor, "d_sae d_model"], sample: Sample) -> float | None:
    """A concept's direction is the mean residual where it holds less that where it does not. Where rows are many more
    than dimensions every direction is in their cone, so what is told is how many of them it takes."""
    from tqdm.auto import tqdm

    counts = np.asarray(sample.holds.sum(axis=0)).ravel()
    frequent = np.flatnonzero((counts >= FREQUENT) & (counts <= len(sample.residual) - FREQUENT))
    if not len(frequent):
        return None
    chosen = frequent[np.unique(np.linspace(0, len(frequent) - 1, min(CONES, len(frequent))).astype(int))]
    rows = decoder.double().numpy()
    total, found = sample.residual.double().sum(dim=0).numpy(), []
    for concept in tqdm(chosen, desc="concepts in the cone of the rows"):
        inside = sample.residual[sample.holds[:, [concept]].indices].double().sum(dim=0).numpy()
        outside = (total - inside) / (len(sample.residual) - counts[concept])
        found.append(worth.containment(inside / counts[concept] - outside, rows).atoms)
    reached = [count for count in found if count is not None]
    return float(np.mean(reached)) if reached else None


def _monosemanticity(codes: csc_matrix, sample: Sample) -> float:
    """The mean over latents, less the mean over pairs of documents: 0 of latents that fire anywhere. A latent's
    activation on a document is its largest."""
    largest = np.zeros((len(sample.alike), codes.shape[1]))
    there = codes.tocoo()
    np.maximum.at(largest, (sample.document[there.row], there.col), there.data)
    scores = worth.monosemanticity(largest, sample.alike)
    known = scores[~np.isnan(scores)]
    pairs = sample.alike[~np.eye(len(sample.alike), dtype=bool)]
    return float(known.mean() - pairs.mean()) if len(known) else math.nan


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
