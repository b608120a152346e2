"""Text from outside as a domain: its concepts are hypotheses about the surface of its words, and no truth is known.

It has no lessons and no tokenizer, so the subject is pretrained. Concepts are those of `saeexplainer.domains.lexical`,
with a lexicon that is counted from the text itself; they can be said of a word whatever tokens it is cut into.
`saeexplainer.domains.corpus.text` reads the source; here its documents are dealt out to the streams and, where the
corpus is packed, joined and cut to what the subject reads at once. A document's stream follows from its text
and the seed: no two streams share one, and copies of a text stay together, so nothing held out is seen elsewhere in
another place of the source.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from saeexplainer.config import Corpus
from saeexplainer.domains.corpus.text import SOURCE, read_texts
from saeexplainer.domains.domain import Annotation, Document, Lesson, ReadingLimit
from saeexplainer.domains.lexical import annotating, lexicon, signs
from saeexplainer.domains.lexical.language import LexicalLanguage
from saeexplainer.domains.lexical.lexicon import Lexicon, Limits
from saeexplainer.domains.lexical.phrases import CASES, ENCLOSING, Phrases, phrases_of
from saeexplainer.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Percent of the documents that each stream has to itself; streams that are not named here share the last part.
SHARES = {
    "extract": 50, "sae": 25, "subject": 5, "warmup": 5, "truth": 4, "steering": 4, "held_out": 3, "held_out_sae": 3,
    "others": 1,
}  # fmt: skip
HELD_OUT = "held_out"  # how the names of the streams begin whose documents shape nothing
# Characters that the lexicon is counted from, however large the corpus is: the two million words are counted in
# seconds, and a word that is one in 200,000 still stands in them ten times.
COUNTED = 10_000_000
LIMITS = Limits(
    occurrences=10, words=3000, after=300, beginnings=400, word=re.compile(r"[^\W\d][\w']{0,23}"),
    function_words=signs.FUNCTION_WORDS_FURTHER,
)  # fmt: skip
SEPARATOR = "\n\n"  # between packed documents
CHARACTERS = 8  # a token, so many at first: what is looked at for the first cut; English has four


@dataclass(frozen=True)
class CorpusDomain(LexicalLanguage):
    """A finite corpus; a stream gives its documents once, in the order of the source, and then ends."""

    seed: int  # of which stream a document goes to
    corpus: Corpus  # read when documents are asked for, not before
    reader: ReadingLimit | None  # who reads the documents; None where packed ones are not asked for

    truth_known: ClassVar[bool] = False

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """None of its own. Raises UserError."""
        raise UserError("prepare_subject.domain: a corpus has no tokenizer of its own; name prepare_subject.pretrained")

    def documents(self, stream: str, count: int) -> Iterator[Document]:
        """`count` documents of a stream, fewer where it has no more.

        Raises UserError if the source cannot be read or the stream has no document at all, ValueError if a packed
        corpus was opened without its reader.
        """
        pieces = self._texts(stream)
        if self.corpus.packed:
            if self.reader is None:
                raise ValueError("a packed corpus needs the reader that it is cut for")
            pieces = packed(pieces, self.reader)
        return (Document(text, None) for text in islice(pieces, count))

    def lessons(self, stream: str, count: int) -> Iterator[Lesson]:
        """None: they teach a subject that is trained here, and a corpus is read by a pretrained one."""
        return iter(())

    def annotate(self, document: Document) -> Annotation:
        """What the surface of a text says at each word, number, punctuation mark and line break."""
        text = document.text.translate(signs.PLAIN)
        return annotating.annotate(text, self._lexicon, annotating.topics(text, self._lexicon))

    @cached_property
    def _lexicon(self) -> Lexicon:
        """Counted without the held-out documents: nothing of them may shape what is learned."""
        return lexicon.of_outside(lexicon.counted(self._beginning(), signs.SPAN_FURTHER), LIMITS)

    @cached_property
    def _phrases(self) -> Phrases:
        return phrases_of(self.concepts(), ENCLOSING | CASES)

    def _beginning(self) -> Iterator[str]:
        """What is counted: the first documents of the source that are not held out, up to COUNTED characters."""
        left = COUNTED
        for text in read_texts(self.corpus):
            if not _stream_of(text, self.seed).startswith(HELD_OUT):
                yield text[:left].translate(signs.PLAIN)
                left -= len(text) + 1  # a document counts, however short it is
            if left <= 0:
                return

    def _texts(self, stream: str) -> Iterator[str]:
        """The whole documents of a stream."""
        part, seen, taken = stream if stream in SHARES else "others", 0, 0
        for text in read_texts(self.corpus):
            seen += 1
            if _stream_of(text, self.seed) == part:
                taken += 1
                yield text
        if not seen:
            raise UserError(f"{SOURCE}: {self.corpus.source}: holds no text; name another")
        if not taken:
            raise UserError(
                f"{SOURCE}: {self.corpus.source}: none of its {seen} documents falls to the stream {stream}, which has "
                f"{SHARES[part]} % of them; give more text"
            )


def _stream_of(text: str, seed: int) -> str:
    """The key of SHARES to which a text belongs; the same in every process."""
    digest = hashlib.sha256(f"{seed}/{text}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") % sum(SHARES.values())
    for stream, share in SHARES.items():
        place -= share
        if place < 0:
            return stream
    raise AssertionError("the shares cover every place")


def packed(texts: Iterable[str], reader: ReadingLimit) -> Iterator[str]:
    """The texts joined and cut so that each piece is at most `context_length` tokens, special ones included.

    The pieces joined again are the texts with SEPARATOR between them: nothing is lost. A cut lies before a word where
    one begins nearby, so that words on both sides keep their tokens.
    """
    rest, window = "", CHARACTERS * reader.context_length
    for number, text in enumerate(texts):
        rest, at = rest + SEPARATOR * (number > 0) + text, 0
        while len(rest) - at >= window:
            size = _fitting(rest[at : at + window], reader)
            yield rest[at : at + size]
            at += size
            window = max(2 * size, reader.context_length)  # twice what fitted last: seldom too little, never much
        rest = rest[at:]
    while rest:
        size = _fitting(rest[:window], reader)
        yield rest[:size]
        rest = rest[size:]


def _fitting(text: str, reader: ReadingLimit) -> int:
    """How many characters from the beginning make at most `context_length` tokens; at least one."""
    encoded = reader.tokenizer(text, return_offsets_mapping=True, verbose=False)
    if len(encoded["input_ids"]) <= reader.context_length:
        return len(text)
    for kept in range(reader.context_length, 0, -1):
        end = _before_a_word(text, max(stop for _, stop in encoded["offset_mapping"][:kept]))
        # Read by itself, a piece may have other tokens than in its text.
        if len(reader.tokenizer(text[:end], verbose=False)["input_ids"]) <= reader.context_length:
            break
    return max(end, 1)


def _before_a_word(text: str, end: int) -> int:
    """The last place up to `end` that holds white space, if it lies in the second half; else `end` itself."""
    if end < len(text) and text[end].isspace():
        return end
    places = (place for place in range(end - 1, end // 2, -1) if text[place].isspace())
    return next(places, end)
