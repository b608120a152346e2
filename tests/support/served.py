"""A chat completions server that answers judges, writers and labellers, misbehaves by a script, and counts its bill.

Beside it a chat model that says what it is told to say."""

import json
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from saeexplainer.config.parts import Endpoint, Pretrained

WORDS = "dog cat horse garden kitchen chases sleeps old small".split()


class Mood(Enum):
    """What a server may do instead of answering."""

    right = auto()
    hangs = auto()  # until the server is told to go on
    breaks = auto()  # half of the body, then the connection is closed
    drips = auto()  # a byte now and then, for longer than anyone waits
    page = auto()  # status 200 and a page of HTML
    half = auto()  # status 200, half of the JSON, and a length that says it is all
    complains = auto()  # status 200 and {"error": ...}
    no_choice = auto()  # a chat completion without a choice
    no_text = auto()  # a chat completion whose content is a number
    slow_down = auto()  # status 429 with Retry-After
    elsewhere = auto()  # status 302, to a login
    streams = auto()  # pieces, as if it had been asked for a stream


# A mood, a status without an answer, the text of the answer, the whole choice, or the body with status 200.
Step = Mood | int | str | dict | bytes


NO_COMPLETION = (Mood.breaks, Mood.drips, Mood.page, Mood.half, Mood.complains, Mood.streams)  # with status 200


class Server(ThreadingHTTPServer):
    """Rates an item by how often it says dog and writes texts that hang on the question alone; the script says what
    happens to the first requests."""

    def __init__(self, *script: Step, usage: bool = True, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), Handler)
        self.script, self.usage = list(script), usage
        self.requests: list[dict] = []
        self.paid: list[str] = []  # requests that got a whole chat completion, as text
        self.keys: set[str | None] = set()
        self.paths: list[str] = []  # of the requests, with their queries; absolute where a proxy was asked
        self.headers: list[dict[str, str]] = []
        self.hanging = 0
        self.turn, self.go_on = threading.Lock(), threading.Event()

    def next_step(self, body: dict) -> Step:
        """What happens to the request that came last."""
        return self.script.pop(0) if self.script else Mood.right

    def handle_error(self, *_):
        """Clients that go away are part of it."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.turn:
            server.requests.append(body)
            server.keys.add(self.headers["Authorization"])
            server.paths.append(self.path)
            server.headers.append(dict(self.headers.items()))
            step = server.next_step(body)
            server.hanging += step is Mood.hangs
        if step is Mood.hangs:
            server.go_on.wait(60)
            return
        status, data = _response(step, body, self.headers["Authorization"], server.usage)
        self.send_response(status if urlsplit(self.path).path == "/v1/chat/completions" else 404)
        self.send_header("Content-Length", str(len(data)))
        if step is Mood.elsewhere:
            self.send_header("Location", "https://login.example/sso?ticket=private")
        if step is Mood.streams:
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        if step is Mood.slow_down:
            self.send_header("Retry-After", "0.01")
        self.end_headers()
        # Counted before the answer leaves: who has it may look at once.
        if status == 200 and not isinstance(step, bytes) and step not in NO_COMPLETION:
            with server.turn:
                server.paid.append(json.dumps(body, sort_keys=True))
        self._send(data, step)

    def _send(self, data: bytes, step: Step) -> None:
        if step is Mood.breaks:
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif step is Mood.drips:
            for at in range(len(data)):
                self.wfile.write(data[at : at + 1])
                if self.server.go_on.wait(0.2):
                    return
        else:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def serving(kind: type[Server] = Server) -> Iterator[Callable[..., Server]]:
    """Starts servers, which end with the block."""
    servers: list[Server] = []

    def start(*script: Step, **more: bool | str) -> Server:
        servers.append(kind(*script, **more))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.go_on.set()
            server.shutdown()
            server.server_close()


def _response(step: Step, body: dict, key: str | None, usage: bool) -> tuple[int, bytes]:
    if step is Mood.page:
        return 200, b"<html>try again</html>"
    if step is Mood.complains:
        return 200, b'{"error": {"message": "overloaded", "code": 502}}'
    if step is Mood.elsewhere:
        return 302, b""
    if step is Mood.streams:
        return 200, b'data: {"choices": [{"delta": {"content": "{"}}]}\n\ndata: [DONE]\n\n'
    if isinstance(step, bytes):
        return 200, step
    if step is Mood.slow_down or isinstance(step, int):
        return 429 if step is Mood.slow_down else step, json.dumps({"error": f"no, {key}"}).encode()
    text = step if isinstance(step, str) else right_answer(body)
    content = 7 if step is Mood.no_text else text
    plain = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    choices = [] if step is Mood.no_choice else [step if isinstance(step, dict) else plain]
    tokens = {"prompt_tokens": 10 * len(body["messages"]), "completion_tokens": 5, "total_tokens": 0}
    data = json.dumps({"choices": choices, "key": key} | ({"usage": tokens} if usage else {})).encode()
    return 200, data[: len(data) // 2] if step is Mood.half else data


def right_answer(body: dict) -> str:
    """Ratings for a judge, texts for a writer, the strongest context's marked word for a labeller."""
    asked = body["messages"][0]["content"]
    if '"explanation"' in asked:
        return json.dumps({"explanation": "the word " + re.search(r"^- .*<<(.*)>>", asked, re.MULTILINE)[1]})
    if '"texts"' in asked:
        count, draw = int(re.search(r"\[(\d+) strings\]", asked)[1]), random.Random(f"{asked}{body['temperature']}")
        return json.dumps({"texts": [" ".join(draw.choices(WORDS, k=6)) for _ in range(count)]})
    items = json.loads(asked[asked.index("[") : asked.index("]") + 1])
    return "```json\n" + json.dumps({"ratings": [min(10, 5 * item.count("dog")) for item in items]}) + "\n```"


