"""Writers: each gives a description its texts, whatever it is; a served one through 30 faults, a kill and a limit."""

import json
import math
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from control_room import free_port, program
from omegaconf import OmegaConf
from rows import evaluation
from served import WORDS, Mood, Server, endpoint, pretrained, saying, serving
from tiny import random_sae, settings, tiny_model, tiny_tokenizer
from toy import wait_for
from typed import begun, typed

from saeexplainer.config.parts import (
    Architecture,
    ChatWriterSpec,
    EndpointWriterSpec,
    Structured,
    SubjectWriterSpec,
    Writer as WriterConfig,
)
from saeexplainer.costs import bills
from saeexplainer.errors import UserError
from saeexplainer.features.neighbours import Neighbourhoods, Responses
from saeexplainer.models.chat import plain
from saeexplainer.models.generation import generate
from saeexplainer.records import CandidateRow, DroppedFeature, FeatureRow, NeighbourRow, PreferencePair, ScoreRow, Usage
from saeexplainer.runs.storage import read_rows, write_rows
from saeexplainer.writers.opening import open_writer
from saeexplainer.writers.writer import Writer
from tasks import bench as tasks_bench, compare_rounds, evaluate, sources
from tasks.settings import compose, params

ASKED = ["the word dog", "", "any animal", "the word dog"]
SHARED = {"texts": 3, "temperature": 0.4, "top_p": 1.0, "max_new_tokens": 6}
PLAIN = SubjectWriterSpec(kind="subject", prompt="<about> {description} <text>", batch_size=4, **SHARED)


@pytest.fixture
def serve():
    with serving() as start:
        yield start


def written(config: WriterConfig, model=None) -> tuple[Writer, dict[str, list[str]]]:
    torch.manual_seed(0)
    found = open_writer(config, "evaluate.writer", model, tiny_tokenizer())
    assert isinstance(found, Writer)
    return found, found.write(ASKED)


def served(server: Server | int, folder: Path, **changes) -> WriterConfig:
    """Settings for a server; fields of the writer and of its endpoint, by name."""
    own = {"texts", "temperature"} & changes.keys()
    more = {name: changes.pop(name) for name in own}
    return EndpointWriterSpec(
        kind="endpoint", endpoint=endpoint(server, folder, **changes),
        prompt="Write {count} texts about {description}.", **SHARED | {"max_new_tokens": 40} | more,
    )  # fmt: skip


def chatting(folder: Path, follows: dict[str, list[str]]) -> ChatWriterSpec:
    """Settings for a chat model that says what follows."""
    return ChatWriterSpec(
        kind="chat", model=pretrained(saying(folder, follows)), prompt="About {description}:", batch_size=4,
        **SHARED | {"texts": 20, "temperature": 1.0},
    )  # fmt: skip


def test_the_subject_continues_its_prompt():
    model, tokenizer = tiny_model(Architecture.llama), tiny_tokenizer()
    writer, texts = written(PLAIN, model)
    assert list(texts) == ["any animal", "the word dog"] and [len(some) for some in texts.values()] == [3, 3]
    torch.manual_seed(0)
    repeated = [description for description in texts for _ in range(3)]  # as the pipeline has always drawn them
    prompts = [tokenizer(PLAIN.prompt.format(description=description))["input_ids"] for description in repeated]
    drawn = generate(model, tokenizer, prompts, temperature=0.4, top_p=1.0, max_new_tokens=6, batch_size=4)
    assert texts == {"any animal": drawn[:3], "the word dog": drawn[3:]}
    assert writer.notes() == [] and writer.usage(texts) is None


def test_a_chat_model_is_asked_through_its_template_for_one_text_at_a_time(tmp_path):
    """Its answers begin with one of two words, equally often, and end where its turn does."""
    follows = {"<assistant>": ['"A dog', '"The cat'], '"A dog': [' barks."'], '"The cat': [' sleeps."']}
    config = chatting(tmp_path, follows)
    writer, texts = written(config)
    assert list(texts) == ["any animal", "the word dog"] and {len(some) for some in texts.values()} == {20}
    assert set(texts["any animal"]) == set(texts["the word dog"]) == {"A dog barks.", "The cat sleeps."}
    assert written(config)[1] == texts and writer.usage(texts) is None
    with pytest.raises(UserError, match="evaluate.writer.max_new_tokens with the prompt: .* reads 1024 at most"):
        written(replace(config, max_new_tokens=1024))


