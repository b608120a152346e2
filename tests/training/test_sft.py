"""Supervised training in parts of like length is the same training."""

from pathlib import Path

import pytest
import torch
from tiny import WIDTH, settings, tiny_model, tiny_tokenizer

from saeexplainer.config.parts import Architecture
from saeexplainer.explainer.explainer import Prompts, attach
from saeexplainer.training import sft

PARAMS, TOKENIZER = settings(), tiny_tokenizer()
COUNT = 32  # examples, all of them in every step
LONG = "- the old dog sees a cat in the garden and the cat sees the dog"


def trained(scratch: Path) -> tuple[dict[str, torch.Tensor], int]:
    """The weights after three steps, and how many forward passes they took."""
    torch.manual_seed(0)
    model = tiny_model(Architecture.llama)
    directions = torch.randn(COUNT, WIDTH, generator=torch.Generator().manual_seed(1))
    hooks = attach(model, TOKENIZER, directions, PARAMS.explainer)
    shown = [LONG if at % 3 else "" for at in range(COUNT)]
    prompts = Prompts(TOKENIZER, len(TOKENIZER), PARAMS.explainer, shown)
    examples = [prompts.example(at, "the word dog" if at % 2 else "any animal in a question") for at in range(COUNT)]
    passes: list[int] = []
    counter = model.register_forward_pre_hook(lambda *_: passes.append(1))
    sft.supervised_fine_tuning(
        model, TOKENIZER, examples, PARAMS.explainer, epochs=3.0, learning_rate=1e-3, batch_size=COUNT,
        section="train_sft", seed=0, scratch=scratch,
    )  # fmt: skip
    counter.remove()
    hooks.remove()
    return {name: weight.detach() for name, weight in model.named_parameters()}, len(passes)


def test_a_batch_in_parts_teaches_what_the_whole_batch_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, passes = trained(tmp_path / "parts")
    assert passes == 3 * 4
    monkeypatch.setattr(sft, "PARTS", (1,))
    whole, passes = trained(tmp_path / "whole")
    assert passes == 3
    start = {name: weight.detach() for name, weight in tiny_model(Architecture.llama).named_parameters()}
    for name, weight in whole.items():
        moved = (weight - start[name]).abs().max()
        assert moved > 0 and (parts[name] - weight).abs().max() < 0.02 * moved, name
