"""What some features of an SAE do on some texts: scale, density, strongest contexts, and the vectors explainers read.

It is what the pipeline's extraction measures on its corpus, for a few features that are asked about and with all
results in memory.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer.domains.domain import Annotation, Document
from saeexplainer.errors import UserError
from saeexplainer.features.statistics import FeatureStatistics
from saeexplainer.features.token_stream import token_batches
from saeexplainer.features.top_contexts import TopContexts
from saeexplainer.models.batches import fitting
from saeexplainer.records import ContextRow, FeatureRow
from saeexplainer.saes.subset import decoder_rows, take_columns

if TYPE_CHECKING:
    from saeexplainer.saes.reading import Reader

TOGETHER = 32  # texts in one forward pass, at most


@dataclass(frozen=True)
class Feature:
    """One feature of an SAE, as some texts show it, or with what else is known of it."""

    feature_id: str  # subject/sae/index
    index: int  # latent
    maximum: float  # largest activation on the texts, in activation units, special tokens left out; 0.0 if it is silent
    density: float = math.nan  # share of the texts' tokens on which it fires; NaN where it is not known
    contexts: list[ContextRow] = field(default_factory=list)  # strongest first; activations in activation units
    vectors: Mapping[str, Float[Tensor, "d_model"]] = field(default_factory=dict)  # by kind, as `measure` has them


@torch.no_grad()
def measure(
    reader: "Reader",
    sae: str,
    subject: str,
    indices: Sequence[int],
    texts: Sequence[str],
    contexts: int,
    context_tokens: int,
    direction_contexts: int,
) -> list[Feature]:
    """Some features of the SAE of that name in the reader, in the order of `indices`; `subject` is the first part of
    their ids. Of each, `contexts` are kept, with `context_tokens` on each side of the strongest token.

    The vectors are the feature's decoder row and, unless it is silent, its mean_activation: the mean activation of the
    SAE's site at the strongest tokens of the first `direction_contexts` contexts, minus that of all tokens. The texts
    are read once, and those with a context again. It takes 4 bytes a latent of the SAE and token of a batch, and 12 a
    latent and context. Raises UserError if there is no text or no such feature.
    """
    if not any(text.strip() for text in texts):
        raise UserError("texts: there is none; give some of the kind that the SAE was trained on")
    one, wanted = reader.saes[sae], list(dict.fromkeys(indices))
    take_columns(one, wanted)  # which raises where there is no such feature
    documents = [Document(text, None) for text in texts]
    size = fitting(TOGETHER, reader.context_length * one.cfg.d_sae)
    statistics, total = FeatureStatistics(one.cfg.d_sae, contexts, reader.device), torch.zeros(reader.width).double()
    for batch in token_batches(documents, reader, size):
        statistics.update(one.encode(batch.residual), batch.document, batch.first)
        total += batch.residual.sum(dim=0).cpu()
    rows = [
        FeatureRow(
            f"{subject}/{sae}/{index}", sae, index, "", float(statistics.maximum[index]),
            float(statistics.fired[index]) / max(statistics.tokens, 1),
        )
        for index in wanted
    ]  # fmt: skip
    second = TopContexts(
        rows, {sae: statistics}, {sae: one}, lambda _: Annotation([], []), context_tokens, direction_contexts
    )
    if second.numbers:
        for batch in token_batches([documents[number] for number in second.numbers], reader, size):
            second.update(batch)
    found, means = second.gathered()
    tensors = {
        "decoder": decoder_rows(one)[wanted],
        "mean_activation": means - (total / max(statistics.tokens, 1)).float(),
    }
    measured = {row.index: _feature(at, row, found, tensors) for at, row in enumerate(rows)}
    return [measured[index] for index in indices]


def _feature(at: int, row: FeatureRow, contexts: Sequence[ContextRow], tensors: Mapping[str, Tensor]) -> Feature:
    own = [context for context in contexts if context.feature_id == row.feature_id]
    fires = row.maximum > 0
    vectors = {name: rows[at] for name, rows in tensors.items() if fires or name != "mean_activation"}
    return Feature(row.feature_id, row.index, row.maximum, row.density, own, vectors)
