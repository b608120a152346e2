"""Drawing several texts for one explanation."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from saeexplainer.config.parts import ChatWriterSpec, SubjectWriterSpec, WriterSpec
from saeexplainer.models.generation import generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def distinct(descriptions: Iterable[str]) -> list[str]:
    """Those that can be written about, once each, in an order that depends on nothing else."""
    return sorted({description for description in descriptions if description})


def shares(config: WriterSpec) -> list[tuple[float, int]]:
    """Each temperature with the number of a description's texts that it gets."""
    count = len(config.temperatures)
    return [(temperature, len(range(at, config.texts, count))) for at, temperature in enumerate(config.temperatures)]


def sampled(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", prompts: Mapping[str, Sequence[int]],
    config: SubjectWriterSpec | ChatWriterSpec, kept: Collection[int] = (),
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
