"""The domains by name."""

from saeexplainer.config import Corpus, DomainName
from saeexplainer.domain import Domain


def open_domain(name: DomainName, seed: int, corpus: Corpus | None = None) -> Domain:
    """The source of text of a run; reseeding it reseeds the world, or the order of the documents."""
    if name is DomainName.pydoc:
        from saeexplainer.pydoc_domain import PydocDomain

        return PydocDomain(seed)
    from saeexplainer.sandbox.world import World

    return World(seed)
