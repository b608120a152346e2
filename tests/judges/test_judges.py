"""Judges: each scores as its definition says when asked one text at a time, whatever the batch or the server's mood."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from served import Server, endpoint, pretrained, serving
from tiny import settings, tiny_model, tiny_tokenizer

from saeexplainer.config.parts import Architecture, ChatJudgeSpec, EndpointJudgeSpec
from saeexplainer.errors import UserError
from saeexplainer.judges.chat import ChatJudge
from saeexplainer.judges.endpoint import UNKNOWN, EndpointJudge, parsed
from saeexplainer.judges.judge import Judge, Question
from saeexplainer.judges.likelihood import LikelihoodJudge
from saeexplainer.judges.opening import open_judges
from saeexplainer.records import FeatureRow, ProbeRow
from saeexplainer.runs.storage import read_json
from tasks import evaluate

PROMPT = "<example> {description} <text>"
ASKED = [("the word dog", "the dogs chase ."), ("any animal", "the cat"), ("", "the cat"), ("any animal", ""),
         ("the word dog", "does the dog chase the cats ?"), ("the word dog", "the dogs chase .")]  # fmt: skip


@pytest.fixture(params=[Architecture.llama, Architecture.gpt2], ids=str)
def model(request: pytest.FixtureRequest):
    return tiny_model(request.param)


@torch.no_grad()
def log_probabilities(model, ids: list[int], first: int) -> list[float]:
    logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return [logits[at - 1, ids[at]].item() for at in range(first, len(ids))]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_lifts_are_those_of_one_text_at_a_time(model, batch_size):
    tokenizer = tiny_tokenizer()
    found = LikelihoodJudge(model, tokenizer, PROMPT, 64, batch_size).lifts(ASKED)
    assert found[2] == found[3] == [] and found[0] == found[5]
    for at in (0, 1, 4):
        description, text = ASKED[at]
        prompt = tokenizer(PROMPT.format(description=description))["input_ids"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        told = log_probabilities(model, prompt + ids, len(prompt))
        plain = log_probabilities(model, [tokenizer.bos_token_id, *ids], 1)
        assert found[at] == pytest.approx([a - b for a, b in zip(told, plain)], abs=1e-4)


def test_in_bfloat16_and_without_bos_the_likelihood_judge_adds_up_in_float32():
    tokenizer, model = tiny_tokenizer(), tiny_model(Architecture.llama)
    tokenizer.bos_token = None
    exact = LikelihoodJudge(model, tokenizer, PROMPT, 64, 8).lifts(ASKED[:2])
    ids = tokenizer(ASKED[0][1], add_special_tokens=False)["input_ids"]
    prompt = tokenizer(PROMPT.format(description=ASKED[0][0]))["input_ids"]
    told = log_probabilities(model, prompt + ids, len(prompt))
    plain = log_probabilities(model, [tokenizer.eos_token_id, *ids], 1)
    assert exact[0] == pytest.approx([a - b for a, b in zip(told, plain)], abs=1e-4)
    half = LikelihoodJudge(model.bfloat16(), tokenizer, PROMPT, 64, 8)._log_probabilities([(prompt, ASKED[0][1])])[0]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0].float().log_softmax(-1)
    expected = [logits[at - 1, (prompt + ids)[at]].item() for at in range(len(prompt), len(prompt + ids))]
    assert half == pytest.approx(expected, abs=1e-5)


def test_long_texts_are_cut_and_special_tokens_left_out(model):
    judge = LikelihoodJudge(model, tiny_tokenizer(), PROMPT, 3, 8)
    (cut,) = judge.lifts([("any animal", "the dogs chase the cats")])
    (whole,) = judge.lifts([("any animal", "the <text> dogs")])
    assert len(cut) == 3 and len(whole) == 2


def test_the_likelihood_judge_sums_lifts_and_reads_each_pair_once(model):
    judge = LikelihoodJudge(model, tiny_tokenizer(), PROMPT, 64, 8)
    questions = [Question(description, text, tuple(text.split())) for description, text in ASKED]
    relevance = judge.relevance(questions)
    model.forward = None  # a second reading would fail
    tokens = judge.token_relevance(questions)
    assert relevance == pytest.approx([sum(lifts) for lifts in judge.lifts(ASKED)])
    assert (relevance[2], tokens[2]) == (0.0, [0.0, 0.0]) and (relevance[3], tokens[3]) == (0.0, [])
    assert [len(one) for one in tokens] == [len(question.tokens) for question in questions]


def test_what_was_read_alone_before_is_not_read_again(model):
    first = LikelihoodJudge(model, tiny_tokenizer(), PROMPT, 64, 8)
    texts = sorted({text for _, text in ASKED if text})
    known = dict(zip(texts, first.alone(texts), strict=True))
    read = []
    second = LikelihoodJudge(model, tiny_tokenizer(), PROMPT, 64, 8, known)
    second._log_probabilities = lambda asked, own=second._log_probabilities: read.extend(asked) or own(asked)
    assert second.lifts(ASKED) == first.lifts(ASKED)
    assert len(read) == len({pair for pair in ASKED if all(pair)}), "each text under its description, none alone"


# A chat model of a few thousand weights: bytes as tokens, so that yes and no differ in their first.
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXT = Question("the word dog", "a dog barks", ("a", " dog", " barks"))
QUESTIONS = [TEXT, Question("any animal", "the cat", ("the", " cat")), Question("", "the cat", ("the", " cat")),
             Question("any animal", "", ()), TEXT]  # fmt: skip


def chat_folder(folder: Path, template: str | None = TEMPLATE) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: at for at, token in enumerate(["<eos>", *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")
    tokenizer.chat_template = template
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=512, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_where_spaces_belong_to_tokens_the_first_one_says_nothing(tmp_path):
    """The writer begins with a space, a text that is read by itself does not."""
    from saeexplainer.models.loading import load_model
    from saeexplainer.models.tokenizers import load_tokenizer

    folder = chat_folder(tmp_path)
    tokenizer = load_tokenizer(folder)
    tokenizer.bos_token = tokenizer.pad_token = "<eos>"
    (found,) = LikelihoodJudge(load_model(folder), tokenizer, "{description}:", 64, 8).lifts([("dog", "a dog")])
    assert len(found) == len("a dog") and found[0] == 0.0 and all(found[1:])


@torch.no_grad()
def log_odds(judge: ChatJudge, said: str) -> float:
    """Of one of "yYnN"-beginning answers, with no batch and no padding; a space begins words of both kinds alike."""
    ids = judge.tokenizer(f"<user>{said}<assistant>", add_special_tokens=False)["input_ids"]
    chances = judge.model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
    yes, no = (sum(chances[judge.tokenizer.convert_tokens_to_ids(letter)] for letter in pair) for pair in ("yY", "nN"))
    return math.log(yes / no)


@pytest.mark.parametrize("batch_size", [1, 64])
def test_a_chat_model_scores_by_the_odds_of_yes(tmp_path, batch_size):
    judge = ChatJudge(pretrained(chat_folder(tmp_path)), batch_size)
    asked = "Description: the word dog\nText: {}\n\nIs the {}? Answer yes or no."
    whole = log_odds(judge, asked.format("a dog barks", "text about what the description says"))
    part = "part between << and >> what the description is about"
    texts = ("<<a>> dog barks", "a <<dog>> barks", "a dog <<barks>>")
    marked = [log_odds(judge, asked.format(text, part)) for text in texts]
    relevance, tokens = judge.relevance(QUESTIONS), judge.token_relevance(QUESTIONS)
    assert relevance[0] == relevance[4] == pytest.approx(whole, abs=1e-4)
    assert tokens[0] == tokens[4] == pytest.approx(marked, abs=1e-4)
    assert len({whole, *marked}) == 4 and relevance[1] != 0
    assert relevance[2:4] == [0.0, 0.0] and tokens[2:4] == [[0.0, 0.0], []]


def test_yes_or_no_comes_first_even_where_the_template_opens_thoughts(tmp_path):
    """Its odds are those of an answer behind thoughts that say nothing, not those of a first thought."""
    folder = chat_folder(tmp_path, TEMPLATE.replace("<assistant>", "<assistant><think>\n"))
    judge = ChatJudge(pretrained(folder), 8)
    asked = "Description: the word dog\nText: a dog barks\n\n"
    asked += "Is the text about what the description says? Answer yes or no."
    ids = judge.tokenizer(f"<user>{asked}<assistant><think>\n\n\n</think>\n\n", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        chances = judge.model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
    yes, no = (sum(chances[judge.tokenizer.convert_tokens_to_ids(letter)] for letter in pair) for pair in ("yY", "nN"))
    assert judge.relevance([TEXT])[0] == pytest.approx(math.log(yes / no), abs=1e-4)


def test_a_folder_that_cannot_judge_is_refused(tmp_path):
    with pytest.raises(UserError, match="no chat template"):
        ChatJudge(pretrained(chat_folder(tmp_path / "plain", None)), 8)
    with pytest.raises(UserError, match="nothing: no such folder"):
        ChatJudge(pretrained(tmp_path / "nothing"), 8)
    judge = ChatJudge(pretrained(chat_folder(tmp_path / "chat")), 8)
    with pytest.raises(UserError, match="reads 512"):
        judge.relevance([Question("any animal", "cat " * 200)])


@pytest.fixture
def serve():
    with serving() as start:
        yield start


def endpoint_judge(server: Server, folder: Path, batch_size: int = 2, **changes) -> EndpointJudge:
    config = EndpointJudgeSpec(
        kind="endpoint", endpoint=endpoint(server, folder, **changes), batch_size=batch_size
    )  # fmt: skip
    return EndpointJudge(config, "evaluate.judges[0]")


DOGS = [Question("the word dog", text, tuple(text.split())) for text in ("a dog", "a cat", "dog dog", "a dog", "")]


def test_an_endpoint_rates_texts_and_tokens_and_is_asked_once(serve, tmp_path):
    server = serve()
    judge = endpoint_judge(server, tmp_path)
    missing = Question("", "a dog", ("a", "dog"))
    assert judge.relevance([*DOGS, missing]) == [5.0, 0.0, 10.0, 5.0, 0.0, 0.0]
    assert len(server.requests) == 2  # three different texts, two in a call
    assert judge.token_relevance([*DOGS, missing]) == [[0, 5], [0, 0], [5, 5], [0, 5], [], [0, 0]]
    assert len(server.requests) == 5
    assert judge.notes() == ["evaluate.judges[0]: 5 calls paid for, 50 + 25 tokens, 0 USD"]
    assert server.keys == {None} and all(body["max_tokens"] == 100 for body in server.requests)
    again = endpoint_judge(server, tmp_path)  # as after a kill
    assert again.relevance(DOGS) == [5.0, 0.0, 10.0, 5.0, 0.0] and again.token_relevance(DOGS)[2] == [5, 5]
    assert len(server.requests) == 5 and again.notes() == []


def test_what_passes_is_tried_again_and_prose_is_mended(serve, tmp_path):
    server = serve(429, 500, "I rate them highly.")
    judge = endpoint_judge(server, tmp_path, batch_size=9)
    assert judge.relevance(DOGS) == [5.0, 0.0, 10.0, 5.0, 0.0]
    assert [len(body["messages"]) for body in server.requests] == [1, 1, 1, 3]


@pytest.mark.parametrize(
    ("script", "reason", "requests"),
    [((500, 503, 429), "no answer after all attempts", 3), ((400,), "refused", 1),
     (("prose", '{"ratings": [1, 11, 2]}'), "no usable answer", 2)],
    ids=["attempts", "status", "prose"],
)  # fmt: skip
def test_a_call_that_fails_is_counted_and_knows_nothing(serve, tmp_path, script, reason, requests):
    server = serve(*script)
    judge = endpoint_judge(server, tmp_path, batch_size=9)
    assert judge.relevance(DOGS) == [UNKNOWN] * 4 + [0.0]
    assert judge.notes()[-1] == f"evaluate.judges[0]: 1 of 1 calls failed ({reason} 1)"
    assert len(server.requests) == requests


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_a_server_that_never_answers_is_one_line_without_the_key(serve, tmp_path, status, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "a-secret")
    server = serve(*[status] * 20)
    judge = endpoint_judge(server, tmp_path, key_variable="JUDGE_KEY", max_failed_share=0.1, concurrency=1)
    with pytest.raises(UserError, match=r"evaluate\.judges\[0\].*" + str(status)) as caught:
        judge.token_relevance(DOGS)
    assert "a-secret" not in str(caught.value) and "\n" not in str(caught.value)
    assert server.keys == {"Bearer a-secret"} and len(server.requests) <= 6


def test_the_key_is_nowhere_on_disk_and_must_be_set(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "a-secret")
    endpoint_judge(serve(), tmp_path, key_variable="JUDGE_KEY").relevance(DOGS)
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(kept) == 2 and not any("a-secret" in path.read_text(encoding="utf-8") for path in kept)
    assert {read_json(path)["request"]["model"] for path in kept} == {"tiny"}
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(UserError, match="JUDGE_KEY is not set"):
        endpoint_judge(serve(), tmp_path, key_variable="JUDGE_KEY")


def test_nobody_at_the_address_is_a_failure(serve, tmp_path):
    server = serve()
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="ConnectError"):
        endpoint_judge(server, tmp_path, max_failed_share=0.0).relevance(DOGS)


@pytest.mark.parametrize(
    ("reply", "ratings"),
    [('{"ratings": [0, 10]}', [0.0, 10.0]), ('Sure: {"ratings": [1.5, 2]} Done.', [1.5, 2.0]), ("", None), ("}{", None),
     ('<think>{"a": 1}</think>{"ratings": [3, 4]}', [3.0, 4.0]), ('{"ratings": [1]}', None),
     ('{"rating": [1, 2]}', None),
     ('{"ratings": [1, true]}', None), ('{"ratings": [1, NaN]}', None), ('{"ratings": [-1, 2]}', None),
     ('{"ratings": ["1", "2"]}', [1.0, 2.0]), ('{"ratings": 2}', None), ("[" * 100_000, None)],
)  # fmt: skip
def test_only_one_rating_an_item_counts(reply, ratings):
    assert parsed(reply, 2) == ratings


def test_the_first_judge_answers_and_the_others_only_agree(serve, tmp_path):
    params, tokenizer = settings(), tiny_tokenizer()
    model = tiny_model(Architecture.llama)
    served = endpoint_judge(serve(), tmp_path).config
    chat = ChatJudgeSpec(kind="chat", model=pretrained(chat_folder(tmp_path / "chat")), batch_size=8)
    judges = {"one": params.evaluate.judges, "three": [served, *params.evaluate.judges, chat]}
    texts = ["the dog sleeps", "the cat sleeps", "a dog", "the dogs"]
    cut = evaluate.text_activations.cut_texts(texts, tokenizer, 64)
    own = [ProbeRow("", text, [float("dog" in token) for token in tokens]) for text, tokens in zip(texts, cut)]
    features = [FeatureRow(f"s/main/{at}", "main", at, "test", maximum=1.0, density=0.01) for at in range(3)]
    steered = {"s/main/0": ["the dog", "dog dog"], "s/main/1": ["the cat", "a"], "s/main/2": ["the", "cat"]}
    found = {}
    for name, some in judges.items():
        bench = SimpleNamespace(
            params=params, tokenizer=tokenizer, features=features, probes={row.feature_id: own for row in features},
            steered=steered, judges=open_judges(replace(params.evaluate, judges=some), model, tokenizer, 64, {}),
        )  # fmt: skip
        assert all(isinstance(judge, Judge) for judge in bench.judges)
        found[name] = evaluate.answers(bench, ["the word dog", "any animal", ""])
    assert all(math.isnan(answer.judge_agreement) for answer in found["one"])
    best, missing = found["three"][0], found["three"][2]
    assert (best.detection_auc, best.fuzzing_auc, best.predictive_correlation) == (1.0, 1.0, pytest.approx(1.0))
    assert best.output_accuracy == 1.0 and abs(best.judge_agreement) <= 1
    assert (missing.detection_auc, missing.fuzzing_auc, missing.output_accuracy) == (0.5, 0.5, 0.0)
    assert math.isnan(missing.judge_agreement)
    assert [type(judge) for judge in bench.judges] == [EndpointJudge, LikelihoodJudge, ChatJudge]
