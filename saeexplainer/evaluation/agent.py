"""An agentic explainer in the manner of SAGE (arXiv 2511.20820), as a baseline: pure.

It states hypotheses about a feature, has texts written that test each, sees what the feature does on them, and refines.
SAGE asks a chat model at every step; here the domain's own concepts are the hypotheses, and a hypothesis is as good as
its F1 over what was observed: a concept that stood where the feature fired speaks for itself, one that stood in a text
that left the feature silent against itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from saeexplainer.domains.domain import Document, Domain
from saeexplainer.features.token_stream import concepts_at
from saeexplainer.records import ContextRow


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


def from_contexts(contexts: Sequence[ContextRow]) -> list[Observation]:
    """The top contexts, on which the feature is known to fire."""
    return [Observation(frozenset(context.concepts), True) for context in contexts]


def from_text(
    text: str, tokens: Sequence[str], activations: Sequence[float], threshold: float, domain: Domain
) -> Observation:
    """A text of one's own: `tokens` joined are the text as far as it was read, `activations` (one a token) and
    `threshold` are in the same unit."""
    starts = [sum(map(len, tokens[:at])) for at in range(len(tokens))]
    # A token reaches to the start of the next one: without its space, its last character is inside the word.
    spans = [(start, start + len(token.rstrip())) for start, token in zip(starts, tokens)]
    concepts = concepts_at(domain.annotate(Document(text, None)), spans)
    if activations and max(activations) >= threshold:
        return Observation(frozenset(concepts[list(activations).index(max(activations))]), True)
    return Observation(frozenset(concept for here in concepts for concept in here), False)


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
