"""Causal language models as the pipeline needs them: loading, finding blocks, reading one module, sampling.

Everything here works on any unmodified transformers causal LM; structure is asked for, never a model's name. A model is
a folder that transformers saved or, at a pinned commit, a repository of the hub; both go through the same functions.
The pipeline's own folders hold a model, or a pointer to one of others: `open_model` reads either.
"""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from saeexplainer.config import DTYPES, Pretrained
from saeexplainer.errors import UserError, first_line
from saeexplainer.processes import spread
from saeexplainer.storage import read_json, write_json

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

POINTER = "pretrained.json"  # in a folder of the pipeline without a model's weights: where they are, how to load them
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # peft's, in a folder of the pipeline beside a pointer
PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")  # transformers spreads the blocks over devices
ROOM = 2**28  # numbers in one array, 1 GiB in float32: what reads many texts at once takes a small multiple of it
# What chat templates are given. One that knows enable_thinking then opens the answer itself; those of Llama 3 say what
# day it is, which would be another at every run. The others ignore both.
CHAT: dict[str, Any] = {"add_generation_prompt": True, "enable_thinking": False, "date_string": "26 Jul 2024"}
_COMMIT = re.compile("[0-9a-f]{40}")
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
# In a checkpoint that reads images too, the language model's weights lie one level deeper.
_TEXT_WEIGHTS = {r"^(model\.)?language_model\.(model\.)?": "model."}


@dataclass(frozen=True)
class Pointer:
    """Where the model of a folder without one is, and how it is loaded."""

    pretrained: Pretrained  # the source "." is the folder itself: it holds the model, but not how to load it
    prepend_bos: bool | None  # as in `load_tokenizer`
    quantize: bool  # as in `load_model`
    place: str | None = None  # of the source, if it is there: a name inside this folder, or an absolute path


def open_model(folder: Path, blocks: int | None = None, *, trainable: bool = False) -> "PreTrainedModel":
    """The model of one of the pipeline's folders: there, or where its pointer says, with the folder's adapter on it if
    there is one (a peft.PeftModel then; `trainable` lets a trainer go on with the adapter). As `load_model` otherwise.
    """
    found = read_pointer(folder)
    if found is None:
        return load_model(folder, blocks=blocks)
    model = load_pretrained(_placed(found, folder), blocks=blocks, quantize=found.quantize)
    return _with_adapter(model, folder, trainable) if (folder / ADAPTER[0]).is_file() else model


