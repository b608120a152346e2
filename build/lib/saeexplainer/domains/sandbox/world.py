"""A generator of simple English whose truth is known: the sandbox's domain.

    world = World(seed=1)
    document = next(world.documents("train", 1))
    world.annotate(document)  # what is true at each word

The nats of a text are -log p of the text together with its hidden topic. That is an upper bound on the information in
the text, and a near one: the topic is the only thing hidden, so the mean excess is below log 14, 2.6 nats a text, less
what its words give away. A lesson's nats are those of its text; the description is not counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, ClassVar

from saeexplainer.domains import domain
from saeexplainer.domains.domain import Annotation, Document, Lesson
from saeexplainer.domains.sandbox import analysis, concepts as language, grammar, lexicon
from saeexplainer.domains.sandbox.habits import Habits, build_habits, stable_random

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SUFFIX_TOKEN = "##s"
CONTENT_PREFERENCE = 8.0  # how much likelier a lesson is about a content word than about another span
WORD_LESSONS, CATEGORY_LESSONS = 0.65, 0.15  # levels of leading concepts; the rest goes to the others
MODIFIED_LESSONS = 0.35  # lessons whose description has a modifier
NEAR_MODIFIERS = 0.5  # modifiers that name another word of the sentence


@dataclass(frozen=True)
class TaughtDocument:
    """A lesson with what lies behind it, for checks."""

    lesson: Lesson
    document: Document  # the lesson's text, with its structure
    span: int  # index of the annotated span at which the description is true
    concepts: tuple[str, ...]  # what the description says, leading concept first


@dataclass(frozen=True)
class World:
    """A domain whose concepts are the truth. Two worlds of one seed are the same world."""

    seed: int  # decides frequencies, habits and topics, and with a stream's name every text
    truth_known: ClassVar[bool] = True

    @cached_property
    def habits(self) -> Habits:
        """The distributions that this world draws from."""
        return build_habits(self.seed)

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """Words and the suffix as tokens; the same for every seed."""
        return build_tokenizer()

    def documents(self, stream: str, count: int) -> Iterator[Document]:
        """`count` documents of three to five sentences of one topic, lazily."""
        uniform = stable_random(self.seed, "documents", stream).random
        for _ in range(count):
            story = grammar.write_story(self.habits, self.habits.document_lengths, uniform)
            yield Document(story.text, story.nats, story.topic)

    def lessons(self, stream: str, count: int) -> Iterator[Lesson]:
        """`count` texts of one or two sentences, each with a description true at one of its words."""
        return (taught.lesson for taught in self.taught_documents(stream, count))

    def taught_documents(self, stream: str, count: int) -> Iterator[TaughtDocument]:
        """The lessons of a stream with the place where each description is true."""
        random = stable_random(self.seed, "lessons", stream)
        for _ in range(count):
            story = grammar.write_story(self.habits, self.habits.lesson_lengths, random.random)
            document = Document(story.text, story.nats, story.topic)
            true_concepts = self.annotate(document).concepts
            span = _choose_span(true_concepts, random)
            said = _choose_concepts(true_concepts[span], random)
            yield TaughtDocument(Lesson(language.describe(said), story.text, story.nats), document, span, said)

    def annotate(self, document: Document) -> Annotation:
        """What is true at each word, suffix and mark; of a text without structure, all but its topic."""
        return analysis.annotate_text(document.text, document.structure)

    def concepts(self) -> list[str]:
        """Every concept key, in a fixed order."""
        return list(language.all_concepts())

    def can_lead(self, concept: str) -> bool:
        """Whether a description may be built on this concept alone: all but `near:`."""
        return concept in language.lead_phrases()

    def can_modify(self, concept: str) -> bool:
        """Whether a description may add this concept: neighbours, contexts, topics, some roles and positions."""
        return concept in language.modifier_phrases()

    def describe(self, concepts: Sequence[str]) -> str:
        """The phrase for one leading concept and at most one modifier."""
        return language.describe(concepts)

    def parse(self, description: str) -> tuple[str, ...]:
        """The concepts a description names, leading one first; empty if it is not in the language."""
        return language.parse(description)


def vocabulary() -> dict[str, int]:
    """Token ids: special tokens, then the words of texts, then those only descriptions use."""
    words = (*lexicon.MARKS, SUFFIX_TOKEN, *lexicon.FUNCTION_WORDS, *lexicon.CONTENT_WORDS)
    tokens = dict.fromkeys((*domain.SPECIAL_TOKENS, *words, *language.description_words()))
    return {token: index for index, token in enumerate(tokens)}


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """A WordPiece tokenizer over the whole vocabulary, which decodes to exactly the text."""
    # Here, because transformers takes seconds to import and texts and truth do not need it.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = vocabulary()
    core = Tokenizer(models.WordPiece(ids, unk_token=domain.UNKNOWN, continuing_subword_prefix="##"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.post_processor = processors.TemplateProcessing(
        single=f"{domain.BOS} $A", special_tokens=[(domain.BOS, ids[domain.BOS])]
    )
    named = (domain.BOS, domain.EOS, domain.PAD, domain.UNKNOWN)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=domain.BOS,
        eos_token=domain.EOS,
        pad_token=domain.PAD,
        unk_token=domain.UNKNOWN,
        additional_special_tokens=[token for token in domain.SPECIAL_TOKENS if token not in named],
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _choose_span(true_concepts: Sequence[tuple[str, ...]], random: Random) -> int:
    weights = [
        CONTENT_PREFERENCE if any(_level(key) == "category" for key in keys[:2]) else 1.0 for keys in true_concepts
    ]
    return random.choices(range(len(weights)), weights)[0]


def _choose_concepts(true_there: Sequence[str], random: Random) -> tuple[str, ...]:
    """A leading concept true at a span and, sometimes, another that modifies it."""
    lead = _choose_lead(true_there, random)
    if random.random() >= MODIFIED_LESSONS:
        return (lead,)
    allowed = [key for key in true_there if key in language.modifier_phrases() and key != lead]
    near = [key for key in allowed if _level(key) == "near"]
    others = [key for key in allowed if _level(key) != "near"]
    pool = near if random.random() < NEAR_MODIFIERS else others
    return (lead, random.choice(pool or allowed)) if allowed else (lead,)


def _choose_lead(true_there: Sequence[str], random: Random) -> str:
    leads = [key for key in true_there if key in language.lead_phrases()]
    by_level = {
        "word": [key for key in leads if _level(key) == "word"],
        "category": [key for key in leads if _level(key) == "category"],
        "other": [key for key in leads if _level(key) not in ("word", "category")],
    }
    draw = random.random()
    level = "word" if draw < WORD_LESSONS else "category" if draw < WORD_LESSONS + CATEGORY_LESSONS else "other"
    return random.choice(by_level[level] or leads)


def _level(concept: str) -> str:
    return concept.partition(":")[0]
