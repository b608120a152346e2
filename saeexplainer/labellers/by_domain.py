"""The open-loop labeller: it names what a few top contexts have in common, and never sees what its words cause.

A real labeller reads some contexts and proposes one reading of them; where several readings fit, it picks one. This one
does the same with the domain's concepts: among those that hold at the strongest token of every context it sees, it
picks one at random. Few contexts leave many readings, so label quality comes from what the labeller sees. Two settings
show what labels are worth to the loop: a careful labeller, who names the rarest reading, and labels of other features.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from saeexplainer.config import LabelFeatures
from saeexplainer.config.parts import LabelChoice
from saeexplainer.domains.domain import Domain
from saeexplainer.records import ContextRow


def shared_concepts(contexts: Sequence[ContextRow]) -> list[str]:
    """The concepts that hold at the peak of the most contexts (of all, where there are any), in a fixed order."""
    counts = Counter(concept for context in contexts for concept in set(context.concepts))
    most = max(counts.values(), default=0)
    return sorted(concept for concept, count in counts.items() if count == most)


def label(
    contexts: Sequence[ContextRow],
    domain: Domain,
    config: LabelFeatures,
    draw: random.Random,
    frequency: Mapping[str, int],
) -> str:
    """One sentence about a feature from its top contexts, strongest first; empty if they share nothing sayable.

    `frequency` counts each concept over the strongest tokens of all features' contexts; only the choice of the rarest
    reading asks for it.
    """
    readings = shared_concepts(contexts[: config.contexts])
    leads = [concept for concept in readings if domain.can_lead(concept)]
    if not leads:
        return ""
    if config.choice is LabelChoice.rarest:
        lead = min(leads, key=lambda concept: (frequency[concept], concept))
    else:
        lead = draw.choice(leads)
    modifiers = [concept for concept in readings if concept != lead and domain.can_modify(concept)]
    if modifiers and draw.random() < config.modifier_share:
        return domain.describe([lead, draw.choice(modifiers)])
    return domain.describe([lead])


def concept_frequency(contexts: Iterable[ContextRow]) -> Counter[str]:
    """How many contexts have each concept at their strongest token."""
    return Counter(concept for context in contexts for concept in set(context.concepts))


def exchanged(labels: Sequence[str], share: float, draw: random.Random) -> list[str]:
    """The labels with a share of them moved on to another feature; every label stays in use."""
    moved = draw.sample(range(len(labels)), round(share * len(labels)))
    found = list(labels)
    for at, source in zip(moved, [*moved[1:], *moved[:1]], strict=True):
        found[at] = labels[source]
    return found
