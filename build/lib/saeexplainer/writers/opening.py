"""The writer that a configuration names."""

from typing import TYPE_CHECKING

from saeexplainer.config.parts import ChatWriterSpec, SubjectWriterSpec, Writer as WriterConfig
from saeexplainer.writers.subject import SubjectWriter
from saeexplainer.writers.writer import Writer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def open_writer(
    config: WriterConfig, where: str, subject: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast"
) -> Writer:
    """The writer of the settings, of which `where` is the key. Raises UserError on a source without a chat model and
    on a key that is not in the environment."""
    if isinstance(config, SubjectWriterSpec):
        return SubjectWriter(config, subject, tokenizer)
    if isinstance(config, ChatWriterSpec):
        from saeexplainer.writers.chat import ChatWriter

        return ChatWriter(config, where)
    from saeexplainer.writers.endpoint import EndpointWriter

    return EndpointWriter(config, where, tokenizer)
