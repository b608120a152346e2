"""Sampling: what is drawn against transformers' own, and prompts that are read once against prompts read each time."""

import ggufs
import pytest
import torch
from transformers import TopPLogitsWarper

from saeexplainer.models import generation
from saeexplainer.models.generation import LONG, Draw, _drawn, generate

WORDS = ggufs.tokenizer()
MODEL = ggufs.model(len(WORDS))
PROMPTS = [list(range(5, 5 + LONG + extra)) for extra in (4, 0, 2) for _ in range(3)]
HOW = {"top_p": 1.0, "max_new_tokens": 8, "batch_size": 5}


@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("spread", [0.1, 3.0])  # nearly flat: the nucleus is wider than the likeliest; and peaked
def test_what_is_drawn_has_the_distribution_of_transformers(
    top_p: float, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "LIKELIEST", (64, 256))
    torch.manual_seed(0)
    logits = torch.randn(1, 512) * spread
    ids = torch.zeros(1, 1, dtype=torch.long)
    expected = TopPLogitsWarper(top_p)(ids, logits / 0.7).softmax(dim=-1)[0]
    drawn = Draw(0.7, top_p)(ids.expand(40_000, -1), logits.expand(40_000, -1)).argmax(dim=1)
    found = torch.bincount(drawn, minlength=len(expected)) / len(drawn)
    assert not found[expected == 0].any(), "nothing outside the nucleus"
    assert (found - expected).abs().sum() / 2 < 2 * ((expected > 0).sum() / len(drawn)).sqrt()
    assert (found - expected).abs().max() < 5 * (expected.max() / len(drawn)).sqrt()


def test_a_token_is_drawn_where_its_share_is_reached() -> None:
    weights = torch.tensor([[0.0, 0.25, 0.0, 0.75]]).expand(5, -1)
    place = torch.tensor([[0.0], [0.2], [0.25], [0.9], [1.0]], dtype=torch.float64)
    assert _drawn(weights, place).flatten().tolist() == [1, 1, 3, 3, 3]


def test_a_large_vocabulary_is_drawn_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "LARGE", 1)
    torch.manual_seed(0)
    greedy = generate(MODEL, WORDS, PROMPTS, temperature=0.0, **HOW)
    drawn = generate(MODEL, WORDS, PROMPTS, temperature=1.5, **HOW)
    assert generate(MODEL, WORDS, PROMPTS, temperature=1.5, **HOW) != drawn
    torch.manual_seed(0)
    assert generate(MODEL, WORDS, PROMPTS, temperature=1.5, **HOW) == drawn != greedy
    assert generate(MODEL, WORDS, PROMPTS, temperature=1.5, **HOW | {"top_p": 1e-6}) == greedy


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


def test_the_head_reads_rows_that_lie_together() -> None:
    """Else a frozen head in bfloat16 is copied for every prompt."""
    seen = []
    handle = MODEL.get_output_embeddings().register_forward_hook(
        lambda _head, inputs, _output: seen.append((tuple(inputs[0].shape[:2]), inputs[0].is_contiguous()))
    )
    with torch.no_grad():
        MODEL(input_ids=torch.tensor([range(5, 12)] * 3), logits_to_keep=1)
    assert seen == [((3, 1), False)], "transformers keeps one position, a slice with gaps"
    seen.clear()
    generate(MODEL, WORDS, PROMPTS, temperature=0.0, **HOW)
    handle.remove()
    assert len(seen) > len(PROMPTS) / HOW["batch_size"] and all(whole for _, whole in seen)
    assert not MODEL.get_output_embeddings()._forward_pre_hooks, "nothing is left behind"
