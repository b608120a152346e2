"""The explainer: what it is asked and how it answers.

Its prompt is `<explain>`, the feature's token, `<about>`; or words with that token in them: an instruction to a chat
model, or a text that any model continues. It shows some of the feature's contexts if they are asked for. Its
answer is a description. The directions are no part of an explainer's folder (`saeexplainer.explainer.folder`), they
come from data/activations.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saeexplainer.config import ExplainerSettings, GenerateExplanations
from saeexplainer.config.explainers import AskedPrompt
from saeexplainer.domains.domain import ABOUT, EXAMPLE, EXPLAIN, FEATURE, TEXT
from saeexplainer.errors import UserError
from saeexplainer.explainer.feature_tokens import AffineMap, FeatureTokens, first_feature_id
from saeexplainer.explainer.folder import open_parts
from saeexplainer.features.contexts import PROMOTES, leading, shortened, without_special
from saeexplainer.models.batches import by_length, fitting, in_order, padded
from saeexplainer.models.blocks import check_context, device_of, embedding_of
from saeexplainer.models.generation import generate
from saeexplainer.models.tokenizers import CHAT, starts_with_bos
from saeexplainer.runs.loop import spread

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Prompts:
    """How feature number n is put to the explainer, and what it is to answer, as token ids."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        first_id: int,
        config: ExplainerSettings,
        contexts: Sequence[str] = (),
    ) -> None:
        """first_id: token id of row 0 of the directions. contexts: lines as `FeatureTable.contexts` gives them; a
        number beyond them has none. Raises UserError if the tokenizer lacks what the prompt needs."""
        self.first_id = first_id
        self._tokenizer = tokenizer
        self._encoded = cache(self._encode)  # lines of contexts and descriptions come again and again
        prompt = config.prompt
        self._words, self._in_words = prompt.shown_words, isinstance(prompt, AskedPrompt)
        self._contexts = [
            [self._line(line) for line in without_special(shown, tokenizer).splitlines()] for shown in contexts
        ]
        # A leading space, as the description has after `<about>` in the lessons; a chat's answer begins a line.
        self._lead = "" if prompt.kind == "chat" else " "
        self._sides = _sides(tokenizer, prompt) if isinstance(prompt, AskedPrompt) else _token_sides(tokenizer)

    def ids(self, feature: int, *, bare: bool = False) -> list[int]:
        """The prompt of a feature; `bare` without its contexts."""
        shown = self._contexts[feature] if feature < len(self._contexts) and not bare else []
        before, after = (self._encoded(side.replace("{contexts}", "\n".join(shown))) for side in self._sides)
        behind = [] if self._in_words else shown
        return [*before, self.first_id + feature, *(token for line in behind for token in self._encoded(line)), *after]

    def answer(self, description: str) -> list[int]:
        """A description as the explainer gives it, its end included."""
        return [*self._encoded(self._lead + description), self._tokenizer.eos_token_id]

    def example(self, feature: int, description: str, *, bare: bool = False) -> dict[str, list[int]]:
        """Token ids and labels of one supervised example; the prompt, the feature's token included, is masked."""
        prompt, answer = self.ids(feature, bare=bare), self.answer(description)
        return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}

    def _line(self, line: str) -> str:
        """A line of the contexts as the prompt has it: among its words, or behind the feature's token."""
        if self._in_words:
            return shortened(line, self._words)
        return f"{_mark(line)} {leading(line, self._words)}"

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def _mark(line: str) -> str:
    """What stands before a line of the contexts in a prompt of tokens."""
    return EXAMPLE if line.startswith(PROMOTES) else TEXT


def _token_sides(tokenizer: "PreTrainedTokenizerFast") -> tuple[str, str]:
    """What stands before and after the feature's token: marks that a tokenizer made here has."""
    for mark in (EXPLAIN, ABOUT):
        if tokenizer.convert_tokens_to_ids(mark) in (None, tokenizer.unk_token_id):
            raise UserError(
                f"explainer.prompt.kind: tokens, but the tokenizer of {tokenizer.name_or_path} has no {mark}; give "
                "chat or text"
            )
    return tokenizer.bos_token + EXPLAIN, ABOUT


