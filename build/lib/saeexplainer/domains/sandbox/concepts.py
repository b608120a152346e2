"""The concepts of the sandbox and the small language that describes them.

A description is one leading phrase, or one leading phrase and one modifying phrase: `the word dog`, `any animal in a
question`, `a plural with the word bone`. `parse` inverts `describe` exactly.
"""

from collections.abc import Mapping, Sequence
from functools import cache

from saeexplainer.domains.sandbox import lexicon

# Every concept above single words that is not a category or a topic, with its leading phrase.
_LEADS: Mapping[str, str] = {
    "role:subject": "the subject",
    "role:object": "the object",
    "role:verb": "the verb",
    "role:adjective": "an attribute",
    "role:predicate": "a predicate",
    "role:place": "a place phrase",
    "role:speaker": "the speaker",
    "role:determiner": "a determiner",
    "position:first": "the first word",
    "position:last": "the last word",
    "context:negation": "a negation",
    "context:question": "a question",
    "context:quote": "quoted speech",
    "context:plural": "a plural",
    "context:number": "a counted noun",
    "suffix:plural": "a plural ending",
    "suffix:verb": "a verb ending",
    "mark:stop": "a full stop",
    "mark:question": "a question mark",
    "mark:quote": "a quotation mark",
}

_MODIFIERS: Mapping[str, str] = {
    "role:subject": "as the subject",
    "role:object": "as the object",
    "position:first": "at the start",
    "position:last": "at the end",
    "context:negation": "in a negation",
    "context:question": "in a question",
    "context:quote": "in quoted speech",
    "context:plural": "in the plural",
    "context:number": "after a number",
}


def _category_phrase(category: str) -> str:
    if category in lexicon.VERBS:
        return f"any {category} verb"
    if category in lexicon.ADJECTIVES:
        return f"any {category} adjective"
    return f"any {category}"


@cache
def lead_phrases() -> Mapping[str, str]:
    """The phrase of every concept that may lead a description."""
    return {
        **{f"word:{word}": f"the word {word}" for word in (*lexicon.CONTENT_WORDS, *lexicon.FUNCTION_WORDS)},
        **{f"category:{category}": _category_phrase(category) for category in lexicon.CATEGORIES},
        **_LEADS,
        **{f"topic:{topic}": f"a text about {topic}" for topic in lexicon.TOPICS},
    }


@cache
def modifier_phrases() -> Mapping[str, str]:
    """The phrase of every concept that may modify another."""
    return {
        **_MODIFIERS,
        **{f"topic:{topic}": f"in a text about {topic}" for topic in lexicon.TOPICS},
        **{f"near:{word}": f"with the word {word}" for word in lexicon.CONTENT_WORDS},
    }


@cache
def all_concepts() -> tuple[str, ...]:
    """Every concept key, in a fixed order."""
    return tuple(dict.fromkeys((*lead_phrases(), *modifier_phrases())))


@cache
def description_words() -> tuple[str, ...]:
    """The words that descriptions use, in order of first use."""
    phrases = (*lead_phrases().values(), *modifier_phrases().values())
    return tuple(dict.fromkeys(word for phrase in phrases for word in phrase.split()))


@cache
def _concepts_by_phrase(modifying: bool) -> Mapping[str, str]:
    phrases = modifier_phrases() if modifying else lead_phrases()
    return {phrase: concept for concept, phrase in phrases.items()}


def describe(concepts: Sequence[str]) -> str:
    """The phrase for one leading concept and at most one other that modifies it."""
    if not 1 <= len(concepts) <= 2 or len(set(concepts)) != len(concepts):
        raise ValueError(f"a description has one leading concept and at most one other modifier: {concepts}")
    lead, *modifiers = concepts
    if lead not in lead_phrases():
        raise ValueError(f"{lead} cannot lead a description")
    for modifier in modifiers:
        if modifier not in modifier_phrases():
            raise ValueError(f"{modifier} cannot modify a description")
    return " ".join([lead_phrases()[lead], *(modifier_phrases()[modifier] for modifier in modifiers)])


def parse(description: str) -> tuple[str, ...]:
    """The concepts that a description names, leading one first; empty if `describe` cannot say it."""
    leads, modifiers = _concepts_by_phrase(modifying=False), _concepts_by_phrase(modifying=True)
    if description in leads:
        return (leads[description],)
    words = description.split(" ")
    for cut in range(1, len(words)):
        lead, modifier = leads.get(" ".join(words[:cut])), modifiers.get(" ".join(words[cut:]))
        if lead and modifier and lead != modifier:
            return (lead, modifier)
    return ()
