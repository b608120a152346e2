"""The client of endpoints: what comes of every fault, what is kept, and where spending ends."""

import json
import os
import re
import socket
import time
from dataclasses import replace
from email.utils import formatdate

import httpx
import pytest
from served import Mood, Server, endpoint, serving

from saeexplainer.config.parts import Structured
from saeexplainer.endpoints import web
from saeexplainer.endpoints.client import Answer, Ask, Client, Failure, _seconds, list_schema
from saeexplainer.errors import UserError
from saeexplainer.models.replies import last_json, values
from saeexplainer.records import Usage
from saeexplainer.runs.storage import read_json, write_json


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
TWO = replace(question("two"), read=lambda answer: values(answer, "texts", 2))


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


def test_failures_are_a_share_of_all_calls_so_far(serve, tmp_path):
    """Of who is asked several times, the last questions may be few: one failure among them is not half of the calls."""
    client = Client(endpoint(serve(*[Mood.right] * 5, "no", "no"), tmp_path, max_failed_share=0.2), "x")
    assert [answer.value for answer in client.ask(NAMES[:5], "")].count(Failure.unreadable) == 0
    assert client.ask(NAMES[5:], "")[0].value is Failure.unreadable
    alone = Client(endpoint(serve("no", "no"), tmp_path, max_failed_share=0.2), "x")
    with pytest.raises(UserError, match="1 of 1 calls failed"):
        alone.ask(NAMES[5:], "")


@pytest.mark.parametrize("step", [Mood.hangs, Mood.drips], ids=str)
def test_nobody_waits_longer_than_the_timeout(serve, tmp_path, step):
    server = serve(*[step] * 2)
    (found,) = Client(endpoint(server, tmp_path, timeout_seconds=0.3, attempts=2), "x").ask(NAMES[:1], "")
    assert found.value is Failure.no_answer and len(server.requests) == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("status", "said"), [(401, "key_variable: is null, and http.* asks for a key"), (403, "403"), (404, "'tiny'")]
)
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


DRAFT = '{"texts": ["DRAFT", "DRAFT"]}'
GOOD = '{"texts": ["a dog", "a cat"]}'


def choice(content, finish: str | None = "stop", **fields) -> dict:
    """A choice of a chat completion, as servers of models that think give it."""
    return {"message": {"role": "assistant", "content": content} | fields, "finish_reason": finish}


