"""The language of lexical descriptions, both ways: the same words for a concept in every domain that has it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from saeexplainer.domains.lexical import signs

_LEADING = {
    "word": "the word {}",
    "ending": "words ending in {}",
    "beginning": "words beginning with {}",
    "after": "the word after {}",
    "module": "text about {}",
    "topic": "text about {}",
}
_MODIFYING = {
    "near": "with the word {}",
    "after": "after the word {}",
    "module": "in text about {}",
    "topic": "in text about {}",
}
_SINGLE = (
    signs.SHAPES | signs.SHAPES_FURTHER | dict((signs.MARKS | signs.MARKS_FURTHER).values()) | signs.POSITIONS
)  # concept to phrase
ENCLOSING = {
    "shape:quoted": "in quotes",
    "shape:parenthesis": "in parentheses",
    "position:first": "as the first word",
    "position:last": "as the last word",
}
CASES = {"shape:capital": "with a capital letter", "shape:capitals": "in capitals"}
_NAMED = {"module:language": "the language"}  # concepts that are called otherwise than their key


@dataclass(frozen=True)
class Phrases:
    """What can be said, both ways."""

    leads: dict[str, str]  # concept to phrase
    modifiers: dict[str, str]  # concept to phrase
    lead_of: dict[str, str]  # phrase to concept
    modifier_of: dict[str, str]  # phrase to concept

    def describe(self, concepts: Sequence[str]) -> str:
        """A short phrase such as "words ending in ing after the word is". Raises ValueError on what cannot be said."""
        lead, *modifier = concepts or [""]
        unsayable = len(modifier) > 1 or lead in modifier or lead not in self.leads
        if unsayable or any(concept not in self.modifiers for concept in modifier):
            raise ValueError(
                f"no description of {list(concepts)}: give one leading concept and at most one other modifier"
            )
        return " ".join([self.leads[lead], *(self.modifiers[concept] for concept in modifier)])

    def parse(self, description: str) -> tuple[str, ...]:
        """The inverse of `describe`; empty for every other text, including other spacing or capitals."""
        if description in self.lead_of:
            return (self.lead_of[description],)
        for space in re.finditer(" ", description):
            lead = self.lead_of.get(description[: space.start()])
            modifier = self.modifier_of.get(description[space.end() :])
            if lead is not None and modifier is not None and lead != modifier:
                return (lead, modifier)
        return ()


def phrases_of(concepts: Iterable[str], modifying: Mapping[str, str]) -> Phrases:
    """The language of these concepts; `modifying` are the phrases of single concepts that may modify others."""
    leads, modifiers = {}, {}
    for concept in concepts:
        kind, _, key = concept.partition(":")
        name = _NAMED.get(concept, key)
        if concept in _SINGLE:
            leads[concept] = _SINGLE[concept]
        elif kind in _LEADING:
            leads[concept] = _LEADING[kind].format(name)
        if concept in modifying:
            modifiers[concept] = modifying[concept]
        elif kind in _MODIFYING:
            modifiers[concept] = _MODIFYING[kind].format(name)
    lead_of = {phrase: concept for concept, phrase in leads.items()}
    return Phrases(leads, modifiers, lead_of, {phrase: concept for concept, phrase in modifiers.items()})
