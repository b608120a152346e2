"""Neuronpedia's API, played by a local server with its address, its shape and its moods: asked once, never hurried."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from saeexplainer import neuronpedia
from saeexplainer.errors import UserError
from saeexplainer.neuronpedia import Pace, Server, fetch
from tasks import command_line, exchange, progress

SOURCE = "gpt2-small/6-res"
OFTEN = 6_000_000.0  # requests a minute: no waiting in tests


def feature(index: int, **changes: object) -> bytes:
    """What the API answers."""
    peak = {"tokens": ["a", "▁dog"], "values": [0, 2.5], "maxValue": 2.5, "maxValueTokenIndex": 1}
    answer = {
        "modelId": "gpt2-small", "layer": "6-res", "index": str(index), "maxActApprox": 2.5, "frac_nonzero": 0.01,
        "explanations": [{"description": f"dogs {index}", "explanationModelName": "x"}], "activations": [peak],
    }  # fmt: skip
    return json.dumps(answer | changes).encode()


class Api(ThreadingHTTPServer):
    """GET /api/feature/gpt2-small/6-res/INDEX; `script` says what comes first: a status or the bytes of a body."""

    def __init__(self, *script: int | bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.asked, self.keys = list(script), [], set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Follows the server's script, then answers well."""

    server: Api

    def do_GET(self) -> None:
        """http.server's name."""
        self.server.asked.append(self.path)
        self.server.keys.add(self.headers.get("x-api-key"))
        turn = self.server.script.pop(0) if self.server.script else 200
        status = turn if isinstance(turn, int) else 200
        index = int(self.path.rpartition("/")[2])
        body = turn if isinstance(turn, bytes) else feature(index) if status == 200 else b"the key is a-secret"
        self.send_response(status)
        self.send_header("Retry-After", "0.001")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(neuronpedia.KEY_VARIABLE, raising=False)
    started = []

    def start(*script: int | bytes) -> Api:
        started.append(Api(*script))
        threading.Thread(target=started[-1].serve_forever, args=(0.01,), daemon=True).start()
        return started[-1]

    yield start
    for api in started:
        api.shutdown()
        api.server_close()


def asked_of(api: Api, folder: Path, *indices: int) -> neuronpedia.Fetched:
    server = Server(api.url, folder / "cache", OFTEN, attempts=3, backoff_seconds=0.001)
    return fetch([f"{SOURCE}/{index}" for index in indices], server)


def said(found: neuronpedia.Fetched) -> list[str]:
    return [record.explanation for record in found.records]


def test_a_feature_is_asked_for_once(serve, tmp_path):
    api = serve()
    found = asked_of(api, tmp_path, 7, 3)
    assert said(found) == ["dogs 7", "dogs 3"] and found.records[0].context_texts == ["a dog"]
    assert api.asked == [f"/api/feature/{SOURCE}/7", f"/api/feature/{SOURCE}/3"] and api.keys == {None}
    assert said(asked_of(api, tmp_path, 3, 7, 8)) == ["dogs 3", "dogs 7", "dogs 8"] and len(api.asked) == 3


@pytest.mark.parametrize(
    "mood", [429, 500, 503, b'{"modelId": "gpt2', b"<html>", feature(8), b'{"d": NaN}', b"[]x", b"[1]"], ids=repr
)
def test_what_passes_is_asked_again_and_never_kept(serve, tmp_path, mood):
    api = serve(mood, mood)
    assert said(asked_of(api, tmp_path, 7)) == ["dogs 7"] and len(api.asked) == 3
    assert said(asked_of(api, tmp_path, 7)) == ["dogs 7"] and len(api.asked) == 3


def test_a_server_that_stays_away_is_one_line_and_the_next_run_goes_on(serve, tmp_path):
    api = serve(200, 429, b"{", 500)
    with pytest.raises(
        UserError, match=r"no answer about gpt2-small/6-res/8 after 3 attempts \(status 500\)"
    ) as caught:
        asked_of(api, tmp_path, 7, 8, 9)
    assert "\n" not in str(caught.value) and len(api.asked) == 4
    assert said(asked_of(api, tmp_path, 7, 8, 9)) == ["dogs 7", "dogs 8", "dogs 9"]
    assert len(api.asked) == 6  # 7 was there


