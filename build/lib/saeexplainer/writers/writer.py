"""Who turns an explanation into texts: one protocol, three ways to write.

The subject continues a prompt, `writers/chat.py` asks a local chat model for one text at a time, `writers/endpoint.py`
asks a served one for all texts of a description at once. A writer never sees the feature: a description is written
once, however many features it was proposed for.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from saeexplainer.records import Usage


@runtime_checkable
class Writer(Protocol):
    """Whatever can write texts about a description."""

    def write(self, descriptions: Sequence[str]) -> dict[str, list[str]]:
        """The texts that the settings ask for, for each distinct description that is not empty. Whoever may
        fail gives a description fewer, or none."""
        ...

    def usage(self, descriptions: Iterable[str]) -> Usage | None:
        """What a server took for the texts of distinct descriptions; None where they are generated here, a call each
        with the tokens that they have."""
        ...

    def notes(self) -> list[str]:
        """What a person should know of its work so far, such as what it cost."""
        ...
