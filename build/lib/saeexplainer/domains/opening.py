"""The domains by name."""

from saeexplainer.config import Corpus
from saeexplainer.config.parts import DomainName
from saeexplainer.domains.domain import Domain, ReadingLimit


def open_domain(
    name: DomainName, seed: int, corpus: Corpus | None = None, reader: ReadingLimit | None = None
) -> Domain:
    """The source of text of a run; reseeding it reseeds the world, the order of the documents or their streams.

    corpus: not None for DomainName.corpus. reader: who asks for documents gives it; a packed corpus is cut for it.
    """
    if name is DomainName.pydoc:
        from saeexplainer.domains.pydoc.domain import PydocDomain

        return PydocDomain(seed)
    if name is DomainName.corpus:
        from saeexplainer.domains.corpus.domain import CorpusDomain

        assert corpus is not None  # tasks.settings.params checks it
        return CorpusDomain(seed, corpus, reader)
    from saeexplainer.domains.sandbox.world import World

    return World(seed)
