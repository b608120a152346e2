"""Feature records from Neuronpedia's API, or from another server that speaks it: one request a feature.

Requests are evenly spaced, so that the server's limit is kept. Every answer is kept on disk under the hash of its
address before anything is made of it: a killed run goes on where it was. What passes (429, 5xx, broken connections and
broken JSON) is tried again; a server that goes on like that ends the run, a feature that it does not have is listed.
For whole SAEs Neuronpedia offers exports, which need no request a feature: docs/EXCHANGE.md.
"""

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeexplainer import exchange, web
from saeexplainer.errors import UserError
from saeexplainer.records import FeatureRecord
from saeexplainer.storage import read_json, write_json

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

KEY_VARIABLE = "NEURONPEDIA_API_KEY"  # sent as x-api-key where it is set; reading needs none
LONGEST_PAUSE = 600.0  # seconds between two attempts; limits are by the hour
DETAIL = 200  # characters of a server's complaint that are shown
KEY_REFUSED, NOT_FOUND, TOO_MANY = (401, 403), 404, 429  # status codes of HTTP


@dataclass(frozen=True)
class Server:
    """Where to ask, and how patient to be."""

    base_url: str  # /api/feature/MODEL/SOURCE/INDEX is added
    cache: Path  # folder of all answers
    per_minute: float  # requests at most, retries included
    attempts: int = 6  # at a feature
    backoff_seconds: float = 2.0  # pause before the second attempt; it doubles, and is longer if the server says so
    timeout_seconds: float = 30.0  # of one attempt


@dataclass(frozen=True)
class Fetched:
    """What came of the features that were asked for."""

    records: list[FeatureRecord]  # in the order asked
    missing: list[str]  # ids that the server does not have
    unreadable: dict[str, str]  # id to what is wrong with the answer


class _Passing(Exception):
    """The server may answer if it is asked again; `pause` is the number of seconds that it asked for."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class Pace:
    """So many requests a minute at most, evenly spaced."""

    def __init__(
        self,
        per_minute: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`clock` and `sleep` are in seconds."""
        self._interval, self._clock, self._sleep, self._next = 60 / per_minute, clock, sleep, -math.inf

    def wait(self) -> None:
        """Return when the next request may be sent."""
        now = self._clock()
        if now < self._next:
            self._sleep(self._next - now)
        self._next = max(now, self._next) + self._interval


def fetch(feature_ids: Sequence[str], server: Server) -> Fetched:
    """The records of features (model/source/index). Raises UserError if the server does not answer or refuses."""
    from tqdm.auto import tqdm

    if not re.fullmatch(r"https?://[^\s@?#/:]+(:\d+)?(/[^\s@?#]*)?", server.base_url):  # it may hold a password
        raise UserError("--base-url: must be like https://host, without user, password or query")
    key, found = os.environ.get(KEY_VARIABLE, "").strip(), Fetched([], [], {})
    if not (key.isascii() and key.isprintable()):  # no header can hold it
        raise UserError(f"{KEY_VARIABLE}: what it holds is no key; export it again, in one line, or unset it")
    pace = Pace(server.per_minute)
    with web.client(server.base_url, server.timeout_seconds, {"x-api-key": key} if key else {}) as client:
        for feature_id in tqdm(feature_ids, desc="asking Neuronpedia"):
            try:
                payload = _payload(feature_id, server, client, pace)
            except _Passing as error:
                raise UserError(
                    f"{server.base_url}: no answer about {feature_id} after {server.attempts} attempts ({error}); "
                    f"the answers so far are in {server.cache}: run the same command later to go on"
                ) from None
            if payload is None:
                found.missing.append(feature_id)
                continue
            try:
                found.records.append(exchange.from_dict(payload))
            except UserError as error:
                found.unreadable[feature_id] = str(error)
    return found


def _payload(feature_id: str, server: Server, client: "httpx.Client", pace: Pace) -> Any:
    """What the server says of a feature, from the cache or asked for and kept there; None if it does not have it."""
    import tenacity

    url = f"{server.base_url.rstrip('/')}/api/feature/{feature_id}"
    name = hashlib.sha256(url.encode()).hexdigest()
    kept = server.cache / name[:2] / f"{name}.json"
    if kept.is_file():
        return read_json(kept)["answer"]

    def pause(state: "RetryCallState") -> float:
        """Seconds before the next attempt: doubled each time, or what the server asked for if that is more."""
        error = state.outcome.exception() if state.outcome else None
        asked = error.pause if isinstance(error, _Passing) else 0.0
        return min(max(server.backoff_seconds * 2 ** (state.attempt_number - 1), asked), LONGEST_PAUSE)

    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_Passing),
        stop=tenacity.stop_after_attempt(server.attempts),
        wait=pause,
        reraise=True,
    )
    payload = attempts(_asked, url, feature_id, client, pace)
    if payload is not None:  # one that is missing may come to be there
        write_json(kept, {"url": url, "answer": payload})
    return payload


def _asked(url: str, feature_id: str, client: "httpx.Client", pace: Pace) -> Any:
    """One attempt. Raises _Passing, or UserError where asking again is of no use."""
    import httpx

    pace.wait()
    try:
        response = client.get(url)
    except httpx.TransportError as error:
        raise _Passing(web.failure(error, url)) from None
    if response.status_code in KEY_REFUSED:
        raise UserError(f"{KEY_VARIABLE}: holds no key that {url} takes ({response.status_code}); correct or unset it")
    if response.status_code == NOT_FOUND:
        return None
    if response.status_code == TOO_MANY or response.is_server_error:
        raise _Passing(f"status {response.status_code}", _seconds(response.headers.get("Retry-After", "")))
    if not response.is_success:
        said = " ".join(response.text.split()).replace(client.headers.get("x-api-key") or "\0", "***")[:DETAIL]
        raise UserError(f"{url}: status {response.status_code}: {said}; correct --base-url or the feature")
    return _answer(response, feature_id)


def _answer(response: "httpx.Response", feature_id: str) -> Any:
    """The feature in a reply; None where the reply is empty. Raises _Passing if it is about another one or none."""
    try:
        payload = response.json()
        json.dumps(payload, allow_nan=False, ensure_ascii=False).encode()  # what is kept must be readable again
    except (ValueError, RecursionError):
        raise _Passing("a reply that is not JSON") from None
    if not payload:
        return None
    if not isinstance(payload, dict) or feature_id != "/".join(
        str(payload.get(name)) for name in ("modelId", "layer", "index")
    ):
        raise _Passing("a reply that is not about it")
    return payload


def _seconds(text: str) -> float:
    """A Retry-After header; 0 for one that is absent or a date."""
    try:
        seconds = float(text)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
