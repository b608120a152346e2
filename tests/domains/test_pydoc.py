"""Python's documentation as a domain: the same everywhere, cut cleanly, and never described falsely."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from saeexplainer.domains.domain import BOS, SPECIAL_TOKENS, Document
from saeexplainer.domains.prose import sentences
from saeexplainer.domains.pydoc import text as pydoc_text
from saeexplainer.domains.pydoc.domain import MODIFIED, PydocDomain
from saeexplainer.errors import UserError

DOMAIN = PydocDomain(seed=7)  # lazy: the corpus is read in the first test that needs it


def _fingerprint(domain: PydocDomain) -> str:
    """One digest of everything a domain gives out."""
    given_out = [
        [(document.text, document.structure) for document in domain.documents("train", 300)],
        [(lesson.description, lesson.text) for lesson in domain.lessons("sft", 300)],
        [domain.annotate(document).concepts for document in domain.documents("held_out", 30)],
        domain.concepts(),
        domain.tokenizer().backend_tokenizer.to_str(),
    ]
    return hashlib.sha256(json.dumps(given_out).encode()).hexdigest()


def _holds(domain: PydocDomain, description: str, document: Document) -> bool:
    named = set(domain.parse(description))
    return bool(named) and any(named <= set(concepts) for concepts in domain.annotate(document).concepts)


@pytest.fixture(scope="module")
def texts() -> dict[str, list[Document]]:
    """Every document once, by part."""
    everything = len(pydoc_text.read_corpus(pydoc_text.standard_library()).documents)
    held = {document.text for document in DOMAIN.documents("held_out", everything)}
    return {
        "held_out": list(DOMAIN.documents("held_out_texts", len(held))),
        "train": list(DOMAIN.documents("train", everything - len(held))),
    }


def test_the_corpus_is_large_enough_and_clean(texts):
    documents = [*texts["train"], *texts["held_out"]]
    assert len(documents) > 5000 and sum(len(document.text) for document in documents) > 1_000_000
    assert len({document.text for document in documents}) == len(documents)
    for document in documents:
        assert 15 <= len(document.text.split()) <= 60
        assert document.text == " ".join(document.text.split()) and document.text.isascii()
        assert ">>>" not in document.text and "::=" not in document.text
        assert document.nats is None


def test_another_process_with_another_hash_seed_gives_the_same_bytes():
    code = "import test_pydoc as t; print(t._fingerprint(t.PydocDomain(seed=7)))"
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONHASHSEED": "1234", "PYTHONPATH": os.pathsep.join(paths)}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == _fingerprint(DOMAIN)


def test_seeds_and_streams_differ_and_instances_do_not():
    first = [document.text for document in DOMAIN.documents("train", 50)]
    assert first == [document.text for document in PydocDomain(seed=7).documents("train", 50)]
    assert first != [document.text for document in PydocDomain(seed=8).documents("train", 50)]
    assert first != [document.text for document in DOMAIN.documents("other", 50)]


def test_held_out_documents_are_a_tenth_and_never_in_another_stream(texts):
    train, held = ({document.text for document in texts[part]} for part in ("train", "held_out"))
    assert not train & held
    assert 0.08 < len(held) / (len(train) + len(held)) < 0.12
    other_seed = {document.text for document in PydocDomain(seed=8).documents("held_out_2", len(held))}
    assert other_seed == held
    # A sentence may stand in two documents of Python's; that of a lesson always stands in one that is not held out.
    everything_open = "\n".join(train)
    assert all(lesson.text in everything_open for lesson in DOMAIN.lessons("sft", 300))


def test_a_stream_starts_over_with_the_same_documents_in_a_new_order(texts):
    size = len(texts["held_out"])
    twice = [document.text for document in DOMAIN.documents("held_out", 2 * size + 3)]
    assert len(twice) == 2 * size + 3
    assert sorted(twice[:size]) == sorted(twice[size : 2 * size])
    assert twice[:size] != twice[size : 2 * size]


def test_documents_are_lazy():
    assert len(list(islice(DOMAIN.documents("train", 10**12), 3))) == 3
    assert len(list(islice(DOMAIN.lessons("train", 10**12), 3))) == 3
    assert list(DOMAIN.documents("train", 0)) == []


def test_spans_ascend_and_cover_the_text(texts):
    known = set(DOMAIN.concepts())
    assert len(known) == len(DOMAIN.concepts())
    for document in texts["train"][:1500]:
        annotation = DOMAIN.annotate(document)
        assert len(annotation.spans) == len(annotation.concepts)
        covered, end = [], 0
        for (start, stop), concepts in zip(annotation.spans, annotation.concepts, strict=True):
            assert end <= start < stop
            covered.append(document.text[start:stop])
            end = stop
            assert len(set(concepts)) == len(concepts) and known.issuperset(concepts)
            words = [concept for concept in concepts if concept.startswith("word:")]
            assert words in ([], [f"word:{document.text[start:stop].lower()}"])
        assert "".join(covered) == document.text.replace(" ", "")  # ASCII: every character but the spaces is annotated


def _concepts_of(text: str, topic: str | None = None) -> dict[str, set[str]]:
    document = Document(text, None, topic)
    annotation = DOMAIN.annotate(document)
    return {
        text[start:end]: set(held) for (start, end), held in zip(annotation.spans, annotation.concepts, strict=True)
    }


def test_annotation_of_a_text_worked_by_hand():
    held = _concepts_of(
        'Returns the file name (not a path), "quoted text" or os.path or open() or my_name since 3.11.', "email"
    )
    assert held["Returns"] >= {
        "word:returns",
        "shape:capital",
        "ending:s",
        "position:first",
        "module:email",
        "near:name",
    }
    assert "position:last" in held["3.11"] and "shape:number" in held["3.11"]
    assert held["file"] >= {"word:file", "after:the", "near:returns", "near:name"}
    assert "near:file" not in held["file"]
    assert "shape:parenthesis" in held["path"] and not any(
        "shape:parenthesis" in held[word] for word in ("(", ")", "name")
    )
    assert "shape:quoted" in held["text"] and "shape:quoted" not in held["or"]
    assert all("shape:identifier" in held[word] for word in ("os.path", "open", "my_name"))
    assert "ending:ed" in held["quoted"] and "near:file" not in held["since"]
    assert held[","] >= {"shape:punctuation", "mark:comma"} and not any(c.startswith("position") for c in held["."])


def test_annotation_edges():
    assert DOMAIN.annotate(Document("", None)).spans == []
    assert DOMAIN.annotate(Document(" \n", None)).spans == []
    alone = _concepts_of("file")["file"]
    assert alone == {"word:file", "position:first", "position:last"}
    assert "shape:identifier" not in _concepts_of("one file(s) left")["file"]
    assert "shape:identifier" not in _concepts_of("foo, e.g. bar")["e.g"]
    assert "shape:quoted" not in _concepts_of("don't stop, isn't it")["stop"]
    assert "shape:parenthesis" in _concepts_of("open ( to the end")["end"]
    assert "shape:parenthesis" not in _concepts_of("closed ) twice )")["twice"]
    assert "module:language" in _concepts_of("any word", "language")["any"]


def test_the_tokenizer_gives_every_text_back(texts):
    tokenizer = DOMAIN.tokenizer()
    assert len(tokenizer) == DOMAIN.vocabulary
    assert set(tokenizer.all_special_tokens) == set(SPECIAL_TOKENS)
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}) == 4
    odd = ["", "  two  spaces ", "naïve — 語", "tab\tand\nline", "don't  . stop !"]
    for text in [*odd, *(document.text for document in texts["held_out"])]:
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer.encode(text, add_special_tokens=False) == ids[1:]
    assert tokenizer.convert_ids_to_tokens(tokenizer(BOS, add_special_tokens=False).input_ids) == [BOS]
    assert all(len(tokenizer(token, add_special_tokens=False).input_ids) == 1 for token in SPECIAL_TOKENS)


@cache
def _leads() -> list[str]:
    return [concept for concept in DOMAIN.concepts() if DOMAIN.can_lead(concept)]


@cache
def _modifiers() -> list[str]:
    return [concept for concept in DOMAIN.concepts() if DOMAIN.can_modify(concept)]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_parse_is_the_inverse_of_describe(data):
    lead = data.draw(st.sampled_from(_leads()))
    modifier = data.draw(st.sampled_from(["", *_modifiers()]))
    concepts = (lead, modifier) if modifier and modifier != lead else (lead,)
    description = DOMAIN.describe(concepts)
    assert description == description.lower()
    assert DOMAIN.parse(description) == concepts


def test_every_lead_and_modifier_is_said_in_its_own_words():
    leads, modifiers = _leads(), _modifiers()
    assert all(concept in leads or concept in modifiers for concept in DOMAIN.concepts())
    said = {DOMAIN.describe([lead]): (lead,) for lead in leads}
    # The words that open a modifier are words of the corpus too, so they are where two readings could meet.
    for lead in ["word:after", "word:with", "word:in", "word:as", "after:after", "after:with", "after:in", "after:the"]:
        said |= {DOMAIN.describe([lead, modifier]): (lead, modifier) for modifier in modifiers if modifier != lead}
    assert len(said) >= len(leads) + 8 * (len(modifiers) - 1)
    assert all(DOMAIN.parse(description) == concepts for description, concepts in said.items())


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("thewordfil inaqu"), max_size=30) | st.text(max_size=20))
def test_what_parses_is_exactly_what_describe_says(text):
    concepts = DOMAIN.parse(text)
    assert concepts == () or DOMAIN.describe(concepts) == text


def test_other_texts_are_not_in_the_language():
    said = "the word file with the word path"
    assert DOMAIN.parse(said) == ("word:file", "near:path")
    for other in [
        "",
        " ",
        said + " ",
        " " + said,
        said.upper(),
        said.replace(" ", "  "),
        said + " in quotes",
        "with the word path",
    ]:
        assert DOMAIN.parse(other) == ()
    assert DOMAIN.parse("the word xyzzy") == DOMAIN.parse("text in quotes in quotes") == ()


@pytest.mark.parametrize(
    "concepts",
    [
        [],
        ["near:path"],
        ["word:xyzzy"],
        ["word:file", "word:path"],
        ["word:file", "near:path", "module:email"],
        ["after:the"] * 2,
    ],
)
def test_what_cannot_be_said_raises(concepts):
    with pytest.raises(ValueError, match="no description"):
        DOMAIN.describe(concepts)


def test_lessons_are_true_in_their_texts_and_mixed_as_meant():
    lessons = list(DOMAIN.lessons("sft", 2500))
    topics = {document.text: document.structure for document in DOMAIN.documents("sft", 2500)}
    for lesson, (whole, topic) in zip(lessons, topics.items(), strict=True):
        assert lesson.nats is None and 1 <= len(lesson.text.split()) <= 30
        assert lesson.text in whole  # a lesson's text is a piece of its document
        assert _holds(DOMAIN, lesson.description, Document(lesson.text, None, topic))
    named = [DOMAIN.parse(lesson.description) for lesson in lessons]
    kinds = Counter(concepts[0].partition(":")[0] for concepts in named)
    assert 0.5 < kinds["word"] / len(lessons) < 0.6 and 0.12 < kinds["after"] / len(lessons) < 0.18
    assert abs(sum(len(concepts) == 2 for concepts in named) / len(lessons) - MODIFIED) < 0.03
    assert len({concepts[0] for concepts in named}) > 500


def test_an_installation_without_its_library_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(pydoc_text, "standard_library", lambda: tmp_path)
    with pytest.raises(UserError) as failure:
        next(PydocDomain(seed=7).documents("train", 1))
    assert "\n" not in str(failure.value) and str(tmp_path) in str(failure.value)
    with pytest.raises(UserError):
        PydocDomain(seed=7).concepts()


def test_a_small_library_worked_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(pydoc_text, "MINIMUM_DOCUMENTS", 0)
    for folder in ("pkg", "test", "site-packages", "pydoc_data"):
        (tmp_path / folder).mkdir()
    prose = "This is a sentence about {} that is long enough to be a document of its own in the corpus."
    (tmp_path / "_one.py").write_text(
        f'"""{prose.format("modules")}\n\n>>> f(1)\nNone\n"""\ndef f():\n    """Too short."""\n'
    )
    (tmp_path / "pkg" / "two.py").write_text(f'class C:\n    def m(self):\n        """{prose.format("methods")}"""\n')
    (tmp_path / "pkg" / "same.py").write_text(f'"""{prose.format("methods")}"""\n')
    (tmp_path / "broken.py").write_text("def (:")
    for folder in ("test", "site-packages"):
        (tmp_path / folder / "three.py").write_text(f'"""{prose.format(folder)}"""\n')
    (tmp_path / "pydoc_data" / "topics.py").write_text(f"topics = {{'b': {prose.format('“topics”')!r}}}\n")
    corpus = pydoc_text.read_corpus(tmp_path)
    assert [(document.structure, document.text) for document in corpus.documents] == [
        ("one", prose.format("modules")),
        ("pkg", prose.format("methods")),
        ("language", prose.format('"topics"')),
    ]
    assert (corpus.files, corpus.unreadable) == (3, 1)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the name of the file", ["Return the name of the file."]),
        ("Ends well (it is so.)  Then it goes on.", ["Ends well (it is so.)", "Then it goes on."]),
        ("See e.g. The other function for it.", ["See e.g. The other function for it."]),
        ("Use it in the loop:\n\n    for x in y: pass", ["Use it in the loop."]),
        ("a  | b\n---+---\n1  | 2", []),
        ("Give x = f(y) to the caller of it.", []),
        ("The caf\u00e9 is in the path of the file.", []),
        ("Lines of a paragraph\nthat belong to it.\n\n- First item is here.\n- Second item is there.",
         ["Lines of a paragraph that belong to it.", "First item is here.", "Second item is there."]),
    ],
)  # fmt: skip
def test_sentences(docstring, expected):
    assert list(sentences(docstring)) == expected
