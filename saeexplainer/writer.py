"""What the writer's texts make every feature do.

A writer (`saeexplainer.writers`) never sees the feature, so a text is read once, for all features of all SAEs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from saeexplainer.models import by_length, encode_batch, read_residual, special_ids

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class TextActivations:
    """Maximum activation of every latent on each distinct text, for each SAE."""

    row: dict[str, int]  # text to row
    maxima: dict[str, Float[np.ndarray, "texts d_sae"]]  # SAE name to maxima over valid tokens, activation units

    def of(self, sae: str, texts: Sequence[str]) -> Float[np.ndarray, "texts d_sae"]:
        """The rows of some texts for one SAE."""
        return self.maxima[sae][[self.row[text] for text in texts]]


@torch.no_grad()
def read_texts(
    texts: Iterable[str], model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", saes: dict[str, "SAE"],
    block: int, context_length: int,
) -> TextActivations:  # fmt: skip
    """Run each distinct text through the subject and every SAE once. An empty text activates nothing."""
    distinct = sorted(set(texts))
    maxima = {name: np.zeros((len(distinct), sae.cfg.d_sae), dtype=np.float32) for name, sae in saes.items()}
    batches = list(by_length([len(text) for text in distinct], 512))
    for indices in tqdm(batches, desc="reading texts"):
        ids, mask, valid = encode_batch(tokenizer, [distinct[index] for index in indices], context_length)
        residual = read_residual(model, block, ids, mask)
        for name, sae in saes.items():
            codes = sae.encode(residual) * valid.unsqueeze(-1)
            maxima[name][indices] = codes.max(dim=1).values.numpy()
    return TextActivations({text: at for at, text in enumerate(distinct)}, maxima)


@torch.no_grad()
def read_tokens(
    asked: Sequence[tuple[str, int]], model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", sae: "SAE",
    block: int, context_length: int,
) -> list[tuple[list[str], list[float]]]:  # fmt: skip
    """For each (text, latent): the text's tokens as `cut_texts` has them, and the latent's activation on each, in
    activation units."""
    found: list[tuple[list[str], list[float]]] = [([], [])] * len(asked)
    for indices in tqdm(list(by_length([len(text) for text, _ in asked], 512)), desc="reading tokens"):
        texts = [asked[index][0] for index in indices]
        ids, mask, valid = encode_batch(tokenizer, texts, context_length)
        codes = sae.encode(read_residual(model, block, ids, mask))
        for row, (index, tokens) in enumerate(zip(indices, cut_texts(texts, tokenizer, context_length))):
            here = valid[row].nonzero().flatten().tolist()
            found[index] = (tokens, codes[row, here, asked[index][1]].tolist())
    return found


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