def open_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that goes with `open_model`. Raises UserError as `load_tokenizer` does."""
    found = read_pointer(folder)
    if found is None:
        return load_tokenizer(folder)
    place = _placed(found, folder)
    return load_tokenizer(place.source, place.revision, prepend_bos=found.prepend_bos)


def write_pointer(
    folder: Path, pretrained: Pretrained, prepend_bos: bool | None, quantize: bool = False, place: str | None = None
) -> None:
    """Make `folder` stand for a model of others; the fields of `Pointer`."""
    fields = asdict(Pointer(pretrained, prepend_bos, quantize, place))
    # Stages leave the place out: what they write does not depend on where the workspace lies.
    write_json(folder / POINTER, fields if place else {key: fields[key] for key in fields if key != "place"})


def read_pointer(folder: Path) -> Pointer | None:
    """What `write_pointer` wrote; None if nothing was."""
    if not (folder / POINTER).is_file():
        return None
    found = read_json(folder / POINTER)
    return Pointer(**found | {"pretrained": Pretrained(**found["pretrained"])})


def _placed(pointer: Pointer, folder: Path) -> Pretrained:
    found = pointer.pretrained
    if found.source == ".":
        return replace(found, source=folder.as_posix())
    if pointer.place and (folder / pointer.place).is_dir():
        return replace(found, source=(folder / pointer.place).as_posix())
    return found


def _with_adapter(model: "PreTrainedModel", folder: Path, trainable: bool) -> "PreTrainedModel":
    """peft's own loading. Raises UserError if the adapter is not all there, or is another model's."""
    from peft import PeftModel
    from safetensors import SafetensorError

    if not (folder / ADAPTER[1]).is_file():  # peft would go on to look for a pickle, and on the hub
        raise UserError(f"{folder}: an adapter without weights ({ADAPTER[1]}); run `dvc repro` or `dvc pull`")
    try:
        return PeftModel.from_pretrained(model, folder.as_posix(), is_trainable=trainable).eval()
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder}: the adapter does not fit {model.name_or_path} ({first_line(error)})") from None


def load_pretrained(pretrained: Pretrained, blocks: int | None = None, quantize: bool = False) -> "PreTrainedModel":
    """`load_model` as a configuration has it."""
    return load_model(
        pretrained.source, pretrained.revision, dtype=pretrained.dtype, device_map=pretrained.device_map,
        attention=pretrained.attention, blocks=blocks, quantize=quantize,
    )  # fmt: skip


def load_model(
    source: Path | str,
    revision: str | None = None,
    *,
    dtype: str = "float32",
    device_map: str | None = None,
    attention: str | None = None,
    blocks: int | None = None,
    quantize: bool = False,
) -> "PreTrainedModel":
    """Load a causal LM from a local folder or, given a commit, from the hub; safetensors only, no code of others.

    dtype: one of DTYPES. device_map, attention: as transformers' `device_map` and `attn_implementation`; None is its
    own choice (the CPU; eager where a model caps its attention logits, as Gemma 2 does). blocks: keep only the first
    so many blocks and leave the other weights unread, if the family can be cut; else it is whole. That is enough to
    read activations up to there; what such a model predicts means nothing. quantize: linear layers in 4 bits (NF4),
    computing in bfloat16. Of a model for images and text, the text part is loaded. Raises UserError if there is no such
    model, if its weights are not all there, or if the package that quantizes is missing.
    """
    where = _where(source, revision)
    if "revision" not in where and not Path(source, "config.json").is_file():
        raise UserError(f"{source}: not a model folder (no config.json); name a folder that transformers saved")
    if dtype not in DTYPES:
        raise UserError(f"{source}: dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    _check_device(device_map, source)
    how = {"dtype": dtype, "device_map": device_map, "attn_implementation": attention, **_four_bits(quantize), **where}
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
        raise UserError(f"{source}: no causal language model in it ({first_line(error)}){_hub_advice(where)}") from None
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
            model, found = AutoModelForCausalLM.from_pretrained(
                source, config=config, use_safetensors=True, key_mapping=None if config is whole else _TEXT_WEIGHTS,
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
        raise UserError(f"{source}: no causal language model in it ({first_line(error)}){_hub_advice(where)}") from None
    # transformers fills what is missing, or of another size, with random numbers, and only warns.
    if wrong := sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}):
        raise UserError(
            f"{source}: {len(wrong)} weights are missing or of another size, {wrong[0]} first; get them again"
        )
    for name in _SAMPLING if model.generation_config else ():
        setattr(model.generation_config, name, None)
    return model.eval()


def load_tokenizer(
    source: Path | str, revision: str | None = None, *, prepend_bos: bool | None = None
) -> "PreTrainedTokenizerFast":
    """Load the fast tokenizer of a model. Raises UserError if there is none, or none that can pad.

    prepend_bos: whether every text starts with BOS, as the SAE's metadata has it; None leaves it to the tokenizer. A
    tokenizer without a padding token pads with EOS, which no mask counts. One without BOS begins with EOS where BOS is
    asked for: TransformerLens, with which such SAEs are trained, does the same.
    """
    from transformers import AutoTokenizer

    where = _where(source, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
    except Exception as error:  # what the tokenizers' library raises for a damaged file is of no kind of its own
        raise UserError(f"{source}: no tokenizer in it ({first_line(error)}){_hub_advice(where)}") from None
    if not tokenizer.is_fast:
        raise UserError(f"{source}: no fast tokenizer (tokenizer.json), which character offsets need; save it as one")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"{source}: its tokenizer has neither a padding token nor EOS; set pad_token in it")
        tokenizer.pad_token = tokenizer.eos_token
    if prepend_bos is not None:
        _set_bos(tokenizer, prepend_bos, source)
    return tokenizer


def _where(source: Path | str, revision: str | None) -> dict[str, Any]:
    """Arguments that let transformers find a folder or a hub id, and nothing else."""
    folder = Path(source)
    if isinstance(source, Path) or folder.is_dir():
        if revision is not None:
            raise UserError(f"{source}: a folder has no revision ({revision}); leave it out")
        return {"local_files_only": True, "trust_remote_code": False}
    if revision is None or not _COMMIT.fullmatch(revision):
        raise UserError(
            f"{source}: no such folder, and a model of the hub needs a pinned revision, the 40 hex digits of a commit; "
            f"the revision is {'null' if revision is None else repr(revision)}"
        )
    return {"revision": revision, "trust_remote_code": False}


def _hub_advice(where: dict[str, Any]) -> str:
    if "revision" not in where:
        return ""
    gated = "a gated model needs its licence accepted and HF_TOKEN in the environment"
    return f"; check the connection, id and revision; {gated}"


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


def _four_bits(quantize: bool) -> dict[str, Any]:
    """Arguments that make transformers load weights in 4 bits, if asked. Raises UserError if it could not."""
    if not quantize:
        return {}
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise UserError(
            "train_sft.adapter.quantize: needs the package bitsandbytes, which is not here; install it, or give false"
        )
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    }  # fmt: skip


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
def _quiet_loading() -> Iterator[None]:
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


def text_name(module: str) -> str:
    """The name in the text part, which alone is loaded, of what a model for images and text calls otherwise."""
    for pattern, replacement in _TEXT_WEIGHTS.items():
        module = re.sub(pattern, replacement, module)
    return module


def transformer_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of blocks: the only ModuleList of the decoder as long as the config says, but for those inside a block.

    Raises UserError if that is unclear.
    """
    count = model.config.get_text_config().num_hidden_layers
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
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


