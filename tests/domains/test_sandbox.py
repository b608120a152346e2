"""The sandbox: its texts are reproducible, its truth agrees with its texts, its descriptions can be read back."""

import math
import os
import statistics
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from saeexplainer.domains.domain import EOS, SPECIAL_TOKENS, UNKNOWN, Document
from saeexplainer.domains.sandbox import grammar, lexicon
from saeexplainer.domains.sandbox.habits import OBJECT_SHARE, PARTNER_SHARE
from saeexplainer.domains.sandbox.world import World, vocabulary

WORLD = World(seed=1)
CONCEPTS = WORLD.concepts()
LEADS = [concept for concept in CONCEPTS if WORLD.can_lead(concept)]
MODIFIERS = [concept for concept in CONCEPTS if WORLD.can_modify(concept)]
# Written by hand, with every kind of sentence.
STORY = (
    'anna says " the red dogs do not chase three cats quickly in the barn . " is this cow happy ? ben hits the hammer .'
)


@pytest.fixture(scope="module")
def tokenizer():
    return WORLD.tokenizer()


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return list(WORLD.documents("test", 400))


def truth(text: str, topic: str | None = None) -> list[tuple[str, set[str]]]:
    annotation = WORLD.annotate(Document(text, None, topic))
    return [
        (text[start:end], set(keys)) for (start, end), keys in zip(annotation.spans, annotation.concepts, strict=True)
    ]


def where(concept: str, text: str = STORY) -> list[str]:
    return [word for word, keys in truth(text, "farming") if concept in keys]


def test_lexicon_has_no_word_twice_and_no_doubtful_surface() -> None:
    words = [*lexicon.CONTENT_WORDS, *lexicon.FUNCTION_WORDS]
    inflected = [entry.base for entry in lexicon.CONTENT_ENTRIES if entry.kind in (lexicon.NOUN, lexicon.VERB)]
    assert len(set(words)) == len(words)
    assert not {word + "s" for word in inflected} & set(words)
    assert not [word for word in inflected if word.endswith(("s", "x", "z", "ch", "sh", "y"))]
    assert all(word.isalpha() and word.islower() for word in words)
    assert 620 <= len(lexicon.CONTENT_WORDS) <= 720
    assert sum(map(len, lexicon.NOUNS.values())) >= 340


def test_category_topic_and_level_names_are_not_content_words() -> None:
    phrases = [WORLD.describe([lead]) for lead in LEADS if not lead.startswith("word:")]
    assert not set(" ".join(phrases).split()) & set(lexicon.CONTENT_WORDS)


def test_same_seed_same_world() -> None:
    again = World(seed=1)
    assert list(again.documents("a", 20)) == list(WORLD.documents("a", 20))
    assert list(again.lessons("a", 20)) == list(WORLD.lessons("a", 20))
    assert again.concepts() == CONCEPTS


def test_same_world_whatever_the_hash_seed() -> None:
    program = (
        "from saeexplainer.domains.sandbox.world import World; w = World(3);"
        "print(list(w.documents('a', 5)), list(w.lessons('a', 5)), w.concepts())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_streams_and_seeds_differ() -> None:
    texts = [
        {document.text for document in world.documents(stream, 200)}
        for world, stream in ((WORLD, "a"), (WORLD, "b"), (World(seed=2), "a"))
    ]
    assert not texts[0] & texts[1] and not texts[0] & texts[2]
    mine, other = WORLD.habits.verbs_of, World(seed=2).habits.verbs_of
    same = sum(mine[noun].items[0] == other[noun].items[0] for noun in mine)
    assert same < len(mine) / 10


def test_documents_are_lazy() -> None:
    assert len(list(islice(WORLD.documents("lazy", 10**12), 3))) == 3
    assert len(list(islice(WORLD.lessons("lazy", 10**12), 3))) == 3


def test_a_longer_stream_starts_like_a_shorter_one() -> None:
    assert list(WORLD.documents("a", 30))[:10] == list(WORLD.documents("a", 10))


def test_spans_cover_the_text(documents: list[Document]) -> None:
    for document in documents:
        spans = WORLD.annotate(document).spans
        assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))
        assert "".join(document.text[start:end] for start, end in spans) == document.text.replace(" ", "")


def test_spans_are_the_tokenizer_tokens(tokenizer, documents: list[Document]) -> None:
    for document in documents[:50]:
        encoded = tokenizer(document.text, return_offsets_mapping=True, add_special_tokens=False)
        assert [tuple(span) for span in encoded["offset_mapping"]] == WORLD.annotate(document).spans


def test_every_concept_is_listed_and_every_level_occurs(documents: list[Document]) -> None:
    found = {key for document in documents for keys in WORLD.annotate(document).concepts for key in keys}
    assert found <= set(CONCEPTS)
    levels = {key for key in CONCEPTS if not key.startswith(("word:", "near:"))}
    assert levels <= found
    assert len(levels) >= 30
    assert len(set(CONCEPTS)) == len(CONCEPTS)


