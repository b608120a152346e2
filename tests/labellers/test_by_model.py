"""The labeller that is a language model: what it is shown, what it says, what it takes, and what becomes of silence."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from served import Mood, Server, endpoint, pretrained, saying, serving
from tiny import settings, tiny_tokenizer
from transformers import AutoTokenizer

from saeexplainer.config import Params
from saeexplainer.config.parts import ChatLabellerSpec, EndpointLabellerSpec, Labeller
from saeexplainer.errors import UserError
from saeexplainer.features.contexts import listed, without_special
from saeexplainer.labellers import asking, by_model
from saeexplainer.records import ContextRow, ExplanationRow, FeatureRow, PromotedRow, Usage
from saeexplainer.runs.storage import read_notes, read_rows, write_rows
from tasks import bench as tasks_bench, label_features, sources

WORDS = ["dog", "cat", "horse", "dog"]  # at which four features are strongest; the first and the last see the same
SPLITS = ["sft", "dpo", "test", "sft"]
LINES = [*(f"- the <<{word}>>\n- a <<{word}>>" for word in WORDS), ""]
PROMPT = "What is marked?\n{contexts}"
NONSENSE = "It is a dog."


@pytest.fixture
def serve():
    with serving() as start:
        yield start


def served(server: Server, folder: Path, **changes) -> EndpointLabellerSpec:
    return EndpointLabellerSpec(
        kind="endpoint", endpoint=endpoint(server, folder, **changes), prompt=PROMPT, temperature=0.0
    )  # fmt: skip


def local(folder: Path, follows: dict[str, list[str]], **more) -> ChatLabellerSpec:
    """A chat model that says what follows."""
    return ChatLabellerSpec(
        kind="chat", model=pretrained(saying(folder, follows, **more)), prompt=PROMPT, max_new_tokens=9,
        temperature=0.0, batch_size=2,
    )  # fmt: skip


def test_the_strongest_contexts_are_listed_and_no_other():
    rows = [context("b", 1, "a"), context("b", 0, "the"), context("b", 2, "no"), context("a", 0, "the")]
    assert listed(rows, 2) == {"b": "- the <<dog>>\n- a <<dog>>", "a": "- the <<dog>>"}


def context(feature_id: str, rank: int, before: str, word: str = "dog") -> ContextRow:
    return ContextRow(feature_id, rank, f"{before} {word}", [before, f" {word}"], [0.0, 1.0], 1, [])


def test_a_chat_model_is_asked_through_its_template_once_for_equal_contexts(tmp_path):
    config = local(tmp_path, {"<assistant>": ['"the thing'], '"the thing': ['\nthat barks."']})
    found = by_model.ask(LINES, config)
    assert found.texts == ["the thing that barks."] * 4 + [""] and found.notes == []
    # A byte is a token: <user>, then the question, then <assistant>. An answer is two tokens and its end.
    asked = [6 + len("What is marked?\n") + len(lines) + 1 for lines in sorted(set(LINES[:4]))]
    assert found.usage == Usage(3, sum(asked), 3 * 3)
    with pytest.raises(
        UserError, match="label_features.labeller.max_new_tokens with the prompt: .* reads 1024 at most"
    ):
        by_model.ask(LINES, replace(config, max_new_tokens=1000))


CHANNELS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
ALOUD = {
    "marks that are special tokens": (
        {"<assistant>": ["[THINK]"], "[THINK]": ["DRAFT"], "DRAFT": ["[/THINK]"], "[/THINK]": ["a dog"]},
        {"special": ("[THINK]", "[/THINK]")},
    ),
    "marks that are text": (
        {"<assistant>": ["<think>"], "<think>": ["DRAFT"], "DRAFT": ["</think>"], "</think>": ["a dog"]}, {},
    ),
    "channels": (
        {"<|message|>": ["a dog"], "assistant": ["DRAFT"]}, {"begins": "<|start|>assistant", "special": CHANNELS},
    ),
    "a template that opens them": (
        {"<think>": ["DRAFT"], "\u010a": ["a dog"]}, {"begins": "<assistant><think>"}  # the byte of a line break
    ),
}  # fmt: skip


@pytest.mark.parametrize(("follows", "more"), ALOUD.values(), ids=ALOUD)
def test_what_a_local_model_thinks_aloud_is_no_label(tmp_path, follows, more):
    config = local(tmp_path, follows, **more)
    found = by_model.ask(LINES, config)
    assert found.texts == ["a dog"] * 4 + [""] and found.notes == []
    cut = by_model.ask(LINES, replace(config, max_new_tokens=2))
    if "<assistant>" in follows:  # it began to think all the same
        assert cut.texts == [""] * 5
        assert cut.notes == [
            "3 of 3 answers of the chat model are empty or thoughts alone; if it thinks before it answers, raise "
            "label_features.labeller.max_new_tokens"
        ]


def test_a_context_ends_no_turn(tmp_path):
    saying(tmp_path, {})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert without_special("a<eos> dog<e<eos>os>, <assistant>", tokenizer) == "a dog, "


def test_a_served_model_is_asked_for_one_explanation_in_json(serve, tmp_path):
    server = serve(NONSENSE)
    found = by_model.ask(LINES, served(server, tmp_path, concurrency=1))
    assert found.texts == ["the word dog", "the word cat", "the word horse", "the word dog", ""]
    assert found.usage == Usage(4, 60, 20)  # the first answer was mended: messages of 1 + 3 + 1 + 1, ten tokens each
    assert found.notes == ["label_features.labeller: 4 calls paid for, 60 + 20 tokens, 0 USD"]
    first = server.requests[0]
    assert first["temperature"] == 0 and first["messages"][0]["content"] == (
        'What is marked?\n- the <<cat>>\n- a <<cat>>\n\nAnswer with JSON alone: {"explanation": string}'
    )
    assert server.requests[1]["messages"][1:] == [
        {"role": "assistant", "content": NONSENSE}, {"role": "user", "content": asking.REPAIR},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "found"),
    [('{"explanation": " a\\n dog "}', "a dog"), ('so: ```{"explanation": "a dog"}```', "a dog"),
     ('{"explanation": " "}', None), ('{"explanation": ["a dog"]}', None), ("a dog", None),
     ('{"explanation": "\\ud800 dog"}', "? dog"), ('{"explanation": "\\ud83d\\ude00"}', "\U0001f600")],
)  # fmt: skip
def test_the_explanation_of_a_reply(reply, found):
    assert asking.parsed(reply) == found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with four features, three contexts each, and one that has none."""
    monkeypatch.chdir(tmp_path)
    rows = [
        FeatureRow(f"s/main/{at}", "main", at, split, 1.0, 0.01) for at, split in enumerate([*SPLITS, "dpo", "twin"])
    ]
    write_rows(Path("data/activations/features.parquet"), rows, FeatureRow)
    contexts = [
        context(f"s/main/{at}", rank, before, word)
        for at, word in enumerate(WORDS) for rank, before in enumerate(["the", "a", "never"])
    ]  # fmt: skip
    write_rows(label_features.CONTEXTS, contexts, ContextRow)
    return tmp_path


