"""What texts make features do.

A writer (`saeexplainer.writers.writer`) never sees the feature, so a text is read once, for all features of all SAEs.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saeexplainer.models.batches import fitting, in_order
from saeexplainer.models.tokenizers import special_ids
from saeexplainer.runs.loop import spread
from saeexplainer.saes.subset import Columns, take_columns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from saeexplainer.saes.reading import ReadBatch, Reader


@dataclass(frozen=True)
class TextActivations:
    """Maximum activation of some latents on each distinct text, for each SAE."""

    row: dict[str, int]  # text to row
    column: dict[str, dict[int, int]]  # SAE name to latent to column: those that were asked about
    maxima: dict[str, Float[np.ndarray, "texts asked"]]  # SAE name to maxima over valid tokens, activation units

    def of(self, sae: str, texts: Sequence[str], latents: Sequence[int]) -> Float[np.ndarray, "texts latents"]:
        """Some texts on some latents of one SAE, in the orders given."""
        rows, columns = [self.row[text] for text in texts], [self.column[sae][latent] for latent in latents]
        return self.maxima[sae][np.ix_(rows, columns)]


@torch.no_grad()
def read_texts(texts: Iterable[str], reader: "Reader", asked: Mapping[str, Iterable[int]]) -> TextActivations:
    """Run each distinct text through the subject once, and through the SAEs that are asked about.

    asked: latents by the name of their SAE in the reader. An empty text activates nothing. Takes 4 bytes a text and
    asked latent, beside what `batches.ROOM` allows one batch.
    """
    distinct = sorted(set(texts))
    columns = {name: take_columns(reader.saes[name], sorted(set(latents))) for name, latents in asked.items()}
    maxima = {name: np.zeros((len(distinct), len(some.features)), np.float32) for name, some in columns.items()}

    def strongest(_number: int, indices: list[int]) -> dict[str, np.ndarray]:
        batch = reader.read([distinct[index] for index in indices])
        return {
            name: np.concatenate(
                [codes.masked_fill(~valid, 0).max(dim=1).values.cpu().numpy() for codes, valid in _encoded(batch, some)]
            )
            for name, some in columns.items()
        }

    batches = reader.batches(distinct, 512)
    about = [distinct, {name: list(some.features) for name, some in columns.items()}]
    for indices, found in zip(batches, spread(batches, strongest, about, "reading texts"), strict=True):
        for name, values in found.items():
            maxima[name][indices] = values
    numbers = {name: {latent: at for at, latent in enumerate(some.features)} for name, some in columns.items()}
    return TextActivations({text: at for at, text in enumerate(distinct)}, numbers, maxima)


def _encoded(
    batch: "ReadBatch", some: Columns
) -> Iterator[tuple[Float[Tensor, "part tokens features"], Bool[Tensor, "part tokens 1"]]]:
    """Activations of some features on a batch, with its valid mask: a few texts at a time where the SAE is wide."""
    found, size = batch.activations, fitting(len(batch.ids), batch.ids.shape[1] * some.encoded)
    valid = batch.valid.to(found.device).unsqueeze(-1)
    for part, mask in zip(found.split(size), valid.split(size)):
        yield some.encode(part), mask


@torch.no_grad()
def read_tokens(asked: Sequence[tuple[str, int]], reader: "Reader", sae: str) -> list[tuple[list[str], list[float]]]:
    """For each (text, latent of that SAE): the text's tokens as `cut_texts` has them, and the latent's activation on
    each, in activation units."""
    if not asked:
        return []
    some = take_columns(reader.saes[sae], sorted({latent for _, latent in asked}))
    column = {latent: at for at, latent in enumerate(some.features)}

    def values(_number: int, indices: list[int]) -> list[tuple[list[str], list[float]]]:
        texts = [asked[index][0] for index in indices]
        batch = reader.read(texts)
        rows = (row for codes, _ in _encoded(batch, some) for row in codes.cpu())
        cut = cut_texts(texts, reader.tokenizer, reader.context_length)
        return [
            (tokens, row[valid, column[asked[index][1]]].tolist())
            for index, tokens, valid, row in zip(indices, cut, batch.valid, rows)
        ]

    batches = reader.batches([text for text, _ in asked], 512)
    found = in_order(batches, spread(batches, values, [list(asked), sae], "reading tokens"))
    return [(tokens, activations) for tokens, activations in found]


@torch.no_grad()
def read_ends(texts: Sequence[str], reader: "Reader", sae: str) -> Float[np.ndarray, "texts d_sae"]:
    """What all latents of an SAE do on the last valid token of each text, in activation units; nothing if it has none.
    Equal texts are read once."""
    from tqdm.auto import tqdm

    distinct = sorted(set(texts))
    row = {text: at for at, text in enumerate(distinct)}
    found = np.zeros((len(distinct), reader.saes[sae].cfg.d_sae), np.float32)
    for indices in tqdm(reader.batches(distinct, 512), desc="reading the ends of texts"):
        batch = reader.read([distinct[index] for index in indices])
        there = batch.valid.any(dim=1)
        last = batch.valid.shape[1] - 1 - batch.valid.long().flip(1).argmax(dim=1)
        ends = batch.activations[torch.arange(len(last)), last.to(batch.activations.device)]
        found[np.array(indices)[there.numpy()]] = reader.saes[sae].encode(ends).cpu().numpy()[there.numpy()]
    return found[[row[text] for text in texts]]


def cut_texts(texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast", context_length: int) -> list[list[str]]:
    """The tokens of each text; special tokens are left out.

    A token reaches to the start of the next, so that the tokens joined are the text, as far as `context_length` lets it
    be read.
    """
    spans = tokenizer(list(texts), truncation=True, max_length=context_length, return_offsets_mapping=True)
    special = set(special_ids(tokenizer))
    found = []
    for text, ids, offsets in zip(texts, spans["input_ids"], spans["offset_mapping"]):
        here = [at for at, token in enumerate(ids) if token not in special]
        starts = [0, *(offsets[at][0] for at in here[1:])] if here else []
        ends = [*starts[1:], max((end for _, end in offsets), default=0)]
        found.append([text[start:end] for start, end in zip(starts, ends)])
    return found