def test_no_key_twice_at_a_span_and_few_keys(documents: list[Document]) -> None:
    keys = [keys for document in documents for keys in WORLD.annotate(document).concepts]
    assert all(len(set(there)) == len(there) for there in keys)
    assert statistics.mean(map(len, keys)) < 15


@pytest.mark.parametrize(
    ("concept", "words"),
    [
        ("word:dog", "dog"),
        ("category:animal", "dog cat cow"),
        ("category:place", "barn"),
        ("role:speaker", "anna"),
        ("role:subject", "dog cow ben"),
        ("role:object", "cat hammer"),
        ("role:verb", "chase hit"),
        ("role:adjective", "red"),
        ("role:predicate", "happy"),
        ("role:place", "in the barn"),
        ("position:first", "anna is ben"),
        ("position:last", "barn happy hammer"),
        ("context:negation", 'anna says " the red dog s do not chase three cat s quickly in the barn . "'),
        ("context:quote", "the red dog s do not chase three cat s quickly in the barn ."),
        ("context:question", "is this cow happy ?"),
        ("context:plural", "the red dog s three cat s"),
        ("context:number", "cat"),
        ("suffix:plural", "s s"),
        ("suffix:verb", "s"),
        ("mark:question", "?"),
        ("near:hammer", "ben hit s the ."),
        ("near:cow", "is this happy ?"),
    ],
)
def test_truth_of_a_story_written_by_hand(concept: str, words: str) -> None:
    assert where(concept) == words.split(" ")


def test_topic_holds_everywhere_and_only_if_known() -> None:
    assert len(where("topic:farming")) == len(truth(STORY))
    assert not any(key.startswith("topic:") for _, keys in truth(STORY) for key in keys)


def test_a_word_is_near_itself_only_if_it_occurs_twice() -> None:
    assert where("near:dog", "the dog sees the cat .") == ["the", "see", "s", "the", "cat", "."]
    assert where("near:dog", "the dog sees the dog .") == ["the", "dog", "see", "s", "the", "dog", "."]
    assert where("near:dog", "the dogs see the cat .") == ["the", "see", "the", "cat", "."]


@pytest.mark.parametrize("text", ["", "the", 'says " ?', 'reds the dog . . " ? in', "in the", "barn says", "  dog"])
def test_broken_text_is_read_without_error(text: str) -> None:
    assert "".join(word for word, _ in truth(text)) == text.replace(" ", "")


def test_negation_and_question_follow_from_the_words() -> None:
    for lesson in WORLD.lessons("single", 400):
        if lesson.text.count(".") + lesson.text.count("?") > 1:
            continue
        for _, keys in truth(lesson.text):
            assert ("context:negation" in keys) == (" not " in lesson.text)
            assert ("context:question" in keys) == lesson.text.endswith("?")
            assert "context:quote" not in keys or lesson.text.endswith('"')


def test_documents_follow_the_topic(documents: list[Document]) -> None:
    for document in documents:
        sentences = [keys for keys in WORLD.annotate(document).concepts if "position:first" in keys]
        assert 3 <= len(sentences) <= 5
        assert all(f"topic:{document.structure}" in keys for keys in sentences)


def test_every_content_word_is_frequent_enough() -> None:
    for seed in (1, 2):
        texts = (document.text for document in World(seed).documents("frequency", 10_000))
        counts = Counter(lexicon.SURFACES[word].base for text in texts for word in text.split(" "))
        content = [counts[word] for word in lexicon.CONTENT_WORDS]
        assert min(content) > statistics.median(content) / 6


def test_tokenizer_gives_back_documents_and_descriptions(tokenizer, documents: list[Document]) -> None:
    texts = [document.text for document in documents]
    texts += [lesson.description for lesson in WORLD.lessons("a", 300)] + [WORLD.describe([lead]) for lead in LEADS]
    encoded = tokenizer(texts)["input_ids"]
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in encoded] == texts
    assert all(ids[0] == tokenizer.bos_token_id and tokenizer.unk_token_id not in ids for ids in encoded)


