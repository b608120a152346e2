"""The explainer: what it is asked, which directions it reads, and how it answers.

Its prompt is `<explain>`, the feature's token or tokens, `<about>`; its answer is a description. An explainer's folder
is an ordinary transformers folder; the directions are not part of it, they come from data/activations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saeexplainer.config import Direction, GenerateExplanations, TrainSft
from saeexplainer.domain import ABOUT, EXPLAIN, FEATURE
from saeexplainer.feature_tokens import FeatureTokens
from saeexplainer.models import by_length, generate, open_model, open_tokenizer

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
    tensors: dict[str, Float[Tensor, "*features d_model"]], direction: Direction
) -> Float[Tensor, "rows d_model"]:
    """The table of directions: a feature's tokens are consecutive rows. `tensors` may hold more."""
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


class Explainer:
    """A trained explainer with the tokens of a table of features on it: feature numbers in, explanations out."""

    def __init__(
        self,
        folder: Path,
        tensors: dict[str, Float[Tensor, "features d_model"]],
        injection: TrainSft,
        generation: GenerateExplanations,
    ) -> None:
        """`tensors` are the table's vectors by name, of which `injection.direction` picks. Raises UserError if the folder
        is no model."""
        self.model, self.tokenizer = open_model(folder), open_tokenizer(folder)
        self.generation = generation
        self.prompts = Prompts(self.model.config.vocab_size, len(PARTS[injection.direction]))
        attach(self.model, self.tokenizer, direction_rows(tensors, injection.direction), injection)

    def explain(self, features: Sequence[int], temperature: float, progress: str = "") -> list[str]:
        """One explanation for each entry of `features` (repeat a feature to sample it again); temperature 0 is greedy."""
        return generate(
            self.model, self.tokenizer, [self.prompts.ids(feature, self.tokenizer) for feature in features],
            temperature=temperature, top_p=self.generation.top_p, max_new_tokens=self.generation.max_new_tokens,
            batch_size=self.generation.batch_size, progress=progress,
        )  # fmt: skip

    @torch.no_grad()
    def log_probabilities(self, features: Sequence[int], explanations: Sequence[str]) -> list[float]:
        """Mean log-probability of each explanation's tokens, end of text included: how sure the explainer is of it.

        The text is tokenized as in training, which for some BPE samples is not how it was generated. An empty explanation
        has NaN.
        """
        examples = [
            answer_ids(self.prompts.ids(feature, self.tokenizer), explanation, self.tokenizer)
            for feature, explanation in zip(features, explanations, strict=True)
        ]
        found = [math.nan] * len(examples)
        for indices in by_length([len(example["input_ids"]) for example in examples], self.generation.batch_size):
            ids, mask, labels = self._padded([examples[index] for index in indices])
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            losses = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100)
            means = -losses.sum(dim=1) / (labels[:, 1:] != -100).sum(dim=1)
            for index, mean in zip(indices, means.tolist(), strict=True):
                if explanations[index]:
                    found[index] = mean
        return found

    def _padded(self, examples: list[dict[str, list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, attention mask and labels [batch, tokens], padded on the right."""
        shape = (len(examples), max(len(example["input_ids"]) for example in examples))
        ids, mask, labels = torch.full(shape, self.tokenizer.pad_token_id), torch.zeros(shape), torch.full(shape, -100)
        for row, example in enumerate(examples):
            length = len(example["input_ids"])
            ids[row, :length] = torch.tensor(example["input_ids"])
            mask[row, :length] = 1
            labels[row, :length] = torch.tensor(example["labels"])
        return ids, mask.long(), labels
