"""An agentic explainer in the manner of SAGE (arXiv 2511.20820), as a baseline: pure.

It states hypotheses about a feature, has texts written that test each, sees what the feature does on them, and refines.
As in SAGE a language model may state them: `question` is what it is asked, with the hypotheses so far and what became
of their texts, and `sentence` is what is taken from its answer. Or the domain's own concepts are the hypotheses, and
one is as good as its F1 over what was observed: a concept that stood where the feature fired speaks for itself, one
that stood in a text that left the feature silent against itself. `proposing` has the two.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

from saeexplainer.config.parts import AgentPrompts
from saeexplainer.domains.domain import Document, Domain
from saeexplainer.features.contexts import marked, one_line
from saeexplainer.features.token_stream import concepts_at
from saeexplainer.labellers.asking import Question
from saeexplainer.models.replies import unquoted
from saeexplainer.records import ContextRow

# What small models put before the sentence that they are asked for: marks of a list or of emphasis, a word for it.
_BEFORE = re.compile(
    r"\A(?:[-*\u2022#>]+\s|\(?\d+[.):]\s"
    r"|(?:new |better |next |my )*(?:guess|hypothesis|answer|explanation|sentence)\W*\d*:)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Reading:
    """A text that tests a hypothesis, and what the feature did on it."""

    text: str
    tokens: Sequence[str]  # joined they are the text as far as it was read
    activations: Sequence[float]  # one a token, in activation units
    threshold: float  # from which on the feature fires, in activation units

    @property
    def fired(self) -> bool:
        """Whether it reached the threshold anywhere."""
        return bool(self.activations) and max(self.activations) >= self.threshold

    @property
    def peak(self) -> int:
        """The place of the strongest token; of a text that was read."""
        return list(self.activations).index(max(self.activations))


@dataclass(frozen=True)
class Observation:
    """A text that was read."""

    concepts: frozenset[str]  # at the strongest token if the feature fired, anywhere in the text if it did not
    fired: bool  # it reached the threshold


@dataclass(frozen=True)
class Hypothesis:
    """A hypothesis with what its texts earned."""

    explanation: str
    reward: float | None  # None where it is unknown, as every call for its texts failed
    settled: bool  # every text made the feature fire: nothing is left to refine
    readings: tuple[Reading, ...] = ()  # of its texts


def from_contexts(contexts: Sequence[ContextRow]) -> list[Observation]:
    """The top contexts, on which the feature is known to fire."""
    return [Observation(frozenset(context.concepts), True) for context in contexts]


def from_reading(reading: Reading, domain: Domain) -> Observation:
    """A text of one's own, in concepts."""
    starts = [sum(map(len, reading.tokens[:at])) for at in range(len(reading.tokens))]
    # A token reaches to the start of the next one: without its space, its last character is inside the word.
    spans = [(start, start + len(token.rstrip())) for start, token in zip(starts, reading.tokens)]
    concepts = concepts_at(domain.annotate(Document(reading.text, None)), spans)
    if reading.fired:
        return Observation(frozenset(concepts[reading.peak]), True)
    return Observation(frozenset(concept for here in concepts for concept in here), False)


def question(
    prompts: AgentPrompts, contexts: str, tested: Sequence[Hypothesis], waiting: Sequence[str], shown: int
) -> Question:
    """What a model is asked next about a feature: its first hypothesis from `contexts` (`contexts.listed`), a better
    one where there are hypotheses, `tested` ones or those that are `waiting` to be. Of each it sees `shown` texts."""
    if not tested and not waiting:
        return Question(prompts.first, {"contexts": contexts})
    return Question(prompts.next, {"contexts": contexts, "tested": told(tested, waiting, shown)})


