"""The open-loop labeller: it names what a few top contexts have in common, and never sees what its words cause.

A real labeller reads some contexts and proposes one reading of them; where several readings fit, it picks one. This one
does the same with the domain's concepts: among those that hold at the strongest token of every context it sees, it
picks one at random. Few contexts leave many readings, so label quality comes from what the labeller sees. Two settings
show what labels are worth to the loop: a careful labeller, who names the rarest reading, and labels of other features.
For text that nobody made, where the widest reading fits most contexts and says least, there is a third choice: tf-idf.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from saeexplainer.config import LabelFeatures
from saeexplainer.config.parts import LabelChoice
from saeexplainer.domains.domain import Domain
from saeexplainer.records import ContextRow


def held(contexts: Iterable[ContextRow]) -> Counter[str]:
    """How many contexts have each concept at their strongest token."""
    return Counter(concept for context in contexts for concept in set(context.concepts))


def shared_concepts(contexts: Sequence[ContextRow]) -> list[str]:
    """The concepts that hold at the peak of the most contexts (of all, where there are any), in a fixed order."""
    counts = held(contexts)
    most = max(counts.values(), default=0)
    return sorted(concept for concept, count in counts.items() if count == most)


def label(
    contexts: Sequence[ContextRow],
    domain: Domain,
    config: LabelFeatures,
    draw: random.Random,
    elsewhere: "Frequency",
) -> str:
    """One sentence about a feature from its top contexts, strongest first; empty if they share nothing sayable.

    `elsewhere` is what the strongest tokens of all features' contexts have; a choice at random does not ask for it.
    """
    seen = contexts[: config.contexts]
    readings = shared_concepts(seen)
    sayable = held(seen) if config.choice is LabelChoice.telling else readings
    leads = [concept for concept in sayable if domain.can_lead(concept)]
    if not leads:
        return ""
    if config.choice is LabelChoice.rarest:
        lead = min(leads, key=lambda concept: (elsewhere.counts[concept], concept))
    elif config.choice is LabelChoice.telling:
        counts = held(seen)
        lead = min(leads, key=lambda concept: (-counts[concept] * elsewhere.rarity(concept), concept))
    else:
        lead = draw.choice(leads)
    modifiers = [concept for concept in readings if concept != lead and domain.can_modify(concept)]
    if modifiers and draw.random() < config.modifier_share:
        return domain.describe([lead, draw.choice(modifiers)])
    return domain.describe([lead])


@dataclass(frozen=True)
class Frequency:
    """What the strongest tokens of many contexts have."""

    counts: Counter[str]  # contexts that have each concept
    contexts: int

    def rarity(self, concept: str) -> float:
        """The inverse document frequency, a context being the document: log(contexts / contexts that have it)."""
        return math.log(self.contexts / self.counts[concept])


def frequency(contexts: Sequence[ContextRow]) -> Frequency:
    """Of all features' contexts together."""
    return Frequency(held(contexts), len(contexts))


def exchanged(labels: Sequence[str], share: float, draw: random.Random) -> list[str]:
    """The labels with a share of them moved on to another feature; every label stays in use."""
    moved = draw.sample(range(len(labels)), round(share * len(labels)))
    found = list(labels)
    for at, source in zip(moved, [*moved[1:], *moved[:1]], strict=True):
        found[at] = labels[source]
    return found
