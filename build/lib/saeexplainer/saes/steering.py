"""What a feature does to the model's output: texts written while it is held at a value (docs/METHOD.md section 8).

At every position but that of BOS, which no SAE reads, what the SAE reads, x, becomes x + (m - a(x)) d, with a(x) the
feature's activation there and d its decoder row: the feature is set to m and the SAE's error term stays. m is found
by bisection, for each feature, so that the mean KL divergence of the steered next-token distribution from the clean one
has a given size; a positive target raises the feature, a negative one lowers it.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeexplainer.models.blocks import device_of
from saeexplainer.models.generation import generate
from saeexplainer.saes.subset import take_columns

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformers import PreTrainedTokenizerFast

    from saeexplainer.config import Steer
    from saeexplainer.saes.reading import Reader


class Steering:
    """One SAE on one model: rows of a batch are steered, each by its own feature and strength."""

    def __init__(self, reader: "Reader", sae: "SAE") -> None:
        """`sae` reads the reader's site."""
        self.model, self.site, self.sae = reader.model, reader.site, sae
        self.first = 1 if reader.begins_with_bos else 0  # position that is steered first, in a text

    @contextmanager
    def held(self, features: Int[Tensor, "batch"], values: Float[Tensor, "batch"]) -> Generator[None, None, None]:
        """While the block runs, row i of every batch has feature i at value i (activation units), but at BOS.

        A pass over more than one token starts a text; one over a single token is a cached step of generation.
        """
        own = take_columns(self.sae, features.tolist())
        directions, device = own.directions.unsqueeze(1), self.sae.W_dec.device
        row = torch.arange(len(features), device=device).view(-1, 1, 1)
        wanted = values.to(device).view(-1, 1, 1)

        def set_feature(there: Tensor) -> Tensor:
            x = there.to(device, directions.dtype)
            change = wanted - own.encode(x).gather(2, row.expand(-1, x.shape[1], 1))
            scale = own.token_scale(x)
            added = (change if scale is None else change * scale) * directions
            steered = there + added.to(there)
            if there.shape[1] > 1:
                steered[:, : self.first] = there[:, : self.first]
            return steered

        with self.site.changed(set_feature):
            yield

    @torch.no_grad()
    def divergence(
        self, prompts: Int[Tensor, "prompts tokens"], features: Int[Tensor, "batch"], values: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch"]:
        """Mean KL(clean || steered) in nats over prompts and steered positions, for each (feature, value)."""
        total = torch.zeros(len(features))
        for prompt in prompts.to(device_of(self.model)):
            clean = self._log_probabilities(prompt.unsqueeze(0))
            with self.held(features, values):
                steered = self._log_probabilities(prompt.expand(len(features), -1))
            total += (clean.exp() * (clean - steered)).sum(-1)[:, self.first :].mean(1).cpu()
        return total / len(prompts)

    def _log_probabilities(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens vocabulary"]:
        return self.model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)


def bisect(
    divergence: Callable[[Float[Tensor, "batch"]], Float[Tensor, "batch"]],
    targets: Float[Tensor, "batch"],
    start: Float[Tensor, "batch"],
    doublings: int = 10,
    halvings: int = 7,
) -> Float[Tensor, "batch"]:
    """For each row the value, signed as its target, at which the divergence is |target|.

    `start` (positive) is the first size tried; it doubles until the divergence is reached, at most `doublings` times,
    then the interval is halved. A row whose target is out of reach ends at the largest size tried. The divergence must
    grow with the size.
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
    steering: Steering,
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Int[Tensor, "prompts tokens"],
    features: Sequence[int],
    maxima: Sequence[float],
    config: "Steer",
) -> list[list[Steered]]:
    """For each feature one entry a target. `maxima` are the features' corpus maxima, where the search begins."""
    from tqdm.auto import tqdm

    asked = [sign * size for size in config.divergences for sign in (1.0, -1.0)]
    per = len(asked)
    rows = torch.tensor(features).repeat_interleave(per)
    targets = torch.tensor(asked).repeat(len(features))
    start = torch.tensor(maxima).repeat_interleave(per)
    found: list[Steered] = []
    for chunk in tqdm(range(0, len(rows), config.batch_size), desc="steering"):
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
    steering: Steering,
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Tensor,
    features: Tensor,
    values: Tensor,
    config: "Steer",
) -> list[list[str]]:
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
