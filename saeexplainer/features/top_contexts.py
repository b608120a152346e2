"""The contexts in which each feature fires highest, and some in which it fires at all."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer.domains.domain import Annotation, Document
from saeexplainer.features.statistics import DocumentSample, FeatureStatistics
from saeexplainer.features.token_stream import TokenBatch, concepts_at
from saeexplainer.records import ContextRow, FeatureRow
from saeexplainer.runs import processes

if TYPE_CHECKING:
    from sae_lens import SAE


class TopContexts:
    """Second look at the documents that hold a top context: windows with activations, and mean top residuals."""

    def __init__(
        self,
        rows: Sequence[FeatureRow],
        statistics: dict[str, FeatureStatistics],
        saes: dict[str, "SAE"],
        annotate: Callable[[Document], Annotation],
        context_tokens: int,
        direction_contexts: int,
        samples: Mapping[str, DocumentSample] | None = None,
    ) -> None:
        """context_tokens: on each side of the strongest one that a context holds. direction_contexts: over whose
        strongest tokens a feature's mean residual is taken, the strongest contexts first. Of a feature's sample, the
        documents that are none of its top ones have contexts too, with the ranks from `further` on."""
        self.rows, self.saes, self.annotate = rows, saes, annotate
        self.context_tokens, self.direction_contexts = context_tokens, direction_contexts
        self.wanted: dict[int, list[tuple[int, int]]] = {}  # document's number to places in `rows` and ranks
        self.further = max((len(one.top_values) for one in statistics.values()), default=0)
        for at, row in enumerate(rows):
            top = statistics[row.sae].top_document_numbers(row.index)
            sample = samples[row.sae].document_numbers(row.index) if samples else []
            others = (number for number in sample if number not in top)
            for rank, number in (*enumerate(top), *enumerate(others, start=self.further)):
                self.wanted.setdefault(number, []).append((at, rank))
        self.numbers = sorted(self.wanted)  # of the documents to read, in this order
        self.contexts: list[ContextRow] = []
        width = next(iter(saes.values())).cfg.d_in
        # In float64, so that the order of the documents leaves the rounded mean as it is.
        self.sums, self.counts = torch.zeros(len(rows), width, dtype=torch.float64), torch.zeros(len(rows))

    def update(self, batch: TokenBatch) -> None:
        """Add one batch of the documents of `numbers`."""
        codes = {name: sae.encode(batch.residual) for name, sae in self.saes.items()}
        for local, document in enumerate(batch.documents):
            here = (batch.document == local).nonzero().flatten()
            offsets = batch.offsets[here].tolist()
            concepts = concepts_at(self.annotate(document), offsets)
            for at, rank in self.wanted[self.numbers[batch.first + local]]:
                row = self.rows[at]
                values = codes[row.sae][here, row.index].cpu()
                peak = int(values.argmax())
                if rank < self.direction_contexts:
                    self.sums[at] += batch.residual[here[peak]].cpu()
                    self.counts[at] += 1
                found = _context(row, rank, document, offsets, values, peak, concepts[peak], self.context_tokens)
                self.contexts.append(found)

    def state(self) -> dict[str, Tensor]:
        """What the means are made of, for `restore`; `contexts` is the rest."""
        return {"sums": self.sums, "counts": self.counts}

    def restore(self, state: Mapping[str, Tensor], contexts: list[ContextRow]) -> None:
        """Go on from what `state` gave."""
        self.sums, self.counts, self.contexts = state["sums"], state["counts"], contexts

    def gathered(self) -> tuple[list[ContextRow], Float[Tensor, "features d_model"]]:
        """Of all processes together: the contexts by feature and rank, and each feature's mean residual over the
        strongest tokens of its first `direction_contexts`, in the order of `rows`."""
        found = sorted(processes.gather(self.contexts), key=lambda context: (context.feature_id, context.rank))
        means = processes.total(self.sums) / processes.total(self.counts).clamp_min(1).unsqueeze(1)
        return found, means.float()


def _at_word(text: str, start: int) -> bool:
    """Whether no letter of a word stands right before this place."""
    return start == 0 or text[start - 1].isspace() or text[start].isspace()


def _context(
    row: FeatureRow,
    rank: int,
    document: Document,
    offsets: list[list[int]],
    values: Tensor,
    peak: int,
    concepts: tuple[str, ...],
    around: int,
) -> ContextRow:
    first = max(0, peak - around)
    while first and not _at_word(document.text, offsets[first][0]):  # read by itself, half a word is another token
        first -= 1
    last = min(len(offsets), peak + around + 1)
    return ContextRow(
        feature_id=row.feature_id,
        rank=rank,
        text=document.text[offsets[first][0] : offsets[last - 1][1]],
        tokens=[document.text[start:end] for start, end in offsets[first:last]],
        activations=[round(float(value), 5) for value in values[first:last]],
        peak=peak - first,
        concepts=list(concepts),
    )
