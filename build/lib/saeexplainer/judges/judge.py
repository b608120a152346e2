"""Who says how much a text is about a description: one protocol, three ways to answer it.

`judges/likelihood.py` needs no instruct model, `judges/chat.py` asks a local chat model for yes or no,
`judges/endpoint.py` asks a served one for ratings. Judges score in different units: only comparisons within one judge
mean anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


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
