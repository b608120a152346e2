"""Loading, reading one residual stream, masking, sampling: on both architectures, against transformers itself."""

import logging.handlers
from pathlib import Path

import pytest
import torch
from tiny import BLOCKS, read_residual, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from saeexplainer.config.parts import Architecture
from saeexplainer.domains.domain import SPECIAL_TOKENS
from saeexplainer.errors import UserError
from saeexplainer.models.batches import by_length, encode_batch
from saeexplainer.models.blocks import check_block, transformer_blocks
from saeexplainer.models.generation import generate
from saeexplainer.models.loading import load_model
from saeexplainer.models.tokenizers import CHAT, load_tokenizer

TOKENIZER = tiny_tokenizer()
TEXTS = ["the dog chases the cat .", "the dog", "does the dog chase the cat in the garden ?"]


@pytest.fixture(scope="module", params=list(Architecture))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.mark.parametrize("block", range(BLOCKS - 1))  # transformers norms the last hidden state
def test_the_residual_is_the_next_hidden_state(model, block):
    ids, mask, valid = encode_batch(TOKENIZER, TEXTS, 64)
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    found = read_residual(model, block, ids, mask)
    torch.testing.assert_close(found[valid], states[block + 1][valid], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[valid], states[block][valid], rtol=1e-2)


def test_later_blocks_do_not_run_and_no_hook_stays(model):
    ran = []
    blocks = transformer_blocks(model)
    before = [len(block._forward_hooks) for block in blocks]
    handles = [block.register_forward_hook(lambda *_, at=at: ran.append(at)) for at, block in enumerate(blocks)]
    ids, mask, _ = encode_batch(TOKENIZER, TEXTS, 64)
    read_residual(model, 0, ids, mask)
    assert ran == [0]
    for handle in handles:
        handle.remove()
    assert [len(block._forward_hooks) for block in blocks] == before
    assert model(input_ids=ids, attention_mask=mask).logits.shape == (*ids.shape, len(TOKENIZER))


def test_padding_changes_no_residual(model):
    ids, mask, valid = encode_batch(TOKENIZER, TEXTS, 64)
    batched = read_residual(model, 1, ids, mask)
    for row, text in enumerate(TEXTS):
        alone_ids, alone_mask, alone_valid = encode_batch(TOKENIZER, [text], 64)
        alone = read_residual(model, 1, alone_ids, alone_mask)
        torch.testing.assert_close(batched[row][valid[row]], alone[0][alone_valid[0]], rtol=1e-4, atol=1e-5)


def test_the_valid_mask_leaves_out_every_special_token():
    ids, mask, valid = encode_batch(TOKENIZER, ["the dog " + " ".join(SPECIAL_TOKENS), "the nonesuch dog ."], 64)
    tokens = [TOKENIZER.convert_ids_to_tokens(row) for row in ids.tolist()]
    assert [token for token, counts in zip(tokens[0], valid[0].tolist()) if counts] == ["the", "dog"]
    assert [token for token, counts in zip(tokens[1], valid[1].tolist()) if counts] == ["the", "dog", "."]
    assert mask.sum(dim=1).tolist() == [1 + 2 + len(SPECIAL_TOKENS), 5]
    assert ids[:, 0].tolist() == [TOKENIZER.bos_token_id] * 2  # padded on the right


def test_a_long_text_is_cut_at_the_context():
    ids, _, _ = encode_batch(TOKENIZER, ["the dog " * 50], 10)
    assert ids.shape == (1, 10)


def test_batches_hold_every_index_once_longest_first():
    lengths = [3, 9, 1, 9, 4]
    assert list(by_length(lengths, 2)) == [[1, 3], [4, 0], [2]]


