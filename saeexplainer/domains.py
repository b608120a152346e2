"""The domains by name."""

from saeexplainer.config import Corpus, DomainName
from saeexplainer.domain import Domain, ReadingLimit


def open_domain(
    name: DomainName, seed: int, corpus: Corpus | None = None, reader: ReadingLimit | None = None
) -> Domain:  # fmt: skip
    """The source of text of a run; reseeding it reseeds the world, the order of the documents or their streams.

    corpus: not None for DomainName.corpus. reader: who asks for documents gives it; a packed corpus is cut for it.
    """
    if name is DomainName.pydoc:
        from saeexplainer.pydoc_domain import PydocDomain

        return PydocDomain(seed)
    if name is DomainName.corpus:
        from saeexplainer.corpus_domain import CorpusDomain

        assert corpus is not None  # tasks.params checks it
        return CorpusDomain(seed, corpus, reader)
    from saeexplainer.sandbox.world import World

    return World(seed)
