"""The domains by name."""

from saeexplainer.config import DomainName
from saeexplainer.domain import Domain


def open_domain(name: DomainName, seed: int) -> Domain:
    """The source of text of a run; reseeding it reseeds the world."""
    if name is DomainName.pydoc:
        from saeexplainer.pydoc_domain import PydocDomain

        return PydocDomain(seed)
    from saeexplainer.sandbox.world import World

    return World(seed)
