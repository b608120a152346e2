"""The client of endpoints: what comes of every fault, what is kept, and where spending ends."""

import json
import time
from email.utils import formatdate

import pytest
from served import Mood, endpoint, serving

from saeexplainer.config import Structured
from saeexplainer.endpoint import Answer, Ask, Client, Failure, _seconds, last_json, list_schema
from saeexplainer.errors import UserError
from saeexplainer.records import Usage
from saeexplainer.storage import read_json


@pytest.fixture
def serve():
    with serving() as start:
        yield start


def question(name: str) -> Ask[list[str]]:
    """For two texts; the server's are never the same for two names."""
    return Ask(
        f'{name}: {{"texts": [2 strings]}}', "Only JSON.", list_schema("texts", "string"), {"temperature": 0.5},
        lambda reply: last_json(reply, "texts", list),
    )  # fmt: skip


NAMES = [question(name) for name in "abcdef"]


def test_answers_come_in_order_and_are_asked_for_once(serve, tmp_path):
    server = serve()
    client = Client(endpoint(server, tmp_path), "x")
    found = client.ask(NAMES, "")
    assert all(len(answer.value) == 2 and answer.usage == Usage(1, 10, 5) for answer in found)
    assert len({tuple(answer.value) for answer in found}) == 6 == len(server.requests)
    assert client.ask(NAMES[::-1], "") == found[::-1]
    again = Client(endpoint(server, tmp_path), "x")
    assert again.ask(NAMES, "") == found and len(server.requests) == 6 and again.notes() == []


PASSING = [429, 500, 503, 408, Mood.slow_down, Mood.breaks, Mood.page, Mood.half, Mood.complains]
MENDED = ["as prose", '{"texts": ["half', '{"texts": 3}', '{"texts": "ab"}', '{"ratings": [1]}', "", "[" * 5000,
          Mood.no_choice, Mood.no_text]  # fmt: skip


@pytest.mark.parametrize("step", PASSING, ids=str)
def test_what_passes_is_tried_again_and_never_kept(serve, tmp_path, step):
    server = serve(step, step)
    (found,) = Client(endpoint(server, tmp_path), "x").ask(NAMES[:1], "")
    assert found.usage == Usage(1, 10, 5) and len(server.requests) == 3
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1


@pytest.mark.parametrize("step", MENDED, ids=lambda step: str(step)[:20])
def test_an_answer_that_cannot_be_read_is_paid_kept_and_mended(serve, tmp_path, step):
    server = serve(step)
    (found,) = Client(endpoint(server, tmp_path), "x").ask(NAMES[:1], "")
    assert len(found.value) == 2 and found.usage == Usage(2, 40, 10)  # the second prompt has three messages
    said = server.requests[1]["messages"]
    assert [message["role"] for message in said] == ["user", "assistant", "user"] and said[1]["content"]
    assert Client(endpoint(server, tmp_path), "x").ask(NAMES[:1], "") == [found] and len(server.requests) == 2


def test_who_never_makes_sense_is_a_counted_failure_that_is_paid_once(serve, tmp_path):
    server = serve("no", "no")
    for _ in range(2):
        client = Client(endpoint(server, tmp_path), "x")
        assert client.ask(NAMES[:1], "") == [Answer(Failure.unreadable, Usage(2, 40, 10))]
        assert client.notes()[-1] == "x: 1 of 1 calls failed (no usable answer 1)" and len(server.requests) == 2
    with pytest.raises(UserError, match=r"^x\.endpoint: 1 of 1 .*last: the answer 'no'.*raise max_failed_share"):
        Client(endpoint(server, tmp_path, max_failed_share=0.5), "x").ask(NAMES[:1], "")


@pytest.mark.parametrize("step", [Mood.hangs, Mood.drips], ids=str)
def test_nobody_waits_longer_than_the_timeout(serve, tmp_path, step):
    server = serve(*[step] * 2)
    (found,) = Client(endpoint(server, tmp_path, timeout_seconds=0.3, attempts=2), "x").ask(NAMES[:1], "")
    assert found.value is Failure.no_answer and len(server.requests) == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("status", "said"), [(401, "key_variable: is null, and http.* asks for a key"), (403, "403"), (404, "'tiny'")])
def test_what_no_call_can_survive_stops_at_once_and_keeps_the_rest(serve, tmp_path, status, said):
    server = serve(Mood.right, status)
    with pytest.raises(UserError, match=rf"^x\.endpoint.*{said}") as caught:
        Client(endpoint(server, tmp_path, concurrency=1), "x").ask(NAMES, "")
    kept = len(list((tmp_path / "cache").rglob("*.json")))
    assert "\n" not in str(caught.value) and kept == len(server.paid) and kept >= 1
    done = Client(endpoint(server, tmp_path), "x").ask(NAMES, "")
    assert len(done) == 6 and len(server.paid) == len(set(server.paid)) == 6


