"""The judge that is a local chat model: it is asked for yes or no, and its log-odds are the score.

No text is generated: a score is log p(yes) - log p(no) of the answer's first token, in nats, whatever else the model
would say. For the tokens of a text the question is asked once a token, with that token marked: a short forward pass
each. The same question is asked once.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer.config.parts import Pretrained
from saeexplainer.errors import UserError
from saeexplainer.judges.judge import Question
from saeexplainer.models.batches import by_length, in_order
from saeexplainer.models.chat import chat_prompt, open_chat
from saeexplainer.runs.loop import spread

OF_TEXT = """Description: {description}
Text: {text}

Is the text about what the description says? Answer yes or no."""
OF_TOKEN = """Description: {description}
Text: {text}

Is the part between << and >> what the description is about? Answer yes or no."""
YES, NO = ("yes", "Yes", "YES", " yes", " Yes"), ("no", "No", "NO", " no", " No")


class ChatJudge:
    """Any causal LM whose tokenizer has a chat template."""

    def __init__(self, pretrained: Pretrained, batch_size: int) -> None:
        """`batch_size` questions are read at once. Raises UserError if it is no chat model, or one whose tokenizer
        cannot tell yes from no by their first token."""
        self.source, self.batch_size = pretrained.source, batch_size
        self.model, self.tokenizer = open_chat(pretrained)
        yes, no = self._first_ids(YES), self._first_ids(NO)
        self._yes, self._no = sorted(yes - no), sorted(no - yes)
        if not self._yes or not self._no:
            raise UserError(f"{self.source}: its tokenizer has no tokens for yes and no; name a chat model")

    def relevance(self, questions: Sequence[Question]) -> list[float]:
        """The log-odds of yes, in nats."""
        asked = [
            OF_TEXT.format(description=question.description, text=question.text)
            if question.description and question.text else ""
            for question in questions
        ]  # fmt: skip
        found = self._log_odds(asked)
        return [found.get(prompt, 0.0) for prompt in asked]

    def token_relevance(self, questions: Sequence[Question]) -> list[list[float]]:
        """The log-odds of yes for each token, marked in its text."""
        asked = [
            [OF_TOKEN.format(description=question.description, text=text) for text in _marked(question.tokens)]
            if question.description else [""] * len(question.tokens)
            for question in questions
        ]  # fmt: skip
        found = self._log_odds([prompt for prompts in asked for prompt in prompts])
        return [[found.get(prompt, 0.0) for prompt in prompts] for prompts in asked]

    def notes(self) -> list[str]:
        """Nothing: it always answers."""
        return []

    def _log_odds(self, prompts: Sequence[str]) -> dict[str, float]:
        """log p(yes) - log p(no) as the first word of the answer to each distinct prompt that is not empty."""
        distinct = sorted(set(prompts) - {""})
        ids = [chat_prompt(self.tokenizer, prompt) for prompt in distinct]
        self._check_length(max(map(len, ids), default=0))

        def odds(_number: int, indices: list[int]) -> list[float]:
            logits = self._answer_logits([ids[at] for at in indices])
            return (logits[:, self._yes].logsumexp(-1) - logits[:, self._no].logsumexp(-1)).tolist()

        batches = list(by_length([len(one) for one in ids], self.batch_size))
        found = spread(batches, odds, [distinct, self.source, self.batch_size], "asking the judge")
        return dict(zip(distinct, in_order(batches, found)))

    @torch.no_grad()
    def _answer_logits(self, prompts: list[list[int]]) -> Float[Tensor, "batch vocabulary"]:
        """Of the first token after each prompt. `generate` gives left-padded prompts their positions in any model."""
        from transformers import GenerationConfig

        config = GenerationConfig(
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        padded = self.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        padded = padded.to(self.model.device)
        return cast("Any", self.model).generate(**padded, generation_config=config).logits[0].float()

    def _first_ids(self, words: Sequence[str]) -> set[int]:
        found = (self.tokenizer(word, add_special_tokens=False)["input_ids"] for word in words)
        return {ids[0] for ids in found if ids} - {self.tokenizer.unk_token_id}

    def _check_length(self, tokens: int) -> None:
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and tokens > limit:
            raise UserError(
                f"{self.source}: a question to the judge has {tokens} tokens, it reads {limit}; "
                "name a model that reads more"
            )


def _marked(tokens: Sequence[str]) -> list[str]:
    """The text once for each token, with that token between << and >>, the spaces around it outside."""
    found = []
    for at, token in enumerate(tokens):
        core = token.strip()
        start = len(token) - len(token.lstrip())
        marked = f"{token[:start]}<<{core}>>{token[start + len(core) :]}" if core else f"<<{token}>>"
        found.append("".join([*tokens[:at], marked, *tokens[at + 1 :]]))
    return found
