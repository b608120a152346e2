"""Language models that answer a question with one line, as the labeller and the agent ask them about contexts.

A local chat model is asked through its template, a served one through `endpoint.Client`, which wants the line in JSON.
Equal questions are asked once.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from saeexplainer.config.parts import ChatLineSpec, EndpointLineSpec
from saeexplainer.endpoints.client import Ask, Client, Failure, object_schema
from saeexplainer.errors import UserError
from saeexplainer.features.contexts import one_line, without_special
from saeexplainer.models.replies import last_json
from saeexplainer.records import Usage

FORM = """{prompt}

Answer with JSON alone: {{"explanation": string}}"""
REPAIR = """That was not {"explanation": string}. Answer with that JSON alone."""
SCHEMA = object_schema("explanation", {"type": "string"})


@dataclass(frozen=True)
class Question:
    """What is asked."""

    prompt: str  # with a name between braces wherever a part stands
    parts: Mapping[str, str]  # by name; a local model sees no name of a special token in them

    def text(self, cleaned: Callable[[str], str] = str) -> str:
        """The prompt with its parts, each of them cleaned."""
        return self.prompt.format(**{name: cleaned(part) for name, part in self.parts.items()})


@dataclass(frozen=True)
class Line:
    """What came of a question."""

    text: str  # of a local model as it was said, else on one line; empty where there is no answer
    usage: Usage  # a local model's tokens are counted from what was kept


@runtime_checkable
class Asked(Protocol):
    """A model that is asked."""

    def ask(self, questions: Iterable[Question], doing: str) -> dict[str, Line]:
        """An answer to each distinct question, by its text. `doing` is what a progress bar says."""

    def notes(self) -> list[str]:
        """What a person should know, such as what it cost."""


def open_asked(config: ChatLineSpec | EndpointLineSpec, where: str, prompt: str = "the prompt") -> Asked:
    """The model of the settings; `where` is their key, and `prompt` is what messages call a question.

    Raises UserError on a source without a chat model and on a key that is not in the environment.
    """
    return _Chat(config, where, prompt) if isinstance(config, ChatLineSpec) else _Served(config, where)


def parsed(answer: str) -> str | None:
    """The explanation in an answer, on one line; None if there is none."""
    return one_line(last_json(answer, "explanation", str) or "") or None


class _Served:
    """A served model."""

    def __init__(self, config: EndpointLineSpec, where: str) -> None:
        self._sampling = {"temperature": config.temperature}
        self._client = Client(config.endpoint, where)

    def ask(self, questions: Iterable[Question], doing: str) -> dict[str, Line]:
        """Raises UserError as `Client.ask` does."""
        texts = sorted({question.text() for question in questions})
        asked = [Ask(FORM.format(prompt=text), REPAIR, SCHEMA, self._sampling, parsed) for text in texts]
        answers = self._client.ask(asked, doing) if asked else []
        return {
            text: Line("" if isinstance(answer.value, Failure) else answer.value, answer.usage)
            for text, answer in zip(texts, answers, strict=True)
        }

    def notes(self) -> list[str]:
        """What was paid for, how many calls failed, and why."""
        return self._client.notes()


class _Chat:
    """A local chat model."""

    def __init__(self, config: ChatLineSpec, where: str, prompt: str) -> None:
        from saeexplainer.models.chat import open_chat

        self.config, self.limit = config, f"{where}.max_new_tokens"
        self._asked_with = f"{self.limit} with {prompt}"
        self._said: list[str] = []  # every answer without its thoughts
        try:
            self.model, self.tokenizer = open_chat(config.model)
        except UserError as error:
            raise UserError(f"{where}.model.source: {error}") from None

    def ask(self, questions: Iterable[Question], doing: str) -> dict[str, Line]:
        """Draws from torch's generator. Raises UserError if a question and its answer are more than the model reads."""
        from saeexplainer.models.blocks import check_context
        from saeexplainer.models.chat import chat_prompt, plain, thought_marks
        from saeexplainer.models.generation import generate

        by_text = {question.text(): question for question in questions}
        texts, config = sorted(by_text), self.config
        if not texts:
            return {}
        prompts = [
            chat_prompt(self.tokenizer, by_text[text].text(lambda part: without_special(part, self.tokenizer)))
            for text in texts
        ]
        check_context(self.model, max(map(len, prompts)) + config.max_new_tokens, self._asked_with)
        answers = generate(
            self.model, self.tokenizer, prompts, temperature=config.temperature, top_p=1.0,
            max_new_tokens=config.max_new_tokens, batch_size=config.batch_size, progress=doing,
            kept=thought_marks(self.tokenizer),
        )  # fmt: skip
        said = [plain(answer) for answer in answers]
        self._said += said
        usages = [self._usage(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        return dict(zip(texts, map(Line, said, usages), strict=True))

    def notes(self) -> list[str]:
        """How many answers say nothing."""
        from saeexplainer.models.chat import silence

        return silence(self._said, self.limit)

    def _usage(self, prompt: Sequence[int], answer: str) -> Usage:
        """An answer's end is a token too, where the limit left room for it."""
        written = len(self.tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1
        return Usage(1, len(prompt), min(written, self.config.max_new_tokens))
