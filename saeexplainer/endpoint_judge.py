"""The judge behind an OpenAI-compatible chat completions endpoint: it rates texts, and tokens of a text, from 0 to 10.

Every reply is kept on disk under the hash of what was asked, usable or not, before anything is made of it: a killed run
goes on where it was, and what was paid is never paid again. Replies that are no JSON with one rating an item get one
request to mend them. A call that still has no usable answer is a `Failure`; it is counted, and its items get the middle
of the scale: they all look alike, as they do to who knows nothing. Too many of them stop the stage.
"""

import hashlib
import json
import math
import os
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from saeexplainer.config import Judge
from saeexplainer.errors import UserError
from saeexplainer.judge import Question
from saeexplainer.storage import read_json, write_json

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

HIGHEST = 10  # of the ratings; the lowest is 0
UNKNOWN = HIGHEST / 2  # the rating of every item of a call that failed
LONGEST_PAUSE = 60.0  # seconds between two attempts
DETAIL = 200  # characters of a server's complaint that are shown
KEY_REFUSED, NOT_FOUND, TOO_MANY = (401, 403), 404, 429  # status codes of HTTP

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

Messages = list[dict[str, str]]


class Failure(StrEnum):
    """Why a call has no ratings."""

    no_answer = "no answer after all attempts"
    refused = "refused"
    unreadable = "no ratings in the answer"


@dataclass(frozen=True)
class Call:
    """What is rated in one request."""

    description: str
    items: tuple[str, ...]  # texts, or the tokens of one text
    prompt: str  # OF_TEXTS or OF_TOKENS

    def messages(self) -> Messages:
        """The conversation that asks for the ratings."""
        items = json.dumps(self.items, ensure_ascii=False, indent=0)
        values = {"description": self.description, "items": items, "count": len(self.items), "highest": HIGHEST}
        return [{"role": "user", "content": self.prompt.format(**values)}]


