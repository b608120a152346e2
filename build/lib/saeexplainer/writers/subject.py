"""The subject itself as the writer."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from saeexplainer.config.parts import SubjectWriterSpec
from saeexplainer.writers.sampling import distinct, sampled

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class SubjectWriter:
    """The subject: it continues the prompt."""

    def __init__(
        self, config: SubjectWriterSpec, subject: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast"
    ) -> None:
        self.config, self.subject, self.tokenizer = config, subject, tokenizer

    def write(self, descriptions: Sequence[str]) -> dict[str, list[str]]:
        """`config.texts` for each."""
        asked = distinct(descriptions)
        said = [self.config.prompt.format(description=description) for description in asked]
        prompts = self.tokenizer(said)["input_ids"] if said else []
        return sampled(self.subject, self.tokenizer, dict(zip(asked, prompts, strict=True)), self.config)

    def usage(self, descriptions: Iterable[str]) -> None:
        """Texts are generated here."""
        return None

    def notes(self) -> list[str]:
        """Nothing: it always writes."""
        return []
