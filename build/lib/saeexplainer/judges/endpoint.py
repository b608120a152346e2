"""The judge behind an OpenAI-compatible chat completions endpoint: it rates texts, and tokens of a text, from 0 to 10.

`endpoint.Client` asks. The items of a call that failed get the middle of the scale: they all look alike, as they do to
who knows nothing.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from saeexplainer.config.parts import EndpointJudgeSpec
from saeexplainer.endpoints.client import Ask, Client, Failure, list_schema
from saeexplainer.judges.judge import Question
from saeexplainer.models.replies import values

HIGHEST = 10  # of the ratings; the lowest is 0
UNKNOWN = HIGHEST / 2  # the rating of every item of a call that failed

OF_TEXTS = """Description: {description}
Texts, as a JSON list:
{items}

Rate each text from 0 (not at all about the description) to {highest} (exactly about it).
Answer with JSON alone: {{"ratings": [one number for each of the {count} texts, in their order]}}"""
OF_TOKENS = """Description: {description}
One text, cut into tokens, as a JSON list:
{items}

Rate each token, as it stands in the text, from 0 (not what the description is about) to {highest} (exactly that).
Answer with JSON alone: {{"ratings": [one number for each of the {count} tokens, in their order]}}"""
REPAIR = """That was not {{"ratings": [{count} numbers from 0 to {highest}]}}. Answer with that JSON alone."""


@dataclass(frozen=True)
class Call:
    """What is rated in one request."""

    description: str
    items: tuple[str, ...]  # texts, or the tokens of one text
    prompt: str  # OF_TEXTS or OF_TOKENS

    def ask(self) -> Ask[list[float]]:
        """The question for the ratings."""
        items, count = json.dumps(self.items, ensure_ascii=False, indent=0), len(self.items)
        values = {"description": self.description, "items": items, "count": count, "highest": HIGHEST}
        mend = REPAIR.format(count=count, highest=HIGHEST)
        return Ask(
            self.prompt.format(**values), mend, list_schema("ratings", "number"), {}, partial(parsed, count=count)
        )


class EndpointJudge:
    """Ratings from 0 to 10 by a served chat model."""

    def __init__(self, config: EndpointJudgeSpec, where: str) -> None:
        """`where` is the setting that messages name. Raises UserError if the key's variable is named but not set."""
        self.config, self._client = config, Client(config.endpoint, where)

    def relevance(self, questions: Sequence[Question]) -> list[float]:
        """The rating of each text; several texts of one description share a call, in an order that says nothing."""
        able = sorted({(one.description, one.text) for one in questions if one.description and one.text})
        size, calls = self.config.batch_size, []
        for description, pairs in groupby(able, key=lambda pair: pair[0]):
            texts = _shuffled([text for _, text in pairs])
            calls += [Call(description, tuple(texts[at : at + size]), OF_TEXTS) for at in range(0, len(texts), size)]
        rated = {
            (call.description, text): rating
            for call, ratings in self._rate(calls).items()
            for text, rating in zip(call.items, ratings, strict=True)
        }
        return [rated.get((question.description, question.text), 0.0) for question in questions]

    def token_relevance(self, questions: Sequence[Question]) -> list[list[float]]:
        """The rating of each token; a call a text."""
        calls = [Call(question.description, question.tokens, OF_TOKENS) for question in questions]
        rated = self._rate(list(dict.fromkeys(call for call in calls if call.description and call.items)))
        return [rated.get(call, [0.0] * len(call.items)) for call in calls]

    def notes(self) -> list[str]:
        """What was paid for, how many calls failed, and why."""
        return self._client.notes()

    def _rate(self, calls: Sequence[Call]) -> dict[Call, list[float]]:
        """The ratings of each call."""
        answers = self._client.ask([call.ask() for call in calls], "asking the judge")
        return {
            call: [UNKNOWN] * len(call.items) if isinstance(answer.value, Failure) else answer.value
            for call, answer in zip(calls, answers, strict=True)
        }


def parsed(answer: str, count: int) -> list[float] | None:
    """The `count` ratings in an answer; None if they are not there."""
    found = values(answer, "ratings", count)
    ratings = [] if found is None else [rating for value in found if (rating := _rating(value)) is not None]
    return ratings if len(ratings) == count == len(found or ()) else None


def _rating(value: object) -> float | None:
    """A number, or a text that is one: some models put each into quotation marks, some say out of how many it is."""
    if isinstance(value, str):
        value = value.strip().removesuffix(f"/{HIGHEST}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number <= HIGHEST else None


def _shuffled(texts: list[str]) -> list[str]:
    """An order that depends on the texts alone: contexts come sorted by how hard the feature fires, and a judge that
    saw that order could guess."""
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
