"""The judge by likelihood: how much an explanation raises the writer's probability of a text, token by token.

It needs no instruct model: whoever can write texts about a description can say how much better the description
predicts a text. The lift of a token is log p(token | description, text before it) - log p(token | text before it), in
nats; the sum over a text is the log-likelihood ratio of "written about it" against "written about nothing".
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from saeexplainer.models import by_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class LikelihoodJudge:
    """A writer asked the other way round. Plain log-probabilities are kept, so a text costs them once."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerFast",
        prompt: str,
        context_length: int,
        batch_size: int,
    ) -> None:
        """`prompt` holds {description}; `context_length` tokens of a text are read, `batch_size` texts at once."""
        self.model, self.tokenizer, self.prompt = model, tokenizer, prompt
        self.context_length, self.batch_size = context_length, batch_size
        self._plain: dict[str, list[float]] = {}

    def lifts(self, asked: Sequence[tuple[str, str]]) -> list[list[float]]:
        """For each (description, text) the lift of every token of the text, special tokens left out; [] if either is
        empty."""
        new = sorted({text for _, text in asked if text} - self._plain.keys())
        bos = [self.tokenizer.bos_token_id]
        self._plain |= dict(zip(new, self._log_probabilities([(bos, text) for text in new])))
        able = sorted({(description, text) for description, text in asked if description and text})
        prompts = [(self._prompt_ids(description), text) for description, text in able]
        known = dict(zip(able, self._log_probabilities(prompts)))
        return [
            [told - plain for told, plain in zip(known[pair], self._plain[pair[1]], strict=True)]
            if pair in known else []
            for pair in asked
        ]  # fmt: skip

    def _prompt_ids(self, description: str) -> list[int]:
        return self.tokenizer(self.prompt.format(description=description))["input_ids"]

    @torch.no_grad()
    def _log_probabilities(self, asked: Sequence[tuple[list[int], str]]) -> list[list[float]]:
        """log p of each token of a text after a prompt (token ids), in nats."""
        texts = [
            self.tokenizer(text, add_special_tokens=False, truncation=True, max_length=self.context_length)["input_ids"]
            for _, text in asked
        ]
        found: list[list[float]] = [[] for _ in asked]
        lengths = [len(prompt) + len(ids) for (prompt, _), ids in zip(asked, texts)]
        special = set(self.tokenizer.all_special_ids)
        for indices in by_length(lengths, self.batch_size):
            ids, mask = _padded([asked[at][0] + texts[at] for at in indices], self.tokenizer.pad_token_id)
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            scores = -F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            for row, at in enumerate(indices):
                start = len(asked[at][0])
                values = scores[row, start - 1 : start - 1 + len(texts[at])].tolist()
                found[at] = [value for value, token in zip(values, texts[at], strict=True) if token not in special]
        return found


def _padded(sequences: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask [batch, tokens], padded on the right."""
    ids = torch.full((len(sequences), max(map(len, sequences))), pad)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids, mask
