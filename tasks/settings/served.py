"""Checks of what runs behind a server: addresses, requests, secrets."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from saeexplainer.config import Params
from saeexplainer.config.parts import Endpoint
from saeexplainer.endpoints.spending import LENGTH_FIELDS

SECRET = re.compile("key|token|secret|password|signature|^sig$|^code$", re.IGNORECASE)  # of a query's names


def served(params: Params) -> Iterator[str]:
    """What is wrong with the settings of a server."""
    asked = {
        "label_features.labeller": params.label_features.labeller,
        "score_explanations.writer": params.score_explanations.writer,
        "evaluate.writer": params.evaluate.writer,
        "evaluate.agent": params.evaluate.agent,
    }
    asked |= {f"evaluate.judges[{index}]": judge for index, judge in enumerate(params.evaluate.judges)}
    for key, one in asked.items():
        if one is not None and one.kind == "endpoint":
            yield from _endpoint(f"{key}.endpoint", one.endpoint)


def _endpoint(key: str, endpoint: Endpoint) -> Iterator[str]:
    """Neither message repeats the value: it may hold a key."""
    yield from _base_url(f"{key}.base_url", endpoint.base_url)
    yield from _request(f"{key}.request", endpoint)
    if endpoint.key_variable is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]*", endpoint.key_variable):
        yield f"{key}.key_variable: must be the name of an environment variable (A-Z, 0-9, _), never the key itself"
    if endpoint.max_cost is not None and not (endpoint.million_prompt_tokens or endpoint.million_completion_tokens):
        yield (
            f"{key}.max_cost: is {endpoint.max_cost}; without prices nothing costs: set million_prompt_tokens and "
            "million_completion_tokens, or max_cost to null"
        )


def _base_url(key: str, address: str) -> Iterator[str]:
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port  # a ValueError where it is no number
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or "@" in parts.netloc or re.search(r"[\s#]", address):
        yield f"{key}: must be like https://host/v1 or http://[::1]:8000/v1, without user, password or #"
        return
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if SECRET.search(name):
            yield f"{key}: its query has {name}, which may be a key; export that, and name the variable in key_variable"


def _request(key: str, endpoint: Endpoint) -> Iterator[str]:
    """What a server cannot be asked, and what the client says itself."""
    request = endpoint.request
    for name, value in request.items():
        try:
            json.dumps(value, allow_nan=False, sort_keys=True)
        except (TypeError, ValueError):
            yield f"{key}.{name}: is {value!r}; must be JSON: text, finite numbers, true, false, null, lists, mappings"
    for name in ("model", "messages"):
        if name in request:
            yield f"{key}.{name}: is set twice; take it out, the client says it"
    if endpoint.structured is not None and "response_format" in request:
        yield f"{key}.response_format: is set twice; take it out, or set structured to null"
    if request.get("stream"):
        yield f"{key}.stream: is {request['stream']!r}; answers are read whole, take it out"
    for name in LENGTH_FIELDS:
        if name in request and not (_is_number(request[name]) and request[name] >= 1 and request[name] % 1 == 0):
            yield f"{key}.{name}: is {request[name]!r}; must be a whole number of at least 1"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
