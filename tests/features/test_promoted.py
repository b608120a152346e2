"""What a direction promotes: the model's own last norm and head, whatever the family and however few its blocks."""

from dataclasses import replace

import pytest
import torch
from tiny import WIDTH, settings, tiny_model, tiny_tokenizer

from saeexplainer.config.explainers import TokensPrompt
from saeexplainer.config.parts import Architecture
from saeexplainer.explainer.explainer import Prompts
from saeexplainer.explainer.table import FeatureTable
from saeexplainer.features.contexts import promotes
from saeexplainer.features.promoted import by_clamp, by_lens, promoted
from saeexplainer.models.blocks import embedding_of
from saeexplainer.models.loading import load_model
from saeexplainer.models.tokenizers import special_ids
from saeexplainer.records import ContextRow, FeatureRow, PromotedRow
from saeexplainer.runs.storage import write_rows
from saeexplainer.saes.reading import Reader
from saeexplainer.saes.sites import Place, Site

TOKENIZER = tiny_tokenizer()
DIRECTIONS = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))
LAST_NORM = {Architecture.llama: "model.norm", Architecture.gpt2: "transformer.ln_f"}


@pytest.mark.parametrize("architecture", list(Architecture))
def test_it_is_the_logit_lens(architecture, tmp_path):
    model = tiny_model(architecture)
    norm = model.get_submodule(LAST_NORM[architecture])
    torch.nn.init.normal_(norm.weight, 1.0, 0.5)
    if getattr(norm, "bias", None) is not None:
        torch.nn.init.normal_(norm.bias, 0.0, 2.0)  # it is there without any direction, and so is no effect of one
    found = promoted(by_lens(model, 7.0 * DIRECTIONS), TOKENIZER, 3)
    unit = DIRECTIONS / DIRECTIONS.norm(dim=1, keepdim=True) * WIDTH**0.5
    head = model.get_output_embeddings()
    with torch.no_grad():
        logits = head(norm(unit)) - head(norm(torch.zeros(1, WIDTH)))
    logits[:, special_ids(TOKENIZER)] = -torch.inf
    assert found == [[TOKENIZER.decode([token]).strip() for token in row] for row in logits.topk(3).indices.tolist()]
    assert len({tuple(row) for row in found}) == len(DIRECTIONS)
    model.save_pretrained(tmp_path)
    assert promoted(by_lens(load_model(tmp_path, blocks=1), DIRECTIONS), TOKENIZER, 3) == found


@pytest.mark.parametrize("architecture", list(Architecture))
def test_clamped_directions_are_added_at_their_own_length_behind_bos(architecture):
    """At the first block's input, where whoever passes embeddings can add them too."""
    model = tiny_model(architecture)
    reader = Reader(model, TOKENIZER, Site(0, Place.resid_pre), 64)
    beginnings = torch.tensor(TOKENIZER(["the dog is", "a cat ."])["input_ids"])
    assert reader.begins_with_bos and (beginnings[:, 0] == TOKENIZER.bos_token_id).all()
    directions = 3.0 * DIRECTIONS
    (found,) = by_clamp(reader, beginnings, directions)
    with torch.no_grad():
        there = embedding_of(model)[beginnings]
        clean = model(inputs_embeds=there).logits[:, 1:].log_softmax(-1)
        for row, direction in zip(found, directions, strict=True):
            moved = there.clone()
            moved[:, 1:] += direction
            raised = model(inputs_embeds=moved).logits[:, 1:].log_softmax(-1) - clean
            torch.testing.assert_close(row, raised.mean((0, 1)), atol=1e-5, rtol=1e-4)
    assert len(by_clamp(reader, beginnings, torch.zeros(1, WIDTH)).__next__().nonzero()) == 0


def test_the_row_of_a_token_promotes_that_token():
    model = tiny_model(Architecture.llama)
    tokens = TOKENIZER.convert_tokens_to_ids(["dog", "cat", "the"])
    rows = model.get_output_embeddings().weight.detach()[tokens]
    assert [words[0] for words in promoted(by_lens(model, rows), TOKENIZER, 1)] == ["dog", "cat", "the"]


def test_there_are_no_more_than_the_vocabulary_has():
    model = tiny_model(Architecture.llama)
    (found,) = promoted(by_lens(model, DIRECTIONS[:1]), TOKENIZER, 10_000)
    assert len(found) == len(set(found)) == len(embedding_of(model)) - len(special_ids(TOKENIZER))


def test_the_prompt_shows_them_after_the_contexts(tmp_path):
    rows = [FeatureRow(f"s/main/{at}", "main", at, "sft", 1.0, 0.01) for at in range(2)]
    write_rows(tmp_path / "features.parquet", rows, FeatureRow)
    context = ContextRow("s/main/0", 0, "the dog .", ["the", "dog", "."], [0.0, 1.0, 0.0], 1, [])
    write_rows(tmp_path / "contexts.parquet", [context], ContextRow)
    words = [PromotedRow(row.feature_id, ["cat", "dog", "the"]) for row in rows]
    write_rows(tmp_path / "promoted.parquet", words, PromotedRow)
    config = replace(settings().explainer, prompt=TokensPrompt("tokens", 1, 5, 0, 2))
    shown = FeatureTable(tmp_path).contexts(config.prompt)
    assert shown == ["- the <<dog>> .\npromotes: cat, dog", "promotes: cat, dog"]
    prompts = Prompts(TOKENIZER, 1000, config, shown)
    bos, explain, text, example, about = TOKENIZER.convert_tokens_to_ids(
        ["<bos>", "<explain>", "<text>", "<example>", "<about>"]
    )
    the, dog, cat = TOKENIZER.convert_tokens_to_ids(["the", "dog", "cat"])
    assert prompts.ids(0) == [bos, explain, 1000, text, the, dog, example, cat, dog, about]
    assert prompts.ids(1) == [bos, explain, 1001, example, cat, dog, about]
    assert FeatureTable(tmp_path).contexts(TokensPrompt("tokens", 0, 5, 0, 0)) == []
    assert promotes(["a", "b  c\n"]) == "promotes: a, b c"