def test_thoughts_of_a_chat_model_are_no_texts(tmp_path):
    """Half of its answers are cut while it thinks: they are counted, and none is a text, not even an empty one."""
    follows = {"<assistant>": ["<think>", "A dog"], "<think>": [" Hm"], " Hm": [" Hm"], "A dog": [" barks."]}
    config = chatting(tmp_path, follows)
    writer, texts = written(config)
    found = [text for some in texts.values() for text in some]
    assert set(found) == {"A dog barks."} and 0 < len(found) < 40
    assert writer.notes() == [
        f"{40 - len(found)} of 40 answers of the chat model are empty or thoughts alone; if it thinks before it "
        "answers, raise evaluate.writer.max_new_tokens"
    ]


@pytest.mark.parametrize(
    ("answer", "text"),
    [("  a dog ", "a dog"), ('"a dog"', "a dog"), ('so: "a dog"', 'so: "a dog"'), ("\u201ca dog\u201d", "a dog"),
     ("<think>a cat?</think>\na dog", "a dog"), ("<think>a cat, or", ""), ('"', '"'), ("", "")],
)  # fmt: skip
def test_an_answer_is_taken_for_the_text(answer, text):
    assert plain(answer) == text


def test_an_endpoint_writes_all_texts_of_a_description_in_one_call(serve, tmp_path):
    server = serve()
    writer, texts = written(served(server, tmp_path, structured=Structured.json_schema))
    assert list(texts) == ["any animal", "the word dog"] and [len(some) for some in texts.values()] == [3, 3]
    asked = {(body["messages"][0]["content"], body["temperature"]) for body in server.requests}
    assert len(asked) == 2 == len(server.requests) and not any("top_p" in body for body in server.requests)
    form = '\n\nAnswer with JSON alone: {"texts": [%d strings]}'
    assert ("Write 3 texts about any animal." + form % 3, 0.4) in asked
    assert writer.usage(["any animal", "any animal", ""]) == Usage(1, 10, 5)
    assert writer.usage(texts) == Usage(2, 20, 10)
    assert written(served(server, tmp_path, structured=Structured.json_schema))[1] == texts
    assert len(server.requests) == 2  # the second writer found them kept


def test_texts_of_an_endpoint_are_cut_and_counted(serve, tmp_path):
    said = [["only one"], [" ".join(WORDS * 3), "a cat"], [" the dog ", "a cat", "dropped"], ["a", ""]]
    server = serve(*(json.dumps({"texts": texts}) for texts in said), "no")
    config = served(server, tmp_path, texts=2, temperature=1.0, concurrency=1)
    writer = open_writer(replace(config, max_new_tokens=4), "evaluate.writer", None, tiny_tokenizer())
    assert writer.write(["1", "2", "3"]) == {"1": [" ".join(WORDS[:4]), "a cat"], "2": ["the dog", "a cat"], "3": []}
    assert writer.notes()[-1] == "evaluate.writer: 1 of 3 calls failed (no usable answer 1)"
    assert writer.usage(["1", "2"]) == Usage(3, 50, 15) and writer.usage(["3"]) == Usage(2, 40, 10)


def test_feedback_at_inference_counts_the_calls_of_whoever_writes(serve, tmp_path):
    """A subject's texts are a call each, with their prompts; an endpoint's are what it says they took."""
    tokenizer, texts = tiny_tokenizer(), ["the dog sleeps", "a cat"]
    asked = {"here": PLAIN, "served": served(serve(), tmp_path, texts=2, temperature=1.0)}
    spent = {}
    for name, config in asked.items():
        author = open_writer(config, "x", tiny_model(Architecture.llama), tokenizer)
        author.write(["any animal"])
        scoring = replace(settings().score_explanations, writer=config)
        bench = SimpleNamespace(
            training_author=author, params=replace(settings(), score_explanations=scoring),
            sizes=partial(tasks_bench.Bench.sizes, SimpleNamespace(tokenizer=tokenizer)),
        )  # fmt: skip
        spent[name] = sources._spent(bench, "any animal", texts)
    assert spent == {"here": (2, 2 * (4 + 1) + (3 + 1) + (2 + 1)), "served": (1, 15)}


@pytest.mark.parametrize(
    ("rewards", "chosen"),
    [
        ([None, 0.1, 0.3], 2),  # nobody knows what the greedy one is worth
        ([0.2, None, 0.2], 0),
        ([None, 0.0, 0.0], 0),  # a 0 is no better than what nobody knows
        ([0.0, None, 0.0], 0),
        ([None, None, None], 0),
        ([0.1, 0.4, 0.4], 1),
    ],
)
def test_the_best_of_some_samples_is_one_that_earned_something(rewards, chosen):
    trials = [sources.Trial([], Responses([], []), earned, 0.5, 0, 0) for earned in rewards]
    assert sources.best_tried(trials) == chosen


