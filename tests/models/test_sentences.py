"""Which texts are alike: by a real sentence encoder's shape, made on the spot, and by a model's token embeddings."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from transformers import BertConfig, BertModel

from saeexplainer.config.parts import Architecture, TextEncoder
from saeexplainer.errors import UserError
from saeexplainer.models import sentences

TEXTS = ["the cedar was old .", "a cedar is old", "we sold it"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("encoder"), tiny_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def test_an_encoder_gives_the_mean_of_its_last_states(encoder):
    found = sentences.open_encoder(TextEncoder(str(encoder), None))(TEXTS)
    assert found.shape == (3, 16)
    model, tokenizer = BertModel.from_pretrained(encoder).eval(), tiny_tokenizer()
    for text, vector in zip(TEXTS, found, strict=True):
        alone = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].mean(dim=0)
        assert torch.allclose(vector, alone / alone.norm(), atol=1e-5), text
    assert sentences.open_encoder(TextEncoder(str(encoder), None))(["the cedar was old . " * 20]).isfinite().all()


def test_token_embeddings_forget_the_order():
    tokenizer = tiny_tokenizer()
    embed = sentences.by_tokens(tiny_model(Architecture.llama), tokenizer, 64)
    one, turned, other, nothing = embed(["old cedar", "cedar old", "we sold it", ""])
    assert one.norm() == pytest.approx(1) and not nothing.any(), "a text without a token is like none"
    assert torch.allclose(one, turned, atol=0.2) and float(one @ other) < float(one @ turned)


def test_what_is_no_encoder_is_one_line(tmp_path, encoder):
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"^{tmp_path}: no text encoder in it \(.*\)$"):
        sentences.open_encoder(TextEncoder(str(tmp_path), None))
    model = BertModel.from_pretrained(encoder)
    weights = {name: found for name, found in model.state_dict().items() if "layer.1" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(UserError, match=r"weights are missing or of another size, encoder\.layer\.1\."):
        sentences.open_encoder(TextEncoder(str(tmp_path), None))
    with pytest.raises(UserError, match="pinned revision"):
        sentences.open_encoder(TextEncoder("someone/encoder", None))
