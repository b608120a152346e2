"""The explainer: what it is asked, which directions it reads, and how it answers.

Its prompt is `<explain>`, the feature's token or tokens, `<about>`; its answer is a description. An explainer's folder
is an ordinary transformers folder; the directions are not part of it, they come from data/activations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer.config import Direction, TrainSft
from saeexplainer.domain import ABOUT, EXPLAIN, FEATURE
from saeexplainer.feature_tokens import FeatureTokens
from saeexplainer.models import generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Names of the stored tensors behind each choice, one feature token each.
PARTS = {
    Direction.decoder: ("decoder",),
    Direction.encoder: ("encoder",),
    Direction.decoder_and_encoder: ("decoder", "encoder"),
    Direction.mean_activation: ("mean_activation",),
    Direction.decoder_and_mean_activation: ("decoder", "mean_activation"),
}


def direction_rows(
    tensors: dict[str, Float[Tensor, "features d_model"]], direction: Direction
) -> Float[Tensor, "rows d_model"]:
    """The table of directions: a feature's tokens are consecutive rows."""
    parts = torch.stack([tensors[name] for name in PARTS[direction]], dim=1)
    return parts.flatten(0, 1)


@dataclass(frozen=True)
class Prompts:
    """How feature number n is put to the explainer."""

    first_id: int  # token id of row 0: the base vocabulary's size
    tokens_per_feature: int

    def text(self, feature: int) -> str:
        """The prompt of a feature as text; `add_feature_tokens` makes a tokenizer read it."""
        rows = range(feature * self.tokens_per_feature, (feature + 1) * self.tokens_per_feature)
        return EXPLAIN + "".join(feature_token(row) for row in rows) + ABOUT

    def ids(self, feature: int, tokenizer: "PreTrainedTokenizerFast") -> list[int]:
        """The prompt of a feature as token ids, BOS first; needs no added token."""
        start = self.first_id + feature * self.tokens_per_feature
        explain, about = tokenizer.convert_tokens_to_ids([EXPLAIN, ABOUT])
        return [tokenizer.bos_token_id, explain, *range(start, start + self.tokens_per_feature), about]


def feature_token(row: int) -> str:
    """The name of a feature token in text."""
    return f"<feature:{row}>"


def add_feature_tokens(tokenizer: "PreTrainedTokenizerFast", rows: int) -> None:
    """Teach the tokenizer the names of the feature tokens; their ids follow the base vocabulary, as the hooks expect.

    Only a trainer that tokenizes by itself needs this; the tokenizer is not saved with them.
    """
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(feature_token(row), special=True, normalized=False) for row in range(rows)])


def attach(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    directions: Float[Tensor, "rows d_model"],
    config: TrainSft,
    noise: float = 0.0,
) -> FeatureTokens:
    """Put the feature tokens of a table of directions on an explainer."""
    return FeatureTokens(
        model,
        directions,
        placeholder_id=tokenizer.convert_tokens_to_ids(FEATURE),
        block=config.injection_block,
        scale=config.injection_scale,
        noise=noise,
    )


def answer_ids(prompt: list[int], description: str, tokenizer: "PreTrainedTokenizerFast") -> dict[str, list[int]]:
    """Token ids and labels of one supervised example; the prompt, and so every feature token, is masked."""
    # A leading space, as the description has after `<about>` in the lessons.
    answer = tokenizer(" " + description, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def explain(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Prompts,
    features: Sequence[int],
    *,
    temperature: float,
    top_p: float = 1.0,
    max_new_tokens: int,
    batch_size: int,
    progress: str = "",
) -> list[str]:
    """One explanation for each entry of `features` (repeat a feature to sample it again); temperature 0 is greedy."""
    asked = [prompts.ids(feature, tokenizer) for feature in features]
    return generate(
        model, tokenizer, asked, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens,
        batch_size=batch_size, progress=progress,
    )  # fmt: skip
