"""Whether a pretrained model is one that the pipeline can read, change and sample from: asked of the model itself.

Every block must take the residual stream and give it on, changed by an addition: what leaves a block is what enters the
next. Padding must change nothing, because texts are read and written in batches. State-space and hybrid models are as
welcome as transformers; one that rescales its stream between blocks, or takes padding for text, is refused here, before
anything is computed with it.
"""

from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeexplainer.errors import UserError, first_line
from saeexplainer.models.batches import padded
from saeexplainer.models.blocks import device_of, embedding_of, transformer_blocks
from saeexplainer.models.loading import UNREADABLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Share of a vector's norm by which two ways to the same one may differ: rounding leaves 0.02 in bfloat16, and padding
# that counts as text far more.
DIFFERENCE = 0.1
LENGTHS = (9, 5)  # tokens of the two rows that are tried; the shorter one is padded
STEPS = 2  # tokens that are sampled: the second one comes from the cache


@torch.no_grad()
def check(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", field: str) -> None:
    """Raise UserError if the model cannot be a subject; `field` names the setting at fault."""
    try:
        reason = _reason(model, tokenizer)
    except UserError as error:
        reason = str(error)
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        reason = f"it does not run as a causal language model does ({type(error).__name__}: {first_line(error)})"
    if reason is not None:
        raise UserError(f"{field}: {model.name_or_path} ({type(model).__name__}): {reason}; choose another model")


def _reason(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> str | None:
    """Why the model cannot be a subject; None if it can."""
    width = model.config.get_text_config().hidden_size
    blocks = transformer_blocks(model)
    rows = _rows(model, tokenizer)
    ids, mask = padded(rows, tokenizer.pad_token_id), padded([[1] * len(row) for row in rows], 0)
    before, after = _through(model, blocks, ids, mask)
    if len(after) != len(blocks):
        return f"its {len(blocks)} blocks run {len(after)} times in one pass"
    for number, found in enumerate(after):
        if found.shape != (*ids.shape, width):
            return f"block {number} gives {tuple(found.shape)}, no residual stream of width {width}"
        if number + 1 < len(after) and not _same(before[number + 1], found):
            return f"what leaves block {number} is not what enters block {number + 1}"
    shorter = rows[1]
    _, alone = _through(model, blocks, torch.tensor([shorter]), torch.ones(1, len(shorter), dtype=torch.long))
    if not _same(after[-1][1, : len(shorter)], alone[-1][0]):
        return "padding behind a text changes how it is read"
    if not _same(_sampled(model, tokenizer, rows)[1], _sampled(model, tokenizer, [shorter])[0]):
        return "padding before a prompt changes what is written"
    return None


def _rows(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> list[list[int]]:
    """Ordinary tokens: any that are not special, the same for every run."""
    special = set(tokenizer.all_special_ids)
    count = min(len(tokenizer), len(embedding_of(model)))
    ordinary = [number for number in range(count) if number not in special]
    step = max(1, len(ordinary) // sum(LENGTHS))
    chosen = (ordinary[::step] * sum(LENGTHS))[: sum(LENGTHS)]
    return [chosen[: LENGTHS[0]], chosen[LENGTHS[0] :]]


def _through(
    model: "PreTrainedModel", blocks: nn.ModuleList, ids: Int[Tensor, "batch tokens"], mask: Int[Tensor, "batch tokens"]
) -> tuple[list[Tensor], list[Tensor]]:
    """What enters and what leaves each block in one pass, in order; on the CPU, in float32."""
    before: list[Tensor] = []
    after: list[Tensor] = []

    def enters(_module: nn.Module, inputs: tuple, named: dict) -> None:
        before.append((inputs[0] if inputs else named["hidden_states"]).float().cpu())

    def leaves(_module: nn.Module, _inputs: object, output: Any) -> None:
        after.append((output[0] if isinstance(output, tuple) else output).float().cpu())

    handles = [block.register_forward_pre_hook(enters, with_kwargs=True) for block in blocks]
    handles += [block.register_forward_hook(leaves) for block in blocks]
    try:
        device = device_of(model)
        model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return before, after


def _sampled(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", rows: list[list[int]]
) -> Float[Tensor, "batch vocabulary"]:
    """The logits of the last of a few greedy tokens after each prompt; on the CPU, in float32."""
    ids = padded(rows, tokenizer.pad_token_id, side="left").to(device_of(model))
    mask = padded([[1] * len(row) for row in rows], 0, side="left").to(ids.device)
    found = cast("Any", model).generate(
        input_ids=ids, attention_mask=mask, do_sample=False, min_new_tokens=STEPS, max_new_tokens=STEPS,
        pad_token_id=tokenizer.pad_token_id, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return found.logits[-1].float().cpu()


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two arrays of vectors are the same but for rounding; one token of huge norm decides nothing."""
    size = other.norm(dim=-1).clamp_min(1e-12)
    return bool(((one - other).norm(dim=-1) / size <= DIFFERENCE).all())
