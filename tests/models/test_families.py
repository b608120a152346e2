"""Subjects of the published families: loaded, cut short and read as transformers itself runs them; their tokenizers."""

import logging
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from families import (
    BLOCKS,
    CONTEXT,
    END,
    FAMILIES,
    NO_SUBJECTS,
    STATE_SPACE,
    TEXTS,
    TOKENIZERS,
    WIDTH,
    Family,
    save,
    save_family,
)
from safetensors.torch import load_file, save_file
from tiny import read_residual

from saeexplainer.errors import UserError
from saeexplainer.models import stream
from saeexplainer.models.batches import encode_batch
from saeexplainer.models.blocks import check_context, transformer_blocks
from saeexplainer.models.loading import load_model
from saeexplainer.models.tokenizers import load_tokenizer, special_ids
from saeexplainer.saes.sites import Place, Site, SiteReader, parse_site

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MIDDLE = 1


@dataclass(frozen=True)
class Saved:
    """A checkpoint, and what transformers itself makes of it."""

    family: Family
    folder: Path
    ids: torch.Tensor
    mask: torch.Tensor
    valid: torch.Tensor
    plain: transformers.PreTrainedModel
    states: tuple[torch.Tensor, ...]  # hidden states of a full run


@pytest.fixture(scope="module", params=list(FAMILIES))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("family") / request.param
    save_family(request.param, folder)
    ids, mask, valid = encode_batch(load_tokenizer(folder), TEXTS, CONTEXT)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        states = plain(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return Saved(FAMILIES[request.param], folder, ids, mask, valid, plain, states)


def assert_same(found: torch.Tensor, expected: torch.Tensor, saved: Saved) -> None:
    """Within 1e-4 of the norm, at every token that counts."""
    difference = (found - expected)[saved.valid].norm(dim=-1)
    assert (difference <= 1e-4 * expected[saved.valid].norm(dim=-1)).all()


def test_every_residual_is_that_of_a_full_plain_run(saved):
    model = load_model(saved.folder)
    assert len(transformer_blocks(saved.plain)) == len(transformer_blocks(model)) == BLOCKS
    for block in range(BLOCKS - 1):
        assert_same(read_residual(model, block, saved.ids, saved.mask), saved.states[block + 1], saved)
    with torch.no_grad():  # transformers norms the last hidden state
        last = saved.plain.get_submodule(saved.family.norm)(read_residual(model, BLOCKS - 1, saved.ids, saved.mask))
    assert_same(last, saved.states[BLOCKS], saved)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_model_cut_short_reads_the_same(saved, block, caplog):
    with caplog.at_level(logging.WARNING):
        cut = load_model(saved.folder, blocks=block + 1)
    assert len(transformer_blocks(cut)) == block + 1
    assert not [record for record in caplog.records if "UNEXPECTED" in record.getMessage()]
    whole = load_model(saved.folder)
    assert cut.num_parameters() < whole.num_parameters() or block == BLOCKS - 1
    expected = read_residual(whole, block, saved.ids, saved.mask)
    assert torch.equal(read_residual(cut, block, saved.ids, saved.mask), expected)


def outputs_of(saved: Saved, block: int, part: str) -> torch.Tensor:
    """What a named part of a block returns in a full plain run."""
    kept = []
    module = transformer_blocks(saved.plain)[block].get_submodule(part)
    handle = module.register_forward_hook(lambda _, __, output: kept.append(output))
    saved.plain(input_ids=saved.ids, attention_mask=saved.mask)
    handle.remove()
    return (kept[0][0] if isinstance(kept[0], tuple) else kept[0]).detach()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_attention_and_the_mlp_write_is_found_by_structure(saved, dtype):
    model = load_model(saved.folder, dtype=dtype)
    for place, part in ((Place.attn_out, saved.family.attention), (Place.mlp_out, saved.family.mlp)):
        reader = SiteReader(model, Site(MIDDLE, place))
        assert reader._module is transformer_blocks(model)[MIDDLE].get_submodule(part)
        if dtype == "float32":
            assert_same(reader(saved.ids, saved.mask), outputs_of(saved, MIDDLE, part), saved)


def test_the_parts_add_up_and_a_block_begins_where_the_last_ended(saved):
    model = load_model(saved.folder, blocks=MIDDLE + 1)
    before, attention, mlp, after = (SiteReader(model, Site(MIDDLE, place))(saved.ids, saved.mask) for place in Place)
    assert_same(before + attention + mlp, after, saved)
    assert torch.equal(before, SiteReader(model, Site(MIDDLE - 1, Place.resid_post))(saved.ids, saved.mask))
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in transformer_blocks(model))


def test_more_tokens_than_the_model_reads_are_one_line(saved):
    model = load_model(saved.folder)
    ids = torch.ones(1, CONTEXT + 1, dtype=torch.long)
    with pytest.raises(
        UserError, match=f"^context_length: {CONTEXT + 1} tokens, but the model reads {CONTEXT} at most"
    ):
        read_residual(model, 0, ids, torch.ones_like(ids))
    check_context(model, CONTEXT, "prepare_subject.context_length")


