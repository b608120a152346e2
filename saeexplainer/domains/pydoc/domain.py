"""Python's own documentation as a domain: real English that is always at hand, without a known truth.

The concepts are hypotheses about surface form (this word, after that word, in parentheses, from this module's
documentation), never claims about meaning: those of `saeexplainer.domains.lexical`. `saeexplainer.domains.pydoc.text`
finds and cuts the text; here are the order of the streams, the lessons and the tokenizer. Everything is a function of
the seed and of the installed Python: another Python version gives another corpus.
"""

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count as count_from, islice
from typing import TYPE_CHECKING, ClassVar

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from saeexplainer.domains.domain import BOS, EOS, PAD, SPECIAL_TOKENS, UNKNOWN, Annotation, Document, Lesson
from saeexplainer.domains.lexical import annotating, lexicon, signs
from saeexplainer.domains.lexical.language import LexicalLanguage
from saeexplainer.domains.lexical.lexicon import Lexicon, Limits
from saeexplainer.domains.lexical.phrases import ENCLOSING, Phrases, phrases_of
from saeexplainer.domains.prose import split_sentences
from saeexplainer.domains.pydoc import text as pydoc_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HELD_OUT = "held_out"  # streams whose name starts so give the held-out documents, no other stream does
HELD_OUT_ONE_IN = 10  # documents

LIMITS = Limits(
    occurrences=30, words=1500, after=200, beginnings=0, word=re.compile(r"[a-z_][\w']*"),
    function_words=signs.FUNCTION_WORDS,
)  # fmt: skip
MODULE_DOCUMENTS = 20  # a module concept has at least so many documents

LESSON_WORDS = 30  # the longest text of a lesson
LESSON_SHORT = 8  # words; a shorter sentence takes the next one with it
LEADS = {"word": 55, "after": 15, "ending": 10, "shape": 8, "module": 5, "mark": 4, "position": 3}  # weights, of 100
MODIFIED = 0.45  # share of lessons whose description has a modifier
MODIFIERS = {"near": 5, "after": 2, "module": 2, "shape": 2, "position": 1}  # weights among the kinds that are true


