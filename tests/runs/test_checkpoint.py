"""A killed extraction goes on where it was and writes the same bytes; changed, it starts over."""

import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typed
from omegaconf import OmegaConf
from tiny import random_sae, tiny_model, tiny_tokenizer

from saeexplainer.config import Corpus
from saeexplainer.config.parts import Architecture
from saeexplainer.domains.sandbox.world import World
from saeexplainer.errors import UserError
from saeexplainer.features.token_stream import token_batches
from saeexplainer.records import ContextRow
from saeexplainer.runs import checkpoint
from saeexplainer.runs.checkpoint import Checkpoint, fingerprint
from saeexplainer.saes.reading import Reader
from saeexplainer.saes.sites import Place, Site
from tasks import extract_activations
from tasks.settings import compose, params

BATCHES = 12  # of the first pass
SETTINGS = [
    "experiment=nano",
    *(
        f"extract_activations.{name}={value}"
        for name, value in {
            "documents": 4 * BATCHES, "batch_size": 4, "truth_documents": 4,
            "valid_features": 3, "test_features": 4, "spread_contexts": 3, "min_density": 0.0, "max_density": 1.0,
        }.items()
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny subject, two random SAEs and parameters; and what extraction makes of them at once."""
    folder = tmp_path_factory.mktemp("untouched")
    tiny_model(Architecture.llama).save_pretrained(folder / "data/subject")
    tiny_tokenizer().save_pretrained(folder / "data/subject")
    for seed, name in enumerate(("main", "lender1")):
        random_sae(folder / "data/saes" / name, seed=seed)
    config = OmegaConf.create(compose.composed(SETTINGS))
    (folder / "params.yaml").write_text(params.text(config, "test"), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        (folder / "read").write_text(str(extracted(folder, patch)))
    return folder


def extracted(folder: Path, patch: pytest.MonkeyPatch) -> int:
    """Run extraction here; how many batches the subject read."""
    read, batches = Reader.read, []
    patch.chdir(folder)
    patch.setattr(Reader, "read", lambda reader, texts: batches.append(texts) or read(reader, texts))
    extract_activations.run(params.load(Path("params.yaml")))
    torch.set_grad_enabled(True)
    assert not extract_activations.KEPT.exists()
    return len(batches)


def _killed(folder: Path, kill_at: int, in_save: bool) -> None:
    """The stage, keeping its work after every batch, until SIGKILL at that batch or in the middle of that save."""
    checkpoint.EVERY, checkpoint.SHARE = 0.0, float("inf")
    owner, name = (checkpoint, "write_rows") if in_save else (Reader, "read")
    done, calls = getattr(owner, name), []

    def counted(*arguments, **named):
        calls.append(arguments)
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return done(*arguments, **named)

    setattr(owner, name, counted)
    typed._run(folder, "extract_activations", (), folder / "out", folder / "err")


def killed(untouched: Path, folder: Path, kill_at: int, in_save: bool = False) -> Path:
    """A copy whose extraction was killed."""
    shutil.copytree(untouched, folder, ignore=shutil.ignore_patterns("activations"), copy_function=shutil.copy2)
    process = multiprocessing.get_context("forkserver").Process(target=_killed, args=(folder, kill_at, in_save))
    process.start()
    process.join(typed.PATIENCE)
    assert process.exitcode == -signal.SIGKILL, (folder / "err").read_text()
    assert not (folder / "data/activations").exists() and any((folder / ".cache").rglob("state.safetensors"))
    return folder


def same_bytes(folder: Path, other: Path) -> bool:
    """Whether both extractions wrote the same files."""
    found, expected = [
        {path.name: path.read_bytes() for path in (one / "data/activations").iterdir()} for one in (folder, other)
    ]
    return len(found) > 3 and found == expected


@pytest.mark.parametrize(
    ("kill_at", "in_save", "name", "kept"),
    [(6, False, "first pass", 5), (6, True, "first pass", 5), (BATCHES + 3, False, "second pass", 2)],
    ids=["at a batch", "in a save", "in the second pass"],
)
def test_after_a_kill_the_rest_is_read_and_the_bytes_are_the_same(
    untouched, tmp_path, monkeypatch, capfd, kill_at, in_save, name, kept
):
    folder = killed(untouched, tmp_path / "killed", kill_at, in_save)
    before = kept if name == "first pass" else BATCHES + kept
    assert extracted(folder, monkeypatch) == int((untouched / "read").read_text()) - before > 2
    assert f"extraction, {name}: goes on at document {4 * kept} of " in capfd.readouterr().err
    assert same_bytes(folder, untouched)


def test_nothing_kept_is_read_after_a_change(untouched, tmp_path, monkeypatch, capfd):
    folder = killed(untouched, tmp_path / "killed", 3)
    (kept,) = (folder / extract_activations.KEPT).iterdir()
    monkeypatch.chdir(folder)
    given = params.load(Path("params.yaml"))
    assert extract_activations.depends_on(given) == kept.name
    corpus = Corpus("texts.jsonl", None, None, None, "text", packed=True)
    Path("texts.jsonl").write_text("")
    on_corpus = replace(given, prepare_subject=replace(given.prepare_subject, corpus=corpus))
    found = {kept.name, extract_activations.depends_on(on_corpus)}
    for change in (
        replace(given, seed=1),
        replace(given, extract_activations=replace(given.extract_activations, neighbours=1)),
        replace(given, prepare_subject=replace(given.prepare_subject, context_length=8)),
    ):
        found.add(extract_activations.depends_on(change))
    assert extract_activations.depends_on(replace(given, processes=2)) == kept.name  # no result depends on it
    Path("texts.jsonl").write_text("\n")
    found.add(extract_activations.depends_on(on_corpus))
    assert len(found) == 6
    settings_file = Path("data/saes/main/cfg.json")
    settings_file.write_text(settings_file.read_text() + "\n")
    assert extract_activations.depends_on(given) not in found
    assert extracted(folder, monkeypatch) == int((untouched / "read").read_text())
    assert "goes on" not in capfd.readouterr().err


class Numbers:
    """A pass that adds up."""

    def __init__(self) -> None:
        self.sum, self.contexts = torch.zeros(1), []

    def state(self) -> dict[str, torch.Tensor]:
        return {"sum": self.sum}

    def restore(self, state: dict[str, torch.Tensor], contexts: list[ContextRow]) -> None:
        self.sum, self.contexts = state["sum"], contexts


def as_process(monkeypatch: pytest.MonkeyPatch, number: int, count: int, root: Path) -> Checkpoint:
    monkeypatch.setenv("RANK", str(number))
    monkeypatch.setenv("WORLD_SIZE", str(count))
    return Checkpoint(root, "f")


def test_each_process_keeps_its_own_part(tmp_path, monkeypatch):
    root = tmp_path / "kept"
    for number in (1, 0):
        work = Numbers()
        work.sum += number + 1
        work.contexts.append(ContextRow("f", number, "a b", ["a", " b"], [0.1, 1 / 3], 1, []))
        as_process(monkeypatch, number, 2, root).save_now("pass", work, 8 + number)
    for number in (0, 1):
        again = Numbers()
        assert as_process(monkeypatch, number, 2, root).restore("pass", again) == 8 + number
        assert (
            again.sum == number + 1 and again.contexts[0].rank == number and again.contexts[0].activations[1] == 1 / 3
        )
    assert as_process(monkeypatch, 0, 3, root).restore("pass", Numbers()) == 0  # others have other shares
    as_process(monkeypatch, 1, 2, root).remove()
    assert root.exists()
    as_process(monkeypatch, 0, 2, root).remove()
    assert not root.exists()


def test_the_last_save_counts_and_a_broken_one_is_one_line(tmp_path):
    kept, work = Checkpoint(tmp_path / "kept", "f"), Numbers()
    assert kept.restore("pass", work) == 0
    for done in (8, 128, 16):
        kept.save_now("pass", work, done)
    assert [path.name for path in (kept.folder / "pass").iterdir()] == ["16"]
    kept.save("pass", work, 32)  # too soon
    assert kept.restore("pass", work) == 16
    (kept.folder / "pass/16/state.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="16: cannot be read; remove .*kept, and the stage starts over"):
        kept.restore("pass", work)


def test_a_file_of_others_counts_by_its_size_and_time(tmp_path):
    file = tmp_path / "weights"
    file.write_text("one")
    before, read = fingerprint([], [], [tmp_path]), fingerprint([], [tmp_path], [])
    os.utime(file, ns=(0, 0))
    assert fingerprint([], [], [tmp_path]) != before and fingerprint([], [tmp_path], []) == read
    assert fingerprint([], [], [tmp_path / "none"]) == fingerprint([], [], [])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_are_the_same_from_any_batch_on(monkeypatch, count):
    reader = Reader(tiny_model(Architecture.llama), tiny_tokenizer(), Site(1, Place.resid_post), 64)
    documents = list(World(0).documents("extract", 11))
    monkeypatch.setenv("WORLD_SIZE", str(count))
    for number in range(count):
        monkeypatch.setenv("RANK", str(number))
        whole = [batch.first for batch in token_batches(documents, reader, 2, shared=True)]
        rest = [batch.first for batch in token_batches(documents[6:], reader, 2, shared=True, first=6)]
        assert rest == [first for first in whole if first >= 6]
