"""The prose of installed packages: what is kept of it, how much of each distribution, in what order."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from saeexplainer.config import Corpus
from saeexplainer.domains.corpus import installed
from saeexplainer.domains.corpus.domain import CorpusDomain
from saeexplainer.domains.corpus.markup import plain
from saeexplainer.domains.corpus.text import read_texts
from saeexplainer.domains.prose import sentences

SOURCE = Corpus(installed.NAME, None, None, None, "text", packed=False)
PROSE = (
    "The {0} keeps what it is given until somebody asks for it. Where nobody does, the {0} is emptied once an hour, "
    "and what was in it is lost."
)


def prose(name: str) -> str:
    return PROSE.format(name)


def install(site: Path, name: str, files: dict[str, str], readme: str = "") -> None:
    """A distribution as pip leaves it."""
    info = f"{name}-1.0.dist-info"
    written = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n\n{readme}",
        f"{info}/top_level.txt": prose("top level"),
        f"{info}/licenses/LICENSE.txt": prose("licence"),
    }
    for path, text in written.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text, encoding="utf-8")
    (site / info / "RECORD").write_text("".join(f"{path},,\n" for path in [*written, "gone.md"]), encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two distributions, a file that belongs to none, and what is not to be read."""
    install(
        tmp_path, "Store_One",
        {
            "one/__init__.py": f'"""{prose("box")}\n\n>>> box(1)\n"""\ndef f():\n    """Too short a line."""\n',
            "one/deep.py": f'class C:\n    def m(self):\n        """{prose("shelf")}"""\n',
            "one/broken.py": f'def (:\n    """{prose("broken")}"""\n',
            "one/tests/test_x.py": f'"""{prose("test")}"""\n',
            "one/_vendor/x.py": f'"""{prose("copy")}"""\n',
            "one/notes.rst": f"Notes\n=====\n\n{prose('drawer')}\n\n.. code::\n\n    x = drawer()\n",
            "one/LICENSE.md": prose("licence"),
            "one/data.json": prose("data"),
        },
        readme=f"# Store\n\n{prose('**chest**')}\n\n```\npip install store\n```\n",
    )  # fmt: skip
    install(tmp_path, "another", {"another.py": f'"""{prose("shelf")} {prose("trunk")}"""\n'})
    (tmp_path / "loose.py").write_text(f'"""{prose("loose")}"""\n')
    return tmp_path


def test_two_distributions_worked_by_hand(site: Path) -> None:
    found = [(found.structure, found.text) for found in installed.documents(installed.installed([str(site)]))]
    assert sorted(found) == sorted(
        [
            ("another", f"{prose('shelf')} {prose('trunk')}"),  # by name it comes first, so the shelf is its own
            ("store-one", prose("box")),
            ("store-one", prose("drawer")),
            ("store-one", prose("chest")),
        ]
    )


def test_the_order_is_mixed_and_depends_on_nothing_else(site: Path) -> None:
    sources = list(installed.installed([str(site)]))
    assert [source.name for source in sources] == ["another", "store-one"]
    found = installed.documents(sources)
    assert found == installed.documents(installed.installed([str(site), str(site)]))
    hashes = [installed._hash(document.text) for document in found]
    assert hashes == sorted(hashes)


def test_no_distribution_gives_more_than_its_share(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "DOCUMENTS", 2)
    counts = Counter(document.structure for document in installed.documents(installed.installed([str(site)])))
    assert counts == {"another": 1, "store-one": 2}


def test_the_environment_gives_english_and_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of it: two distributions that this project needs, and the standard library."""
    monkeypatch.setattr(installed, "DOCUMENTS", 20)
    found = [one for one in installed.installed(installed._places()) if one.name in ("numpy", "pytest")]
    assert [one.name for one in found] == ["numpy", "pytest"]
    given = installed.documents([installed.standard_library_source(), *found])
    assert Counter(document.structure for document in given) == {"python": 20, "numpy": 20, "pytest": 20}
    for document in given:
        assert document.text.isascii() and "\n" not in document.text
        assert installed.SIZE.minimum_words <= len(document.text.split()) <= installed.SIZE.maximum_words
    assert any(line.startswith("numpy ") for line in installed.versions())


def test_a_corpus_of_that_name_reads_it(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = installed.documents(installed.installed([str(site)]))
    monkeypatch.setattr(installed, "read_installed", lambda: given)
    monkeypatch.chdir(site)
    assert list(read_texts(SOURCE)) == [document.text for document in given]
    concepts = CorpusDomain(0, replace(SOURCE, packed=True), None).concepts()
    assert concepts == CorpusDomain(0, SOURCE, None).concepts() and "shape:number" in concepts
    Path(installed.NAME).mkdir()
    (Path(installed.NAME) / "own.txt").write_text("a folder of that name goes before")
    assert list(read_texts(SOURCE)) == ["a folder of that name goes before"]


@pytest.mark.parametrize(
    ("markup", "kept"),
    [
        ("# Title\nThis **is** a [link](http://x.y 'z') of *it*.", "\nThis is a [link](http://x.y 'z') of it."),
        ("See [the page](https://x.y/z) and [more][1].", "See the page and more."),
        ("The :class:`~a.B` and :func:`c <d.e>` are `f <http://g>`_ here.", "The a.B and c are f here."),
        ("``code`` of `it`_ and 2 * 3 * 4 and __init__ and a_b_c.", "code of it and 2 * 3 * 4 and __init__ and a_b_c."),
        ("a\n```py\nx = 1\n```\nb <!-- hidden --> c <br/>d", "a\n\nb  c  d"),
        ("[![badge](x)](y) text ![p](q) end [1]_.", " text  end."),
    ],
)
def test_markup_worked_by_hand(markup: str, kept: str) -> None:
    assert plain(markup) == kept


def test_plain_prose_is_left_alone() -> None:
    text = prose("box")
    assert plain(text) == text and " ".join(sentences(text)) == text


def test_what_was_read_is_kept_under_what_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    install(site, "alpha", {"alpha/a.md": prose("alpha")})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(installed, "_places", lambda: [str(site)])
    monkeypatch.setattr(installed, "standard_library_source", lambda: installed.Source("python", prose("python"), ()))
    read = installed.read_installed.__wrapped__
    first = read()
    assert {document.structure for document in first} == {"alpha", "python"}
    (kept,) = installed.KEPT.iterdir()
    (site / "alpha/a.md").unlink()
    assert read() == first, "nothing is parsed again"
    kept.write_text(kept.read_text()[:-5])
    assert {document.structure for document in read()} == {"python"}, "cut short, it is read again"
    install(site, "beta", {"beta/b.md": prose("beta")})
    assert {document.structure for document in read()} == {"beta", "python"}, "another installation"