def parameters(config: Labeller, **changes) -> Params:
    given = settings()
    return replace(given, label_features=replace(given.label_features, contexts=2, labeller=config, **changes))


def test_labels_come_from_a_served_model_and_cost_what_it_says(here, serve):
    server = serve()
    report = label_features.run(parameters(served(server, here)))
    assert report.metrics == {"labels": 5.0, "labels_missing": 1.0}
    assert report.lines[1] == "label_features.labeller: 3 calls paid for, 30 + 15 tokens, 0 USD"
    said = ["the word dog", "the word cat", "the word horse", "the word dog", ""]
    expected = [
        ExplanationRow(f"s/main/{at}", split, text) for at, (split, text) in enumerate(zip([*SPLITS, "dpo"], said))
    ]
    assert read_rows(label_features.LABELS, ExplanationRow) == expected
    assert not any("never" in request["messages"][0]["content"] for request in server.requests)
    assert read_notes(label_features.LABELS) == {"usage": {"calls": 3, "prompt_tokens": 30, "written_tokens": 15}}
    bench = SimpleNamespace(
        features=[SimpleNamespace(feature_id="s/main/2")],
        sizes=partial(tasks_bench.Bench.sizes, SimpleNamespace(tokenizer=tiny_tokenizer())),
    )
    (explanation,) = sources.from_table(bench, label_features.LABELS)
    assert (explanation.text, explanation.calls, explanation.call_tokens) == ("the word horse", 1, 9)  # 45 / 5
    label_features.run(parameters(served(server, here), wrong_share=1.0))
    moved = [row.explanation for row in read_rows(label_features.LABELS, ExplanationRow)]
    assert sorted(moved) == sorted(said) and moved != said and len(server.paid) == 3


