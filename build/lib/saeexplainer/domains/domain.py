"""What the pipeline asks of a source of text: documents, what is true of their words, and a language of descriptions.

Three domains implement it: the sandbox (`saeexplainer.domains.sandbox.world`), whose generator knows the truth,
Python's own documentation (`saeexplainer.domains.pydoc.domain`) and text from outside
(`saeexplainer.domains.corpus.domain`). In the last two the concepts are only hypotheses about the surface of words
(`saeexplainer.domains.lexical`). Nothing outside a domain knows what its concepts are: a concept is an opaque key such
as `word:dog`, `category:animal` or `context:question`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Every domain's tokenizer has these tokens; they never count as evidence for a feature (docs/METHOD.md section 1).
BOS, EOS, PAD, UNKNOWN = "<bos>", "<eos>", "<pad>", "<unk>"
# Words of the prompts: two ways to ask the writer for a text, and the explainer's placeholder (see `feature_tokens`).
ABOUT, EXAMPLE, TEXT, EXPLAIN, FEATURE = "<about>", "<example>", "<text>", "<explain>", "<feature>"
SPECIAL_TOKENS = (BOS, EOS, PAD, UNKNOWN, ABOUT, EXAMPLE, TEXT, EXPLAIN, FEATURE)


@dataclass(frozen=True)
class Document:
    """One piece of plain text as the subject reads it."""

    text: str  # no special tokens
    nats: float | None  # -log p of the whole text under its generator; None where it is unknown
    structure: Any = None  # whatever the domain needs to annotate the text later; opaque to everyone else


@dataclass(frozen=True)
class ReadingLimit:
    """Who reads the documents, and how much of one at once: what a packed corpus is cut for."""

    tokenizer: "PreTrainedTokenizerFast"  # the subject's
    context_length: int  # tokens, special ones included


@dataclass(frozen=True)
class Annotation:
    """The concepts that hold at each annotated span of one document."""

    spans: list[tuple[int, int]]  # [start, end) character offsets, ascending, not overlapping
    concepts: list[tuple[str, ...]]  # one tuple of concept keys a span


@dataclass(frozen=True)
class Lesson:
    """A description and a text that satisfies it: what teaches the writer to write and the explainer to describe."""

    description: str
    text: str
    nats: float | None  # -log p of the text given its description's draw, under the generator; None if unknown


@runtime_checkable  # the tests check types as they run
class Domain(Protocol):
    """A source of text with a language of descriptions.

    Every method is deterministic in the domain's own seed and the stream's name; streams with different names are
    independent draws (sandbox), orders (pydoc) or parts (corpus) of documents. A stream whose name starts with
    held_out shares no document with one whose name does not, but for chance in the sandbox.
    """

    truth_known: ClassVar[bool]  # whether the concepts are the truth (sandbox); else hypotheses about surface form

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """An ordinary fast tokenizer: SPECIAL_TOKENS registered, BOS prepended when special tokens are added."""

    def documents(self, stream: str, count: int) -> Iterator[Document]:
        """`count` documents of a stream, lazily (a finite corpus may end earlier or start over, as it documents)."""

    def lessons(self, stream: str, count: int) -> Iterator[Lesson]:
        """`count` description-to-text lessons of a stream, lazily."""

    def annotate(self, document: Document) -> Annotation:
        """What is true at each word of a document of this domain."""

    def concepts(self) -> list[str]:
        """Every concept key that `annotate` can return, in a fixed order."""

    def can_lead(self, concept: str) -> bool:
        """Whether a description may be built on this concept alone (`word:dog`: yes; `near:dog`: no)."""

    def can_modify(self, concept: str) -> bool:
        """Whether a description may add this concept to another (`... in a question`)."""

    def describe(self, concepts: Sequence[str]) -> str:
        """The sentence for one leading concept and at most one modifier. Raises ValueError on what cannot be said."""

    def parse(self, description: str) -> tuple[str, ...]:
        """The concepts a description names, leading one first; empty if it is not in the language."""
