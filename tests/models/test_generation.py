"""Sampling: the nucleus against transformers' own, and prompts that are read once against prompts read each time."""

import ggufs
import pytest
import torch
from transformers import TopPLogitsWarper

from saeexplainer.models import generation
from saeexplainer.models.generation import LIKELIEST, LONG, Nucleus, generate

WORDS = ggufs.tokenizer()
MODEL = ggufs.model(len(WORDS))
PROMPTS = [list(range(5, 5 + LONG + extra)) for extra in (4, 0, 2) for _ in range(3)]
HOW = {"top_p": 1.0, "max_new_tokens": 8, "batch_size": 5}


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.1, 3.0])  # nearly flat: the nucleus is wider than LIKELIEST; and peaked
def test_a_nucleus_is_that_of_transformers(top_p: float, spread: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 4 * LIKELIEST) * spread
    ids = torch.zeros(7, 1, dtype=torch.long)
    expected = TopPLogitsWarper(top_p)(ids, logits / 0.7)
    found = Nucleus(0.7, top_p)(ids, logits)
    assert torch.equal(found.isinf(), expected.isinf())
    torch.testing.assert_close(found, expected)


def test_a_nucleus_limits_what_is_drawn() -> None:
    """Almost no mass: only the likeliest token is left, so draws are greedy."""
    torch.manual_seed(0)
    drawn = generate(MODEL, WORDS, PROMPTS, temperature=1.5, **HOW | {"top_p": 1e-6})
    assert drawn == generate(MODEL, WORDS, PROMPTS, temperature=0.0, **HOW)
    assert generate(MODEL, WORDS, PROMPTS, temperature=1.5, **HOW) != drawn


def test_prompts_that_come_several_times_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    handle = MODEL.model.register_forward_pre_hook(
        lambda _module, _inputs, named: read.append(named["input_ids"].numel()), with_kwargs=True
    )
    shared = generate(MODEL, WORDS, PROMPTS, temperature=0.0, **HOW)
    once = sum(read)
    read.clear()
    monkeypatch.setattr(generation, "LONG", 10**6)
    assert generate(MODEL, WORDS, PROMPTS, temperature=0.0, **HOW) == shared
    handle.remove()
    assert len(set(shared)) == 3, "prompts of three lengths, padded, are told apart"
    assert sum(read) - once >= sum(map(len, PROMPTS)) / 3
