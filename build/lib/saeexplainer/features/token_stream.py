"""Documents as a stream of tokens, with the concepts at each."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer.domains.domain import Annotation, Document
from saeexplainer.errors import UserError
from saeexplainer.runs import processes

if TYPE_CHECKING:
    from saeexplainer.saes.reading import Reader


@dataclass(frozen=True)
class TokenBatch:
    """The valid tokens of a few documents, in order."""

    documents: list[Document]
    first: int  # the first one's number in the stream
    residual: Float[Tensor, "valid_tokens d_model"]  # activations at the SAEs' site, float32, on their device
    document: Tensor  # [valid_tokens] index into documents
    offsets: Tensor  # [valid_tokens, 2] character span in its document


def token_batches(
    documents: Iterable[Document], reader: "Reader", batch_size: int, *, shared: bool = False, first: int = 0
) -> Iterator[TokenBatch]:
    """Stream documents through the subject up to the SAEs' site; `shared`: this process's share of the batches alone.

    `first` is the number of the first document in its stream, where a batch begins. Raises UserError if the stream has
    no document.
    """
    stream = iter(documents)
    for number in count(first // batch_size):
        group = list(islice(stream, batch_size))
        if not group:
            break
        if not shared or processes.is_mine(number):
            yield _token_batch(group, reader, first)
        first += len(group)
    if not first:
        raise UserError("extract_activations.documents: the corpus is empty; raise it, or name another domain")


def _token_batch(documents: list[Document], reader: "Reader", first: int) -> TokenBatch:
    texts = [document.text for document in documents]
    batch = reader.read(texts)
    spans = reader.tokenizer(texts, truncation=True, max_length=reader.context_length, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    offsets = torch.zeros(*batch.ids.shape, 2, dtype=torch.long)
    for row, pairs in enumerate(spans):
        offsets[row, : len(pairs)] = torch.tensor(pairs)
    return TokenBatch(
        documents=documents,
        first=first,
        residual=batch.of_valid,
        document=torch.arange(len(texts)).unsqueeze(1).expand_as(batch.ids)[batch.valid],
        offsets=offsets[batch.valid],
    )


def concepts_at(annotation: Annotation, offsets: Sequence[Sequence[int]]) -> list[tuple[str, ...]]:
    """The concepts at each token [start, end): those of the annotated span in which its last character lies."""
    found, span = [], 0
    for start, end in offsets:
        # Byte-level tokens begin with their space: the last character is always inside the word.
        last = max(start, end - 1)
        while span < len(annotation.spans) and annotation.spans[span][1] <= last:
            span += 1
        inside = span < len(annotation.spans) and annotation.spans[span][0] <= last
        found.append(annotation.concepts[span] if inside else ())
    return found
