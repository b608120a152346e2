"""Sampling texts from a causal language model.

Prompts come many times, because several texts are drawn after each: where prompts are long they are read once, and
their keys and values shared. From a large vocabulary tokens are drawn here: transformers sorts it for a nucleus, and
draws a random number for each token of it, which for a small model takes longer than its own step.
"""

from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeexplainer.models.batches import by_length, in_order, padded
from saeexplainer.models.blocks import device_of, embedding_of
from saeexplainer.models.tokenizers import special_ids
from saeexplainer.runs.loop import spread

if TYPE_CHECKING:
    from transformers import Cache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

LARGE = 16_384  # tokens of a vocabulary from which they are drawn here
LIKELIEST = (128, 4096)  # tokens among which a nucleus nearly always lies, and nearly surely; else all are sorted
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

    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    drawn = []
    if sampling and len(embedding_of(model)) >= LARGE:
        sampling, drawn = {}, [Draw(temperature, top_p)]
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=_ends(model, tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        **sampling,
    )
    random = temperature > 0
    seed = int(torch.randint(2**31, ())) if random else 0

    def continued(number: int, indices: list[int]) -> list[str]:
        if random:
            torch.manual_seed(seed + number)
        return _continued(model, tokenizer, [prompts[index] for index in indices], config, drawn, kept)

    batches = list(by_length([len(prompt) for prompt in prompts], batch_size))
    about = [list(map(list, prompts)), sorted(kept), temperature, top_p, max_new_tokens, batch_size, seed]
    with torch.random.fork_rng(enabled=random), _whole_rows(model):
        return in_order(batches, spread(batches, continued, about, progress))


@contextmanager
def _whole_rows(model: "PreTrainedModel") -> Generator[None]:
    """Let the output head read rows that lie together. Of a prompt only the last position is read, a slice with gaps.
    Where the head is frozen, as under an adapter, torch then multiplies prompt by prompt and, in bfloat16 on a CPU,
    copies the head's weights for each: three quarters of the time of short answers, and gigabytes."""
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _head, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


def _continued(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Sequence[Sequence[int]],
    config: "GenerationConfig",
    drawn: "Sequence[Draw]",
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


class Draw:
    """Tokens drawn at a temperature from a nucleus, the smallest set of likeliest tokens that together have the
    probability `top_p`: each by one random number, as a processor of logits that leaves the drawn token alone."""

    def __init__(self, temperature: float, top_p: float) -> None:
        self.temperature, self.top_p = temperature, top_p

    def __call__(
        self, _ids: Int[Tensor, "batch tokens"], logits: Float[Tensor, "batch vocabulary"]
    ) -> Float[Tensor, "batch vocabulary"]:
        """Minus infinity but at the token that was drawn."""
        probability = (logits.float() / self.temperature).softmax(dim=-1)
        place = torch.rand(len(logits), 1, device=logits.device, dtype=torch.float64)
        token = _drawn(probability, place) if self.top_p == 1 else self._from_nucleus(probability, place)
        return torch.full_like(logits, -torch.inf).scatter_(1, token, 0.0)

    def _from_nucleus(
        self, probability: Float[Tensor, "batch vocabulary"], place: Float[Tensor, "batch 1"]
    ) -> Int[Tensor, "batch 1"]:
        """A token for each row, from as few of the likeliest as hold its nucleus."""
        token = torch.empty_like(place, dtype=torch.long)
        rows = torch.arange(len(probability), device=probability.device)
        for size in (*LIKELIEST, probability.shape[1]):
            likeliest = probability[rows].topk(min(size, probability.shape[1]))
            token[rows] = likeliest.indices.gather(1, _drawn(_nucleus(likeliest.values, self.top_p), place[rows]))
            rows = rows[likeliest.values.sum(dim=1) < self.top_p]
            if not len(rows):
                break
        return token


def _nucleus(falling: Float[Tensor, "batch likeliest"], top_p: float) -> Float[Tensor, "batch likeliest"]:
    """Probabilities in falling order, those outside the nucleus 0."""
    likelier = falling.cumsum(dim=1) - falling
    return falling.masked_fill(likelier >= top_p, 0.0)


def _drawn(weights: Float[Tensor, "batch tokens"], place: Float[Tensor, "batch 1"]) -> Int[Tensor, "batch 1"]:
    """Where a share `place` of all weight is reached: the inverse of the distribution function."""
    reached = weights.cumsum(dim=1, dtype=torch.float64)
    found = torch.searchsorted(reached, place * reached[:, -1:], right=True)
    return found.clamp_max(weights.shape[1] - 1)


def _shared(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    ids: Int[Tensor, "batch tokens"],
    mask: Int[Tensor, "batch tokens"],
) -> "Cache | None":
    """Keys and values of the prompts but for their last token, each distinct prompt read once; None where that saves
    nothing, or where the model remembers in another way."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    rows = {tuple(prompt): at for at, prompt in reversed(list(enumerate(prompts)))}
    if ids.shape[1] < LONG or 2 * len(rows) > len(prompts):
        return None
    first = list(rows.values())
    before = mask[first, :-1]
    output = model(
        input_ids=ids[first, :-1], attention_mask=before, position_ids=(before.cumsum(dim=1) - 1).clamp_min(0),
        use_cache=True, logits_to_keep=1,
    )  # fmt: skip
    found = getattr(output, "past_key_values", None)  # state-space models remember in another way
    if type(found) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in found.layers):
        return None
    place = {row: at for at, row in enumerate(first)}
    found.batch_select_indices(torch.tensor([place[rows[tuple(prompt)]] for prompt in prompts], device=ids.device))
    return found
