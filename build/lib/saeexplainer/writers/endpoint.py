"""The writer behind an OpenAI-compatible chat completions endpoint: all texts of a description in one call.

`endpoint.Client` asks. A description whose call failed gets no texts from it.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from saeexplainer.config.parts import EndpointWriterSpec
from saeexplainer.endpoints.client import Ask, Client, Failure, list_schema
from saeexplainer.models.replies import values
from saeexplainer.records import Usage
from saeexplainer.writers.sampling import distinct

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORM = """{prompt}

Answer with JSON alone: {{"texts": [{count} strings]}}"""
REPAIR = """That was not {{"texts": [{count} strings]}}. Answer with that JSON alone."""


class EndpointWriter:
    """Texts by a served chat model."""

    def __init__(self, config: EndpointWriterSpec, where: str, tokenizer: "PreTrainedTokenizerFast") -> None:
        """`tokenizer` is the subject's, in whose tokens a text may be as long as that of any other writer; `where` is
        the setting that messages name. Raises UserError if the key's variable is named but not set."""
        self.config, self.tokenizer = config, tokenizer
        self._client = Client(config.endpoint, where)
        self._usage: dict[str, Usage] = {}

    def write(self, descriptions: Sequence[str]) -> dict[str, list[str]]:
        """`config.texts` for each, without those of calls that failed. Raises UserError as `Client.ask` does."""
        asked = distinct(descriptions)
        found = self._client.ask([self._ask(one) for one in asked], "asking the writer")
        answers = dict(zip(asked, found, strict=True))
        self._usage |= {description: answer.usage for description, answer in answers.items()}
        return {
            description: [] if isinstance(answer.value, Failure) else [self._cut(text) for text in answer.value]
            for description, answer in answers.items()
        }

    def usage(self, descriptions: Iterable[str]) -> Usage:
        """What the server took for those that were written, whenever it was paid."""
        return sum((self._usage[one] for one in distinct(descriptions)), Usage(0, 0, 0))

    def notes(self) -> list[str]:
        """What was paid for, how many calls failed, and why."""
        return self._client.notes()

    def _ask(self, description: str) -> Ask[list[str]]:
        count = self.config.texts
        prompt = self.config.prompt.format(description=description, count=count)
        # Some servers refuse top_p beside a temperature, and 1 says nothing.
        nucleus = {"top_p": self.config.top_p} if self.config.top_p < 1 else {}
        return Ask(
            FORM.format(prompt=prompt, count=count),
            REPAIR.format(count=count),
            list_schema("texts", "string"),
            {"temperature": self.config.temperature} | nucleus,
            partial(parsed, count=count),
        )

    def _cut(self, text: str) -> str:
        """The text as far as `max_new_tokens` of the subject's tokens reach."""
        ends = self.tokenizer(
            text, add_special_tokens=False, truncation=True, max_length=self.config.max_new_tokens,
            return_offsets_mapping=True,
        )["offset_mapping"]  # fmt: skip
        return text[: max((end for _, end in ends), default=0)]


def parsed(answer: str, count: int) -> list[str] | None:
    """The first `count` texts in an answer, stripped; None if there are fewer, or if one says nothing."""
    texts = values(answer, "texts", count)
    if texts is None:
        return None
    some = [text.strip() if isinstance(text, str) else "" for text in texts[:count]]
    return some if all(some) else None
