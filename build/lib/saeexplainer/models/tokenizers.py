"""Tokenizers, and what the pipeline needs to know of their special tokens."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from saeexplainer.errors import UserError, first_line
from saeexplainer.models import gguf
from saeexplainer.models.hub import advice, arguments_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


# What chat templates are given. One that knows enable_thinking then opens the answer itself; those of Llama 3 say what
# day it is, which would be another at every run. The others ignore both.
CHAT: dict[str, Any] = {"add_generation_prompt": True, "enable_thinking": False, "date_string": "26 Jul 2024"}


def load_tokenizer(
    source: Path | str, revision: str | None = None, *, prepend_bos: bool | None = None
) -> "PreTrainedTokenizerFast":
    """Load the fast tokenizer of a model: of a folder, a GGUF file or the hub. Raises UserError if there is none, or
    none that can pad.

    prepend_bos: whether every text starts with BOS, as the SAE's metadata has it; None leaves it to the tokenizer. A
    tokenizer without a padding token pads with EOS, which no mask counts. One without BOS begins with EOS where BOS is
    asked for: TransformerLens, with which such SAEs are trained, does the same.
    """
    from transformers import AutoTokenizer

    if gguf.is_gguf(source):
        source, revision = gguf.folder_of(source, revision), None
    where = arguments_for(source, revision)
    try:
        tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(source, **where))
    except Exception as error:  # what the tokenizers' library raises for a damaged file is of no kind of its own
        raise UserError(f"{source}: no tokenizer in it ({first_line(error)}){advice(where)}") from None
    if not tokenizer.is_fast:
        raise UserError(f"{source}: no fast tokenizer (tokenizer.json), which character offsets need; save it as one")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"{source}: its tokenizer has neither a padding token nor EOS; set pad_token in it")
        tokenizer.pad_token = tokenizer.eos_token
    if prepend_bos is not None:
        _set_bos(tokenizer, prepend_bos, source)
    return tokenizer


def _set_bos(tokenizer: "PreTrainedTokenizerFast", prepend: bool, source: Path | str) -> None:
    """Make every text start with exactly one BOS, or with none."""
    if prepend and tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    if starts_with_bos(tokenizer) != prepend:
        tokenizer.add_bos_token = prepend
    if starts_with_bos(tokenizer) != prepend:
        raise UserError(
            f"{source}: its tokenizer cannot {'start' if prepend else 'do'} {'with' if prepend else 'without'} BOS; "
            "set add_bos_token in its tokenizer_config.json"
        )


def starts_with_bos(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether every text begins with BOS."""
    return tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def special_ids(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Every token that is no text: those with a role (BOS, EOS, pad, unknown), and all that were added as special."""
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    return sorted({*tokenizer.all_special_ids, *added})
