"""Drawing several texts for one explanation."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from saeexplainer.config.parts import ChatWriterSpec, SubjectWriterSpec
from saeexplainer.models.generation import generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def distinct(descriptions: Iterable[str]) -> list[str]:
    """Those that can be written about, once each, in an order that depends on nothing else."""
    return sorted({description for description in descriptions if description})


def sampled(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Mapping[str, Sequence[int]],
    config: SubjectWriterSpec | ChatWriterSpec,
    kept: Collection[int] = (),
) -> dict[str, list[str]]:
    """`config.texts` continuations of the prompt (token ids) of each description, drawn from torch's generator; with
    the special tokens of `kept`, by their ids."""
    texts = generate(
        model, tokenizer, [prompt for prompt in prompts.values() for _ in range(config.texts)],
        temperature=config.temperature, top_p=config.top_p, max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size, progress=f"texts at temperature {config.temperature}", kept=kept,
    )  # fmt: skip
    return {one: texts[at * config.texts : (at + 1) * config.texts] for at, one in enumerate(prompts)}