def test_it_may_see_what_a_feature_promotes(here, serve):
    server = serve()
    words = [PromotedRow(f"s/main/{at}", [f"does{at}", "much", "more"]) for at in range(len(SPLITS) + 2)]
    write_rows(Path("data/activations/promoted.parquet"), words, PromotedRow)
    label_features.run(parameters(served(server, here), promoted=2))
    asked = {request["messages"][0]["content"] for request in server.requests}
    assert len(asked) >= len(SPLITS) + 1 and all("much" in one and "more" not in one for one in asked)
    (own,) = [one for one in asked if "promotes: does1, much" in one]
    assert f"a <<{WORDS[1]}>>\npromotes: does1, much" in own and "never" not in own


def test_a_served_model_that_is_cut_while_it_thinks_labels_nothing(here, serve):
    """Whatever it had in mind: 109 features were once called DRAFT."""
    draft = '<think> {"explanation": "DRAFT"} But then'
    report = label_features.run(parameters(served(serve(draft, draft), here, concurrency=1)))
    assert report.metrics["labels_missing"] == 2.0
    assert [row.explanation for row in read_rows(label_features.LABELS, ExplanationRow)].count("") == 2
    assert "DRAFT" not in {row.explanation for row in read_rows(label_features.LABELS, ExplanationRow)}


def test_who_says_nothing_leaves_a_label_missing_and_too_many_stop_the_stage(here, serve):
    server = serve(NONSENSE, NONSENSE)
    report = label_features.run(parameters(served(server, here, concurrency=1)))
    assert report.metrics["labels_missing"] == 2.0
    assert read_rows(label_features.LABELS, ExplanationRow)[1].explanation == ""
    assert report.lines[-1] == "label_features.labeller: 1 of 3 calls failed (no usable answer 1)"
    before = label_features.LABELS.read_bytes()
    with pytest.raises(
        UserError, match=r"^label_features.labeller.endpoint: 1 of 3 calls failed .* raise max_failed_share"
    ):
        label_features.run(parameters(served(server, here, concurrency=1, max_failed_share=0.3)))
    with pytest.raises(
        UserError, match="^label_features.labeller: has no label for any feature of the sft split; change"
    ):
        label_features.run(parameters(served(serve(*[Mood.no_text] * 6), here)))
    assert label_features.LABELS.read_bytes() == before and len(server.paid) == 4


def test_labels_come_from_a_chat_model_and_are_drawn_by_the_seed(here):
    config = replace(local(here / "model", {"<assistant>": [f"thing {at}" for at in range(9)]}), temperature=1.0)
    drawn = []
    for seed in (0, 0, 1):
        assert label_features.run(replace(parameters(config), seed=seed)).metrics["labels_missing"] == 1.0
        drawn.append([row.explanation for row in read_rows(label_features.LABELS, ExplanationRow)])
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0][0] == drawn[0][3] and drawn[0][0].startswith("thing")
    with pytest.raises(UserError, match="its tokenizer has no chat template"):
        (here / "model/chat_template.jinja").unlink()
        tiny_tokenizer().save_pretrained(here / "other")
        label_features.run(parameters(replace(config, model=pretrained(here / "other"))))
