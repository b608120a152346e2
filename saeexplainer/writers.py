"""Who turns an explanation into texts: one protocol, three ways to write.

The subject continues a prompt, `chat_writer` asks a local chat model for one text at a time, `endpoint_writer` asks a
served one for all texts of a description at once. A writer never sees the feature: a description is written once,
however many features it was proposed for.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from saeexplainer.config import Writer as WriterConfig
from saeexplainer.config import WriterKind
from saeexplainer.models import generate
from saeexplainer.records import Usage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@runtime_checkable
class Writer(Protocol):
    """Whatever can write texts about a description."""

    def write(self, descriptions: Sequence[str]) -> dict[str, list[str]]:
        """The texts that the settings ask for, for each distinct description that is not empty, spread evenly over the
        temperatures. Whoever may fail gives a description fewer, or none."""
        ...

    def usage(self, descriptions: Iterable[str]) -> Usage | None:
        """What a server took for the texts of distinct descriptions; None where they are generated here, a call each
        with the tokens that they have."""
        ...

    def notes(self) -> list[str]:
        """What a person should know of its work so far, such as what it cost."""
        ...


def open_writer(
    config: WriterConfig, where: str, subject: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast"
) -> Writer:
    """The writer of the settings, of which `where` is the key. Raises UserError on a source without a chat model and
    on a key that is not in the environment."""
    if config.kind is WriterKind.subject:
        return SubjectWriter(config, subject, tokenizer)
    if config.kind is WriterKind.chat:
        from saeexplainer.chat_writer import ChatWriter

        return ChatWriter(config, where)
    from saeexplainer.endpoint_writer import EndpointWriter

    return EndpointWriter(config, where, tokenizer)


class SubjectWriter:
    """The subject: it continues the prompt."""

    def __init__(
        self, config: WriterConfig, subject: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast"
    ) -> None:  # fmt: skip
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


def distinct(descriptions: Iterable[str]) -> list[str]:
    """Those that can be written about, once each, in an order that depends on nothing else."""
    return sorted({description for description in descriptions if description})


def shares(config: WriterConfig) -> list[tuple[float, int]]:
    """Each temperature with the number of a description's texts that it gets."""
    count = len(config.temperatures)
    return [(temperature, len(range(at, config.texts, count))) for at, temperature in enumerate(config.temperatures)]


def sampled(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", prompts: dict[str, Sequence[int]],
    config: WriterConfig, kept: Collection[int] = (),
) -> dict[str, list[str]]:  # fmt: skip
    """`config.texts` continuations of the prompt (token ids) of each description, drawn from torch's generator; with
    the special tokens of `kept`, by their ids."""
    written: dict[str, list[str]] = {description: [] for description in prompts}
    for temperature, share in shares(config):
        repeated = [description for description in prompts for _ in range(share)]
        texts = generate(
            model, tokenizer, [prompts[description] for description in repeated], temperature=temperature,
            top_p=config.top_p, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size,
            progress=f"texts at temperature {temperature}", kept=kept,
        )  # fmt: skip
        for description, text in zip(repeated, texts, strict=True):
            written[description].append(text)
    return written