def _sides(tokenizer: "PreTrainedTokenizerFast", prompt: AskedPrompt) -> tuple[str, str]:
    """The text to be continued; or the instruction in the user's turn, and the answer opened. Special tokens of the
    template are read as such."""
    if prompt.kind == "text":
        begin = cast("str", tokenizer.bos_token) if starts_with_bos(tokenizer) else ""
        before, _, after = prompt.instruction.partition("{feature}")
        return begin + before, after
    if tokenizer.chat_template is None:
        raise UserError(
            f"explainer.prompt.kind: chat, but the tokenizer of {tokenizer.name_or_path} has no chat template; name an "
            "instruction-tuned model in explainer.pretrained, or put chat_template.jinja into the model's folder"
        )
    said = [{"role": "user", "content": prompt.instruction}]
    text = cast("str", tokenizer.apply_chat_template(said, tokenize=False, **CHAT))
    before, _, after = text.partition("{feature}")
    return before, after


def placeholder_id(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The token whose embedding stands where a feature's token is: <feature>, or an ordinary "?".

    Not one of the reserved tokens that many tokenizers have: their embeddings were never trained, and the direction is
    added in units of the residual's norm there.
    """
    found = cast("int | None", tokenizer.convert_tokens_to_ids(FEATURE))
    if found is not None and found != tokenizer.unk_token_id:
        return found
    return tokenizer("?", add_special_tokens=False)["input_ids"][-1]


def attach(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    directions: Float[Tensor, "rows d_in"],
    config: ExplainerSettings,
    noise: float = 0.0,
    projection: nn.Linear | AffineMap | None = None,
) -> FeatureTokens:
    """Put the feature tokens of a table of directions on an explainer."""
    return FeatureTokens(
        model,
        directions,
        first_id=first_feature_id(model, tokenizer),
        placeholder_id=placeholder_id(tokenizer),
        block=config.injection_block,
        scale=config.injection_scale,
        noise=noise,
        projection=projection,
    )


class Explainer:
    """A trained explainer with the tokens of a table of features on it: feature numbers in, explanations out."""

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, Tensor],
        injection: ExplainerSettings,
        generation: GenerateExplanations,
        contexts: Sequence[str] = (),
    ) -> None:
        """`tensors` are the table's vectors by name, of which `injection.direction` picks; contexts as
        `FeatureTable.contexts` gives them. Raises UserError if the folder holds no explainer."""
        parts = open_parts(folder)
        self.model, self.tokenizer, self.generation = parts.model, parts.tokenizer, generation
        self.prompts = Prompts(self.tokenizer, first_feature_id(self.model, self.tokenizer), injection, contexts)
        attach(self.model, self.tokenizer, tensors[injection.direction], injection, projection=parts.projection)

    def explain(self, features: Sequence[int], temperature: float, progress: str = "") -> list[str]:
        """One explanation for each entry of `features` (repeat a feature to sample it again); temperature 0 is greedy.

        Raises UserError if a prompt leaves no room for an answer.
        """
        prompts = [self.prompts.ids(feature) for feature in features]
        most = max(map(len, prompts), default=0) + self.generation.max_new_tokens
        check_context(self.model, most, "generate_explanations.max_new_tokens, prompt included")
        return generate(
            self.model, self.tokenizer, prompts,
            temperature=temperature, top_p=self.generation.top_p, max_new_tokens=self.generation.max_new_tokens,
            batch_size=self.generation.batch_size, progress=progress,
        )  # fmt: skip

    @torch.no_grad()
    def log_probabilities(self, features: Sequence[int], explanations: Sequence[str]) -> list[float]:
        """Mean log-probability of each explanation's tokens, end of text included: how sure the explainer is of it.

        The text is tokenized as in training, which for some BPE samples is not how it was generated. An empty
        explanation has NaN.
        """
        examples = [
            self.prompts.example(feature, explanation)
            for feature, explanation in zip(features, explanations, strict=True)
        ]

        def means(_number: int, indices: list[int]) -> list[float]:
            ids, mask, labels = self._batch([examples[index] for index in indices])
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            labels = labels.to(logits.device)
            losses = F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100)
            return (-losses.sum(dim=1) / (labels[:, 1:] != -100).sum(dim=1)).tolist()

        lengths = [len(example["input_ids"]) for example in examples]
        words = len(embedding_of(self.model))
        batches = list(by_length(lengths, fitting(self.generation.batch_size, max(lengths, default=1) * words)))
        about = [examples, self.generation.batch_size]
        found = in_order(batches, spread(batches, means, about, "how sure the explainer is"))
        return [mean if said else math.nan for mean, said in zip(found, explanations, strict=True)]

    def _batch(self, examples: list[dict[str, list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, attention mask and labels [batch, tokens], padded on the right."""
        device = device_of(self.model)
        ids = padded([example["input_ids"] for example in examples], self.tokenizer.pad_token_id)
        mask = padded([[1] * len(example["input_ids"]) for example in examples], 0)
        return ids.to(device), mask.to(device), padded([example["labels"] for example in examples], -100)