def test_nobody_at_the_address_is_one_line(serve, tmp_path):
    api = serve()
    api.shutdown()
    api.server_close()
    with pytest.raises(UserError, match="ConnectError"):
        asked_of(api, tmp_path, 7)


def test_what_is_not_there_or_not_readable_is_listed_and_the_rest_goes_on(serve, tmp_path):
    api = serve(404, b"null", feature(9, activations=[{"tokens": []}]))
    found = asked_of(api, tmp_path, 7, 8, 9, 10)
    assert found.missing == [f"{SOURCE}/7", f"{SOURCE}/8"] and said(found) == ["dogs 10"]
    assert found.unreadable == {
        f"{SOURCE}/9": "activations[0].maxValueTokenIndex: missing; must be an index of its 0 tokens"
    }
    assert said(asked_of(api, tmp_path, 7)) == ["dogs 7"]  # by now it is there


@pytest.mark.parametrize("status", [400, 401, 403])
def test_the_key_is_sent_and_shown_nowhere(serve, tmp_path, monkeypatch, status):
    monkeypatch.setenv(neuronpedia.KEY_VARIABLE, "a-secret")
    api = serve(200, status)
    with pytest.raises(UserError, match=str(status)) as caught:
        asked_of(api, tmp_path, 7, 8)
    assert "a-secret" not in str(caught.value) and api.keys == {"a-secret"} and len(api.asked) == 2
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(kept) == 1 and "a-secret" not in kept[0].read_text(encoding="utf-8")


def test_a_key_with_a_line_end_is_sent_without_it_and_two_lines_are_no_key(serve, tmp_path, monkeypatch):
    api = serve()
    monkeypatch.setenv(neuronpedia.KEY_VARIABLE, "a-secret\n")
    assert said(asked_of(api, tmp_path, 7)) == ["dogs 7"] and api.keys == {"a-secret"}
    monkeypatch.setenv(neuronpedia.KEY_VARIABLE, "a-secret\nanother")
    with pytest.raises(UserError, match=f"{neuronpedia.KEY_VARIABLE}: what it holds is no key") as caught:
        asked_of(api, tmp_path, 8)
    assert "secret" not in str(caught.value) and len(api.asked) == 1


def test_requests_are_evenly_spaced():
    now, waits = [100.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    pace = Pace(per_minute=30.0, clock=lambda: now[0], sleep=sleep)
    for busy in (0.0, 0.5, 5.0, 0.0):  # seconds that the request before took
        now[0] += busy
        pace.wait()
    # At 100; two seconds later, of which half a one was work; at 107, late; two seconds after that.
    assert waits == [1.5, 2.0] and now == [109.0]


def test_a_file_is_made_that_can_be_imported(serve, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    api = serve(200, 404)
    lines = exchange.fetch(SOURCE, "3-5,3", Path("np.jsonl"), api.url, OFTEN, Path("cache"), force=False)
    assert lines == ["np.jsonl: 2 records", "not there: 1 of 3 features, such as gpt2-small/6-res/4"]
    assert exchange.import_file(Path("np.jsonl"), None, None, force=False)[0].startswith(
        "data/imported/np.parquet: explanations of 2 of 2 features"
    )
    monkeypatch.setattr(progress, "install", lambda _: None)  # it would change the bars of the tests that follow
    again = ["fetch", SOURCE, "--features", "3", "--to", "np.jsonl", "--base-url", api.url, "--cache", "cache"]
    assert command_line.main(again) == 2 and command_line.main([*again, "--force"]) == 0
    assert len(Path("np.jsonl").read_text().splitlines()) == 1 and len(api.asked) == 3


@pytest.mark.parametrize(
    ("source", "wanted", "url", "message"),
    [
        ("gpt2", "0", "http://h", "gpt2: must be model/source"),
        (SOURCE, "3-1", "http://h", "--features: '3-1' is no index and no range"),
        (SOURCE, "a", "http://h", "--features: 'a' is no index and no range"),
        (SOURCE, "0", "http://me:pw@h", "--base-url: must be like https://host, without user"),
    ],
)
def test_a_mistake_is_named_before_anybody_is_asked(tmp_path, monkeypatch, source, wanted, url, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        exchange.fetch(source, wanted, Path("x"), url, OFTEN, Path("cache"), force=False)
    assert "pw" not in str(caught.value) and not list(tmp_path.iterdir())
