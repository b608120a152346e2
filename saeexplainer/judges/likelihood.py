"""The judge by likelihood: how much an explanation raises the writer's probability of a text, token by token.

It needs no instruct model: a model that can write texts about a description can say how much better the description
predicts a text. The lift of a token is log p(token | description, text before it) - log p(token | text before it), in
nats; the sum over a text is the log-likelihood ratio of "written about it" against "written about nothing".
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from saeexplainer.judges.judge import Question
from saeexplainer.models.batches import by_length, fitting, in_order, padded
from saeexplainer.models.blocks import device_of, embedding_of
from saeexplainer.models.tokenizers import special_ids
from saeexplainer.runs.loop import spread

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class LikelihoodJudge:
    """A writer asked the other way round. What was computed is kept, so that a text, and a text under a description,
    cost once whatever is asked of them."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerFast",
        prompt: str,
        context_length: int,
        batch_size: int,
        known: Mapping[str, list[float]] | None = None,
    ) -> None:
        """`prompt` holds {description}; `context_length` tokens of a text are read, `batch_size` texts at once; what
        `alone` gave for some texts need not be computed again, and is `known`."""
        self.model, self.tokenizer, self.prompt = model, tokenizer, prompt
        self.context_length, self.batch_size = context_length, batch_size
        # Where a space belongs to the token after it, the writer begins a text with that space, and a text that is read
        # by itself does not: what is said of its first token is then about the space.
        self._first_differs = tokenizer.tokenize(" a") != tokenizer.tokenize("a")
        self._alone: dict[str, list[float]] = dict(known or {})
        self._lifts: dict[tuple[str, str], list[float]] = {}

    def relevance(self, questions: Sequence[Question]) -> list[float]:
        """The log-likelihood ratio of each text in nats: the sum of its lifts."""
        return [sum(lifts, 0.0) for lifts in self._lifts_of(questions)]

    def token_relevance(self, questions: Sequence[Question]) -> list[list[float]]:
        """The lifts; the tokens of a question must be cut by the writer's own tokenizer."""
        found = self._lifts_of(questions)
        return [
            lifts[: len(question.tokens)] if lifts else [0.0] * len(question.tokens)
            for question, lifts in zip(questions, found)
        ]

    def notes(self) -> list[str]:
        """Nothing: it always answers."""
        return []

    def _lifts_of(self, questions: Sequence[Question]) -> list[list[float]]:
        return self.lifts([(question.description, question.text) for question in questions])

    def alone(self, texts: Sequence[str]) -> list[list[float]]:
        """log p of every token of each text with nothing said about it, in nats, special tokens left out; it depends on
        no explanation."""
        new = sorted({text for text in texts if text} - self._alone.keys())
        # Before a text that nothing is said about stands what ends one, where a tokenizer has no BOS.
        bos = self.tokenizer.bos_token_id
        start = [self.tokenizer.eos_token_id if bos is None else bos]
        self._alone |= dict(zip(new, self._log_probabilities([(start, text) for text in new])))
        return [self._alone.get(text, []) for text in texts]

    def lifts(self, asked: Sequence[tuple[str, str]]) -> list[list[float]]:
        """For each (description, text) the lift of every token of the text, special tokens left out; [] if either is
        empty."""
        self.alone([text for _, text in asked])
        new = sorted({pair for pair in asked if all(pair)} - self._lifts.keys())
        distinct = sorted({description for description, _ in new})
        prompts = dict(zip(distinct, self._ids([self.prompt.format(description=said) for said in distinct])))
        asked_now = [(prompts[description], text) for description, text in new]
        for pair, told in zip(new, self._log_probabilities(asked_now)):
            lifts = [a - b for a, b in zip(told, self._alone[pair[1]], strict=True)]
            self._lifts[pair] = [0.0, *lifts[1:]] if self._first_differs else lifts
        return [self._lifts.get(pair, []) for pair in asked]

    def _ids(self, texts: list[str], **how: Any) -> list[list[int]]:
        return self.tokenizer(texts, **how)["input_ids"] if texts else []

    @torch.inference_mode()
    def _log_probabilities(self, asked: Sequence[tuple[list[int], str]]) -> list[list[float]]:
        """log p of each token of a text after a prompt (token ids), in nats."""
        cut = {"truncation": True, "max_length": self.context_length}
        texts = self._ids([text for _, text in asked], add_special_tokens=False, **cut)
        lengths = [len(prompt) + len(ids) for (prompt, _), ids in zip(asked, texts)]
        special = set(special_ids(self.tokenizer))
        widest = max(lengths, default=0) * len(embedding_of(self.model))

        def told(_number: int, indices: list[int]) -> list[list[float]]:
            ids = padded([asked[at][0] + texts[at] for at in indices], self.tokenizer.pad_token_id)
            ids = ids.to(device_of(self.model))
            # Without a mask: what is padded on the right no token to its left can see.
            logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            after = ids[:, 1:].unsqueeze(2).to(logits.device)
            scores = (logits.gather(2, after).squeeze(2) - logits.logsumexp(-1)).cpu()
            found = []
            for row, at in enumerate(indices):
                start = len(asked[at][0])
                values = scores[row, start - 1 : start - 1 + len(texts[at])].tolist()
                found.append([value for value, token in zip(values, texts[at], strict=True) if token not in special])
            return found

        batches = list(by_length(lengths, fitting(self.batch_size, max(widest, 1))))
        about = [list(asked), self.context_length, self.batch_size]
        return in_order(batches, spread(batches, told, about, "how likely the judge finds texts"))