THOUGHTS = {
    "cut while it thinks": choice(f"<think> {DRAFT} Hm,", "length"),
    "cut, and nobody says so": choice(f"<think> {DRAFT} Hm,"),
    "cut, and the template opened the thoughts": choice(f"Perhaps {DRAFT}? Hm,", "length"),
    "nothing behind the thoughts": choice(f"Perhaps {DRAFT}?</think> I would rather not."),
    "in a channel": choice(f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant"),
    "in a field of its own": choice(None, "length", reasoning_content=DRAFT, reasoning=DRAFT),
    "in a field of its own alone": {"message": {"reasoning_content": DRAFT}, "finish_reason": "length"},
    "in a part of its own": choice([{"type": "thinking", "thinking": [{"type": "text", "text": DRAFT}]}]),
    "in a call of a tool": choice(None, "tool_calls", tool_calls=[{"function": {"name": "f", "arguments": DRAFT}}]),
    "a refusal": choice(None, refusal="No."),
    "cut in the middle": choice('{"texts": ["a dog", "a ca', "length"),
    "filtered": choice(GOOD + " And", "content_filter"),
}


@pytest.mark.parametrize("step", THOUGHTS.values(), ids=THOUGHTS)
def test_thoughts_are_never_an_answer_and_a_cut_one_is_a_counted_failure(serve, tmp_path, step):
    server = serve(step, step)
    client = Client(endpoint(server, tmp_path), "x")
    assert client.ask(NAMES[:1], "") == [Answer(Failure.unreadable, Usage(2, 40, 10))]
    assert client.notes()[-1] == "x: 1 of 1 calls failed (no usable answer 1)"
    again = Client(endpoint(server, tmp_path, max_failed_share=0.0), "x")  # the kept reply is read alike
    with pytest.raises(
        UserError, match="raise max_tokens in request" if step["finish_reason"] == "length" else "answer"
    ):
        again.ask(NAMES[:1], "")
    assert len(server.requests) == 2


ANSWERS = {
    "behind thoughts": choice(f"<think>{DRAFT}</think>{GOOD}"),
    "behind thoughts that the template opened": choice(f"{DRAFT}</think>\n{GOOD}"),
    "behind channels": choice(
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{GOOD}"
    ),
    "beside a field of thoughts": choice(GOOD, reasoning_content=DRAFT, reasoning=DRAFT),
    "in parts": choice([
        {"type": "thinking", "text": DRAFT}, {"type": "text", "text": GOOD[:9]}, {"type": "text", "text": GOOD[9:]}
    ]),
    "whole, then cut": choice(GOOD + "\n\n\n", "length"),
    "without a reason to end": choice(GOOD, None),
    "with a mark at its start": choice("\ufeff" + GOOD),
    "with slips": choice("{'texts': ['a dog', 'a cat',],}"),
    "in a body with a mark": b"\xef\xbb\xbf" + json.dumps(
        {"choices": [choice(GOOD)], "usage": {"prompt_tokens": 10.0, "completion_tokens": 5}}
    ).encode(),
    "beside nulls": json.dumps({
        "choices": [choice(GOOD)], "error": None,
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "details": None},
    }).encode(),
    "beside what is no number": json.dumps(
        {"choices": [choice(GOOD, logprobs=float("nan"))], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
    ).encode(),
    "of two choices": json.dumps(
        {"choices": [choice(GOOD), choice(DRAFT)], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
    ).encode(),
}  # fmt: skip


@pytest.mark.parametrize("step", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_found_wherever_a_server_puts_it_and_paid_once(serve, tmp_path, step):
    server = serve(step)
    for _ in range(2):
        assert Client(endpoint(server, tmp_path), "x").ask([TWO], "") == [Answer(["a dog", "a cat"], Usage(1, 10, 5))]
    assert len(server.requests) == 1


ODD = {
    "an error in the choice": json.dumps({"choices": [{"error": {"code": 502}, "finish_reason": "error"}]}).encode(),
    "an error beside no choice": b'{"choices": [], "error": {"message": "overloaded"}}',
    "no choices": b'{"choices": null}', "a list": b"[]", "a text": b'"choices"', "nothing": b"", "a number": b"7",
    "no UTF-8": b'{"choices": "\xff"}', "deep": b"[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("step", ODD.values(), ids=ODD)
def test_what_is_no_completion_is_tried_again_and_never_kept(serve, tmp_path, step):
    server = serve(step, step)
    assert Client(endpoint(server, tmp_path), "x").ask([TWO], "")[0].usage == Usage(1, 10, 5)
    assert len(server.requests) == 3 and len(list((tmp_path / "cache").rglob("*.json"))) == 1


@pytest.mark.parametrize(
    ("step", "said"),
    [(Mood.elsewhere, r"base_url: http\S* sends elsewhere \(302, https://login\.example/sso\); .*NO_PROXY"),
     (Mood.streams, r"request\.stream: .* in pieces; set it to false"),
     (Mood.page, r": 1 of 1 .* a page instead of a chat completion \(does base_url lack.*\): <html>")],
)  # fmt: skip
def test_a_login_a_stream_and_a_page_are_one_line_each(serve, tmp_path, step, said):
    client = Client(endpoint(serve(*[step] * 3), tmp_path, max_failed_share=0.0), "x")
    with pytest.raises(UserError, match=rf"^x\.endpoint\.?{said}") as caught:
        client.ask(NAMES[:1], "")
    assert "\n" not in str(caught.value) and "ticket" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_any_field_of_a_request_arrives_as_it_is_set(serve, tmp_path):
    server = serve()
    request = {
        "max_tokens": 800.0, "presence_penalty": -0.5, "reasoning_effort": "low", "store": False, "user": None,
        "stop": ["\n\n", "END"], "logit_bias": {"50256": -100},
        "chat_template_kwargs": {"enable_thinking": False, "budget": 1.0},
    }  # fmt: skip
    Client(endpoint(server, tmp_path, request=request), "x").ask([TWO], "")
    assert {name: server.requests[0][name] for name in request} == request
    assert repr(server.requests[0]["max_tokens"]) == "800"


@pytest.mark.parametrize(
    ("tail", "path"),
    [("/v1", "/v1/chat/completions"), ("/v1/", "/v1/chat/completions"),
     ("/v1?api-version=2024-10-21&x=a%2Fb", "/v1/chat/completions?api-version=2024-10-21&x=a%2Fb")],
)  # fmt: skip
def test_the_path_is_put_before_the_query(serve, tmp_path, monkeypatch, tail, path):
    server = serve()
    monkeypatch.setenv("SOME_KEY", "a-secret")
    at = f"http://127.0.0.1:{server.server_port}{tail}"
    Client(endpoint(server, tmp_path, base_url=at, key_variable="SOME_KEY"), "x").ask([TWO], "")
    assert server.paths == [path] and server.keys == {"Bearer a-secret"}
    assert server.headers[0].get("api-key") == ("a-secret" if "?" in tail else None)  # which Azure reads


def test_a_server_at_an_address_of_ipv6_is_asked(tmp_path):
    class Six(Server):
        address_family = socket.AF_INET6

    with serving(Six) as start:
        try:
            server = start(host="::1")
        except OSError:
            pytest.skip("this machine has no IPv6")
        at = f"http://[::1]:{server.server_port}/v1"
        (found,) = Client(endpoint(server, tmp_path, base_url=at), "x").ask([TWO], "")
        assert len(found.value) == 2 and server.paths == ["/v1/chat/completions"]


def test_a_reply_that_an_earlier_version_kept_is_found_and_read(tmp_path):
    """Under the hash of the same address and request, without the reason why it ended."""
    config = endpoint(1, tmp_path, request={"max_tokens": 100.0, "seed": 0.0}, structured=Structured.json_schema)
    name = "7c07cc206f3aad3c698fe5206dc3cc5b422b2df02cc411f23aa732ee43a63ac4"
    entry = {"base_url": config.base_url, "request": {"messages": [{"content": "two"}]}, "reply": GOOD, "usage": None}
    write_json(tmp_path / "cache" / name[:2] / f"{name}.json", entry)
    asked = replace(TWO, prompt="two", sampling={"temperature": 1.0, "top_p": 0.5})
    assert Client(config, "x").ask([asked], "")[0].value == ["a dog", "a cat"]  # and nobody is at that port


AWAY = "http://model.invalid/v1"  # which no name server knows
SURROUNDINGS = {
    "a proxy that is gone": ({"HTTP_PROXY": "http://u:pw@127.0.0.1:1"}, "ConnectError .* by the proxy of HTTP_PROXY (http://127.0.0.1:1)"),
    "small letters win": ({"HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "127.0.0.1:2"}, "proxy of http_proxy (http://127.0.0.1:2)"),
    "one for all by SOCKS": ({"ALL_PROXY": "socks5://127.0.0.1:1"}, "proxy of ALL_PROXY (socks5://127.0.0.1:1)"),
    "another kind of SOCKS": (
        {"ALL_PROXY": "socks4://u:pw@127.0.0.1:1"},
        "ALL_PROXY: holds no proxy's address; give one like http://host:3128 or socks5://host:1080, or unset it",
    ),
    "no port": ({"HTTPS_PROXY": "http://127.0.0.1:port"}, "HTTPS_PROXY: holds no proxy's address"),
    "no host": ({"HTTPS_PROXY": "http://"}, "HTTPS_PROXY: holds no proxy's address"),
    "certificates that are gone": (
        {"SSL_CERT_FILE": "/nowhere.pem"}, "SSL_CERT_FILE: /nowhere.pem holds no certificates (No such file",
    ),
    "certificates that are none": ({"SSL_CERT_FILE": __file__}, "test_client.py holds no certificates ("),
    "a folder of none": ({"SSL_CERT_DIR": "/nowhere"}, "SSL_CERT_DIR: /nowhere is no folder; "),
    "an entry with brackets": ({"NO_PROXY": "[::1]"}, "NO_PROXY: has an entry that is no host ("),
    "a log that cannot be": ({"SSLKEYLOGFILE": "/nowhere/log"}, "SSLKEYLOGFILE: cannot be written (No such file"),
    "nothing": ({}, "ConnectError ("),
}  # fmt: skip


@pytest.fixture
def surrounded(monkeypatch):
    """Sets the variables that HTTP clients read, and no others of them."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"):
        monkeypatch.delenv(name, raising=False)
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


@pytest.mark.parametrize(("variables", "said"), SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_proxies_and_certificates_are_one_line_and_never_keep_from_this_machine(
    serve, tmp_path, monkeypatch, surrounded, variables, said
):
    surrounded(variables)
    with pytest.raises(UserError) as caught:
        Client(endpoint(1, tmp_path, base_url=AWAY, attempts=1, max_failed_share=0.0), "x").ask([TWO], "")
    line = str(caught.value)
    assert re.search(".*".join(map(re.escape, said.split(" .* "))), line) and "\n" not in line and "pw" not in line
    assert len(Client(endpoint(serve(), tmp_path), "x").ask([TWO], "")[0].value) == 2
    for name in variables:
        monkeypatch.delenv(name)
    assert web.complaint() is None  # unset, as the line says


def test_a_proxy_that_works_is_asked_and_no_proxy_goes_past_it(serve, tmp_path, surrounded):
    server = serve()
    proxy = f"http://127.0.0.1:{server.server_port}"
    surrounded({"HTTP_PROXY": proxy})
    (found,) = Client(endpoint(1, tmp_path, base_url=AWAY), "x").ask([TWO], "")
    assert len(found.value) == 2 and server.paths == [f"{AWAY}/chat/completions"]
    surrounded({"NO_PROXY": "model.invalid"})
    with pytest.raises(UserError, match=r"ConnectError \([^()]*\), from"):
        Client(endpoint(1, tmp_path / "past", base_url=AWAY, attempts=1, max_failed_share=0.0), "x").ask([TWO], "")


def test_programs_of_others_go_past_the_proxy_on_this_machine(surrounded):
    """httpx, which Prefect uses, asks the proxy for 127.0.0.1 too, unless NO_PROXY has it."""
    surrounded({"HTTP_PROXY": "http://127.0.0.1:1", "NO_PROXY": "host.org,[::1]", "ALL_PROXY": "socks5://127.0.0.1:1"})
    web.keep_loopback_direct()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "host.org,::1,localhost,127.0.0.1"
    with serving() as start:
        at = f"http://127.0.0.1:{start().server_port}/v1/chat/completions"
        assert (
            httpx.post(at, json={"messages": [{"content": '"texts" [1 strings]'}], "temperature": 1}).status_code == 200
        )
    surrounded({"NO_PROXY": "*", "no_proxy": "*"})
    web.keep_loopback_direct()
    assert os.environ["NO_PROXY"] == "*"
