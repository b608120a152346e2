"""A client of OpenAI-compatible chat completions, which asks a served model patiently and never pays twice.

Every reply is kept on disk under the hash of what was asked, usable or not, before anything is made of it: a killed run
goes on where it was. A reply that cannot be read gets one request to mend it. A call that still has no usable answer is
a `Failure`, which is counted; too many of them stop the stage, and so does the limit of `spending`. What happens on
which fault: docs/ENDPOINTS.md.
"""

import hashlib
import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast
from urllib.parse import parse_qs, urlsplit

from saeexplainer.config.parts import Endpoint, Structured
from saeexplainer.endpoints import web
from saeexplainer.endpoints.completion import Reply, completions, first_text, is_error, no_completion, whole, why_cut
from saeexplainer.endpoints.spending import Bill, Purse, reported, used
from saeexplainer.errors import UserError
from saeexplainer.records import Usage
from saeexplainer.runs.processes import once
from saeexplainer.runs.storage import read_json, write_json

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState


LONGEST_PAUSE = 60.0  # seconds between two attempts
LONGEST = 2**25  # bytes of a reply, which is held in memory
DETAIL = 200  # characters of a server's complaint that are shown
HEADERS = ("Retry-After", "Content-Type", "Location")  # that are read
KEY_REFUSED, NOT_FOUND, WORTH_A_RETRY = (401, 403), 404, (408, 429)  # status codes of HTTP
AZURE = "api-version"  # in the query of its addresses; such a server reads the key from a header of its own
NOTHING = "(nothing)"  # what an empty answer is called when it is sent back: servers refuse empty messages

Value = TypeVar("Value")
Messages = list[dict[str, str]]


class Failure(StrEnum):
    """Why a call has no value."""

    no_answer = "no answer after all attempts"
    refused = "refused"
    unreadable = "no usable answer"


@dataclass(frozen=True)
class Ask(Generic[Value]):
    """One question, and how its answer is read."""

    prompt: str  # what the user says
    mend: str  # what the user says to an answer that cannot be read
    schema: dict[str, Any]  # JSON schema of the answer
    sampling: dict[str, float]  # fields of the request beside those of the settings
    read: Callable[[str], Value | None]  # the value in an answer (`replies.answer`); None if it is not there


@dataclass(frozen=True)
class Answer(Generic[Value]):
    """What came of a question."""

    value: Value | Failure
    usage: Usage  # of all replies behind it, those from the cache too


