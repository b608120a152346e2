"""Loading any causal language model that transformers knows, with nothing of it but what the pipeline needs.

A model is a folder that transformers saved, a GGUF file (`models.gguf` makes a folder of it) or, at a pinned commit, a
repository of the hub; all go through the same functions. The pipeline's own folders hold a model or a pointer to a
pretrained one: `pointer.open_model` reads either.
"""

import logging
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from huggingface_hub.errors import StrictDataclassError

from saeexplainer.config.parts import Dtype, Pretrained
from saeexplainer.errors import UserError, first_line
from saeexplainer.models import gguf
from saeexplainer.models.blocks import TEXT_WEIGHTS, transformer_blocks
from saeexplainer.models.hub import advice, arguments_for

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")  # transformers spreads the blocks over devices
# What transformers and sae-lens end with on a folder that is damaged, or of a kind that they do not know.
UNREADABLE = (
    OSError, ValueError, ImportError, TypeError, AttributeError, LookupError, RuntimeError, ArithmeticError,
    StrictDataclassError,
)  # fmt: skip
# How a model's authors want it sampled is left behind. transformers takes from there whatever a caller leaves open: a
# greedy answer would be drawn, and a penalty on the prompt's tokens would look feature ids up among the logits.
_SAMPLING = (
    "do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "num_beams",
    "repetition_penalty", "no_repeat_ngram_size", "length_penalty", "min_length", "min_new_tokens", "max_length",
    "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
)  # fmt: skip


def load_pretrained(pretrained: Pretrained, blocks: int | None = None) -> "PreTrainedModel":
    """`load_model` as a configuration has it."""
    return load_model(
        pretrained.source, pretrained.revision, dtype=pretrained.dtype, device_map=pretrained.device_map,
        attention=pretrained.attention, blocks=blocks,
    )  # fmt: skip


def load_model(
    source: Path | str,
    revision: str | None = None,
    *,
    dtype: str = "float32",
    device_map: str | None = None,
    attention: str | None = None,
    blocks: int | None = None,
) -> "PreTrainedModel":
    """Load a causal LM from a folder, a GGUF file or, given a commit, from the hub. Of folders and hub only safetensors
    are read, and no code is run.

    dtype: one of `config.parts.Dtype`. device_map, attention: as transformers' `device_map` and `attn_implementation`;
    None is its own choice (the CPU; eager where a model caps its attention logits, as Gemma 2 does). blocks: keep only
    the first so many blocks and leave the other weights unread, if the family can be cut; else it is whole. That is
    enough to read activations up to there; what such a model predicts means nothing. Of a model for images and text,
    the text part is loaded. Raises UserError if there is no such model, or if its weights are not all there.
    """
    if gguf.is_gguf(source):
        source, revision = gguf.folder_of(source, revision), None
    where = arguments_for(source, revision)
    if "revision" not in where and not Path(source, "config.json").is_file():
        raise UserError(f"{source}: not a model folder (no config.json); name a folder that transformers saved")
    if dtype not in get_args(Dtype):
        raise UserError(f"{source}: dtype {dtype!r} is not known; choose one of {', '.join(get_args(Dtype))}")
    _check_device(device_map, source)
    how = {"dtype": dtype, "device_map": device_map, "attn_implementation": attention, **where}
    if blocks is not None:
        _check_blocks(source, where, blocks)
        try:
            return _loaded(source, how, where, blocks)
        except UserError:  # a family whose parts are shared among blocks, or a broken one, of which the next line tells
            pass
    return _loaded(source, how, where, None)


def _config(source: Path | str, where: dict[str, Any]) -> "PretrainedConfig":
    """The configuration of a model, and of its text part if it has others. Raises UserError."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, **where)
        config.get_text_config()
    except UNREADABLE as error:
        raise UserError(f"{source}: no causal language model in it ({first_line(error)}){advice(where)}") from None
    return config


def _loaded(source: Path | str, how: dict[str, Any], where: dict[str, Any], blocks: int | None) -> "PreTrainedModel":
    """The model, whole or its first blocks. Raises UserError."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    whole = _config(source, where)
    config = whole.get_text_config()
    try:
        if blocks is not None:
            _keep_blocks(config, blocks)
        with _quiet_loading():
            model, found = AutoModelForCausalLM.from_pretrained(  # ty: ignore[not-iterable] (with loading info it is two)
                source, config=config, use_safetensors=True, key_mapping=None if config is whole else TEXT_WEIGHTS,
                output_loading_info=True, ignore_mismatched_sizes=True, **how,
            )  # fmt: skip
        if blocks is not None:
            transformer_blocks(model)  # which tells that the family keeps more than its blocks in such a list
    except torch.OutOfMemoryError:
        raise
    except (*UNREADABLE, SafetensorError) as error:
        attention = how["attn_implementation"]
        if attention is not None and re.search("attn|attention", str(error), re.IGNORECASE):
            raise UserError(
                f"{source}: attention {attention!r} cannot be had ({first_line(error)}); choose another, or null"
            ) from None
        raise UserError(f"{source}: no causal language model in it ({first_line(error)}){advice(where)}") from None
    check_weights(source, found)
    for name in _SAMPLING if model.generation_config else ():
        setattr(model.generation_config, name, None)
    return model.eval()


def check_weights(source: Path | str, found: Mapping[str, Iterable[Any]]) -> None:
    """Raise UserError if weights were missing or of another size, by transformers' loading info: it fills those with
    random numbers, and only warns."""
    if wrong := sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}):
        raise UserError(
            f"{source}: {len(wrong)} weights are missing or of another size, {wrong[0]} first; get them again"
        )


def _check_device(device_map: str | None, source: Path | str) -> None:
    """Raise UserError if weights cannot be put where a device map says; torch would end in an assertion."""
    if device_map is None or device_map in PLACEMENTS:
        return
    try:
        device = torch.device(device_map)
    except RuntimeError:
        raise UserError(
            f"{source}: device_map {device_map!r} is not known; give a device such as cuda or cuda:1, "
            f"one of {', '.join(PLACEMENTS)}, or null for the CPU"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{source}: device_map is {device_map!r}, but torch finds no GPU here; give null for the CPU")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"{source}: device_map is {device_map!r}, but there are {torch.cuda.device_count()} GPUs, counted from 0"
        )


def _check_blocks(source: Path | str, where: dict[str, Any], blocks: int) -> None:
    """Raise UserError if the model has not so many blocks."""
    count = _config(source, where).get_text_config().num_hidden_layers
    if not 1 <= blocks <= count:
        raise UserError(f"{source}: {blocks} blocks are asked for, it has {count}; choose a block of the model")


def _keep_blocks(config: "PretrainedConfig", blocks: int) -> None:
    """Make a configuration that of its first blocks."""
    count = config.num_hidden_layers
    config.num_hidden_layers = blocks
    # What is said block by block, such as which have full attention; some families derive it and hold no list.
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == count:
            setattr(config, name, value[:blocks])


@contextmanager
def _quiet_loading() -> Generator[None, None, None]:
    """Without the table of weights that are left unread; those that are missing raise.

    By a filter: where this logger has a level of its own, transformers tells of tensor parallelism.
    """
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_error)
    try:
        yield
    finally:
        logger.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
