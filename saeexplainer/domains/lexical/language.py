"""What every domain says of its words whose concepts are lexical: half of `saeexplainer.domains.domain.Domain`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from saeexplainer.domains.lexical.lexicon import Lexicon
from saeexplainer.domains.lexical.phrases import Phrases


class LexicalLanguage(ABC):
    """The concepts of a lexicon, and the phrases for them."""

    @property
    @abstractmethod
    def _lexicon(self) -> Lexicon: ...

    @property
    @abstractmethod
    def _phrases(self) -> Phrases: ...

    def concepts(self) -> list[str]:
        """Every concept key, kind after kind, words by falling frequency."""
        return self._lexicon.concepts()

    def can_lead(self, concept: str) -> bool:
        """True of all kinds but `near:`."""
        return concept in self._phrases.leads

    def can_modify(self, concept: str) -> bool:
        """True of `near:`, `after:`, topics, positions, quotes, parentheses and, where a domain has them, capitals."""
        return concept in self._phrases.modifiers

    def describe(self, concepts: Sequence[str]) -> str:
        """A short phrase such as "words beginning with environment in text about water"."""
        return self._phrases.describe(concepts)

    def parse(self, description: str) -> tuple[str, ...]:
        """The inverse of `describe`; empty for every other text, including other spacing or capitals."""
        return self._phrases.parse(description)
