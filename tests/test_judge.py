"""The judge by likelihood: lifts are differences of plain log-probabilities, whatever the batch."""

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from saeexplainer.config import Architecture
from saeexplainer.judge import LikelihoodJudge

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


def test_long_texts_are_cut_and_special_tokens_left_out(model):
    judge = LikelihoodJudge(model, tiny_tokenizer(), PROMPT, 3, 8)
    (cut,) = judge.lifts([("any animal", "the dogs chase the cats")])
    (whole,) = judge.lifts([("any animal", "the <text> dogs")])
    assert len(cut) == 3 and len(whole) == 2
