"""Who says how much a text is about a description: one protocol, three ways to answer it.

`likelihood_judge` needs no instruct model, `chat_judge` asks a local chat model for yes or no, `endpoint_judge` asks a
served one for ratings. Judges score in different units: only comparisons within one judge mean anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from saeexplainer.config import Evaluate, JudgeKind
from saeexplainer.config import Judge as JudgeConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Question:
    """A description and a text that may be about it."""

    description: str  # empty where an explanation is missing
    text: str
    tokens: tuple[str, ...] = ()  # the text cut in pieces; needed where one answer a piece is asked for


@runtime_checkable
class Judge(Protocol):
    """Whatever can rank texts, and the tokens of a text, by how much they are about a description."""

    def relevance(self, questions: Sequence[Question]) -> list[float]:
        """One score a question, higher where the text is more about the description; 0 if either is empty."""
        ...

    def token_relevance(self, questions: Sequence[Question]) -> list[list[float]]:
        """One score a token of each question; zeros if the description is empty."""
        ...

    def notes(self) -> list[str]:
        """What a person should know of its work so far, such as answers that never came."""
        ...


def open_judges(
    config: Evaluate, subject: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", context_length: int
) -> list[Judge]:
    """The judges of the settings, in their order; the subject is who judges by likelihood, `context_length` its limit
    in tokens. Raises UserError on a source without a chat model and on a key that is not in the environment."""
    return [
        _open(judge, f"evaluate.judges[{at}]", subject, tokenizer, context_length)
        for at, judge in enumerate(config.judges)
    ]


def _open(
    config: JudgeConfig, where: str, subject: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast",
    context_length: int,
) -> Judge:  # fmt: skip
    if config.kind is JudgeKind.likelihood:
        from saeexplainer.likelihood_judge import LikelihoodJudge

        assert config.prompt is not None
        return LikelihoodJudge(subject, tokenizer, config.prompt, context_length, config.batch_size)
    if config.kind is JudgeKind.chat:
        from saeexplainer.chat_judge import ChatJudge

        assert config.model is not None
        return ChatJudge(config.model, config.batch_size)
    from saeexplainer.endpoint_judge import EndpointJudge

    return EndpointJudge(config, where)