def endpoint(server: Server | int, folder: Path, **changes) -> Endpoint:
    """Settings for a server or a port, impatient ones."""
    port = server if isinstance(server, int) else server.server_port
    plain = Endpoint(
        base_url=f"http://127.0.0.1:{port}/v1", model="tiny", key_variable=None,
        request={"max_tokens": 100.0}, structured=None, timeout_seconds=20.0, attempts=3, backoff_seconds=0.001,
        concurrency=4, cache=str(folder / "cache"), max_failed_share=1.0, max_cost=None, million_prompt_tokens=0.0,
        million_completion_tokens=0.0,
    )  # fmt: skip
    return replace(plain, **changes)


def pretrained(folder: Path) -> Pretrained:
    """Settings for a local model."""
    return Pretrained(str(folder), None, "float32", None, None)


def saying(
    folder: Path, follows: dict[str, Sequence[str]], begins: str = "<assistant>", special: Sequence[str] = ()
) -> Path:
    """A chat model whose next token hangs on the last one alone: one of those that `follows` names, equally likely.

    The user's turn ends with what its own `begins` with. Tokens that nothing follows are followed by <eos>, all other
    text is bytes; `special` ones are dropped where special tokens are.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: at for at, token in enumerate(["<eos>", *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<assistant>", *special])
    core.add_tokens(sorted({token for some in follows.values() for token in some}))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    tokenizer.chat_template = (
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
        f"{{% if add_generation_prompt %}}{begins}{{% endif %}}"
    )
    size = len(tokenizer) + len(tokenizer) % 2
    shape = LlamaConfig(
        vocab_size=size, hidden_size=size, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=1024, tie_word_embeddings=False, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.ndim == 1 else 0.0)
        model.get_input_embeddings().weight.copy_(torch.eye(size))
        for at in range(size):
            after = tokenizer.convert_tokens_to_ids(list(follows.get(tokenizer.convert_ids_to_tokens(at), ["<eos>"])))
            model.lm_head.weight[after, at] = 10.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