def test_special_tokens_are_single_and_first(tokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
    assert set(SPECIAL_TOKENS) == set(tokenizer.all_special_tokens)
    assert len(tokenizer) == len(vocabulary())
    tokens = tokenizer.tokenize("<about> the word dog in a question <text> does the dogs" + EOS)
    assert tokens == "<about> the word dog in a question <text> does the dog ##s <eos>".split()
    assert tokenizer.tokenize("qwerty") == [UNKNOWN]


def test_tokenizer_survives_saving(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again(STORY)["input_ids"] == tokenizer(STORY)["input_ids"]
    assert again.decode(again(STORY)["input_ids"], skip_special_tokens=True) == STORY


@settings(deadline=None)  # a busy machine is no fault of the language
@given(st.sampled_from(LEADS), st.none() | st.sampled_from(MODIFIERS))
def test_parse_inverts_describe(lead: str, modifier: str | None) -> None:
    concepts = (lead,) if modifier in (None, lead) else (lead, modifier)
    assert WORLD.parse(WORLD.describe(concepts)) == concepts


@settings(deadline=None)  # a busy machine is no fault of the language
@given(st.lists(st.sampled_from("the word dog any animal a question in with plural as subject".split()), max_size=7))
def test_describe_inverts_parse(words: list[str]) -> None:
    description = " ".join(words)
    concepts = WORLD.parse(description)
    assert not concepts or WORLD.describe(concepts) == description


@pytest.mark.parametrize("said", [[], ["near:dog"], ["word:dog", "word:cat"], ["word:dog"] * 2, ["x"], ["word:a"] * 3])
def test_what_cannot_be_said(said: list[str]) -> None:
    with pytest.raises(ValueError, match="."):
        WORLD.describe(said)


@pytest.mark.parametrize("text", ["", "the", "dog", "with the word dog", "the word dog ", "the word dog in", "a a"])
def test_what_cannot_be_read(text: str) -> None:
    assert WORLD.parse(text) == ()


def test_descriptions_are_short() -> None:
    longest = [max(len(WORLD.describe([lead]).split()) for lead in LEADS)]
    longest.append(max(len(WORLD.describe(["word:dog", modifier]).split()) for modifier in MODIFIERS) - 3)
    assert sum(longest) <= 9


def test_lessons_are_true() -> None:
    for taught in WORLD.taught_documents("a", 500):
        concepts = WORLD.parse(taught.lesson.description)
        assert concepts == taught.concepts
        assert taught.lesson.text == taught.document.text
        assert set(concepts) <= set(WORLD.annotate(taught.document).concepts[taught.span])


def test_lessons_teach_every_level() -> None:
    taught = list(WORLD.taught_documents("levels", 4000))
    levels = Counter(lesson.concepts[0].partition(":")[0] for lesson in taught)
    assert 0.55 < levels["word"] / len(taught) < 0.75
    assert 0.08 < levels["category"] / len(taught) < 0.22
    assert 0.3 < sum(len(lesson.concepts) == 2 for lesson in taught) / len(taught) < 0.4
    leads = {lesson.concepts[0] for lesson in taught}
    assert {lead for lead in LEADS if not lead.startswith("word:")} <= leads


def test_nats_of_the_first_of_everything() -> None:
    """At the uniform number 0 each draw yields its first item: topic, then `N nouns verb N nouns .`, all known."""
    habits = WORLD.habits
    story = grammar.write_story(habits, habits.lesson_lengths, lambda: 0.0)
    first_number, subject, verb, second_number, noun, stop = story.text.split(" ")
    subject, noun = subject.removesuffix("s"), noun.removesuffix("s")
    topic = habits.topics[story.topic]

    def favourite(word: str, background) -> float:
        return 0.75 * 0.5 + 0.25 * background.probability[word]

    usual = habits.objects_of[verb].probability.get(noun, 0.0)
    shape = 0.85 * 0.78 * 0.62 * 0.75 * 0.7  # neither quoted nor a copula; a statement; no adverb; no place
    expected = (
        habits.topic.probability[story.topic] * 0.9 * shape * topic.subjects.probability[subject] * 0.1
        * favourite(first_number, habits.numbers) * favourite(verb, topic.verbs)
        * (0.5 * 0.5 + 0.25 * usual + 0.25 * topic.nouns.probability[noun]) * 0.1
        * favourite(second_number, habits.numbers)
    )  # fmt: skip
    assert stop == "."
    assert story.nats == pytest.approx(-math.log(expected))


def test_probability_of_a_draw_is_its_share_of_the_unit_interval() -> None:
    habits, points = WORLD.habits, 50_000
    topic = habits.topics["farming"]
    verb = habits.verbs_of["dog"].items[0]
    draws = [grammar.draw_object(habits, topic, "dog", verb, (i + 0.5) / points) for i in range(points)]
    shares = Counter(noun for noun, _ in draws)
    assert all(shares[noun] / points == pytest.approx(p, abs=3 / points) for noun, p in dict(draws).items())
    assert sum(dict(draws).values()) == pytest.approx(1)
    assert 0 < PARTNER_SHARE + OBJECT_SHARE < 1


def test_nats_are_plausible_and_stable() -> None:
    def rate(stream: str) -> float:
        documents = list(WORLD.documents(stream, 2000))
        tokens = sum(len(WORLD.annotate(document).spans) for document in documents)
        return sum(document.nats for document in documents) / tokens

    first, second = rate("a"), rate("b")
    assert 1 < first < math.log(len(vocabulary()))
    assert first == pytest.approx(second, rel=0.02)
