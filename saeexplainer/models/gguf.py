"""Models as GGUF files, which is how llama.cpp, Ollama and LM Studio keep them: made into an ordinary folder once.

transformers reads such a file and its tokenizer; the folder is what it then saves, with every weight dequantised to
float32, under the hash of the file. All else here is what a person should hear before minutes are spent: that the file
is another one than was asked for, that it was cut short, that the disk has no room, that a text would be split in
another way than the model was trained with.
"""

import shutil
import struct
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from saeexplainer.errors import UserError, first_line
from saeexplainer.runs.processes import once
from saeexplainer.runs.storage import DAMAGED, replacing, sha256

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SUFFIX = ".gguf"
FOLDERS = Path("data/gguf")  # of the working folder: a model each, by the file's name and hash
BYTES = 4  # of a dequantised weight
DIGITS_ALONE = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")  # then as GPT-2 splits
AS_GPT2 = ("gpt-2", "mpt", "olmo", "jais")


def is_gguf(source: Path | str) -> bool:
    """Whether a source is such a file, by its name."""
    return str(source).lower().endswith(SUFFIX)


def folder_of(source: Path | str, revision: str | None) -> Path:
    """The folder of the model in a file, which is made if it is not there. `revision`: the SHA-256 that the file must
    have, None for any.

    Raises UserError if there is no such file, if it is another one, cut short or of a kind that cannot be read, or if
    the disk has no room; nothing is left behind then.
    """
    file = Path(source)
    if not file.is_file():
        raise _missing(file)
    found = _sha256(file, file.stat().st_size, file.stat().st_mtime_ns)
    if revision is not None and revision != found:
        raise UserError(f"{file}: its SHA-256 is {found}, not {revision}; get the file again, or change the revision")
    folder = FOLDERS / f"{file.stem}-{found[:12]}"
    # All processes ask, even if the first is done by then: they wait for each other.
    once(lambda: _unpack(file, folder))
    return folder


def config_of(file: Path) -> dict[str, Any]:
    """The configuration of the model in a file, as its config.json would have it; weights are not read. Raises
    UserError if it cannot be read."""
    from transformers import AutoConfig

    if not file.is_file():
        raise _missing(file)
    with _readable(file):
        found = AutoConfig.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
    return found.to_dict()


def _missing(file: Path) -> UserError:
    return UserError(f"{file}: no such file; correct the path, or get the file (docs/OWN_MODEL.md: two are fetched)")


@lru_cache
def _sha256(file: Path, _size: int, _modified: int) -> str:
    return sha256(file)


def _unpack(file: Path, folder: Path) -> None:
    """Make the folder, unless it is there."""
    if (folder / "config.json").is_file():
        return
    reader = _opened(file)
    _check_room(file, folder, sum(int(tensor.n_elements) for tensor in reader.tensors) * BYTES)
    splits = _splits(file, reader)
    with _readable(file):
        model, tokenizer = _read(file, splits)
    with replacing(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _opened(file: Path) -> "GGUFReader":
    """The file's header. Raises UserError if it is no such file, or shorter than its header says."""
    from gguf import GGUFReader

    class Bounded(GGUFReader):
        """Past the end of a file gguf's own reads nothing, as often as a list says that it is long."""

        def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            if offset + int(count) * np.dtype(dtype).itemsize > len(self.data):
                raise ValueError("the file ends before its header does")
            return super()._get(offset, dtype, count, override_order)

    with _readable(file):
        return Bounded(file)


@contextmanager
def _readable(file: Path) -> Generator[None, None, None]:
    """What both readers end with on a file that they cannot read, as one line."""
    try:
        yield
    except (*DAMAGED, AttributeError, struct.error) as error:
        raise UserError(
            f"{file}: cannot be read as GGUF ({type(error).__name__}: {first_line(error)}); if it is whole, its "
            "architecture or quantisation is not known here: name a folder of safetensors instead"
        ) from None


def _check_room(file: Path, folder: Path, size: int) -> None:
    """Raise UserError if the disk has no room for so many bytes."""
    place = next(parent for parent in folder.absolute().parents if parent.is_dir())
    free = shutil.disk_usage(place).free
    if free < size:
        raise UserError(
            f"{file}: dequantised it takes {size / 1e9:.1f} GB, and {place} has {free / 1e9:.1f} GB left; make room"
        )


def _field(reader: "GGUFReader", name: str) -> Any:
    field = reader.fields.get(name)
    return None if field is None else field.contents()


def _splits(file: Path, reader: "GGUFReader") -> str | None:
    """By which rule the vocabulary splits a text before its merges, where transformers does not set it: "digits" or
    "gpt2"; None where it does. Raises UserError on a rule that is not known here."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    rule = _field(reader, "tokenizer.ggml.pre")
    if _field(reader, "tokenizer.ggml.model") != "gpt2" or rule in GGUF_PRE_TOKENIZER_SPLITS:
        return None
    if rule in DIGITS_ALONE:
        return "digits"
    if rule in AS_GPT2:
        return "gpt2"
    raise UserError(
        f"{file}: tokenizer.ggml.pre is {rule!r}, a way to split texts that is not known here: tokens would not be the "
        "model's own; name a folder with its tokenizer.json instead"
    )


def _read(file: Path, splits: str | None) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    """The model and its tokenizer as transformers makes them of a file, in float32."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(file.parent, **where))
    if splits == "digits":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **where
    )
    # What is saved is no longer quantised; transformers would refuse.
    vars(model).pop("hf_quantizer", None)
    vars(model.config).pop("quantization_config", None)
    return model, tokenizer
