"""What a feature does to the model's output: texts written while it is held at a value (METHOD section 2, output accuracy).

At every position but that of BOS, which no SAE reads, the residual stream x becomes x + (m - a(x)) d, with a(x) the
feature's activation there and d its decoder row: the feature is set to m and the SAE's error term stays. m is found by bisection, for each feature, so that
the mean KL divergence of the steered next-token distribution from the clean one has a given size; a positive target
raises the feature, a negative one lowers it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeexplainer.models import generate, transformer_blocks

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from saeexplainer.config import Steer


class Steering:
    """One SAE on one model: rows of a batch are steered, each by its own feature and strength."""

    def __init__(self, model: "PreTrainedModel", sae: "SAE", block: int) -> None:
        """`block` is the one whose output the SAE reads."""
        self.model, self.sae, self.block = model, sae, block

    @contextmanager
    def held(self, features: Int[Tensor, "batch"], values: Float[Tensor, "batch"]) -> Iterator[None]:
        """While the block runs, row i of every batch has feature i at value i (activation units), but at BOS.

        A pass over more than one token starts with BOS; one over a single token is a cached step of generation.
        """
        directions = self.directions(features)

        def set_feature(_module: nn.Module, _inputs: object, output: object) -> object:
            residual = output[0] if isinstance(output, tuple) else output
            active = self.sae.encode(residual).gather(2, features.view(-1, 1, 1).expand(-1, residual.shape[1], 1))
            steered = residual + (values.view(-1, 1, 1) - active) * directions.unsqueeze(1)
            if residual.shape[1] > 1:
                steered[:, 0] = residual[:, 0]
            return (steered, *output[1:]) if isinstance(output, tuple) else steered

        handle = transformer_blocks(self.model)[self.block].register_forward_hook(set_feature)
        try:
            yield
        finally:
            handle.remove()

    def directions(self, features: Int[Tensor, "batch"]) -> Float[Tensor, "batch d_model"]:
        """What one unit of each feature adds to the reconstruction: the decoder row as `decode` scales it."""
        units = torch.nn.functional.one_hot(features, self.sae.cfg.d_sae).to(self.sae.W_dec.dtype)
        return (self.sae.decode(units) - self.sae.decode(torch.zeros_like(units[:1]))).detach()

    @torch.no_grad()
    def divergence(
        self, prompts: Int[Tensor, "prompts tokens"], features: Int[Tensor, "batch"], values: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch"]:
        """Mean KL(clean || steered) in nats over prompts and positions after BOS, for each (feature, value)."""
        total = torch.zeros(len(features))
        for prompt in prompts:
            clean = self.model(input_ids=prompt.unsqueeze(0), use_cache=False).logits.log_softmax(-1)
            with self.held(features, values):
                ids = prompt.expand(len(features), -1)
                steered = self.model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
            total += (clean.exp() * (clean - steered)).sum(-1)[:, 1:].mean(1)
        return total / len(prompts)


def bisect(
    divergence: Callable[[Float[Tensor, "batch"]], Float[Tensor, "batch"]],
    targets: Float[Tensor, "batch"],
    start: Float[Tensor, "batch"],
    doublings: int = 10,
    halvings: int = 7,
) -> Float[Tensor, "batch"]:
    """For each row the value, signed as its target, at which the divergence is |target|.

    `start` (positive) is the first size tried; it doubles until the divergence is reached, at most `doublings` times, then
    the interval is halved. A row whose target is out of reach ends at the largest size tried. The divergence must grow
    with the size.
    """
    sign = targets.sign()
    low, high = torch.zeros_like(start), start.clone()
    for _ in range(doublings):
        short = divergence(sign * high) < targets.abs()
        if not short.any():
            break
        low, high = torch.where(short, high, low), torch.where(short, 2 * high, high)
    for _ in range(halvings):
        middle = (low + high) / 2
        short = divergence(sign * middle) < targets.abs()
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return sign * (low + high) / 2


@dataclass(frozen=True)
class Steered:
    """What one feature at one value wrote."""

    target: float  # asked divergence in nats; its sign is that of the change
    value: float  # activation units
    divergence: float  # reached, nats
    texts: list[str]  # one a prompt, without the prompt


def steer(
    steering: Steering, tokenizer: "PreTrainedTokenizerFast", prompts: Int[Tensor, "prompts tokens"],
    features: Sequence[int], maxima: Sequence[float], config: "Steer",
) -> list[list[Steered]]:  # fmt: skip
    """For each feature one entry a target. `maxima` are the features' corpus maxima, where the search begins."""
    asked = [sign * size for size in config.divergences for sign in (1.0, -1.0)]
    per = len(asked)
    rows = torch.tensor(features).repeat_interleave(per)
    targets = torch.tensor(asked).repeat(len(features))
    start = torch.tensor(maxima).repeat_interleave(per)
    found: list[Steered] = []
    for chunk in range(0, len(rows), config.batch_size):
        here = slice(chunk, chunk + config.batch_size)
        reached_by = partial(steering.divergence, prompts, rows[here])
        values = bisect(reached_by, targets[here], start[here])
        reached = reached_by(values)
        texts = _written(steering, tokenizer, prompts, rows[here], values, config)
        found += [
            Steered(asked[(chunk + at) % per], float(value), float(reached[at]), texts[at])
            for at, value in enumerate(values)
        ]
    return [found[at : at + per] for at in range(0, len(found), per)]


def _written(
    steering: Steering, tokenizer: "PreTrainedTokenizerFast", prompts: Tensor, features: Tensor, values: Tensor,
    config: "Steer",
) -> list[list[str]]:  # fmt: skip
    """Continuations of every prompt, for each row."""
    with steering.held(features, values):
        columns = [
            generate(
                steering.model, tokenizer, [prompt.tolist()] * len(features), temperature=config.temperature,
                top_p=config.top_p, max_new_tokens=config.max_new_tokens, batch_size=len(features),
            )
            for prompt in prompts
        ]  # fmt: skip
    return [list(texts) for texts in zip(*columns)]
