"""The agent that asks a language model, as the evaluation runs it: real chat models and servers state hypotheses, a
writer writes the word that one names, and features fire on a word."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from served import Mood, Server, endpoint, pretrained, saying, serving
from tiny import settings, tiny_tokenizer

from saeexplainer.config.parts import Agent, AgentPrompts, ChatAgentSpec, EndpointAgentSpec
from saeexplainer.domains.sandbox.world import World
from saeexplainer.errors import UserError
from saeexplainer.features.neighbours import Neighbourhoods
from saeexplainer.records import ContextRow, FeatureRow
from saeexplainer.runs.storage import write_rows
from saeexplainer.saes.text_activations import TextActivations
from tasks import bench as tasks_bench, sources

FIRES_ON = ["dog", "cat", "dog"]  # each feature; the first and the last see the same contexts
FIRST, NEXT = "Which?\n{contexts}", "Which?\n{contexts}\nSo far:\n{tested}"
SHOWN = "- the <<{word}>>\n- a <<{word}>>"  # the contexts of a feature, two of three
WRITTEN = ("the {word} sleeps", "a {word}")
TEXTS, TEXT_TOKENS = 2, 2 * (5 + 1) + (3 + 1) + (2 + 1)  # of a hypothesis; the prompt is <about> the word dog <text>


class Author:
    """Writes the last word of an explanation."""

    def write(self, descriptions):
        return {one: [text.format(word=one.split()[-1]) for text in WRITTEN] for one in descriptions if one}

    def usage(self, descriptions):
        return None

    def notes(self):
        return []


def activations(text: str, latent: int) -> list[float]:
    """2 on the feature's word."""
    return [2.0 if word == FIRES_ON[latent] else 0.0 for word in text.split(" ")]


def read(texts) -> TextActivations:
    values = np.array([[max(activations(text, latent)) for latent in range(3)] for text in texts]).reshape(-1, 3)
    return TextActivations({text: at for at, text in enumerate(texts)}, {"main": {0: 0, 1: 1, 2: 2}}, {"main": values})


def read_tokens(asked):
    return [([f"{word} " for word in text.split(" ")], activations(text, latent)) for text, latent in asked]


