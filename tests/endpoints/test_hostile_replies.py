"""Replies of a server that means harm or is broken: each is an answer or a counted failure; what is kept is text."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from served import endpoint

from saeexplainer.endpoints import web
from saeexplainer.endpoints.client import LONGEST, Ask, Client, Failure, list_schema
from saeexplainer.errors import UserError
from saeexplainer.models import replies
from saeexplainer.runs.storage import read_json

MONEY = {"max_cost": 1.0, "million_prompt_tokens": 1.0, "million_completion_tokens": 1.0, "attempts": 1}
QUESTION = Ask(
    "q", "mend", list_schema("texts", "string"), {}, lambda answer: replies.values(answer, "texts", 2)
)  # fmt: skip
RIGHT = '{"texts": ["a", "b"]}'


def completion(content: Any, **more: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]} | more).encode()


def choices(*found: Any) -> bytes:
    return json.dumps({"choices": found}).encode()


def usage(tokens: Any) -> bytes:
    return completion(RIGHT, usage={"prompt_tokens": tokens, "completion_tokens": tokens})


class Endless(httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield b" " * 2**20


def asked(folder: Path, monkeypatch: pytest.MonkeyPatch, content: Any, headers: dict[str, str]) -> Any:
    """The value that comes of one question to a server which always replies so."""
    body = {"stream": content} if isinstance(content, Endless) else {"content": content}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, **body))
    monkeypatch.setattr(web, "client", lambda *_: httpx.Client(transport=transport))
    (found,) = Client(endpoint(1, folder, **MONEY), "x").ask([QUESTION], "")
    for kept in (folder / "cache").rglob("*.json"):
        read_json(kept)["reply"].encode()
    return found.value


UNUSABLE: dict[str, bytes | Endless] = {
    "nothing": b"",
    "spaces": b" " * 1000,
    "HTML": b"<!doctype html><p>log in",
    "XML": b"<?xml version='1.0'?><a/>",
    "half": completion(RIGHT)[:40],
    "two": completion(RIGHT) * 2,
    "NUL": b"\0" * 9,
    "a pickle": b"\x80\x04K\x07.",
    "UTF-7": b"+AHs-",
    "no UTF-8": b'{"choices": "\xff"}',
    "deep": b"[" * 200_000,
    "digits": b'{"choices": [' + b"1" * 5000 + b"]}",
    "endless": Endless(),
    "longer than any": b" " * (LONGEST + 1),
    "null": b"null",
    "a number": b"7",
    "a list": b"[]",
    "no choices": b"{}",
    "choices twice": b'{"choices": [], "choices": 7}',
    "choices in an object": b'{"choices": {"0": 1}}',
    "no choice": choices(),
    "a text for a choice": choices("x"),
    "null for a choice": choices(None),
    "no message": choices({}),
    "null for a message": choices({"message": None}),
    "a list for a message": choices({"message": []}),
    "null for a content": completion(None),
    "a number for a content": completion(7),
    "an object for a content": completion({"text": RIGHT}),
    "parts of any kind": completion([7, None, {"type": ["text"]}, {"type": "text", "text": 7}]),
    "an error that escapes": choices({"error": "\x1b[31m"}),
    "objects in objects": completion('{"a":' * 20_000),
    "lists in lists": completion("[" * 200_000),
    "braces": completion("{" * 20_000),
    "a million characters": completion("x" * 10**6),
    "spaces between": completion("x" + " " * 200_000 + "x"),
    "thoughts in thoughts": completion("<think>" * 30_000),
    "thoughts that end and end": completion("</think>" * 10_000),
    "fences": completion("```" * 60_000),
    "channels": completion("<|channel|>" * 20_000),
    "quotation marks": completion('{"texts": ["' + '"' * 5000 + '"]}'),
    "half a list": completion('{"texts": ["a", "b"'),
    "lists that never close": completion('{"texts":[{' * 5000),
    "one text": completion('{"texts": ["a"]}'),
    "a number of texts": completion('{"texts": 2}'),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_is_no_answer_is_a_counted_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    assert isinstance(asked(tmp_path, monkeypatch, UNUSABLE[kind], {}), Failure)


CODECS = [
    "hex",
    "rot13",
    "zlib",
    "idna",
    "undefined",
    "utf-7",
    "utf-16",
    "base64",
    "unicode_escape",
    "no-such",
    "\xff",
    '"',
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("content", [completion(RIGHT), b"<html>"], ids=["an answer", "a page"])
def test_a_codec_that_a_server_names_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, content: bytes
) -> None:
    found = asked(tmp_path, monkeypatch, content, [(b"Content-Type", f"text/html; charset={codec}".encode("latin-1"))])
    assert found == (Failure.no_answer if content == b"<html>" else ["a", "b"])


PACKED = {
    "that is none": b"\x1f\x8bxx",
    "that unfolds": gzip.compress(b" " * 5 * 10**7),
    "that is cut": gzip.compress(completion(RIGHT))[:-20],
}


@pytest.mark.parametrize("kind", PACKED)
def test_a_packed_reply_that_cannot_be_unpacked_is_a_counted_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    assert isinstance(asked(tmp_path, monkeypatch, PACKED[kind], {"Content-Encoding": "gzip"}), Failure)


@pytest.mark.parametrize(
    "tokens",
    [10**400, 10**30, 1e300, -1, 1.5, float("nan"), float("inf"), "7", True, None, [], {}],
    ids=lambda one: str(one)[:9],
)
def test_tokens_that_are_no_count_are_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: Any) -> None:
    assert asked(tmp_path, monkeypatch, usage(tokens), {}) == ["a", "b"]


HOSTILE = ["\x1b[2J", "\u202e\u2066", "\ud800", "\0", "</script>", "x" * 10**5, "\u2028"]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:12])
def test_a_hostile_text_in_an_answer_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    found = asked(tmp_path, monkeypatch, completion(json.dumps({"texts": [text, "b"]})), {})
    assert found == [text.replace("\ud800", "?"), "b"]


def test_a_kept_reply_that_is_damaged_says_what_to_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(tmp_path, monkeypatch, completion(RIGHT), {}) == ["a", "b"]
    (kept,) = (tmp_path / "cache").rglob("*.json")
    whole = kept.read_bytes()
    number = whole.replace(b'"reply": "', b'"reply": 7, "x": "')
    for content in (
        b"",
        b"[]",
        b"null",
        b"{}",
        b"7",
        whole[:50],
        whole + b"\xe9",
        number,
        whole.replace(b'"request"', b'"r"'),
    ):
        kept.write_bytes(content)
        with pytest.raises(UserError, match=f"^{kept}: holds no reply; remove it, and the server is asked anew$"):
            asked(tmp_path, monkeypatch, completion(RIGHT), {})
    kept.write_bytes(whole.replace(b'"usage": null', b'"usage": {"prompt_tokens": "x"}'))
    assert asked(tmp_path, monkeypatch, completion(RIGHT), {}) == ["a", "b"]


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(
    pieces=st.lists(
        st.sampled_from([*'{}[]":,\\ \n', "texts", "<think>", "</think>", "```", "a", RIGHT, "\ud800"]), max_size=60
    )
)
def test_any_reply_is_read_or_is_none(pieces: list[str]) -> None:
    said = "".join(pieces)
    found = replies.values(replies.answer(said), "texts", 2)
    assert found is None or len(found) >= 2
    replies.last_json(said, "texts", list)
