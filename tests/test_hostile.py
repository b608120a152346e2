"""Malformed files, kind by kind and at random: every reader reads, or says in one line what to change.

The files are made in tests/support/hostile.py. Of each: no traceback, no pickle that runs, nothing written beside it.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ggufs
import hostile
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from tiny import ROOT, WIDTH, tiny_model, tiny_tokenizer

from saeexplainer.config import Corpus
from saeexplainer.config.parts import Architecture, Pretrained
from saeexplainer.domains.corpus.text import read_texts
from saeexplainer.errors import UserError
from saeexplainer.exchange.files import read_records
from saeexplainer.models import gguf, loading, pointer, tokenizers
from saeexplainer.records import FeatureRow
from saeexplainer.runs.storage import read_json, read_notes, read_rows, read_tensors, write_rows, write_tensors
from saeexplainer.saes import loading as saes
from tasks.cli import main
from tasks.settings import compose, params

LONGEST = 700  # characters of a message, its path left out
VALUES = ("hook_name", "file:///etc/passwd", "../../../nowhere")  # that a message may name instead of the file


def rows(path: Path) -> Any:
    return read_rows(path, FeatureRow)


def corpus(path: Path) -> Any:
    return list(read_texts(Corpus(str(path), None, None, None, "text", packed=False)))


def sae(path: Path) -> Any:
    return saes.load(path.parent, WIDTH)


@dataclass(frozen=True)
class Reader:
    """One that is given a file which is malformed."""

    file: str  # in the folder that `whole` makes
    read: Callable[[Path], Any]
    kinds: dict[str, hostile.Kind]


def without(kinds: dict[str, hostile.Kind], *names: str) -> dict[str, hostile.Kind]:
    return {kind: made for kind, made in kinds.items() if kind not in names}


TOKENIZER = without(hostile.JSON, "a tenth", "half") | {kind: hostile.ANY[kind] for kind in ("a tenth", "half")}
WEIGHTS = ("empty", "a pickle", "a zip", "half", "overlapping tensors", "a header of a terabyte", "a size past 64 bits")
SOME_WEIGHTS = {kind: hostile.SAFETENSORS[kind] for kind in WEIGHTS}
READERS = {
    "a table": Reader("f.parquet", rows, hostile.PARQUET),
    "JSON": Reader("f.json", read_json, without(hostile.JSON, *hostile.NO_OBJECT)),
    "tensors": Reader("f.safetensors", read_tensors, hostile.SAFETENSORS),
    "records": Reader("f.jsonl", read_records, hostile.RECORDS),
    "a corpus of JSON": Reader("f.jsonl", corpus, without(hostile.RECORDS, "empty", "a mark first")),
    "a corpus of parquet": Reader("f.parquet", corpus, hostile.PARQUET),
    "settings": Reader("params.yaml", params.load, hostile.YAML),
    "an SAE's settings": Reader("sae/cfg.json", sae, hostile.SAE),
    "an SAE's place": Reader("sae/cfg.json", lambda path: saes.stored_site(path.parent), hostile.JSON | hostile.HOOKS),
    "an SAE's weights": Reader("sae/sae_weights.safetensors", sae, SOME_WEIGHTS),
    "a model's weights": Reader("model/model.safetensors", lambda path: loading.load_model(path.parent), SOME_WEIGHTS),
    "a model's configuration": Reader("model/config.json", lambda f: loading.load_model(f.parent), hostile.JSON),
    "a tokenizer": Reader("model/tokenizer.json", lambda path: tokenizers.load_tokenizer(path.parent), TOKENIZER),
    "a pointer": Reader("model/pretrained.json", lambda path: pointer.open_model(path.parent), hostile.POINTER),
    "GGUF": Reader("f.gguf", lambda path: gguf.folder_of(path, None), hostile.GGUF),
}
CASES = [(name, kind) for name, reader in READERS.items() for kind in reader.kinds]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every reader finds what it reads."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copy(ROOT / "params.yaml", folder)
    write_rows(folder / "f.parquet", [hostile.ROW] * 3, FeatureRow, {"usage": 1})
    (folder / "f.json").write_text('{"a": [1, "é"]}', encoding="utf-8")
    (folder / "f.jsonl").write_text('{"feature_id": "a/b/1", "text": "é"}\n' * 3, encoding="utf-8")
    write_tensors(folder / "f.safetensors", {"x": tiny_model(Architecture.gpt2).get_input_embeddings().weight.data})
    model = tiny_model(Architecture.llama)
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    pointer.write_pointer(folder / "model", Pretrained(".", None, "float32", None, None), None)
    metadata = SAEMetadata(hook_name="blocks.1.hook_resid_post")
    TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=8, k=4, metadata=metadata)).save_model(folder / "sae")
    words = ggufs.tokenizer()
    ggufs.write(folder / "f.gguf", ggufs.model(len(words)), words)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to be in; nothing that a reader is given there may run."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not hostile.CANARY.exists()


def copied(whole: Path, here: Path, file: str) -> Path:
    """A copy of that file, with the folder around it if it has one of its own."""
    first = Path(file).parts[0]
    (shutil.copytree if (whole / first).is_dir() else shutil.copy)(whole / first, here / first)
    return here / file


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(read: Callable[[Path], Any], file: Path) -> str:
    """What is said of a file that is refused: one line, which names it or its folder."""
    with pytest.raises(UserError) as caught:
        read(file)
    message = str(caught.value)
    assert "\n" not in message and len(message) < LONGEST, message
    assert any(place in message for place in (str(file), str(file.parent), *VALUES)), message
    return message


@pytest.mark.parametrize(("name", "kind"), CASES, ids=lambda text: text.replace(" ", "_"))
def test_a_malformed_file_is_one_line_and_nothing_else_changes(whole: Path, here: Path, name: str, kind: str) -> None:
    reader, made = READERS[name], READERS[name].kinds[kind]
    file = copied(whole, here, reader.file)
    file.write_bytes(made if isinstance(made, bytes) else made(file.read_bytes()))
    before = snapshot(here)
    refused(reader.read, file)
    assert snapshot(here) == before


def test_there_are_a_hundred_kinds_and_more() -> None:
    made = {kind: id(one) for reader in READERS.values() for kind, one in reader.kinds.items()}
    assert len(made) >= 130 and len(CASES) >= 300 and len(set(OVERRIDES)) >= 40, "one file of each name at least"


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("place", ["a folder", "a loop of links", "a dangling link", "nothing"])
def test_what_stands_in_the_place_of_a_file_is_one_line(whole: Path, here: Path, name: str, place: str) -> None:
    file = copied(whole, here, READERS[name].file)
    file.unlink()
    if place == "a folder":
        file.mkdir()
    elif place != "nothing":
        file.symlink_to(file if place == "a loop of links" else here / "nowhere")
    if name == "a pointer":  # without one the folder is a model's own
        READERS[name].read(file)
        return
    with pytest.raises(UserError) as caught:
        READERS[name].read(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "adapter_model.bin"])
def test_a_pickle_beside_a_model_is_not_opened(whole: Path, here: Path, file: str) -> None:
    copied(whole, here, "model/model.safetensors").unlink()
    (here / "model" / file).write_bytes(hostile.PICKLE)
    refused(lambda path: loading.load_model(path.parent), here / "model" / file)


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": 7}', '{"weight_map": {"x": "../../params.yaml"}, "metadata": {}}']
)
def test_an_index_of_weights_that_leads_elsewhere_is_one_line(whole: Path, here: Path, index: str) -> None:
    copied(whole, here, "model/model.safetensors").unlink()
    (here / "model/model.safetensors.index.json").write_text(index)
    refused(lambda path: loading.load_model(path.parent), here / "model/model.safetensors.index.json")


def test_notes_that_are_none_are_one_line(here: Path) -> None:
    for notes in (b"{", b"[]", b"7", b"\xff", b"[" * hostile.DEEP):
        made = hostile.parquet(lambda table, notes=notes: table.replace_schema_metadata({"notes": notes}))
        (here / "f.parquet").write_bytes(made(b""))
        refused(read_notes, here / "f.parquet")


def test_a_tensor_that_is_not_there_is_one_line(whole: Path) -> None:
    with pytest.raises(UserError, match="f.safetensors: holds no tensor decoder; run `dvc repro` to remake it"):
        read_tensors(whole / "f.safetensors")["decoder"]


# ---- Through the command line

COMMANDS = {
    "features": ("params.yaml", hostile.YAML, ("Latin-1", "aliases of aliases", "itself", "an escape in a key")),
    "import f.jsonl": ("f.jsonl", hostile.RECORDS, ("a pickle", "a million digits", "lists in lists", "half a gzip")),
    "plan --model model": (
        "model/config.json",
        hostile.JSON | hostile.SIZES,
        ("UTF-16", "lists in lists", "a list", *hostile.SIZES),
    ),
    "plan --model f.gguf": ("f.gguf", hostile.GGUF, ("half", "2**40 keys", "a list of 2**40 texts", "a pickle")),
}


@pytest.mark.parametrize(
    ("command", "kind"), [(command, kind) for command, (*_, kinds) in COMMANDS.items() for kind in kinds]
)
def test_a_command_ends_with_one_plain_line_and_status_2(
    whole: Path, here: Path, capsys: pytest.CaptureFixture[str], command: str, kind: str
) -> None:
    name, kinds, _ = COMMANDS[command]
    file, made = copied(whole, here, name), kinds[kind]
    file.write_bytes(made if isinstance(made, bytes) else made(file.read_bytes()))
    before = snapshot(here)
    assert main.main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and error[:-1].isprintable(), error
    assert snapshot(here) == before


OVERRIDES = [
    "", " ", "seed", "=", "==", "seed=[", "seed={", "seed='", 'seed="', 'seed="a', "seed=\\", "seed=a}", "seed=(1)",
    "seed=a:b",     "~seed", "~nope", "seed=${seed}", "seed=${nope:1}", "seed=${", "seed=???", "seed=1,2",
    "seed=range(1,3)", "seed=int(x)",     "seed=nope(1)", "seed=\udcff", "\udcff=1", "seed=\x1b[31m", "seed\n=1",
    "seed=\u202e1", "seed=" + "1" * 5000, "seed=" + "9" * 400,     "seed=" + "x" * 10**5, "seed='" + "x" * 10**5,
    "seed=" + "[" * 2000 + "]" * 2000, "seed=" + "[" * 300 + "]" * 300,
    "seed=1e400",     "seed={_target_: os.mkdir, path: 'a pickle ran'}", "experiment=/etc/passwd",
    "experiment={a: 1}", "subject=sandbox,pydoc",     "rounds={r1: null}", "train_sft=3", "explainer.prompt=[1]",
    "+prepare_sae.saes.9.x=1", ".seed=1", "é=1", "size@foo=nano", "@seed=1",
]  # fmt: skip


@pytest.mark.parametrize("override", OVERRIDES, ids=lambda text: ascii(text)[:30])
def test_an_odd_override_is_one_plain_line_and_leaves_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("kept", encoding="utf-8")
    assert compose.main([f"--output={path}", "--", override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and error[:-1].isprintable(), error
    assert len(error) < LONGEST and path.read_text(encoding="utf-8") == "kept" and not hostile.CANARY.exists()


# ---- At random


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A few bytes overwritten, a piece cut out or said twice, or an end that is missing."""
    places = draw(st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=4))
    first, last = sorted(draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    how = draw(st.sampled_from(["bytes", "cut", "twice", "end"]))

    def change(whole: bytes) -> bytes:
        made = bytearray(whole)
        for share, new in places:
            at = int(share * len(made))
            made[at : at + len(new)] = new
        begin, end = int(first * len(made)), int(last * len(made))
        piece = {"bytes": made[begin:end], "cut": b"", "twice": made[begin:end] * 2, "end": b""}[how]
        return bytes(made[:begin] + piece + (b"" if how == "end" else made[end:]))

    return change


def at_random(file: str, read: Callable[[Path], Any], examples: int) -> Any:
    """A test in which a reader reads a file that was damaged, or says in one line that it cannot."""

    @settings(deadline=None, max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(change=damage())
    @example(change=lambda whole: whole)
    def test(whole: Path, tmp_path_factory: pytest.TempPathFactory, change: Callable[[bytes], bytes]) -> None:
        damaged = tmp_path_factory.getbasetemp() / "damaged" / file
        if not damaged.parent.exists():
            shutil.copytree((whole / file).parent, damaged.parent)
        damaged.write_bytes(change((whole / file).read_bytes()))
        try:
            read(damaged)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < LONGEST

    return test


def header(path: Path) -> None:
    """Both readers of a GGUF header; what is behind it would be dequantised."""
    gguf._opened(path)
    gguf.config_of(path)


test_a_table_that_was_damaged_at_random = at_random("f.parquet", rows, 150)
test_notes_that_were_damaged_at_random = at_random("f.parquet", read_notes, 30)
test_json_that_was_damaged_at_random = at_random("f.json", read_json, 60)
test_tensors_that_were_damaged_at_random = at_random("f.safetensors", read_tensors, 80)
test_records_that_were_damaged_at_random = at_random("f.jsonl", read_records, 80)
test_a_corpus_of_json_that_was_damaged_at_random = at_random("f.jsonl", corpus, 60)
test_a_corpus_of_parquet_that_was_damaged_at_random = at_random("f.parquet", corpus, 60)
test_settings_that_were_damaged_at_random = at_random("params.yaml", params.load, 25)
test_an_sae_whose_settings_were_damaged_at_random = at_random("sae/cfg.json", sae, 60)
test_an_sae_whose_weights_were_damaged_at_random = at_random("sae/sae_weights.safetensors", sae, 40)
test_a_model_that_was_damaged_at_random = at_random("model/model.safetensors", READERS["a model's weights"].read, 15)
test_a_tokenizer_that_was_damaged_at_random = at_random("model/tokenizer.json", READERS["a tokenizer"].read, 40)
test_a_pointer_that_was_damaged_at_random = at_random(
    "model/pretrained.json", lambda file: pointer.read_pointer(file.parent), 60
)
test_a_gguf_header_that_was_damaged_at_random = at_random("f.gguf", header, 25)
