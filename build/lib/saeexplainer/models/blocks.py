"""The blocks of any causal language model, and reading one module of it."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeexplainer.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# In a checkpoint that reads images too, the language model's weights lie one level deeper.
TEXT_WEIGHTS = {r"^(model\.)?language_model\.(model\.)?": "model."}


def text_name(module: str) -> str:
    """The name in the text part, which alone is loaded, of what a model for images and text calls otherwise."""
    for pattern, replacement in TEXT_WEIGHTS.items():
        module = re.sub(pattern, replacement, module)
    return module


def transformer_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of blocks: the only ModuleList of the decoder as long as the config says, but for those inside a block.

    Raises UserError if that is unclear.
    """
    count = text_config(model).num_hidden_layers
    decoder = cast("Any", model).get_decoder() if hasattr(model, "get_decoder") else model
    found = list(_outermost(decoder, count))
    if len(found) != 1:
        raise UserError(f"{type(model).__name__}: expected one list of {count} blocks, found {len(found)}")
    return found[0]


def _outermost(module: nn.Module, count: int) -> Iterator[nn.ModuleList]:
    """The lists of so many modules that lie in no other such list: experts may be as many as blocks."""
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            yield child
        else:
            yield from _outermost(child, count)


def check_block(model: nn.Module, block: int, field: str) -> None:
    """Raise UserError if the model has no block of that number; `field` names the setting at fault."""
    count = len(transformer_blocks(model))
    if not 0 <= block < count:
        raise UserError(f"{field}: {block}, but the model has blocks 0 to {count - 1}; choose one of them")


def text_config(model: nn.Module) -> Any:
    """The model's config as transformers has it; of a model for images and text, that of the text part."""
    return cast("PreTrainedModel", model).config.get_text_config()


def embedding_of(model: nn.Module) -> Tensor:
    """The weights of the input embeddings, a row a token id."""
    return cast("Any", model).get_input_embeddings().weight


def device_of(model: nn.Module) -> torch.device:
    """Where token ids go in: the device of the input embeddings."""
    return embedding_of(model).device


class _Stop(Exception):
    """Ends a forward pass once the residual is read; the later blocks would be wasted work."""


def longest_context(model: nn.Module) -> int | None:
    """How many tokens the model can read at once; None where it has no such limit."""
    return getattr(text_config(model), "max_position_embeddings", None)


def check_context(model: nn.Module, tokens: int, field: str) -> None:
    """Raise UserError if the model cannot read so many tokens at once; `field` names the setting at fault."""
    limit = longest_context(model)
    if limit is not None and tokens > limit:
        raise UserError(f"{field}: {tokens} tokens, but the model reads {limit} at most; lower it")


@torch.no_grad()
def read_module(
    model: nn.Module,
    module: nn.Module,
    input_ids: Int[Tensor, "batch tokens"],
    attention_mask: Int[Tensor, "batch tokens"],
    *,
    entering: bool = False,
) -> Float[Tensor, "batch tokens d_model"]:
    """What `module` of the model returns (or what enters it), stopping the forward pass there.

    The result stays on the model's device, in its dtype. Raises UserError if there are more tokens than the model
    reads.
    """
    check_context(model, input_ids.shape[1], "context_length")
    seen: list[Tensor] = []

    def keep_output(_module: nn.Module, _inputs: object, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)
        raise _Stop

    def keep_input(_module: nn.Module, inputs: tuple, named: dict) -> None:
        seen.append(inputs[0] if inputs else named["hidden_states"])
        raise _Stop

    handle = (
        module.register_forward_pre_hook(keep_input, with_kwargs=True)
        if entering
        else module.register_forward_hook(keep_output)
    )
    device = device_of(model)
    try:
        model(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False)
    except _Stop:
        return seen[0]
    finally:
        handle.remove()
    raise RuntimeError("the hook did not run")
