"""A folder of the pipeline that holds a model, or says where one is."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic.dataclasses import dataclass

from saeexplainer.config.parts import CLOSED, Pretrained
from saeexplainer.errors import UserError, first_line
from saeexplainer.models.loading import load_model, load_pretrained
from saeexplainer.models.tokenizers import load_tokenizer
from saeexplainer.runs.storage import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


POINTER = "pretrained.json"  # in a folder of the pipeline without a model's weights: where they are, how to load them
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # peft's, in a folder of the pipeline beside a pointer


@dataclass(frozen=True, config=CLOSED)
class Pointer:
    """Where the model of a folder without one is, and how it is loaded."""

    pretrained: Pretrained  # the source "." is the folder itself: it holds the model, but not how to load it
    prepend_bos: bool | None  # as in `load_tokenizer`
    place: str | None = None  # of the source, if it is there: a name inside this folder, or an absolute path


def open_model(folder: Path, blocks: int | None = None, *, trainable: bool = False) -> "PreTrainedModel":
    """The model of one of the pipeline's folders: there, or where its pointer says, with the folder's adapter on it if
    there is one (a peft.PeftModel then; `trainable` lets a trainer go on with the adapter). As `load_model` otherwise.
    """
    found = read_pointer(folder)
    if found is None:
        return load_model(folder, blocks=blocks)
    model = load_pretrained(_placed(found, folder), blocks=blocks)
    return _with_adapter(model, folder, trainable) if (folder / ADAPTER[0]).is_file() else model


def open_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that goes with `open_model`. Raises UserError as `load_tokenizer` does."""
    found = read_pointer(folder)
    if found is None:
        return load_tokenizer(folder)
    place = _placed(found, folder)
    return load_tokenizer(place.source, place.revision, prepend_bos=found.prepend_bos)


def write_pointer(folder: Path, pretrained: Pretrained, prepend_bos: bool | None, place: str | None = None) -> None:
    """Make `folder` stand for a pretrained model; the fields of `Pointer`."""
    fields = asdict(Pointer(pretrained, prepend_bos, place))
    # Stages leave the place out: what they write does not depend on where the workspace lies.
    write_json(folder / POINTER, fields if place else {key: fields[key] for key in fields if key != "place"})


def read_pointer(folder: Path) -> Pointer | None:
    """What `write_pointer` wrote; None if nothing was. Raises UserError if another version of this library wrote it."""
    if not (folder / POINTER).is_file():
        return None
    found = read_json(folder / POINTER)
    try:
        return Pointer(**found | {"pretrained": Pretrained(**found["pretrained"])})
    except (TypeError, ValueError, KeyError):
        raise UserError(f"{folder / POINTER}: from another version of this library; make the folder again") from None


def _placed(pointer: Pointer, folder: Path) -> Pretrained:
    found = pointer.pretrained
    if found.source == ".":
        return replace(found, source=folder.as_posix())
    if pointer.place and (folder / pointer.place).exists():
        return replace(found, source=(folder / pointer.place).as_posix())
    return found


def _with_adapter(model: "PreTrainedModel", folder: Path, trainable: bool) -> "PreTrainedModel":
    """peft's own loading. Raises UserError if the adapter is not all there, or is another model's."""
    from peft import PeftModel
    from safetensors import SafetensorError

    if not (folder / ADAPTER[1]).is_file():  # peft would go on to look for a pickle, and on the hub
        raise UserError(f"{folder}: an adapter without weights ({ADAPTER[1]}); run `dvc repro` or `dvc pull`")
    try:
        found = PeftModel.from_pretrained(model, folder.as_posix(), is_trainable=trainable).eval()
        return cast("PreTrainedModel", found)  # peft's model answers for the one in it
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder}: the adapter does not fit {model.name_or_path} ({first_line(error)})") from None