def test_a_model_folder_loads_back(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    ids, mask, _ = encode_batch(load_tokenizer(tmp_path / "model"), TEXTS, 64)
    loaded = load_model(tmp_path / "model")
    assert not loaded.training
    before, after = (one(input_ids=ids, attention_mask=mask).logits for one in (model, loaded))
    assert torch.equal(before, after)


CONFIGS = {  # what a whole model's configuration becomes
    "nothing": lambda _: b"",
    "a list": lambda _: b"[]",
    "null": lambda _: b"null",
    "another encoding": lambda whole: whole.decode().encode("utf-16"),
    "a text for a number": lambda whole: whole.replace(b'"num_hidden_layers": 3', b'"num_hidden_layers": "three"'),
    "not a number": lambda whole: whole.replace(b'"num_hidden_layers": 3', b'"num_hidden_layers": NaN'),
}


def broken_folders(root: Path) -> dict[str, Path]:
    """Folders that are no model, by what is wrong with them."""
    (root / "empty").mkdir()
    (root / "no_weights").mkdir()
    (root / "no_weights" / "config.json").write_text('{"model_type": "llama"}')
    (root / "no_type").mkdir()
    (root / "no_type" / "config.json").write_text("{}")
    (root / "no_json").mkdir()
    (root / "no_json" / "config.json").write_text("{")
    tiny_model(Architecture.llama).save_pretrained(root / "cut")
    weights = root / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for name, config in CONFIGS.items():
        tiny_model(Architecture.llama).save_pretrained(root / name)
        whole = (root / name / "config.json").read_bytes()
        (root / name / "config.json").write_bytes(config(whole))
    return {name: root / name for name in ("absent", "empty", "no_weights", "no_type", "no_json", "cut", *CONFIGS)}


def test_a_folder_that_is_no_model_is_one_line(tmp_path):
    for wrong, folder in broken_folders(tmp_path).items():
        with pytest.raises(UserError) as caught:
            load_model(folder)
        message = str(caught.value)
        assert message.startswith(f"{folder}: no") and "\n" not in message, wrong
        assert wrong != "a text for a number" or "'num_hidden_layers' expected int, got str" in message
        with pytest.raises(UserError):
            load_model(folder, blocks=2)
    for number, content in enumerate((None, b"", b"[]", b"{}", b"{", b'{"model": 7}', b"\xff\xfe[")):
        folder = tmp_path / f"tokenizer{number}"
        TOKENIZER.save_pretrained(folder)
        (folder / "tokenizer.json").unlink()
        if content is not None:
            (folder / "tokenizer.json").write_bytes(content)
        with pytest.raises(UserError, match="no (fast )?tokenizer") as caught:
            load_tokenizer(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("block", [-1, BLOCKS])
def test_a_block_that_is_not_there_names_the_setting(model, block):
    said = f"^prepare_sae.hook_block: {block}, but the model has blocks 0 to {BLOCKS - 1}"
    with pytest.raises(UserError, match=said):
        check_block(model, block, "prepare_sae.hook_block")
    check_block(model, BLOCKS - 1, "prepare_sae.hook_block")


def test_sampling_repeats_with_the_seed_and_differs_without(model):
    prompts = [TOKENIZER("the dog")["input_ids"]] * 8

    def drawn(seed: int) -> list[str]:
        torch.manual_seed(seed)
        return generate(model, TOKENIZER, prompts, temperature=1.0, top_p=1.0, max_new_tokens=5, batch_size=4)

    first = drawn(0)
    assert first == drawn(0) and first != drawn(1) and len(set(first)) > 1


def test_answers_come_in_the_order_of_the_prompts(model):
    prompts = [TOKENIZER(text)["input_ids"] for text in ("the", "the dog chases the cat", "not the dog")]
    greedy = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 4}
    together = generate(model, TOKENIZER, prompts, batch_size=2, **greedy)
    assert together == [generate(model, TOKENIZER, [prompt], batch_size=1, **greedy)[0] for prompt in prompts]
    assert len(set(together)) > 1


def test_how_others_sample_their_model_changes_no_answer(model, tmp_path):
    prompts = [TOKENIZER("the dog")["input_ids"]] * 6
    greedy = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 4, "batch_size": 6}
    expected = generate(model, TOKENIZER, prompts, **greedy)
    theirs = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 2.0}
    model.generation_config.update(**theirs, eos_token_id=[1, 3])
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    torch.manual_seed(0)
    assert generate(loaded, TOKENIZER, prompts, **greedy) == expected
    assert loaded.generation_config.eos_token_id == [1, 3]


def test_a_prompt_says_the_same_on_every_day():
    tokenizer = tiny_tokenizer()
    today = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    tokenizer.chat_template = today + "{{ date_string }} {{ messages[0].content }}"
    said = tokenizer.apply_chat_template([{"role": "user", "content": "the dog"}], tokenize=False, **CHAT)
    assert said == "26 Jul 2024 the dog"


def test_loading_says_nothing(model, tmp_path):
    """transformers would list what is left unread, and what is not sharded."""
    said = logging.handlers.BufferingHandler(100)
    model.save_pretrained(tmp_path)
    logger = logging.getLogger("transformers")
    logger.addHandler(said)
    try:
        load_model(tmp_path)
        load_model(tmp_path, blocks=1)
    finally:
        logger.removeHandler(said)
    assert [record.getMessage() for record in said.buffer] == []