def test_more_blocks_than_the_model_has_are_one_line(saved):
    for blocks in (0, BLOCKS + 1):
        with pytest.raises(UserError, match=f"{blocks} blocks are asked for, it has {BLOCKS}") as caught:
            load_model(saved.folder, blocks=blocks)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", STATE_SPACE)
def test_a_model_with_states_is_read_as_a_full_run_has_it_whole_or_cut(name, tmp_path):
    save(STATE_SPACE[name], TOKENIZERS["qwen"](), tmp_path)
    tokenizer, model = load_tokenizer(tmp_path), load_model(tmp_path)
    stream.check(model, tokenizer, "prepare_subject.pretrained.source")
    ids, mask, valid = encode_batch(tokenizer, TEXTS, CONTEXT)
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    for block in range(BLOCKS - 1):
        found = read_residual(model, block, ids, mask)
        assert any(torch.allclose(found[valid], state[valid], rtol=1e-4, atol=1e-5) for state in states)
        after = SiteReader(model, Site(block + 1, Place.resid_pre))(ids, mask)
        assert torch.equal(after, found)
        cut = load_model(tmp_path, blocks=block + 1)
        torch.testing.assert_close(read_residual(cut, block, ids, mask)[valid], found[valid], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("build", "said"), NO_SUBJECTS.values(), ids=NO_SUBJECTS)
def test_a_model_that_cannot_be_a_subject_is_one_line(build, said, tmp_path):
    save(build, TOKENIZERS["gemma"](), tmp_path)
    with pytest.raises(UserError) as caught:
        stream.check(load_model(tmp_path), load_tokenizer(tmp_path), "prepare_subject.pretrained.source")
    message = str(caught.value)
    assert message.startswith(f"prepare_subject.pretrained.source: {tmp_path} (") and said in message
    assert message.endswith("; choose another model") and "\n" not in message


def test_every_family_can_be_a_subject(saved):
    for dtype in ("float32", "bfloat16"):
        stream.check(load_model(saved.folder, dtype=dtype), load_tokenizer(saved.folder), "source")


def test_experts_as_many_as_blocks_are_no_blocks(tmp_path):
    save(STATE_SPACE["jamba"], TOKENIZERS["qwen"](), tmp_path)
    model = load_model(tmp_path)
    transformer_blocks(model)[1].extra = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(BLOCKS))
    assert len(transformer_blocks(model)) == BLOCKS


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "model"
    save_family("llama", folder)
    return folder


@pytest.mark.parametrize("wrong", ["missing", "size"])
def test_random_weights_never_stand_in_for_the_checkpoints(llama, tmp_path, wrong):
    folder = tmp_path / "broken"
    shutil.copytree(llama, folder)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = weights[name][:5].clone()
    if wrong == "missing":
        del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"1 weights are missing or of another size, {name} first"):
        load_model(folder)
    load_model(folder, blocks=1)  # which does not need it