def test_a_trial_whose_calls_failed_has_no_reward_and_an_empty_explanation_has_0(serve, tmp_path):
    """A served writer that answers about a cat alone; nothing is known of the dog, an empty explanation earns 0."""
    server = serve(json.dumps({"texts": ["a cat", "the cat"]}), "no", "no")
    config = served(server, tmp_path, texts=2, temperature=1.0, concurrency=1, max_failed_share=0.5)
    scoring = replace(settings().score_explanations, writer=config)
    near = Neighbourhoods([FeatureRow("s/main/0", "main", 0, "test", 2.0, 0.1)], [])
    fired = SimpleNamespace(of=lambda sae, texts, latents: np.full((len(texts), len(latents)), 2.0))
    bench = SimpleNamespace(
        training_author=open_writer(config, "score_explanations.writer", None, tiny_tokenizer()), near=near,
        params=replace(settings(), score_explanations=scoring), features=list(near.features.values()),
        sae_name="main", read=lambda texts, latents: fired,
    )  # fmt: skip
    tried = sources.try_out(bench, [(0, "any cat"), (0, "the dog"), (0, "")])
    assert [trial.reward for trial in tried][1:] == [None, 0.0] and tried[0].reward > 0
    assert sources.best_tried(tried[1:]) == 0 and tried[1].calls == 2  # they were asked, and paid


EXPLANATIONS = [f"the word {word}" for word in WORDS] + [f"any {word} thing" for word in WORDS]
FAULTS = [  # thirty; a text is an answer that nobody can use
    429, Mood.slow_down, Mood.breaks, 500, "As an AI I would rather not.", Mood.page, 503, 401, '{"texts": ["half',
    Mood.half, Mood.hangs, 429, Mood.no_choice, Mood.breaks, 404, 502, '{"texts": []}', Mood.complains, 408,
    '{"texts": [1, 2, 3]}', Mood.drips, 500, Mood.no_text, Mood.slow_down, Mood.breaks, '{"texts": "a dog"}', 503,
    Mood.half, 401, Mood.page,
]  # fmt: skip


class Stubborn(Server):
    """Every second request meets a fault while there are any; answers that make no sense come to new questions alone,
    because two of them to one question are a failure for good."""

    def next_step(self, body: dict):
        if len(self.requests) % 2 or not self.script:
            return Mood.right
        good = len(body["messages"]) == 1
        at = next((at for at, step in enumerate(self.script) if good or not _nonsense(step)), None)
        return Mood.right if at is None else self.script.pop(at)


def _nonsense(step) -> bool:
    return isinstance(step, str) or step in (Mood.no_choice, Mood.no_text)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What score_explanations reads: an untrained subject, a random SAE, candidates of six features."""
    folder = tmp_path_factory.mktemp("scored")
    tiny_model(Architecture.llama).save_pretrained(folder / "data/subject")
    tiny_tokenizer().save_pretrained(folder / "data/subject")
    random_sae(folder / "data/saes/main", k=32)
    features = [FeatureRow(f"s/main/{at}", "main", at, "dpo", 20.0, 0.1) for at in range(6)]
    near = [NeighbourRow(row.feature_id, (row.index + 1) % 6, 0.1, 0.1) for row in features]
    write_rows(folder / "data/activations/features.parquet", features, FeatureRow)
    write_rows(folder / "data/activations/neighbours.parquet", near, NeighbourRow)
    write_candidates(folder, [*EXPLANATIONS, ""])
    return folder


def write_candidates(folder: Path, explanations: list[str]) -> None:
    rows = [CandidateRow(f"s/main/{at % 6}", "dpo", at // 6, said) for at, said in enumerate(explanations)]
    write_rows(folder / "data/rounds/r1/candidates.parquet", rows, CandidateRow)


def workspace(scored: Path, folder: Path, server: Server, **changes) -> Path:
    """Links to what is ready, and parameters with a served writer; its cache is the folder's own."""
    (folder / "data/rounds/r1").mkdir(parents=True)
    for name in ("data/subject", "data/saes", "data/activations", "data/rounds/r1/candidates.parquet"):
        (folder / name).symlink_to(scored / name)
    strict = {"texts": 3, "temperature": 1.0, "attempts": 9, "max_failed_share": 0.0}
    config = OmegaConf.create(compose.composed(["experiment=nano"]))
    config.score_explanations.writer = asdict(served(server, Path(), **strict | changes))
    (folder / "params.yaml").write_text(params.text(config, "test"), encoding="utf-8")
    return folder


