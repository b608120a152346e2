"""Sampling texts from a causal language model."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from saeexplainer.models.batches import by_length, padded
from saeexplainer.models.blocks import device_of
from saeexplainer.models.tokenizers import special_ids
from saeexplainer.runs.processes import spread

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast


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

    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {}
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
        return _continued(model, tokenizer, [prompts[index] for index in indices], config, kept)

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
    kept: Collection[int],
) -> list[str]:
    """Continuations of one batch, padded on the left."""
    ids = padded(prompts, tokenizer.pad_token_id, side="left").to(device_of(model))
    mask = padded([[1] * len(prompt) for prompt in prompts], 0, side="left").to(ids.device)
    output = cast("Any", model).generate(input_ids=ids, attention_mask=mask, generation_config=config)
    written = output[:, ids.shape[1] :].tolist()
    if kept:
        dropped = set(special_ids(tokenizer)).difference(kept)
        written = [[token for token in row if token not in dropped] for row in written]
    texts = tokenizer.batch_decode(written, skip_special_tokens=not kept)
    return [text.strip() for text in texts]