def test_weights_that_may_hold_code_are_not_read(llama, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(llama, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no causal language model in it"):
        load_model(folder)


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub cache of this test's own, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield tmp_path / "hub"


def test_a_pinned_hub_model_loads_as_its_folder_does(llama, offline_hub):
    shutil.copytree(llama, offline_hub / "models--owner--tiny" / "snapshots" / COMMIT)
    from_hub, from_folder = load_model("owner/tiny", COMMIT, blocks=2), load_model(str(llama), blocks=2)
    ids, mask, _ = encode_batch(load_tokenizer("owner/tiny", COMMIT), TEXTS, CONTEXT)
    assert torch.equal(read_residual(from_hub, 1, ids, mask), read_residual(from_folder, 1, ids, mask))


@pytest.mark.parametrize(
    ("source", "revision", "said"),
    [
        ("owner/absent", COMMIT, "^owner/absent: no causal language model in it.*HF_TOKEN in the environment"),
        ("owner/absent", None, "^owner/absent: no such folder, and a model of the hub needs a pinned revision"),
        ("owner/absent", "main", "the 40 hex digits of a commit; the revision is 'main'"),
        ("llama", COMMIT, f"a folder has no revision .{COMMIT}.; leave it out"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line(llama, offline_hub, source, revision, said):
    with pytest.raises(UserError, match=said) as caught:
        load_model(llama if source == "llama" else source, revision)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        load_tokenizer(llama if source == "llama" else source, revision)


class Refusing(BaseHTTPRequestHandler):
    """Answers as the hub does about a gated model."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815 (the name that http.server calls)

    def log_message(self, *_: object) -> None:
        pass


def test_a_gated_model_says_what_to_do(tmp_path, monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants, endpoint = huggingface_hub.constants, f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    path = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + path[1] + path[2])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for load in (load_model, load_tokenizer):
        with pytest.raises(UserError, match="gated repo.*needs its licence accepted and HF_TOKEN") as caught:
            load("owner/gated", COMMIT)
        assert "\n" not in str(caught.value)
    server.shutdown()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"dtype": "int3"}, "dtype 'int3' is not known"),
        ({"attention": "clever"}, "attention 'clever' cannot be had"),
        ({"device_map": "gpuu"}, "device_map 'gpuu' is not known; give a device such as cuda"),
        ({"device_map": "cuda:77"}, "device_map is 'cuda:77', but"),
    ],
)
def test_a_way_of_loading_that_is_not_there_is_one_line(llama, how, said):
    with pytest.raises(UserError, match=said) as caught:
        load_model(llama, **how)
    assert "\n" not in str(caught.value)


def test_attention_that_drops_a_cap_on_logits_is_refused(tmp_path):
    save_family("gemma2", tmp_path)
    with pytest.raises(UserError, match="attention 'sdpa' cannot be had"):
        load_model(tmp_path, attention="sdpa")
    assert load_model(tmp_path).config._attn_implementation == "eager"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_as_asked(llama, dtype):
    model = load_model(llama, dtype=dtype, attention="eager", device_map="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


# Which token begins each text: of itself, and if BOS is asked for.
BEGINS = {"gpt2": (None, END), "llama": ("<bos>", "<bos>"), "qwen": (None, END), "gemma": ("<bos>", "<bos>")}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("prepend", [None, True, False])
def test_a_text_begins_as_asked_and_no_special_token_counts(tmp_path, kind, prepend):
    TOKENIZERS[kind]().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path, prepend_bos=prepend)
    first = None if prepend is False else BEGINS[kind][bool(prepend)]
    ids, mask, valid = encode_batch(tokenizer, TEXTS, CONTEXT)
    for row, text in enumerate(TEXTS):
        tokens = tokenizer.convert_ids_to_tokens(ids[row])
        assert tokenizer.decode(ids[row][valid[row]]) == text
        assert int(mask[row].sum()) == int(valid[row].sum()) + (first is not None)
        assert (tokens[0] == first) if first else valid[row][0]
    # Offsets, cut at the context, still point into the text.
    spans = tokenizer(TEXTS, truncation=True, max_length=3, return_offsets_mapping=True)["offset_mapping"]
    starts = [[TEXTS[row][start:end] for start, end in pairs] for row, pairs in enumerate(spans)]
    assert ["".join(pieces) for pieces in starts] == [text[: len("".join(p))] for text, p in zip(TEXTS, starts)]
    # What was set is kept where the tokenizer is saved.
    tokenizer.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again")(TEXTS[0])["input_ids"] == tokenizer(TEXTS[0])["input_ids"]


def test_special_tokens_without_a_role_do_not_count(tmp_path):
    for kind, token in (("llama", "<|header|>"), ("qwen", "<|im_start|>")):
        TOKENIZERS[kind]().save_pretrained(tmp_path / kind)
        tokenizer = load_tokenizer(tmp_path / kind)
        assert tokenizer.convert_tokens_to_ids(token) in special_ids(tokenizer)
        ids, _, valid = encode_batch(tokenizer, [f"the {token} dog"], CONTEXT)
        assert token not in tokenizer.decode(ids[0][valid[0]]) and int(valid.sum()) > 1


def test_a_tokenizer_that_cannot_pad_is_one_line(tmp_path):
    bare = TOKENIZERS["gpt2"]()
    with pytest.raises(UserError, match="no padding token"):
        encode_batch(bare, TEXTS, CONTEXT)
    transformers.PreTrainedTokenizerFast(tokenizer_object=bare.backend_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="neither a padding token nor EOS; set pad_token"):
        load_tokenizer(tmp_path)


def test_hook_names_are_parsed_or_refused():
    assert parse_site("blocks.12.hook_resid_post") == Site(12, Place.resid_post)
    assert parse_site("blocks.0.hook_mlp_out") == Site(0, Place.mlp_out)
    assert Site(12, Place.attn_out).blocks == 13
    for name, said in (
        ("blocks.3.attn.hook_z", "the heads before their output matrix"),
        ("blocks.3.ln2.hook_normalized", "not one that is read"),
        ("model.layers.3", "not one that is read"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            parse_site(name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_block_that_is_not_there_is_one_line(llama):
    with pytest.raises(UserError, match=f"^hook_name: {BLOCKS}, but the model has blocks 0 to {BLOCKS - 1}"):
        SiteReader(load_model(llama), Site(BLOCKS, Place.resid_post))


def test_a_block_that_scales_what_it_adds_is_refused_only_where_it_matters(llama):
    model = load_model(llama)
    block = transformer_blocks(model)[MIDDLE]
    handle = block.register_forward_hook(lambda _, inputs, output: inputs[0] + 0.1 * (output - inputs[0]))
    with pytest.raises(UserError, match="no two parts of LlamaDecoderLayer add up"):
        SiteReader(model, Site(MIDDLE, Place.mlp_out))
    SiteReader(model, Site(MIDDLE, Place.resid_post))
    handle.remove()
    ids = torch.arange(1, 9).unsqueeze(0)
    assert SiteReader(model, Site(MIDDLE, Place.mlp_out))(ids, torch.ones_like(ids)).shape == (1, 8, WIDTH)