class _Passing(Exception):
    """The server may answer if it is asked again; `pause` is the number of seconds that it asked for."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class _Lasting(Exception):
    """The server will not answer this call."""


class Client:
    """One served model, for one run of a stage."""

    def __init__(self, endpoint: Endpoint, where: str) -> None:
        """`where` is the setting that messages name. Raises UserError if the key's variable is named but not set."""
        self.endpoint, self.where = endpoint, where
        self._url = completions(endpoint.base_url, where)
        self._key = _key(endpoint.key_variable, where)
        self._purse = Purse(endpoint, where)
        self._asked, self._complaint = 0, ""
        self._failures: Counter[Failure] = Counter()

    def ask(self, asked: Sequence[Ask[Value]], doing: str) -> list[Answer[Value]]:
        """An answer to each question, several at once; no two may be the same. `doing` is what the progress bar says.

        Of several processes of a stage the first one asks for all, so that nothing is paid twice. Raises UserError when
        too many have failed so far, when the money is spent, and where no call can succeed: all replies that came are
        kept.
        """
        return once(lambda: self._ask(asked, doing))

    def _ask(self, asked: Sequence[Ask[Value]], doing: str) -> list[Answer[Value]]:
        from tqdm.auto import tqdm

        found: list[Any] = [None] * len(asked)
        failures: Counter[Failure] = Counter()
        stopped = threading.Event()
        with web.client(self._url, self.endpoint.timeout_seconds, self._headers()) as http:
            pool = ThreadPoolExecutor(self.endpoint.concurrency)
            try:
                futures = {pool.submit(self._answer, one, http, stopped): at for at, one in enumerate(asked)}
                for future in tqdm(as_completed(futures), desc=doing, total=len(asked)):
                    answer = found[futures[future]] = future.result()
                    if isinstance(answer.value, Failure):
                        failures[answer.value] += 1
                        self._check_failed(self._failures + failures, self._asked + len(asked))
            finally:
                stopped.set()
                pool.shutdown(cancel_futures=True)
        self._asked += len(asked)
        self._failures += failures
        return found

    def _headers(self) -> dict[str, str]:
        if not self._key:
            return {}
        azure = {"api-key": self._key} if AZURE in parse_qs(urlsplit(self._url).query) else {}
        return {"Authorization": f"Bearer {self._key}"} | azure

    def notes(self) -> list[str]:
        """What was paid for, how many questions have no answer, and why."""
        failed = self._failures.total()
        said = f"{self.where}: {failed} of {self._asked} calls failed ({_reasons(self._failures)})"
        return [*self._purse.notes(), *([said] if failed else [])]

    def _check_failed(self, failures: Counter[Failure], asked: int) -> None:
        """Raise UserError if too many of all calls so far have failed: of the few that are asked last, one may."""
        if failures.total() > self.endpoint.max_failed_share * asked:
            raise UserError(self._too_many(failures, asked))

    def _too_many(self, failures: Counter[Failure], asked: int) -> str:
        again = ", those that made no sense too: change request to ask anew" if failures[Failure.unreadable] else ""
        return (
            f"{self.where}.endpoint: {failures.total()} of {asked} calls failed ({_reasons(failures)}); "
            f"last: {self._complaint}, from {self.endpoint.base_url}; correct that or raise max_failed_share. Answers "
            f"so far are in {self.endpoint.cache}{again}"
        )

    def _answer(self, one: Ask[Value], http: "httpx.Client", stopped: threading.Event) -> Answer[Value]:
        """The answer to a question, asked for twice at most."""
        messages, usage, reply = [_said("user", one.prompt)], Usage(0, 0, 0), None
        try:
            for _ in range(2):
                reply = self._reply(self._body(one, messages), http, stopped)
                usage += reply.usage
                value = one.read(reply.answer)
                if value is not None:
                    return Answer(cast("Value", value), usage)
                messages = [*messages, _said("assistant", reply.text.strip() or NOTHING), _said("user", one.mend)]
        except _Passing as error:
            self._complaint = str(error)
            return Answer(Failure.no_answer, usage)
        except _Lasting as error:
            self._complaint = str(error)
            return Answer(Failure.refused, usage)
        self._complaint = f"the answer {reply.text[:DETAIL]!r}{why_cut(reply.finish)}"
        return Answer(Failure.unreadable, usage)

    def _body(self, one: Ask[Value], messages: Messages) -> dict[str, Any]:
        """The request of a conversation."""
        fields = {name: whole(value) for name, value in (self.endpoint.request | one.sampling).items()}
        return fields | {"model": self.endpoint.model, "messages": messages} | self._format(one.schema)

    def _format(self, schema: dict[str, Any]) -> dict[str, Any]:
        kind = self.endpoint.structured
        if kind is None:
            return {}
        if kind is Structured.json_object:
            return {"response_format": {"type": kind.value}}
        named = {"name": "answer", "strict": True, "schema": schema}
        return {"response_format": {"type": kind.value, "json_schema": named}}

    def _reply(self, body: dict[str, Any], http: "httpx.Client", stopped: threading.Event) -> Reply:
        """What answers a request: from the cache, or asked for and kept there."""
        import tenacity

        kept = self._kept(body)
        if kept.is_file():
            try:
                return _from_cache(read_json(kept))
            except (UserError, LookupError, TypeError, AttributeError):
                raise UserError(f"{kept}: holds no reply; remove it, and the server is asked anew") from None
        attempts = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Passing),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(self.endpoint.attempts), tenacity.stop_when_event_set(stopped)
            ),
            wait=self._pause,
            sleep=tenacity.sleep_using_event(stopped),
            reraise=True,
        )
        return attempts(self._attempt, body, http, kept)

    def _kept(self, body: dict[str, Any]) -> Path:
        """Where the reply to a request is kept: the address, the model and every field of it are in the name."""
        text = json.dumps([self.endpoint.base_url, body], sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()
        return Path(self.endpoint.cache) / name[:2] / f"{name}.json"

    def _pause(self, state: "RetryCallState") -> float:
        """Seconds before the next attempt: doubled each time, or what the server asked for if that is more."""
        error = state.outcome.exception() if state.outcome else None
        asked = error.pause if isinstance(error, _Passing) else 0.0
        return min(max(self.endpoint.backoff_seconds * 2 ** (state.attempt_number - 1), asked), LONGEST_PAUSE)

    def _attempt(self, body: dict[str, Any], http: "httpx.Client", kept: Path) -> Reply:
        """Ask once, and keep the reply. Raises _Passing, _Lasting, or UserError where no call can succeed."""
        with self._purse.paying(body) as bill:
            response = self._posted(body, http, bill)
            self._check_status(response)
            entry = {"base_url": self.endpoint.base_url, "request": body} | self._content(response, bill)
            write_json(kept, entry)
            reply = _from_cache(entry)
            bill.usage, bill.estimated = reply.usage, entry["usage"] is None
            return reply

    def _posted(self, body: dict[str, Any], http: "httpx.Client", bill: Bill) -> "httpx.Response":
        """The whole response, whatever its status."""
        import httpx

        deadline = time.monotonic() + self.endpoint.timeout_seconds
        try:
            with http.stream("POST", self._url, json=body) as response:
                chunks, size = [], 0
                for chunk in response.iter_bytes():  # httpx limits the pause between two pieces, not the sum
                    chunks.append(chunk)
                    if time.monotonic() > deadline:
                        raise httpx.ReadTimeout("the reply came too slowly")
                    if (size := size + len(chunk)) > LONGEST:
                        raise httpx.ReadError(f"the reply is longer than {LONGEST // 2**20} MB")
                had = {name: response.headers[name] for name in HEADERS if name in response.headers}
                plain = {name: value.encode("ascii", "replace").decode() for name, value in had.items()}
                found = httpx.Response(response.status_code, headers=plain, content=b"".join(chunks))
                found.encoding = "utf-8"  # which JSON is; a server may name a codec that makes no text of bytes
                return found
        except httpx.RequestError as error:
            bill.unknown = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            raise _Passing(self._without_key(web.failure(error, self._url))) from None

    def _check_status(self, response: "httpx.Response") -> None:
        status = response.status_code
        if status in KEY_REFUSED:
            raise UserError(f"{self.where}.endpoint.key_variable: {self._refused(status)}")
        if status == NOT_FOUND:
            raise UserError(
                f"{self.where}.endpoint: {self.endpoint.base_url} has no model {self.endpoint.model!r} or no chat "
                "completions (404); correct model or base_url"
            )
        if response.is_success:
            return
        if response.has_redirect_location:
            raise UserError(self._sent_elsewhere(response))
        complaint = self._without_key(f"status {status}{self._way()}: {response.text}")
        if status in WORTH_A_RETRY or response.is_server_error:
            raise _Passing(complaint, _seconds(response.headers.get("Retry-After", "")))
        raise _Lasting(complaint)

    def _refused(self, status: int) -> str:
        """What to do about a key that is not taken."""
        variable, place = self.endpoint.key_variable, self.endpoint.base_url
        if variable is None:
            return f"is null, and {place} asks for a key ({status}); name the environment variable that holds it"
        return f"{variable} holds no key that {place} takes ({status}); export another under that name"

    def _way(self) -> str:
        proxy = web.proxy_for(self._url)
        return f" by the proxy of {proxy}" if proxy else ""

    def _sent_elsewhere(self, response: "httpx.Response") -> str:
        """What to do about a redirect; its query may hold a ticket."""
        there = response.headers["Location"].partition("?")[0]
        return (
            f"{self.where}.endpoint.base_url: {self.endpoint.base_url} sends elsewhere ({response.status_code}, "
            f"{self._without_key(there)}){self._way()}; if the server is there, name it; if that is a login, log in "
            "first, or go past it with NO_PROXY"
        )

    def _content(self, response: "httpx.Response", bill: Bill) -> dict[str, Any]:
        """Text, end and reported usage of a chat completion, as they are kept. Raises _Passing if it is none, such as a
        page of HTML, and UserError on a stream, which no further attempt would make whole."""
        if response.headers.get("Content-Type", "").startswith("text/event-stream") or response.text.startswith(
            "data:"
        ):
            bill.unknown = True
            raise UserError(
                f"{self.where}.endpoint.request.stream: {self.endpoint.base_url} answers in pieces; set it to false, "
                "or name a server that answers whole"
            )
        try:
            found = response.json()
            choices = found["choices"]
            if not isinstance(choices, list) or is_error(found):
                raise TypeError
        except (ValueError, LookupError, TypeError, RecursionError):
            bill.unknown = True
            raise _Passing(self._without_key(f"{no_completion(response)}{self._way()}: {response.text}")) from None
        text, finish = first_text(choices)
        # A lone surrogate is valid JSON, and no text that a tokenizer, a file or another request takes.
        text = text.encode("utf-8", "replace").decode("utf-8")
        text = text.replace(self._key, "***") if self._key else text
        return {"reply": text, "finish": finish, "usage": reported(found.get("usage"))}

    def _without_key(self, text: str) -> str:
        shown = text.replace(self._key, "***") if self._key else text
        return " ".join(shown.split())[:DETAIL]


def object_schema(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of {name: value}."""
    return {"type": "object", "properties": {name: value}, "required": [name], "additionalProperties": False}


def list_schema(name: str, of: str) -> dict[str, Any]:
    """JSON schema of {name: [of, ...]}; how many is checked here, because not all servers know how to."""
    return object_schema(name, {"type": "array", "items": {"type": of}})


def _from_cache(entry: dict[str, Any]) -> Reply:
    """Of an entry as it is kept; older ones do not say why a reply ended."""
    text, usage = entry["reply"], reported(entry.get("usage"))
    if not isinstance(text, str):
        raise TypeError
    return Reply(text, entry.get("finish"), used(usage, entry["request"], text))


def _seconds(text: str) -> float:
    """A Retry-After header, seconds or a date; 0 for what is neither, or over."""
    try:
        seconds = float(text)
    except ValueError:
        date = parsedate_tz(text)
        seconds = mktime_tz(date) - time.time() if date else 0.0
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def _key(variable: str | None, where: str) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"{where}.endpoint.key_variable: {variable} is not set in the environment; export the key under that name"
        )
    if not (key.isascii() and key.isprintable()):  # no header can hold it
        raise UserError(f"{where}.endpoint.key_variable: what {variable} holds is no key; export it again, in one line")
    return key


def _reasons(failures: Counter[Failure]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(failures.items()))


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