def test_a_key_is_one_word_and_the_end_of_its_line_is_no_part_of_it(serve, tmp_path, monkeypatch):
    server = serve()
    for value in ("schlüssel-a", "two\nlines", " \n"):
        monkeypatch.setenv("SOME_KEY", value)
        with pytest.raises(UserError, match="SOME_KEY") as caught:
            Client(endpoint(server, tmp_path, key_variable="SOME_KEY"), "x")
        assert value.strip() not in str(caught.value) or not value.strip()
    monkeypatch.setenv("SOME_KEY", "a-secret\n")
    Client(endpoint(server, tmp_path, key_variable="SOME_KEY"), "x").ask(NAMES[:1], "")
    assert server.keys == {"Bearer a-secret"}


@pytest.mark.parametrize(
    ("structured", "sent"),
    [(None, None), (Structured.json_object, {"type": "json_object"}), (Structured.json_schema, "json_schema")],
)
def test_json_is_asked_for_as_the_settings_say(serve, tmp_path, structured, sent):
    server = serve()
    Client(endpoint(server, tmp_path, structured=structured), "x").ask(NAMES[:1], "")
    asked = server.requests[0].get("response_format")
    assert asked == sent or asked["json_schema"]["schema"]["required"] == ["texts"]
    assert (server.requests[0]["temperature"], server.requests[0]["max_tokens"]) == (0.5, 100)


def test_the_limit_stops_cleanly_and_a_higher_one_goes_on(serve, tmp_path):
    """A call is 10 prompt and 5 written tokens: a dollar and a dollar. Before it, 7 and 10 tokens are held."""
    server = serve()
    money = {"million_prompt_tokens": 1e5, "million_completion_tokens": 2e5, "request": {"max_tokens": 10.0}}
    estimate = 0.7 + 2.0  # 25 characters of a prompt, and the 10 tokens that the reply may have
    limited = Client(endpoint(server, tmp_path, max_cost=6.0, **money), "x")
    with pytest.raises(UserError) as caught:
        limited.ask(NAMES, "")
    assert str(caught.value).startswith("x.endpoint.max_cost: 4 of 6 USD are spent on 2 calls, and the next may take ")
    assert 4 + estimate > 6 >= 2 + estimate and len(server.requests) == 2 and "\n" not in str(caught.value)
    rest = Client(endpoint(server, tmp_path, max_cost=9.0, **money), "x")  # each run may spend as much anew
    assert len(rest.ask(NAMES, "")) == 6 and len(server.requests) == 6
    assert rest.notes() == ["x: 4 calls paid for, 40 + 20 tokens, 8 USD"]


def test_who_reports_no_tokens_is_estimated_and_who_breaks_off_may_have_billed(serve, tmp_path):
    server = serve("no usage", Mood.right, Mood.breaks, usage=False)
    money = {"million_prompt_tokens": 1e6, "million_completion_tokens": 0.0, "request": {}}
    client = Client(endpoint(server, tmp_path, concurrency=1, **money), "x")
    (first,) = client.ask(NAMES[:1], "")
    assert read_json(next((tmp_path / "cache").rglob("*.json")))["usage"] is None
    assert first.usage.prompt_tokens == 7 + (7 + 2 + 3)  # 25 characters, then with 8 of the answer and 10 to mend it
    client.ask(NAMES[1:2], "")
    (said,) = client.notes()
    assert said.startswith("x: 3 calls paid for, 26 + ") and " tokens, 33 USD" in said  # 26 and the 7 of what broke off
    assert "3 replies did not say their tokens" in said
    assert said.endswith("1 attempts broke off and are in the money by estimate")


def test_text_that_no_file_takes_is_mended(serve, tmp_path):
    server = serve('{"texts": ["\\ud800 dog", "cat"]}')
    server.script[0] = json.loads('"' + "\\ud800" + '"') + '{"texts": ["a", "b"]}'
    (found,) = Client(endpoint(server, tmp_path), "x").ask(NAMES[:1], "")
    assert found.value == ["a", "b"]
    assert read_json(next((tmp_path / "cache").rglob("*.json")))["reply"].startswith("?")


@pytest.mark.parametrize(
    ("reply", "found"),
    [('{"texts": ["a {b} c"]}', ["a {b} c"]), ('<think>{"texts": [1]}</think> {"texts": [2]} so', [2]),
     ('{"answer": {"texts": [3]}}', [3]), ('{"texts": [1]', None), ('{"texts": {}}', None), ("{" * 9999, None)],
)  # fmt: skip
def test_the_last_list_of_that_name_is_found(reply, found):
    assert last_json(reply, "texts", list) == found


def test_the_server_may_say_when_in_seconds_or_as_a_date():
    assert (_seconds("2.5"), _seconds(""), _seconds("soon"), _seconds("nan"), _seconds("-3")) == (2.5, 0, 0, 0, 0)
    assert 50 < _seconds(formatdate(time.time() + 60, usegmt=True)) <= 60 and _seconds(formatdate(0)) == 0
