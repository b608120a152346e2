"""Lexical hypotheses on a corpus: counted from what is not held out, true where they say, and said so that they can be
read back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from saeexplainer.config import Corpus
from saeexplainer.domains.corpus import domain as corpus_domain
from saeexplainer.domains.corpus.domain import CorpusDomain
from saeexplainer.domains.domain import Document
from saeexplainer.domains.lexical import lexicon, signs
from saeexplainer.domains.lexical.annotating import annotate
from saeexplainer.domains.lexical.phrases import ENCLOSING, phrases_of
from saeexplainer.domains.pydoc.domain import PydocDomain
from saeexplainer.features.token_stream import concepts_at

STORIES = (
    "The environment of the river has changed. Environmental groups say that the rivers need water (and clean water "
    "too), while environmentalists ask for a new environment policy.",
    'Ada Lovelace said: "An engine may weave patterns, reading, asking, knowing." NASA agrees; in 1843 it was new! '
    "Was it 3.5 or 4?",
    "He described the describing and weaving of a description.\n\nDescribe it, describer — he said — and the reader "
    "reads.",
    "It’s a line\nthat breaks & goes on [here], at 50% of $20, don't you think...",
    "Environmentally, environments and environs are rows: the pretend preface predicts what the prefix prevents and "
    "prepares.",
)


def source(folder: Path, texts: list[str]) -> Corpus:
    path = folder / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return Corpus(str(path), None, None, None, "text", False)


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> CorpusDomain:
    """A corpus of numbered copies, so that its words are frequent."""
    texts = [f"{story} Copy {number}." for number in range(40) for story in STORIES]
    return CorpusDomain(0, source(tmp_path_factory.mktemp("corpus"), texts), None)


def held(domain: CorpusDomain, text: str) -> list[tuple[str, set[str]]]:
    """Each annotated piece of a text with its concepts."""
    annotation = domain.annotate(Document(text, None))
    return [(text[start:end], set(keys)) for (start, end), keys in zip(annotation.spans, annotation.concepts)]


def where(domain: CorpusDomain, concept: str, text: str) -> list[str]:
    return [word for word, keys in held(domain, text) if concept in keys]


TEXT = (
    "The environment, said NASA (in 1843), is environmental; “Describe” the river—water\n"
    "near water, water.\n\nIt’s the reading?"
)


@pytest.mark.parametrize(
    ("concept", "words"),
    [
        ("word:water", ["water", "water", "water"]),
        ("word:the", ["The", "the", "the"]),
        ("word:it's", ["It’s"]),
        ("after:the", ["environment", "river", "reading"]),
        ("after:said", ["NASA"]),
        ("ending:ing", ["reading"]),
        ("beginning:environment", ["environment", "environmental"]),
        ("shape:capital", ["The", "NASA", "Describe", "It’s"]),
        ("shape:capitals", ["NASA"]),
        ("shape:number", ["1843"]),
        ("shape:parenthesis", ["in", "1843"]),
        ("shape:quoted", ["Describe"]),
        ("position:first", ["The"]),
        ("position:last", ["reading"]),
        ("mark:comma", [",", ",", ","]),
        ("mark:quote", ["“", "”"]),
        ("mark:dash", ["—"]),
        ("mark:question", ["?"]),
        ("mark:line", ["\n"]),
        ("mark:paragraph", ["\n\n"]),
        (
            "near:river",
            "in 1843 ) , is environmental ; “ Describe ” the — water \n near water , water . \n\n It’s the".split(" "),
        ),
    ],
)
def test_concepts_of_a_text_worked_by_hand(domain: CorpusDomain, concept: str, words: list[str]) -> None:
    assert concept in domain.concepts()
    assert where(domain, concept, TEXT) == words


def test_a_topic_is_a_content_word_that_comes_again_and_again(domain: CorpusDomain) -> None:
    text = "water and water and the river and water again and again"
    assert {key for _, keys in held(domain, text) for key in keys if key.startswith("topic:")} == {"topic:water"}
    assert len(where(domain, "topic:water", text)) == len(text.split())
    assert not where(domain, "topic:water", "water and water and the river")
    assert not where(domain, "topic:water", text + " it is said" * 60)  # one word in 50 and more


def test_quotes_and_parentheses_end_with_their_paragraph(domain: CorpusDomain) -> None:
    assert where(domain, "shape:parenthesis", "an (open one\n\nends here") == ["open", "one", "\n\n"]
    assert where(domain, "shape:quoted", 'a " is alone\n\nand "in" is not') == ["in"]


def test_beginnings_end_where_their_words_part_ways() -> None:
    words = (
        "environment environments environmental environmentally environmentalist model models modern modest moderate"
    )
    assert lexicon.beginnings(words.split(), 10) == ["environment", "mode"]
    assert lexicon.beginnings(words.split(), 1) == ["environment"]
    assert lexicon.beginnings("the then they them these".split(), 10) == []  # four letters or less say nothing
    assert lexicon.endings("making taking baking waking raking thing sing".split()) == ["ing"]
    assert lexicon.endings("making taking baking waking thing sing".split()) == []  # four; `thing` has no stem


def test_spans_ascend_and_concepts_are_listed_once(domain: CorpusDomain) -> None:
    known = domain.concepts()
    assert len(set(known)) == len(known)
    for text in [*STORIES, TEXT, "", " \n", "naïve 語 ’‘ '' \"", "(((", "\n\n\n\n", "\x00 \u2028 \t"]:
        annotation, end = domain.annotate(Document(text, None)), 0
        for (start, stop), keys in zip(annotation.spans, annotation.concepts, strict=True):
            assert end <= start < stop <= len(text)
            end = stop
            assert len(set(keys)) == len(keys) and set(known).issuperset(keys)


@settings(deadline=None, max_examples=60)
@given(st.text(st.sampled_from("ab '\".,()\n—’A1語_"), max_size=60))
def test_any_text_is_annotated(text: str) -> None:
    apart = lexicon.of_outside({"ab": 20, "a": 20}, corpus_domain.LIMITS)
    found = annotate(text.translate(signs.PLAIN), apart)
    assert all(start < stop for start, stop in found.spans)
    assert all(before[1] <= after[0] for before, after in zip(found.spans, found.spans[1:]))


def test_parse_inverts_describe_for_every_lead_and_modifier(domain: CorpusDomain) -> None:
    concepts = domain.concepts()
    leads = [concept for concept in concepts if domain.can_lead(concept)]
    modifiers = [concept for concept in concepts if domain.can_modify(concept)]
    assert {concept.partition(":")[0] for concept in leads} >= {"word", "after", "ending", "beginning", "topic"}
    assert set(leads) | set(modifiers) == set(concepts)
    for lead in leads:
        assert domain.parse(domain.describe([lead])) == (lead,)
        for modifier in modifiers:
            if modifier != lead:
                assert domain.parse(domain.describe([lead, modifier])) == (lead, modifier)
    for unsaid in ([], ["near:water"], ["word:xyzzy"], ["word:water", "word:river"], ["after:the", "after:the"]):
        with pytest.raises(ValueError, match="no description"):
            domain.describe(unsaid)
    for text in ["", "the word xyzzy", "with the word water", "The word water", "the word water "]:
        assert domain.parse(text) == ()


def test_words_that_open_a_modifier_leave_one_reading() -> None:
    openers = ["with", "after", "in", "as", "the", "text", "about", "word", "words", "capitals", "quotes", "first"]
    keys = [f"{kind}:{word}" for kind in ("word", "after", "near", "topic", "beginning") for word in openers]
    language = phrases_of([*keys, *signs.SHAPES, *signs.POSITIONS], ENCLOSING)
    for lead in language.leads:
        for modifier in language.modifiers:
            if modifier != lead:
                assert language.parse(language.describe([lead, modifier])) == (lead, modifier)


def test_both_domains_say_the_same_concept_in_the_same_words(domain: CorpusDomain) -> None:
    pydoc = PydocDomain(0)
    shared = [concept for concept in pydoc.concepts() if concept in set(domain.concepts())]
    leads = [concept for concept in shared if domain.can_lead(concept)]
    assert {concept.partition(":")[0] for concept in shared} >= {"word", "after", "near", "ending", "shape", "mark"}
    assert leads == [concept for concept in shared if pydoc.can_lead(concept)]
    for concept in shared:
        said = [concept] if domain.can_lead(concept) else ["shape:punctuation", concept]
        assert domain.describe(said) == pydoc.describe(said)


def test_held_out_text_changes_no_concept(tmp_path: Path) -> None:
    texts = [f"{story} Copy {number}." for number in range(10) for story in STORIES]
    held_out = [f"zebra zebra zebra number {number}" for number in range(2000)]
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    both = CorpusDomain(3, source(tmp_path / "with", [*texts, *held_out]), None)
    apart = [text for name in ("held_out", "held_out_sae") for text in _texts_of(both, name) if text in held_out]
    assert len(apart) > 30
    alone = CorpusDomain(3, source(tmp_path / "without", texts), None)
    kept = CorpusDomain(3, source(tmp_path / "with", [*texts, *apart]), None)
    assert kept.concepts() == alone.concepts() and "word:zebra" not in kept.concepts()
    assert kept.annotate(Document(TEXT, None)) == alone.annotate(Document(TEXT, None))


def _texts_of(domain: CorpusDomain, stream: str) -> list[str]:
    return [document.text for document in domain.documents(stream, 10**6)]


def test_two_instances_agree_and_the_source_is_read_no_further_than_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{story} Copy {number}." for number in range(40) for story in STORIES]
    found = source(tmp_path, texts)
    again = CorpusDomain(0, found, None)
    assert again.concepts() == CorpusDomain(0, found, None).concepts()
    assert [again.annotate(Document(text, None)) for text in STORIES] == [
        CorpusDomain(0, found, None).annotate(Document(text, None)) for text in STORIES
    ]
    Path(found.source).write_text(Path(found.source).read_text() + "\n{", encoding="utf-8")  # what comes last is broken
    monkeypatch.setattr(corpus_domain, "COUNTED", 5000)
    assert "word:the" in CorpusDomain(0, found, None).concepts()


@pytest.mark.parametrize(
    "texts", [["x"], ["語" * 300, "これは日本語のテキストです。" * 20], ["one two three"] * 3, ["123 456"], ["..."] * 9]
)
def test_a_corpus_of_few_words_has_few_concepts(texts: list[str], tmp_path: Path) -> None:
    domain = CorpusDomain(0, source(tmp_path, texts), None)
    assert set(signs.SHAPES) <= set(domain.concepts())
    for text in texts:
        annotation = domain.annotate(Document(text, None))
        assert annotation.spans and all(keys for keys in annotation.concepts[:1])
    assert domain.parse(domain.describe(["position:first"])) == ("position:first",)


def test_every_piece_of_a_word_has_the_words_concepts(domain: CorpusDomain) -> None:
    """With a real byte-level BPE, which keeps the space before a word and cuts rare words into pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(["the water and the river", "the water is in the river"], trainer)
    text = "The environmental river, naïve “describers” don’t see; 3.14\n\nAn environment."
    offsets = tokenizer.encode(text).offsets
    annotation = domain.annotate(Document(text, None))
    assert len(offsets) > 1.5 * len(annotation.spans)  # words are cut into pieces
    found = concepts_at(annotation, offsets)
    for (start, stop), keys in zip(annotation.spans, annotation.concepts, strict=True):
        pieces = [found[at] for at, (_, end) in enumerate(offsets) if start < end <= stop]
        assert pieces and set(pieces) == {keys}
    assert not any(found[at] for at, (start, end) in enumerate(offsets) if text[start:end] == " ")


def test_no_truth_is_claimed_and_no_lesson_given(domain: CorpusDomain) -> None:
    assert not domain.truth_known and list(domain.lessons("subject", 3)) == []
    assert replace(domain, seed=1).concepts()  # another seed holds out other documents and has concepts too