class _Passing(Exception):
    """The server may answer if it is asked again; `pause` is the number of seconds that it asked for."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class _Lasting(Exception):
    """The server will not answer this call."""


class EndpointJudge:
    """Ratings from 0 to 10 by a served chat model."""

    def __init__(self, config: Judge, where: str) -> None:
        """`where` is the setting that messages name. Raises UserError if the key's variable is named but not set."""
        assert config.endpoint is not None and config.model is not None
        self.config, self.endpoint, self.where = config, config.endpoint, where
        self._key = _key(config.endpoint.key_variable, where)
        self._calls, self._complaint = 0, ""
        self._failures: Counter[Failure] = Counter()

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
        """How many calls failed, and why."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self._failures.items()))
        failed = self._failures.total()
        return [f"{self.where}: {failed} of {self._calls} calls failed ({reasons})"] if failed else []

    def _rate(self, calls: Sequence[Call]) -> dict[Call, list[float]]:
        """The ratings of each call, several at once. Raises UserError when too many have failed."""
        import httpx
        from tqdm.auto import tqdm

        found, allowed = {}, self.endpoint.max_failed_share * len(calls)
        failures: Counter[Failure] = Counter()
        stopped = threading.Event()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        with httpx.Client(timeout=self.endpoint.timeout_seconds, headers=headers) as client:
            pool = ThreadPoolExecutor(self.endpoint.concurrency)
            try:
                futures = {pool.submit(self._ratings, call, client, stopped): call for call in calls}
                for future in tqdm(as_completed(futures), desc="asking the judge", total=len(calls)):
                    answer, call = future.result(), futures[future]
                    if isinstance(answer, Failure):
                        failures[answer] += 1
                        if failures.total() > allowed:
                            raise UserError(self._too_many(failures, len(calls)))
                        answer = [UNKNOWN] * len(call.items)
                    found[call] = answer
            finally:
                stopped.set()
                pool.shutdown(cancel_futures=True)
        self._calls += len(calls)
        self._failures += failures
        return found

    def _too_many(self, failures: Counter[Failure], calls: int) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(failures.items()))
        return (
            f"{self.where}.endpoint: {failures.total()} of {calls} calls failed ({reasons}); last: {self._complaint}; "
            f"correct it or raise max_failed_share. Answers so far are in {self.endpoint.cache}"
        )

    def _ratings(self, call: Call, client: "httpx.Client", stopped: threading.Event) -> list[float] | Failure:
        """The ratings of a call, asked for twice at most."""
        messages = call.messages()
        try:
            for _ in range(2):
                reply = self._reply(messages, client, stopped)
                ratings = parsed(reply, len(call.items))
                if ratings is not None:
                    return ratings
                mend = REPAIR.format(count=len(call.items), highest=HIGHEST)
                messages = [*messages, _said("assistant", reply), _said("user", mend)]
        except _Passing as error:
            self._complaint = str(error)
            return Failure.no_answer
        except _Lasting as error:
            self._complaint = str(error)
            return Failure.refused
        self._complaint = f"the answer {reply[:DETAIL]!r}"
        return Failure.unreadable

    def _reply(self, messages: Messages, client: "httpx.Client", stopped: threading.Event) -> str:
        """The text that answers a conversation: from the cache, or asked for and kept there."""
        import tenacity

        request = {name: int(value) if value.is_integer() else value for name, value in self.endpoint.request.items()}
        body = {**request, "model": self.config.model, "messages": messages}
        kept = self._kept(body)
        if kept.is_file():
            return read_json(kept)["reply"]
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Passing),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(self.endpoint.attempts), tenacity.stop_when_event_set(stopped)
            ),
            wait=self._pause,
            sleep=tenacity.sleep_using_event(stopped),
            reraise=True,
        )
        reply = attempts(self._asked, body, client)
        write_json(kept, {"base_url": self.endpoint.base_url, "request": body, "reply": reply})
        return reply

    def _kept(self, body: dict) -> Path:
        """Where the reply to a request is kept: the address, the model and every field of it are in the name."""
        text = json.dumps([self.endpoint.base_url, body], sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()
        return Path(self.endpoint.cache) / name[:2] / f"{name}.json"

    def _pause(self, state: "RetryCallState") -> float:
        """Seconds before the next attempt: doubled each time, or what the server asked for if that is more."""
        error = state.outcome.exception() if state.outcome else None
        asked = error.pause if isinstance(error, _Passing) else 0.0
        return min(max(self.endpoint.backoff_seconds * 2 ** (state.attempt_number - 1), asked), LONGEST_PAUSE)

    def _asked(self, body: dict, client: "httpx.Client") -> str:
        """One attempt. Raises _Passing, _Lasting, or UserError where no call can succeed."""
        import httpx

        try:
            response = client.post(self.endpoint.base_url.rstrip("/") + "/chat/completions", json=body)
        except httpx.TransportError as error:
            raise _Passing(type(error).__name__) from None
        if response.status_code in KEY_REFUSED:
            said = f"key_variable: {self.endpoint.key_variable} holds no key that"
            raise UserError(f"{self.where}.endpoint.{said} {self.endpoint.base_url} takes ({response.status_code})")
        if response.status_code == NOT_FOUND:
            raise UserError(
                f"{self.where}: {self.endpoint.base_url} has no model {self.config.model!r} or no chat completions "
                f"(404); correct model or endpoint.base_url"
            )
        if response.status_code == TOO_MANY or response.is_server_error:
            raise _Passing(f"status {response.status_code}", _seconds(response.headers.get("Retry-After", "")))
        if not response.is_success:
            raise _Lasting(self._without_key(f"status {response.status_code}: {response.text}"))
        return _content(response)

    def _without_key(self, text: str) -> str:
        shown = text.replace(self._key, "***") if self._key else text
        return " ".join(shown.split())[:DETAIL]


def parsed(reply: str, count: int) -> list[float] | None:
    """The `count` ratings in a reply, prose and code fences around the JSON left out; None if they are not there."""
    try:
        ratings = json.loads(reply[reply.rfind("{") : reply.rfind("}") + 1])["ratings"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(ratings, list) or len(ratings) != count or not all(map(_is_rating, ratings)):
        return None
    return [float(rating) for rating in ratings]


def _is_rating(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= HIGHEST


def _content(response: "httpx.Response") -> str:
    """The text of a chat completion; "" where the model refused to speak. Raises _Passing if it is none."""
    try:
        return response.json()["choices"][0]["message"]["content"] or ""
    except (ValueError, LookupError, TypeError):
        raise _Passing("a reply that is no chat completion") from None


def _seconds(text: str) -> float:
    """A Retry-After header; 0 for one that is absent or a date."""
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0


def _key(variable: str | None, where: str) -> str:
    if variable is None:
        return ""
    if not os.environ.get(variable):
        raise UserError(
            f"{where}.endpoint.key_variable: {variable} is not set in the environment; export the key under that name"
        )
    return os.environ[variable]


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _shuffled(texts: list[str]) -> list[str]:
    """An order that depends on the texts alone: contexts come sorted by how hard the feature fires, and a judge that
    saw that order could guess."""
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
