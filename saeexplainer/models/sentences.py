"""Texts as vectors of unit length, whose products say which texts are alike."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer.config.parts import TextEncoder
from saeexplainer.errors import UserError, first_line
from saeexplainer.models.batches import encode_batch
from saeexplainer.models.blocks import device_of
from saeexplainer.models.hub import advice, arguments_for
from saeexplainer.models.loading import UNREADABLE, check_weights
from saeexplainer.models.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Embed = Callable[[Sequence[str]], Float[Tensor, "texts width"]]
AT_ONCE = 32  # texts
LONGEST = 512  # tokens of a text at most that an encoder reads


def open_encoder(encoder: TextEncoder) -> Embed:
    """The mean of a sentence encoder's last hidden states. Raises UserError if there is no such encoder."""
    from safetensors import SafetensorError
    from transformers import AutoModel

    tokenizer, where = load_tokenizer(encoder.source, encoder.revision), arguments_for(encoder.source, encoder.revision)
    try:
        model, found = AutoModel.from_pretrained(
            encoder.source, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True, **where
        )
        longest = min(LONGEST, model.config.max_position_embeddings)
    except (*UNREADABLE, SafetensorError) as error:
        raise UserError(f"{encoder.source}: no text encoder in it ({first_line(error)}){advice(where)}") from None
    check_weights(encoder.source, {kind: [one for one in found[kind] if "pooler" not in str(one)] for kind in found})
    model.eval()

    def states(ids: Tensor, mask: Tensor) -> Tensor:
        return model(input_ids=ids, attention_mask=mask).last_hidden_state

    return lambda texts: _means(texts, tokenizer, longest, states, special=True)


def by_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", context_length: int) -> Embed:
    """The mean of a causal model's own token embeddings."""

    def embeddings(ids: Tensor, mask: Tensor) -> Tensor:
        return model.get_input_embeddings()(ids.to(device_of(model))).float().cpu()

    return lambda texts: _means(texts, tokenizer, context_length, embeddings, special=False)


@torch.no_grad()
def _means(
    texts: Sequence[str],
    tokenizer: "PreTrainedTokenizerFast",
    longest: int,
    states: Callable[[Tensor, Tensor], Tensor],
    special: bool,
) -> Float[Tensor, "texts width"]:
    """Of each text's tokens, the special ones among them or not; zeros of a text that has none."""
    found = []
    for start in range(0, len(texts), AT_ONCE):
        ids, mask, valid = encode_batch(tokenizer, texts[start : start + AT_ONCE], longest)
        counted = (mask.bool() if special else valid).unsqueeze(2)
        found.append((states(ids, mask) * counted).sum(dim=1) / counted.sum(dim=1).clamp_min(1))
    return torch.nn.functional.normalize(torch.cat(found), dim=1)
