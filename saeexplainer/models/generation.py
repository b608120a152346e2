"""Sampling texts from a causal language model.

Prompts come many times, because several texts are drawn after each: where prompts are long they are read once, and
their keys and values shared. A nucleus is looked for among the likeliest tokens alone: sorting a vocabulary of 49,152
for each text and step takes longer than a small model's own step.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeexplainer.models.batches import by_length, padded
from saeexplainer.models.blocks import device_of
from saeexplainer.models.tokenizers import special_ids
from saeexplainer.runs.processes import spread

if TYPE_CHECKING:
    from transformers import Cache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

LIKELIEST = 512  # tokens among which a nucleus lies nearly always; where it does not, all are looked at
LONG = 16  # tokens of a prompt from which it is read once for all its texts; a shorter one costs less than the sharing


def _ends(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> list[int] | None:
    """The tokens that end a text: the tokenizer's, and those by which a chat model ends its turn."""
    known = model.generation_config.eos_token_id if model.generation_config else None
    more = known if isinstance(known, list) else [known]
    return list(dict.fromkeys(token for token in [tokenizer.eos_token_id, *more] if token is not None)) or None


@torch.no_grad()
def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Sequence[Sequence[int]],
    *,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    batch_size: int,
    progress: str = "",
    kept: Collection[int] = (),
) -> list[str]:
    """One continuation a prompt (token ids), in the order of the prompts; temperature 0 is greedy. Special tokens are
    left out, but for those of `kept`, by their ids.

    Batches are sorted by length, and each draws from a generator of its own: the draws depend on the whole list of
    prompts and on torch's seed alone, not on how many processes share the batches.
    """
    from transformers import GenerationConfig

    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {}
    drawn = [Nucleus(temperature, top_p)] if sampling and top_p < 1 else []
    if drawn:
        del sampling["temperature"]
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=_ends(model, tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        **sampling,
    )
    seed = int(torch.randint(2**31, ())) if sampling else 0

    def continued(number: int, indices: list[int]) -> list[str]:
        if sampling:
            torch.manual_seed(seed + number)
        return _continued(model, tokenizer, [prompts[index] for index in indices], config, drawn, kept)

    batches = list(by_length([len(prompt) for prompt in prompts], batch_size))
    with torch.random.fork_rng(enabled=bool(sampling)):
        found = spread(batches, continued, progress)
    written = {
        index: text for indices, texts in zip(batches, found, strict=True) for index, text in zip(indices, texts)
    }
    return [written[index] for index in range(len(prompts))]


def _continued(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Sequence[Sequence[int]],
    config: "GenerationConfig",
    drawn: "Sequence[Nucleus]",
    kept: Collection[int],
) -> list[str]:
    """Continuations of one batch, padded on the left."""
    from transformers import LogitsProcessorList

    ids = padded(prompts, tokenizer.pad_token_id, side="left").to(device_of(model))
    mask = padded([[1] * len(prompt) for prompt in prompts], 0, side="left").to(ids.device)
    output = cast("Any", model).generate(
        input_ids=ids, attention_mask=mask, generation_config=config,
        logits_processor=LogitsProcessorList(drawn),
        past_key_values=_shared(model, prompts, ids, mask),
    )  # fmt: skip
    written = output[:, ids.shape[1] :].tolist()
    if kept:
        dropped = set(special_ids(tokenizer)).difference(kept)
        written = [[token for token in row if token not in dropped] for row in written]
    texts = tokenizer.batch_decode(written, skip_special_tokens=not kept)
    return [text.strip() for text in texts]


class Nucleus:
    """Temperature, then the smallest set of likeliest tokens that together have the probability `top_p`; no other is
    drawn. It is transformers' TopPLogitsWarper without sorting the vocabulary."""

    def __init__(self, temperature: float, top_p: float) -> None:
        self.temperature, self.top_p = temperature, top_p

    def __call__(
        self, _ids: Int[Tensor, "batch tokens"], logits: Float[Tensor, "batch vocabulary"]
    ) -> Float[Tensor, "batch vocabulary"]:
        """The logits with minus infinity outside the nucleus."""
        logits = logits / self.temperature
        total = logits.logsumexp(dim=-1, keepdim=True)
        for count in (min(LIKELIEST, logits.shape[1]), logits.shape[1]):
            likeliest = logits.topk(count).values
            probability = (likeliest - total).exp()
            inside = probability.cumsum(dim=-1) - probability < self.top_p
            if count == logits.shape[1] or not inside[:, -1].any():
                break
        least = likeliest.masked_fill(~inside, torch.inf).amin(dim=-1, keepdim=True)
        return logits.masked_fill(logits < least, -torch.inf)


def _shared(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    ids: Int[Tensor, "batch tokens"],
    mask: Int[Tensor, "batch tokens"],
) -> "Cache | None":
    """Keys and values of the prompts but for their last token, each distinct prompt read once; None where that saves
    nothing, or where the model remembers in another way."""
    from transformers import DynamicCache

    rows = {tuple(prompt): at for at, prompt in reversed(list(enumerate(prompts)))}
    if ids.shape[1] < LONG or 2 * len(rows) > len(prompts):
        return None
    first = list(rows.values())
    before = mask[first, :-1]
    found = model(
        input_ids=ids[first, :-1], attention_mask=before, position_ids=(before.cumsum(dim=1) - 1).clamp_min(0),
        use_cache=True, logits_to_keep=1,
    ).past_key_values  # fmt: skip
    if type(found) is not DynamicCache or any(layer.is_sliding for layer in found.layers):
        return None
    place = {row: at for at, row in enumerate(first)}
    found.batch_select_indices(torch.tensor([place[rows[tuple(prompt)]] for prompt in prompts], device=ids.device))
    return found
