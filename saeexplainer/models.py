"""Causal language models as the pipeline needs them: loading, finding blocks, reading one residual stream, sampling.

Everything here works on any unmodified transformers causal LM; structure is asked for, never a model's name.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saeexplainer.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def load_model(folder: Path) -> "PreTrainedModel":
    """Load a causal LM in float32 from a local folder of safetensors. Raises UserError if it is not one."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: not a model folder (no config.json); name a folder that transformers saved")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: no causal language model in it ({_first_line(error)})") from None
    return model.eval()


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """Load the fast tokenizer of a model folder. Raises UserError if there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer in it ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def transformer_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of transformer blocks: the only ModuleList as long as the config says. Raises UserError if unclear."""
    count = model.config.num_hidden_layers
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    if len(found) != 1:
        raise UserError(f"{type(model).__name__}: expected one list of {count} blocks, found {len(found)}")
    return found[0]


def check_block(model: nn.Module, block: int, field: str) -> None:
    """Raise UserError if the model has no block of that number; `field` names the setting at fault."""
    count = model.config.num_hidden_layers
    if not 0 <= block < count:
        raise UserError(f"{field}: {block}, but the model has blocks 0 to {count - 1}; choose one of them")


class _Stop(Exception):
    """Ends a forward pass once the residual is read; the later blocks would be wasted work."""


@torch.no_grad()
def read_residual(
    model: nn.Module, block: int, input_ids: Int[Tensor, "batch tokens"], attention_mask: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens d_model"]:
    """Residual stream after `block`, `hidden_states[block + 1]` of transformers, stopping the forward pass there."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)
        raise _Stop

    handle = transformer_blocks(model)[block].register_forward_hook(keep)
    try:
        model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    except _Stop:
        return seen[0]
    finally:
        handle.remove()
    raise RuntimeError("the hook after the block did not run")


def encode_batch(
    tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str], context_length: int
) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
    """Token ids, attention mask and valid mask, right-padded; valid leaves out every special token, BOS included."""
    encoded = tokenizer(
        list(texts),
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=context_length,
        return_tensors="pt",
        return_token_type_ids=False,
    )
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    valid = encoded["attention_mask"].bool() & ~torch.isin(encoded["input_ids"], special)
    return encoded["input_ids"], encoded["attention_mask"], valid


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Batches of indices, longest first, so that little padding is computed and the first batch shows the peak."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@torch.no_grad()
def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    prompts: Sequence[Sequence[int]],
    *,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    batch_size: int,
    progress: str = "",
) -> list[str]:
    """One continuation a prompt (token ids), in the order of the prompts; temperature 0 is greedy.

    Batches are sorted by length, so the draws depend on the whole list of prompts and on torch's seed alone.
    """
    from tqdm.auto import tqdm
    from transformers import GenerationConfig

    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **sampling,
    )
    texts = [""] * len(prompts)
    batches = list(by_length([len(prompt) for prompt in prompts], batch_size))
    for indices in tqdm(batches, desc=progress, disable=None if progress else True):
        width = max(len(prompts[index]) for index in indices)
        ids = torch.full((len(indices), width), tokenizer.pad_token_id)
        for row, index in enumerate(indices):
            ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
        mask = torch.zeros_like(ids)
        for row, index in enumerate(indices):
            mask[row, width - len(prompts[index]) :] = 1
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        for index, text in zip(indices, tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)):
            texts[index] = text.strip()
    return texts
