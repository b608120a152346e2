"""Text from outside: the same documents whatever they come in, streams that share none, and no text lost in packing."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from families import TOKENIZERS
from tiny import tiny_tokenizer

from saeexplainer.config import Corpus
from saeexplainer.config.parts import DomainName
from saeexplainer.domains.corpus.domain import SEPARATOR, SHARES, CorpusDomain, packed
from saeexplainer.domains.corpus.text import ROWS, hub_texts, read_texts
from saeexplainer.domains.domain import Domain, ReadingLimit
from saeexplainer.domains.opening import open_domain
from saeexplainer.errors import UserError

# Lines and spaces inside a document stay; so do characters outside of ASCII.
TEXTS = [f"document {number}\nof a café,  {'dog ' * (number % 7)}seen" for number in range(600)]


def corpus(source: Path | str, **changes: object) -> Corpus:
    return replace(Corpus(str(source), None, None, None, "text", False), **changes)


def as_txt(path: Path, texts: list[str]) -> None:
    path.write_bytes("\ufeff".encode() + "\r\n \r\n\r\n".join(texts).replace("\n", "\r\n").encode())


def as_jsonl(path: Path, texts: list[str | None]) -> None:
    path.write_text("\n\n".join(json.dumps({"id": at, "text": text}) for at, text in enumerate(texts)))


def as_parquet(path: Path, texts: list[str | None]) -> None:
    columns = {"id": list(range(len(texts))), "text": pa.array(texts, pa.string())}
    pq.write_table(pa.table(columns), path, row_group_size=ROWS // 3)


WRITERS: dict[str, Callable[[Path, list[str]], None]] = {".txt": as_txt, ".jsonl": as_jsonl, ".parquet": as_parquet}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_documents_from_a_file_and_from_a_folder_of_files(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / f"one{kind}", TEXTS)
    assert list(read_texts(corpus(tmp_path / f"one{kind}"))) == TEXTS
    folder = tmp_path / "folder"
    (folder / "b").mkdir(parents=True)
    (folder / ".cache").mkdir()
    for name, part in (("b/0", TEXTS[250:]), ("a", TEXTS[:250]), (".cache/x", ["hidden"]), (".y", ["hidden"])):
        WRITERS[kind](folder / f"{name}{kind}", part)
    (folder / "notes.md").write_text("not text")
    assert list(read_texts(corpus(folder))) == TEXTS


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_a_data_set_of_the_hub_goes_through_datasets(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    WRITERS[kind](tmp_path / f"data/train{kind}", TEXTS[:300])
    found = corpus(tmp_path / "data", revision="0" * 40, split="train")
    assert list(hub_texts(found)) == TEXTS[:300]
    with pytest.raises(UserError, match=r"^prepare_subject.corpus.source: .*cannot be read \(.*test.*\); check"):
        list(hub_texts(replace(found, split="test")))
    with pytest.raises(UserError, match="row 1: no 'body' among .*text.*; set prepare_subject.corpus.column"):
        list(hub_texts(replace(found, column="body")))


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_rows_without_text_are_no_documents(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / f"x{kind}", ["a", None, " \n", "", "b"])
    assert list(read_texts(corpus(tmp_path))) == ["a", "b"]


def broken_line(path: Path) -> Path:
    as_jsonl(path, TEXTS[:10])
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:6], "{", *lines[7:]]))
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def parquet(path: Path, **columns: list) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def mixed(folder: Path) -> Path:
    (folder / "a.txt").write_text("a")
    (folder / "b.jsonl").write_text('{"text": "b"}')
    return folder


def huge(file: Path) -> Path:
    """A second line of ten gigabytes, of which the disk holds nothing."""
    with file.open("wb") as opened:
        opened.write(b'{"text": "a"}\n')
        opened.truncate(10 * 2**30)
    return file


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a line that is no JSON": (lambda f: broken_line(f / "c.jsonl"), "c.jsonl:line 7: not JSON ("),
    "a line that is no object": (lambda f: written(f / "c.jsonl", b"[1]"), "c.jsonl:line 1: is [1]; must be a JSON"),
    "a line without the column": (
        lambda f: written(f / "c.jsonl", b'{"text": "a"}\n{"body": "b", "id": 1}'),
        "c.jsonl:line 2: no 'text' among body, id; set prepare_subject.corpus.column",
    ),
    "a number for text": (lambda f: written(f / "c.jsonl", b'{"text": 7}'), "c.jsonl:line 1: text is 7; must be text"),
    "half a character": (
        lambda f: written(f / "c.jsonl", b'{"text": "\\ud83d"}'), "c.jsonl:line 1: text holds half a character",
    ),
    "JSON in Latin-1": (
        lambda f: written(f / "c.jsonl", '{"text": "café"}'.encode("latin-1")), "c.jsonl:line 1: not UTF-8",
    ),
    "text in Latin-1": (lambda f: written(f / "c.txt", b"a\n\n\xe9"), "c.txt:line 3: not UTF-8; save the file as"),
    "a number of a million digits": (
        lambda f: written(f / "c.jsonl", b'{"text": ' + b"1" * 10**6 + b"}"), "c.jsonl:line 1: not JSON (Exceeds",
    ),
    "ten gigabytes of JSON in a line": (lambda f: huge(f / "c.jsonl"), "c.jsonl:line 2: longer than 256 MB; break it"),
    "ten gigabytes of text in a line": (lambda f: huge(f / "c.txt"), "c.txt:line 2: longer than 256 MB; break it"),
    "a table without the column": (
        lambda f: parquet(f / "c.parquet", body=["a"]), "c.parquet: no 'text' among body; set prepare_subject",
    ),
    "a column of numbers": (lambda f: parquet(f / "c.parquet", text=[7]), "c.parquet:row 1: text is 7; must be text"),
    "no parquet": (lambda f: written(f / "c.parquet", b"text"), "c.parquet: no readable parquet file ("),
    "an empty file": (lambda f: written(f / "c.txt", b""), "c.txt: holds no text; name another"),
    "blank lines": (lambda f: written(f / "c.jsonl", b"\n \n"), "c.jsonl: holds no text; name another"),
    "an empty folder": (lambda f: f, "no text in it; give .txt, .jsonl or .parquet"),
    "another ending": (lambda f: written(f / "c.csv", b"text"), "c.csv: no text in it; give .txt, .jsonl or .parquet"),
    "two kinds": (mixed, "holds .jsonl and .txt files; name a file, or a folder of one kind"),
    "nothing there": (lambda f: f / "c.txt", "c.txt: no such file or folder; correct the path, or for a data set"),
    "too little text": (
        lambda f: written(f / "c.txt", b"one"), "none of its 1 documents falls to the stream held_out, which has 3 %",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_read_is_one_line(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    source = make(tmp_path)
    with pytest.raises(UserError) as caught:
        list(CorpusDomain(1, corpus(source), None).documents("held_out", 10**6))
    message = str(caught.value)
    assert said in message and "\n" not in message
    assert message.startswith((str(tmp_path), f"prepare_subject.corpus.source: {source}"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "c.jsonl"
    as_jsonl(path, TEXTS)
    return path


def stream(source: Path, name: str, seed: int = 0, count: int = 10**6) -> list[str]:
    return [document.text for document in CorpusDomain(seed, corpus(source), None).documents(name, count)]


def test_every_document_goes_to_one_stream_in_the_order_of_the_source(file: Path) -> None:
    streams = {name: stream(file, name) for name in SHARES}
    assert Counter(text for texts in streams.values() for text in texts) == Counter(TEXTS)
    assert all(texts == [text for text in TEXTS if text in texts] for texts in streams.values())
    assert 0.44 < len(streams["extract"]) / len(TEXTS) < 0.56  # half, within three standard deviations
    assert sum(SHARES.values()) == 100
    assert stream(file, "some other name") == streams["others"]


def test_a_seed_and_a_source_give_the_same_streams(file: Path) -> None:
    assert stream(file, "sae") == stream(file, "sae") != stream(file, "sae", seed=1)
    assert stream(file, "sae", count=5) == stream(file, "sae")[:5]


def test_copies_of_a_text_are_on_one_side(tmp_path: Path) -> None:
    as_jsonl(tmp_path / "c.jsonl", TEXTS + TEXTS)
    held, seen = stream(tmp_path, "held_out"), stream(tmp_path, "extract")
    assert held[: len(held) // 2] == held[len(held) // 2 :]
    assert not set(held) & set(seen)


def test_a_stream_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    as_jsonl(path, TEXTS)
    path.write_text(path.read_text() + "\n{")  # what comes last is broken
    assert len(stream(path, "extract", count=20)) == 20
    with pytest.raises(UserError, match="not JSON"):
        stream(path, "extract")


PACKED = {
    "short documents": TEXTS[:80],
    "a long one": [" ".join(TEXTS[:60]), "short", " ".join(TEXTS[60:90])],
    "no spaces": ["x" * 900, "dog" * 300],
    "many bytes a character": ["🐕‍🦺 日本語のテキスト。" * 40],
    "spaces alone in places": ["the dog" + " " * 700 + "barks\n\n\n\n" + "\t" * 50 + "!"],
    "tokens for the ends in it": ["a <eos> b <|endoftext|> c <bos> " * 30],
    "one word": ["dog"],
    "nothing": [],
}


@pytest.mark.parametrize("texts", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("family", ["gpt2", "llama", "sandbox"])
def test_packing_loses_nothing_and_fits(family: str, texts: list[str]) -> None:
    tokenizer = tiny_tokenizer() if family == "sandbox" else TOKENIZERS[family]()
    pieces = list(packed(texts, ReadingLimit(tokenizer, 24)))
    assert "".join(pieces) == SEPARATOR.join(texts)
    sizes = [len(tokenizer(piece)["input_ids"]) for piece in pieces]
    assert all(pieces) and all(size <= 24 for size in sizes)


def test_pieces_of_words_are_full_and_keep_their_tokens() -> None:
    tokenizer = TOKENIZERS["llama"]()
    reader = ReadingLimit(tokenizer, 32)
    pieces = list(packed(TEXTS[:80], reader))
    sizes = [len(tokenizer(piece)["input_ids"]) for piece in pieces]
    assert sum(sizes[:-1]) / len(sizes[:-1]) > 0.8 * 32
    whole = tokenizer(SEPARATOR.join(TEXTS[:80]), add_special_tokens=False)["input_ids"]
    kept = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    assert kept == whole


def test_a_packed_stream_is_cut_from_its_own_documents(file: Path) -> None:
    reader = ReadingLimit(TOKENIZERS["gpt2"](), 24)
    domain = CorpusDomain(0, corpus(file, packed=True), reader)
    pieces = [document.text for document in domain.documents("sae", 10**6)]
    assert "".join(pieces) == SEPARATOR.join(stream(file, "sae"))
    assert [document.text for document in domain.documents("sae", 7)] == pieces[:7]
    with pytest.raises(ValueError, match="reader"):
        CorpusDomain(0, corpus(file, packed=True), None).documents("sae", 1)


def test_packing_reads_no_more_than_it_needs() -> None:
    def endless() -> Iterator[str]:
        for number in range(10**9):
            yield f"document {number}"

    assert len(list(islice(packed(endless(), ReadingLimit(TOKENIZERS["gpt2"](), 16)), 3))) == 3


def test_a_corpus_is_opened_only_by_who_asks_of_its_words() -> None:
    # Whoever asks whether the truth is known, as the comparison does, needs no text.
    domain = open_domain(DomainName.corpus, 0, corpus("nowhere"))
    assert isinstance(domain, Domain) and not domain.truth_known
    assert list(domain.lessons("subject", 5)) == []
    with pytest.raises(UserError, match="^prepare_subject.domain: a corpus has no tokenizer of its own"):
        domain.tokenizer()
    with pytest.raises(UserError, match="^prepare_subject.corpus.source: nowhere: no such file or folder"):
        domain.concepts()