def told(tested: Sequence[Hypothesis], waiting: Sequence[str], shown: int) -> str:
    """Every hypothesis with up to `shown` of its texts, in the order in which they were stated; the strongest token of
    a text on which the feature fired is marked, and silent ones take turns with those."""
    lines = []
    for one in tested:
        fired, silent = ([each for each in one.readings if each.fired is wanted] for wanted in (True, False))
        if not one.readings:
            lines.append(f"Guess: {one.explanation}\nNo text was written for it.")
            continue
        some = list(islice((each for each in chain(*zip_longest(fired, silent)) if each), shown))
        lines.append(f"Guess: {one.explanation}\nIt holds in {len(fired)} of {len(one.readings)} texts.")
        lines += [f"- holds: {marked(each.text, each.tokens, each.peak)}" for each in some if each.fired]
        lines += [f"- fails: {one_line(each.text)}" for each in some if not each.fired]
    return "\n".join([*lines, *(f"Guess: {sentence}\nIt was not tested yet." for sentence in waiting)])


def sentence(answer: str) -> str:
    """The hypothesis in a model's answer: its first line that says something and leads to no other, without marks and
    quotation marks; empty if there is none."""
    lines = [_bare(line) for line in answer.splitlines()]
    return next((line for line in lines if re.search(r"\w", line) and not line.endswith(":")), "")


def is_new(sentence: str, known: Iterable[str]) -> bool:
    """Whether it says something that none of the known hypotheses says in the same words."""
    return bool(sentence) and _words(sentence) not in {_words(one) for one in known}


def _bare(line: str) -> str:
    """A line without what small models put around a sentence."""
    text, before = one_line(line.replace("<<", "").replace(">>", "")), None
    while text != before:
        before = text
        text = unquoted(_BEFORE.sub("", text).strip("* "))
    return text


def _words(sentence: str) -> str:
    return " ".join(re.findall(r"\w+", sentence.casefold()))


def hypotheses(
    seen: Sequence[Observation], tested: Sequence[Hypothesis], domain: Domain, frequency: Mapping[str, int], count: int
) -> list[str]:
    """Up to `count` sentences to test next: the best one so far made narrower, then the likeliest that are untested.

    `frequency` counts each concept over all features' contexts; of equally likely hypotheses the rarer one is tried
    first.
    """
    done = {one.explanation for one in tested}
    ranked = _ranked(seen, frequency)
    leads = [domain.describe([concept]) for concept in ranked if domain.can_lead(concept)]
    proposed = [*_narrower(tested, ranked, domain), *leads]
    return [sentence for sentence in dict.fromkeys(proposed) if sentence not in done][:count]


def best(tested: Sequence[Hypothesis]) -> str:
    """The best rewarded explanation, the earliest of equals; the earliest of all if none did anything, or none was
    measured; empty if there is none."""
    leading = _leading(tested)
    return leading.explanation if leading else "".join(one.explanation for one in tested[:1])


def _leading(tested: Sequence[Hypothesis]) -> Hypothesis | None:
    """The best rewarded of those that did something, the earliest of equals."""
    worked = [(one.reward, one) for one in tested if one.reward]
    return max(worked, key=lambda found: found[0])[1] if worked else None


def _ranked(seen: Sequence[Observation], frequency: Mapping[str, int]) -> list[str]:
    """Every concept that stood where the feature fired, likeliest first."""
    fired = sum(one.fired for one in seen)
    found = {concept for one in seen if one.fired for concept in one.concepts}

    def likelihood(concept: str) -> tuple[float, int, str]:
        having = [one.fired for one in seen if concept in one.concepts]
        return -2 * sum(having) / (len(having) + fired), frequency.get(concept, 0), concept

    return sorted(found, key=likelihood)


def _narrower(tested: Sequence[Hypothesis], ranked: Sequence[str], domain: Domain) -> list[str]:
    """The best hypothesis so far with the likeliest modifier added, if it names one concept and did something."""
    leading = _leading(tested)
    named = domain.parse(leading.explanation) if leading else []
    if len(named) != 1:
        return []
    modifiers = [concept for concept in ranked if concept != named[0] and domain.can_modify(concept)]
    return [domain.describe([named[0], modifiers[0]])] if modifiers else []