def rows(folder: Path) -> list[ScoreRow]:
    return read_rows(folder / "data/rounds/r1/scores.parquet", ScoreRow)


def kept(folder: Path) -> Counter:
    found = (json.loads(path.read_text()) for path in (folder / "cache").rglob("*.json"))
    return Counter(json.dumps(one["request"], sort_keys=True) for one in found)


@pytest.fixture(scope="module")
def undisturbed(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> list[ScoreRow]:
    """The rows of a run without a fault."""
    with serving() as start:
        folder = workspace(scored, tmp_path_factory.mktemp("undisturbed"), start())
        done = typed(folder, "score_explanations", "r1")
        assert done.returncode == 0, done.stderr
        usage = compare_rounds._usage(folder / "data/rounds/r1/scores.parquet")
        assert usage == Usage(18, 180, 90) and "18 calls paid for, 180 + 90 tokens" in done.stdout
        found = rows(folder)
        config = params.load(folder / "params.yaml").score_explanations.writer
        work = bills.texts_written(found, tiny_tokenizer(), config, usage)
        assert (work.calls, work.prompt_tokens, work.written_tokens) == (18, 180, 90) and work.read_tokens > 0
    assert len(found) == 19 and all(len(row.texts) == (3 if row.explanation else 0) for row in found)
    assert len({row.reward for row in found}) > 2
    return found


def test_thirty_faults_change_no_row_and_nothing_is_paid_twice(scored, undisturbed, tmp_path):
    with serving(Stubborn) as start:
        server = start(*FAULTS)
        folder = workspace(scored, tmp_path, server, timeout_seconds=5.0)
        quiet = workspace(scored, tmp_path / "quiet", start())
        for one in (folder, quiet):  # more calls than faults
            (one / "data/rounds/r1/candidates.parquet").unlink()
            write_candidates(one, [f"{said} {at}" for said in EXPLANATIONS for at in range(3)])
        stops = []
        while (done := typed(folder, "score_explanations", "r1")).returncode:
            assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: score_explanations.writer")
            stops.append(done.stderr)
            assert len(stops) < 20, stops
        assert len(FAULTS) == 30 and not server.script, server.script
        assert 1 <= len(stops) and Counter(server.paid) == kept(folder)
        assert typed(quiet, "score_explanations", "r1").returncode == 0
        assert rows(folder) == rows(quiet)


def test_after_a_kill_no_paid_call_is_made_again(scored, undisturbed, serve, tmp_path):
    server = serve(*[Mood.right] * 7, *[Mood.hangs] * 4)
    folder = workspace(scored, tmp_path, server)
    process = begun(folder, "score_explanations", "r1")
    wait_for(lambda: server.hanging == 4)  # every thread is at it: what was answered before is kept
    process.kill()
    process.join()
    assert not (folder / "data/rounds/r1/scores.parquet").exists() and kept(folder) == Counter(server.paid)
    assert len(server.paid) == 7
    assert typed(folder, "score_explanations", "r1").returncode == 0
    assert rows(folder) == undisturbed and len(server.paid) == len(set(server.paid)) == 18


def test_a_spent_limit_is_one_line_and_the_next_run_goes_on(scored, undisturbed, serve, tmp_path):
    server = serve()
    prices = {"million_prompt_tokens": 1e5, "million_completion_tokens": 2e5, "request": {"max_tokens": 5.0}}
    folder = workspace(scored, tmp_path, server, max_cost=25.0, concurrency=1, **prices)
    stopped = typed(folder, "score_explanations", "r1")
    said = stopped.stderr.splitlines()[-1]
    assert stopped.returncode == 2 and "endpoint.max_cost: 22 of 25 USD are spent on 11 calls" in said, stopped.stderr
    assert typed(folder, "score_explanations", "r1").returncode == 0
    assert rows(folder) == undisturbed and len(server.requests) == 18


@pytest.mark.parametrize(
    ("step", "said"), [(401, "asks for a key (401)"), ("As an AI I would rather not.", "change request to ask anew")]
)  # fmt: skip
def test_an_expired_key_and_a_writer_in_prose_are_one_line(scored, serve, tmp_path, step, said):
    folder = workspace(scored, tmp_path, serve(*[step] * 40))
    stopped = typed(folder, "score_explanations", "r1")
    line = stopped.stderr.splitlines()[-1]
    assert stopped.returncode == 2 and line.startswith("error: score_explanations.writer.endpoint") and said in line
    assert "Traceback" not in stopped.stderr and not (folder / "data/rounds/r1/scores.parquet").exists()


class Refusing(Server):
    """Writes about everything but what it was told not to, for good."""

    refused: tuple[str, ...] = ()  # descriptions

    def next_step(self, body: dict):
        asked = body["messages"][0]["content"]
        return 400 if any(f"about {said}." in asked for said in self.refused) else Mood.right


def test_a_candidate_whose_calls_failed_has_no_reward_and_is_in_no_pair(scored, tmp_path):
    """Of feature 0's candidates one is lost, of feature 1's two of three, so that it is dropped."""
    lost = ("the word dog", "the word cat", "the word old")
    with serving(Refusing) as start:
        server = start()
        server.refused = lost
        folder = workspace(scored, tmp_path, server, max_failed_share=0.5)
        settings = OmegaConf.load(folder / "params.yaml")
        limits = dict.fromkeys(("floor", "min_spread", "min_gap"), 0.0)
        settings.build_preferences = limits | {"rule": "all_pairs", "max_pairs": 99}
        OmegaConf.save(settings, folder / "params.yaml")
        done = typed(folder, "score_explanations", "r1")
    assert done.returncode == 0, done.stderr
    assert "3 candidates have no reward, because every call for their texts failed" in done.stdout
    assert "score_explanations.writer: 3 of 18 calls failed (refused 3)" in done.stdout
    found = rows(folder)
    assert {row.explanation for row in found if row.reward is None} == set(lost)
    assert {row.explanation: len(row.texts) for row in found} == {
        said: 0 if said in (*lost, "") else 3 for said in [*EXPLANATIONS, ""]
    }
    known = [row.reward for row in found if row.reward is not None]
    assert len(known) == 16 and [row.reward for row in found if not row.explanation] == [0.0]
    assert f"mean_reward {sum(known) / 16:.4g}" in done.stdout
    paired = typed(folder, "build_preferences", "r1")
    assert paired.returncode == 0 and "calls failed 1" in paired.stdout, paired.stderr
    pairs = read_rows(folder / "data/rounds/r1/pairs.parquet", PreferencePair)
    dropped = read_rows(folder / "data/rounds/r1/dropped.parquet", DroppedFeature)
    assert DroppedFeature("s/main/1", "dpo", "calls failed") in dropped
    sides = {side for pair in pairs for side in (pair.chosen_explanation, pair.rejected_explanation)}
    assert sides and not sides & set(lost)


def test_an_evaluation_counts_explanations_whose_texts_failed_apart_from_missing_ones():
    lost = evaluation(feature_id="b", explanation="the word cat", **dict.fromkeys(evaluate.LOOKED_AT, math.nan))
    missing = evaluation(feature_id="c", hallucination=1.0, truth_agreement=math.nan)
    measured = evaluation(feature_id="a", explanation="the word dog", texts=["a dog"], generative_accuracy=1.0)
    found = [measured, lost, missing]
    assert evaluate.counted(found, "test") == [
        "3 test features, 1 without an explanation",
        "1 explanations were not measured on texts, because every call for theirs failed",
    ]
    assert evaluate.counted(found[::2], "test") == ["2 test features, 1 without an explanation"]
    means = evaluate.means(found)
    assert (means["generative_accuracy"], means["hallucination"], means["truth_agreement"]) == (0.5, 0.5, 0.0)
    assert evaluate.means([lost]) == {}


def test_a_real_server_writes_what_its_model_says(tmp_path):
    """`transformers serve`, on loopback, with a home of its own; the model knows one answer, in three tokens."""
    follows = {"<assistant>": ['{"texts": ["a dog",'], '{"texts": ["a dog",': [' "the cat"'], ' "the cat"': ["]}"]}
    model, port = saying(tmp_path / "model", follows), free_port()
    home = {"HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = ("transformers.cli.transformers", "serve", str(model), "--host", "127.0.0.1", "--port", str(port))
    config = served(
        port, tmp_path, model=str(model), structured=Structured.json_schema, timeout_seconds=60.0, texts=2,
        temperature=0.7,
    )  # fmt: skip
    with program(tmp_path, *command, "--device", "cpu", says="Uvicorn running on", **home):
        writer, texts = written(config)
        assert texts == {"any animal": ["a dog", "the cat"], "the word dog": ["a dog", "the cat"]}
    usage = writer.usage(texts)
    assert usage.calls == 2 and usage.written_tokens in (6, 8) and usage.prompt_tokens > 100  # bytes are its tokens
    assert "2 calls paid for" in writer.notes()[0] and "estimated" not in writer.notes()[0]
    assert written(config)[1] == texts  # the server is gone