def device_of(model: nn.Module) -> torch.device:
    """Where token ids go in: the device of the input embeddings."""
    return model.get_input_embeddings().weight.device


class _Stop(Exception):
    """Ends a forward pass once the residual is read; the later blocks would be wasted work."""


def check_context(model: nn.Module, tokens: int, field: str) -> None:
    """Raise UserError if the model cannot read so many tokens at once; `field` names the setting at fault."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise UserError(f"{field}: {tokens} tokens, but the model reads {limit} at most; lower it")


@torch.no_grad()
def read_module(
    model: nn.Module, module: nn.Module, input_ids: Int[Tensor, "batch tokens"],
    attention_mask: Int[Tensor, "batch tokens"], *, entering: bool = False,
) -> Float[Tensor, "batch tokens d_model"]:  # fmt: skip
    """What `module` of the model returns (or what enters it), stopping the forward pass there.

    The result stays on the model's device, in its dtype. Raises UserError if there are more tokens than the model
    reads.
    """
    check_context(model, input_ids.shape[1], "context_length")
    seen: list[Tensor] = []

    def keep_output(_module: nn.Module, _inputs: object, output: object) -> None:
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


def encode_batch(
    tokenizer: "PreTrainedTokenizerFast", texts: Sequence[str], context_length: int
) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
    """Token ids, attention mask and valid mask, right-padded; valid leaves out every special token, BOS included.

    There is always a position, if one of padding. Raises UserError if the tokenizer cannot pad.
    """
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no padding token; load it with load_tokenizer, or set its pad_token")
    encoded = tokenizer(
        list(texts),
        padding=True,
        padding_side="right",
        truncation=True,
        max_length=context_length,
        return_tensors="pt",
        return_token_type_ids=False,
    )
    ids, mask = encoded["input_ids"].long(), encoded["attention_mask"].long()
    if not ids.shape[1]:  # empty texts alone, without BOS: a model needs a position
        ids, mask = ids.new_full((len(ids), 1), tokenizer.pad_token_id), mask.new_zeros(len(ids), 1)
    valid = mask.bool() & ~torch.isin(ids, torch.tensor(special_ids(tokenizer)))
    return ids, mask, valid


def padded(sequences: Iterable[Sequence[int]], value: int, side: str = "right") -> Int[Tensor, "batch tokens"]:
    """Whole numbers, such as token ids, in rows of one length; on the CPU."""
    rows = [torch.tensor(sequence) for sequence in sequences]
    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)


def fitting(most: int, numbers: int) -> int:
    """How many things to compute at once: at most `most`, at least one, and few enough that an array of `numbers`
    numbers for each stays within ROOM."""
    return max(1, min(most, ROOM // numbers))


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Batches of indices, longest first, so that little padding is computed and the first batch shows the peak."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _ends(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast") -> list[int] | None:
    """The tokens that end a text: the tokenizer's, and those by which a chat model ends its turn."""
    known = model.generation_config.eos_token_id if model.generation_config else None
    more = known if isinstance(known, list) else [known]
    return list(dict.fromkeys(token for token in [tokenizer.eos_token_id, *more] if token is not None)) or None


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
    kept: Collection[int] = (),
) -> list[str]:
    """One continuation a prompt (token ids), in the order of the prompts; temperature 0 is greedy. Special tokens are
    left out, but for those of `kept`, by their ids.

    Batches are sorted by length, and each draws from a generator of its own: the draws depend on the whole list of
    prompts and on torch's seed alone, not on how many processes share the batches.
    """
    from transformers import GenerationConfig

    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=_ends(model, tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        **sampling,
    )
    seed = int(torch.randint(2**31, ())) if sampling else 0

    def continued(number: int, indices: list[int]) -> list[str]:
        if sampling:
            torch.manual_seed(seed + number)
        return _continued(model, tokenizer, [prompts[index] for index in indices], config, kept)

    batches = list(by_length([len(prompt) for prompt in prompts], batch_size))
    with torch.random.fork_rng(enabled=bool(sampling)):
        found = spread(batches, continued, progress)
    written = {
        index: text for indices, texts in zip(batches, found, strict=True) for index, text in zip(indices, texts)
    }
    return [written[index] for index in range(len(prompts))]


def _continued(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", prompts: Sequence[Sequence[int]],
    config: "GenerationConfig", kept: Collection[int],
) -> list[str]:  # fmt: skip
    """Continuations of one batch, padded on the left."""
    ids = padded(prompts, tokenizer.pad_token_id, side="left").to(device_of(model))
    mask = padded([[1] * len(prompt) for prompt in prompts], 0, side="left").to(ids.device)
    output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    written = output[:, ids.shape[1] :].tolist()
    if kept:
        dropped = set(special_ids(tokenizer)).difference(kept)
        written = [[token for token in row if token not in dropped] for row in written]
    texts = tokenizer.batch_decode(written, skip_special_tokens=not kept)
    return [text.strip() for text in texts]
