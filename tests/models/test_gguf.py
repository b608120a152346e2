"""GGUF files: what is read is what was written, and what cannot be read says so before anything is kept."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf as independent
import ggufs
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from saeexplainer.config.parts import Pretrained
from saeexplainer.errors import UserError
from saeexplainer.models import gguf
from saeexplainer.models.chat import open_chat
from saeexplainer.models.loading import load_model
from saeexplainer.models.pointer import open_model, open_tokenizer, write_pointer
from saeexplainer.models.tokenizers import load_tokenizer

WORDS = ggufs.tokenizer()
MODEL = ggufs.model(len(WORDS))
IDS = torch.tensor([WORDS(ggufs.TEXTS[0])["input_ids"]])


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(Path("data/gguf").glob(".*")), "nothing half-written stays"


def file(name: str = "tiny model.gguf", **how) -> Path:
    ggufs.write(Path(name), MODEL, WORDS, **how)
    return Path(name)


def kept() -> list[Path]:
    return sorted(Path("data/gguf").glob("*"))


@torch.no_grad()
def test_a_file_predicts_what_the_model_in_it_predicts():
    loaded = load_model(file())
    torch.testing.assert_close(loaded(IDS).logits, MODEL(IDS).logits, rtol=1e-4, atol=1e-5)
    first = load_model(file(), blocks=2)
    assert len(first.model.layers) == 2
    assert load_model(str(file()), dtype="bfloat16").dtype is torch.bfloat16


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1])
def test_quantised_weights_are_those_of_an_independent_reader(kind):
    path = file(quantised=kind)
    stored = {tensor.name: tensor for tensor in independent.GGUFReader(path).tensors}
    for name, weight in load_model(path).state_dict().items():
        if name == "lm_head.weight" or "q_proj" in name or "k_proj" in name:
            continue
        tensor = stored[ggufs.gguf_name(name)]
        expected = independent.quants.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
        np.testing.assert_array_equal(weight.numpy(), expected)
    # Queries and keys are stored pair by pair, and put back: else they would be far off, not by a rounding.
    for name, weight in load_model(path).state_dict().items():
        assert (weight - MODEL.state_dict()[name]).abs().max() < 0.12, name


@pytest.mark.parametrize("text", [*ggufs.TEXTS, "12 345", " 7", "x2y", ""])
def test_texts_are_split_as_the_file_s_own_tokenizer_splits_them(text):
    loaded = load_tokenizer(file())
    assert loaded(text)["input_ids"] == WORDS(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (ggufs.BOS, ggufs.EOS, ggufs.EOS)


def test_a_file_is_dequantised_once_and_found_by_its_content():
    path = file()
    load_model(path)
    (folder,) = kept()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    shutil.copy(path, "elsewhere.gguf")
    load_tokenizer(path)
    assert kept() == [folder]
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    load_model("elsewhere.gguf")
    assert len(kept()) == 2, "a name of its own"


def test_a_pointer_leads_to_the_file():
    path = file()
    write_pointer(Path("data/subject"), Pretrained(str(path), None, "bfloat16", None, None), None)
    assert open_model(Path("data/subject"), blocks=1).dtype is torch.bfloat16
    assert open_tokenizer(Path("data/subject"))("dog")["input_ids"] == WORDS("dog")["input_ids"]


def refused(path: Path | str, revision: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_model(path, revision)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not kept()
    return str(caught.value)


def test_a_file_of_another_hash_is_refused():
    path = file()
    told = refused(path, "0" * 64)
    right = told.split("SHA-256 is ")[1].split(",")[0]
    assert load_model(path, right).num_parameters() == MODEL.num_parameters()


def test_a_file_that_is_cut_short_or_no_such_file_is_refused():
    path = file()
    whole = path.read_bytes()
    for size in (0, 3, 20, 500, len(whole) // 2, len(whole) - 64):
        path.write_bytes(whole[:size])
        assert "cannot be read as GGUF" in refused(path)
    path.write_bytes(b"PK" + whole[2:])
    assert "cannot be read as GGUF" in refused(path)
    path.unlink()
    assert "no such file" in refused(path)


def test_an_architecture_or_a_way_to_split_that_is_not_known_is_refused():
    assert "architecture" in refused(file(architecture="mystery"))
    assert "tokenizer.ggml.pre is 'mystery'" in refused(file(pre="mystery"))


def test_no_room_is_said_before_anything_is_written(monkeypatch):
    path = file()
    monkeypatch.setattr(gguf.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert "make room" in refused(path)


def test_a_chat_needs_the_file_s_template():
    with_template, without = file(), file("plain.gguf", template=None)
    open_chat(Pretrained(str(with_template), None, "float32", None, None))
    with pytest.raises(UserError, match="plain.gguf: its tokenizer has no chat template"):
        open_chat(Pretrained(str(without), None, "float32", None, None))