def bench(agent: Agent | None, **changes) -> SimpleNamespace:
    """Three features and a subject that are as this file says."""
    given = settings()
    writer = replace(given.score_explanations.writer, texts=TEXTS)
    rows = [FeatureRow(f"s/main/{at}", "main", at, "test", 2.0, 0.1) for at in range(3)]
    return SimpleNamespace(
        params=replace(
            given,
            evaluate=replace(given.evaluate, **{"agent": agent, "agent_turns": 3, "agent_hypotheses": 2} | changes),
            score_explanations=replace(given.score_explanations, writer=writer),
        ),
        features=rows, near=Neighbourhoods(rows, []), sae_name="main", domain=World(0), training_author=Author(),
        read=lambda texts, latents: read(texts), read_tokens=read_tokens, said=[],
        sizes=partial(tasks_bench.Bench.sizes, SimpleNamespace(tokenizer=tiny_tokenizer())),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three contexts of each feature, and one that is kept for the probes."""
    world = World(0)
    rows = [
        ContextRow(f"s/main/{at}", rank, f"{before} {word}", [before, f" {word}"], [0.0, 1.0], 1,
                   [concept for concept in world.concepts() if concept == f"word:{word}"])
        for at, word in enumerate(FIRES_ON)
        for rank, before in ((0, "the"), (1, "a"), (2, "more"), (10, "never"))
    ]  # fmt: skip
    write_rows(tmp_path / "contexts.parquet", rows, ContextRow)
    return tmp_path


@pytest.fixture
def serve():
    with serving(Thinker) as start:
        yield start


class Thinker(Server):
    """Answers by what it is told; the script says what happens to the first requests."""

    def next_step(self, body):
        if self.script:
            return self.script.pop(0)
        asked = body["messages"][0]["content"]
        if "holds in" in asked and "a <<cat>>" not in asked.split("So far:")[0]:
            return '{"explanation": "the word dog"}'
        return '{"explanation": "the word %s"}' % ("horse" if "Guess: the word cat" in asked else "cat")


def served(server: Server, folder: Path, **changes) -> EndpointAgentSpec:
    return EndpointAgentSpec(
        kind="endpoint", endpoint=endpoint(server, folder, concurrency=1, **changes), temperature=0.0,
        prompts=AgentPrompts(FIRST, NEXT), contexts=2, texts=1,
    )  # fmt: skip


def local(folder: Path, *answers: str, **changes) -> ChatAgentSpec:
    """A chat model that says one of these."""
    given = {"max_new_tokens": 9, "temperature": 0.0, "contexts": 2} | changes
    return ChatAgentSpec(
        kind="chat", model=pretrained(saying(folder / "model", {"<assistant>": answers})), batch_size=2, texts=1,
        prompts=AgentPrompts(FIRST, NEXT), **given,
    )  # fmt: skip


def asked(word: str, *told: str) -> int:
    """Tokens of a question to the local chat model: a byte is one, so is <assistant>, and so is what it says itself."""
    contexts = SHOWN.format(word=word)
    prompt = NEXT.format(contexts=contexts, tested="\n".join(told)) if told else FIRST.format(contexts=contexts)
    return len(f"<user>{prompt}".replace("the word dog", ".")) + 1


def test_a_chat_model_that_names_the_word_wins_in_one_question_and_one_that_does_not_ends(folder):
    given = bench(local(folder, "the word dog"))
    found = sources.from_agent(given, folder)
    # The features of dog settle at once: two questions, two answers of a token and an end, two hypotheses of which the
    # second says the same.
    waiting = ("Guess: the word dog", "It was not tested yet.")
    of_dog = asked("dog") + asked("dog", *waiting) + 2 * 2 + TEXT_TOKENS
    costs = [(one.text, one.calls, one.call_tokens) for one in found]
    assert costs[0] == costs[2] == ("the word dog", 2 + TEXTS, of_dog)
    # That of cat is asked once more, with what its texts did.
    silent = ("Guess: the word dog", "It holds in 0 of 2 texts.", "- fails: the dog sleeps")
    of_cat = asked("cat") + asked("cat", *waiting) + asked("cat", *silent) + 3 * 2 + TEXT_TOKENS
    assert costs[1] == ("the word dog", 3 + TEXTS, of_cat)
    assert given.said == ["evaluate.agent: 4 of 7 answers brought no new hypothesis (said before 4)"]


def test_of_two_hypotheses_that_are_drawn_the_measured_one_is_the_answer(folder):
    """A chat model that knows four words, two of them right, each drawn anew for a question."""
    words = [f"the word {word}" for word in ("dog", "cat", "horse", "garden")]
    given = bench(local(folder, *words, temperature=1.0), agent_turns=9, agent_hypotheses=2)
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append([one.text for one in sources.from_agent(given, folder)])
    assert drawn[0] == drawn[1] == [f"the word {word}" for word in FIRES_ON]


def test_a_served_model_refines_on_what_was_measured_within_its_budget(folder, serve):
    server = serve()
    given = bench(served(server, folder), agent_turns=2)
    found = sources.from_agent(given, folder)
    assert [one.text for one in found] == ["the word dog", "the word cat", "the word dog"]
    # dog: cat and horse are tested, then dog, after which the model says horse again. cat: cat, which settles it, and
    # horse. A question is 15 tokens, and a served model's usage counts for each feature that it was asked about.
    assert [one.calls for one in found] == [4 + 3 * TEXTS, 2 + 2 * TEXTS, 4 + 3 * TEXTS]
    assert [one.call_tokens for one in found] == [
        4 * 15 + 3 * TEXT_TOKENS, 2 * 15 + 2 * TEXT_TOKENS, 4 * 15 + 3 * TEXT_TOKENS
    ]  # fmt: skip
    assert len(server.requests) == 6 and given.said == [
        "evaluate.agent: 6 calls paid for, 60 + 30 tokens, 0 USD",
        "evaluate.agent: 2 of 10 answers brought no new hypothesis (said before 2)",
    ]
    prompts = [request["messages"][0]["content"] for request in server.requests]
    form = '\n\nAnswer with JSON alone: {"explanation": string}'
    contexts = SHOWN.format(word="dog")
    assert FIRST.format(contexts=contexts) + form in prompts and not any("never" in prompt for prompt in prompts)
    tested = "\n".join(
        f"Guess: the word {word}\nIt holds in 0 of 2 texts.\n- fails: the {word} sleeps" for word in ("cat", "horse")
    )
    assert NEXT.format(contexts=contexts, tested=tested) + form in prompts
    again = bench(served(server, folder), agent_turns=2)
    assert sources.from_agent(again, folder) == found and len(server.requests) == 6  # what is kept is not paid twice
    assert again.said == given.said[1:]


def test_who_makes_no_sense_ends_in_the_best_so_far_or_in_nothing(folder, serve):
    no = ["no"] * 4  # to the questions about dog and cat, and to the requests to mend that
    given = bench(served(serve(*no), folder))
    assert [(one.text, one.calls, one.call_tokens) for one in sources.from_agent(given, folder)] == [("", 2, 50)] * 3
    assert given.said[1:] == [
        "evaluate.agent: 2 of 2 calls failed (no usable answer 2)",
        "evaluate.agent: 3 of 3 answers brought no new hypothesis (unusable 3)",
    ]
    two = ['{"explanation": "the word horse"}'] * 2
    (*found,) = sources.from_agent(bench(served(serve(*two, *no, *no, Mood.no_text), folder / "b")), folder)
    # A first hypothesis, then nothing that can be read to either question: the turn tests what there is, the next ends.
    assert [(one.text, one.calls) for one in found] == [("the word horse", 1 + 2 + TEXTS + 2)] * 3
    with pytest.raises(UserError, match=r"^evaluate.agent.endpoint: 1 of 2 calls failed .* raise max_failed_share"):
        sources.from_agent(bench(served(serve(*no), folder / "c", max_failed_share=0.4)), folder)


def test_an_empty_answer_is_no_hypothesis_and_a_wrong_chat_model_is_one_line(folder):
    garbage = bench(local(folder, "...", "<eos>"))
    assert [one.text for one in sources.from_agent(garbage, folder)] == [""] * 3
    assert garbage.said[-1] == "evaluate.agent: 3 of 3 answers brought no new hypothesis (unusable 3)"
    long = local(folder, "the word dog", max_new_tokens=1000)
    with pytest.raises(
        UserError, match=r"evaluate.agent.max_new_tokens with the prompt \(contexts, texts\): .* at most"
    ):
        sources.from_agent(bench(long), folder)
    tiny_tokenizer().save_pretrained(folder / "other")
    with pytest.raises(UserError, match=r"^evaluate.agent.model.source: \S*other: its tokenizer has no chat template"):
        sources.from_agent(bench(replace(long, model=pretrained(folder / "other"))), folder)


def test_without_a_model_concepts_are_the_hypotheses(folder):
    given = bench(None)
    found = sources.from_agent(given, folder)
    # One hypothesis, four tokens with its end, is settled by its texts.
    assert [(one.text, one.calls, one.call_tokens) for one in found] == [
        (f"the word {word}", 1 + TEXTS, 4 + TEXT_TOKENS) for word in FIRES_ON
    ]
    assert given.said == []