@dataclass(frozen=True)
class PydocDomain(LexicalLanguage):
    """A finite corpus; a stream gives every document once in its own order, then starts over in a new order."""

    seed: int  # of the orders and the lessons; the corpus and its held-out part do not depend on it
    vocabulary: int = 4096  # tokens of the tokenizer, the special ones among them

    truth_known: ClassVar[bool] = False

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """A byte-level BPE of the documents that are not held out; any text survives encoding and decoding."""
        from transformers import PreTrainedTokenizerFast  # slow to import, and only needed here

        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(self._tokenizer_json),
            bos_token=BOS,
            eos_token=EOS,
            pad_token=PAD,
            unk_token=UNKNOWN,
            additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in (BOS, EOS, PAD, UNKNOWN)],
            clean_up_tokenization_spaces=False,
        )

    def documents(self, stream: str, count: int) -> Iterator[Document]:
        """`count` documents; past the corpus' end the stream goes through it again, in a new order."""
        return islice(self._endless(stream), count)

    def lessons(self, stream: str, count: int) -> Iterator[Lesson]:
        """`count` lessons on the documents that a stream of this name may give, in the stream's order."""
        choice = _random(self.seed, "lessons", stream)
        for document in islice(self._endless(stream), count):
            chunk = Document(_chunk(document.text, choice), None, document.structure)
            yield Lesson(self.describe(self._true_there(self.annotate(chunk), choice)), chunk.text, None)

    def annotate(self, document: Document) -> Annotation:
        """What the surface of a text says at each word, number and punctuation mark; `structure` is its topic."""
        module = self._lexicon.topics.get(document.structure)
        return annotating.annotate(document.text, self._lexicon, [] if module is None else [module])

    def _endless(self, stream: str) -> Iterator[Document]:
        documents = self._held_out if stream.startswith(HELD_OUT) else self._open
        for turn in count_from():
            order = list(range(len(documents)))
            _random(self.seed, "order", stream, turn).shuffle(order)
            yield from (documents[index] for index in order)

    def _true_there(self, annotation: Annotation, choice: random.Random) -> list[str]:
        """A leading concept that is true somewhere in a text and, at times, a modifier true at the same word."""
        places: dict[str, list[int]] = {}
        for place, concepts in enumerate(annotation.concepts):
            for concept in concepts:
                if concept in self._phrases.leads:
                    places.setdefault(concept, []).append(place)
        lead = self._pick(list(places), LEADS, choice)
        if choice.random() >= MODIFIED:
            return [lead]
        there = annotation.concepts[choice.choice(places[lead])]
        modifiers = [
            concept for concept in there if concept in self._phrases.modifiers and _kind(concept) != _kind(lead)
        ]
        return [lead, self._pick(modifiers, MODIFIERS, choice)] if modifiers else [lead]

    def _pick(self, concepts: list[str], weights: dict[str, int], choice: random.Random) -> str:
        """A kind by its weight among those present, then a concept of it; rare words first, they say more."""
        kinds = list(dict.fromkeys(map(_kind, concepts)))
        kind = choice.choices(kinds, [weights[kind] for kind in kinds])[0]
        present = [concept for concept in concepts if _kind(concept) == kind]
        rarity = [self._lexicon.rarity.get(concept.partition(":")[2], 1.0) for concept in present]
        return choice.choices(present, rarity)[0]

    @cached_property
    def _parts(self) -> tuple[list[Document], list[Document]]:
        parts: tuple[list[Document], list[Document]] = ([], [])
        for document in pydoc_text.read_corpus(pydoc_text.standard_library()).documents:
            digest = hashlib.sha256(document.text.encode()).digest()
            parts[int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0].append(document)
        return parts

    @property
    def _open(self) -> list[Document]:
        return self._parts[False]

    @property
    def _held_out(self) -> list[Document]:
        return self._parts[True]

    @cached_property
    def _lexicon(self) -> Lexicon:
        """Counted without the held-out documents: nothing of them may shape what is learned."""
        counts = lexicon.counted((document.text for document in self._open), signs.SPAN)
        ranked = lexicon.ranked(counts, LIMITS)
        content = [word for word in ranked if word not in LIMITS.function_words and len(word) > 1]
        topics = Counter(document.structure for document in self._open)
        return Lexicon(
            span=signs.SPAN,
            apart=False,
            words={word: f"word:{word}" for word in ranked},
            rarity={word: counts[word] ** -0.5 for word in ranked},
            after={word: f"after:{word}" for word in ranked[: LIMITS.after]},
            near={word: f"near:{word}" for word in content},
            topics={topic: f"module:{topic}" for topic in sorted(topics) if topics[topic] >= MODULE_DOCUMENTS},
            endings={ending: f"ending:{ending}" for ending in signs.ENDINGS},
            beginnings={},
            marks={mark: concept for mark, (concept, _) in signs.MARKS.items()},
            shapes=tuple(signs.SHAPES),
        )

    @cached_property
    def _phrases(self) -> Phrases:
        return phrases_of(self.concepts(), ENCLOSING)

    @cached_property
    def _tokenizer_json(self) -> str:
        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator((document.text for document in self._open), trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
        return json.dumps(json.loads(tokenizer.to_str()), sort_keys=True)


def _random(*names: object) -> random.Random:
    """A generator of its own for each name; the same in every process, unlike Python's `hash`."""
    digest = hashlib.sha256(json.dumps(names).encode()).digest()
    return random.Random(int.from_bytes(digest, "big"))


def _kind(concept: str) -> str:
    return concept.partition(":")[0]


def _chunk(text: str, choice: random.Random) -> str:
    """One sentence of a text, with the next if it is short, cut after a clause if it is long."""
    sentences = list(split_sentences(text))
    first = choice.randrange(len(sentences))
    words = sentences[first].split()
    if len(words) < LESSON_SHORT and first + 1 < len(sentences):
        words += sentences[first + 1].split()
    if len(words) <= LESSON_WORDS:
        return " ".join(words)
    clauses = [place for place in range(LESSON_WORDS // 3, LESSON_WORDS + 1) if words[place - 1][-1] in ",;:."]
    return " ".join(words[: clauses[-1] if clauses else LESSON_WORDS]).rstrip(",;:")
