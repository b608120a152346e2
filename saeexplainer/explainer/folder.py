"""An explainer's folder: what an explainer starts from, what is kept of it, and how it is opened again.

Trained whole it is an ordinary transformers folder. As an adapter it is an ordinary peft folder, which names its base
model and the commit; pretrained.json beside it says how this pipeline loads that base. Where explainer and subject
differ in width, projection.safetensors is the map of directions that supervised training learned. A SelfIE adapter is
affine.safetensors, beside the pretrained.json of a model that is as it was.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import nn

from saeexplainer.config import ExplainerSettings
from saeexplainer.config.explainers import Adapter, Affine
from saeexplainer.config.parts import Pretrained
from saeexplainer.errors import UserError, first_line
from saeexplainer.explainer.feature_tokens import AffineMap, new_affine_map, new_projection
from saeexplainer.models.loading import load_pretrained
from saeexplainer.models.pointer import ADAPTER, Pointer, open_model, open_tokenizer, read_pointer, write_pointer
from saeexplainer.models.tokenizers import load_tokenizer
from saeexplainer.runs.storage import read_tensors, write_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PROJECTION, AFFINE = "projection.safetensors", "affine.safetensors"
BASE = "base"  # folder of an adapter's base, in a copy that stands alone


@dataclass(frozen=True)
class Parts:
    """An explainer without the features that it reads."""

    model: "PreTrainedModel"  # with an adapter a peft.PeftModel
    tokenizer: "PreTrainedTokenizerFast"
    projection: nn.Linear | AffineMap | None  # from the subject's width to the model's, or a SelfIE adapter
    pointer: Pointer | None  # of the adapter's base; else how the model is loaded, None as ever
    adapted: bool  # LoRA is all that was trained


def start(config: ExplainerSettings, subject: Path, width: int, seed: int) -> Parts:
    """The explainer before any training: a pretrained model, or the subject in folder `subject`, whose residual stream
    has `width`. A new adapter draws from torch's generator, a new projection from `seed`.

    Raises UserError if there is no such model, or if it is too wide or narrow for a SelfIE adapter.
    """
    base = _base(config, subject)
    model = load_pretrained(base.pretrained)
    tokenizer = load_tokenizer(base.pretrained.source, base.pretrained.revision, prepend_bos=base.prepend_bos)
    own = model.config.get_text_config().hidden_size
    if isinstance(config.adapter, Affine):
        if own != width:
            raise UserError(
                f"explainer.adapter: scales and shifts vectors of {width} numbers, but {base.pretrained.source} has "
                f"embeddings of {own}; name the subject in explainer.pretrained, or choose LoRA"
            )
        model.requires_grad_(False)
        return Parts(model, tokenizer, new_affine_map(model, config.adapter.length), base, False)
    projection = None if own == width else new_projection(width, own, seed)
    if config.adapter is not None:
        return Parts(_adapted(model, config.adapter, base.pretrained), tokenizer, projection, base, True)
    here = replace(base.pretrained, source=".", revision=None)
    ordinary = here.device_map is None and here.attention is None
    return Parts(model, tokenizer, projection, None if ordinary else replace(base, pretrained=here), False)


def _base(config: ExplainerSettings, subject: Path) -> Pointer:
    """Where the model is that the explainer is made of. All of a model is trained in float32 alone: steps are too small
    for the digits of another type."""
    found = Pointer(Pretrained(subject.as_posix(), None, "float32", None, None), None)
    found = read_pointer(subject) or found if config.pretrained is None else Pointer(config.pretrained, None)
    return replace(found, pretrained=replace(found.pretrained, dtype="float32")) if config.adapter is None else found


def _adapted(model: "PreTrainedModel", adapter: Adapter, base: Pretrained) -> "PreTrainedModel":
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=adapter.rank, lora_dropout=adapter.dropout, target_modules="all-linear", task_type="CAUSAL_LM",
        lora_alpha=adapter.alpha,  # ty: ignore[invalid-argument-type] (peft divides it by the rank, so a float does)
    )  # fmt: skip
    found = get_peft_model(model, lora, revision=base.revision)
    found.peft_config["default"].base_model_name_or_path = base.source
    return cast("PreTrainedModel", found.eval())  # peft's model answers for the one in it


def open_parts(folder: Path, trainable: bool = False) -> Parts:
    """What `save` left. `trainable`: an adapter may be trained on; a projection never is. Raises UserError."""
    model = open_model(folder, trainable=trainable)
    projection: nn.Linear | AffineMap | None = None
    try:
        if (folder / AFFINE).is_file():
            weights = read_tensors(folder / AFFINE)
            projection = AffineMap(len(weights["bias"]), 1.0)
            projection.load_state_dict(weights)
            projection.requires_grad_(trainable)
            model.requires_grad_(False)
        if (folder / PROJECTION).is_file():
            weight = read_tensors(folder / PROJECTION)["weight"]
            projection = nn.Linear(weight.shape[1], weight.shape[0], bias=False).requires_grad_(False)
            projection.weight.copy_(weight)
    except (LookupError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{folder}: its map of directions has another shape ({first_line(error)}); train it again"
        ) from None
    adapted = (folder / ADAPTER[0]).is_file()
    return Parts(model, open_tokenizer(folder), projection, read_pointer(folder), adapted)


def keep_base(folder: Path, subject: Path) -> None:
    """Let a copy of an explainer's folder find the base of its adapter when the workspace is not the working folder, or
    has another subject by then: a base that is the subject in folder `subject` is copied, of another folder or a GGUF
    file the path is kept."""
    pointer = read_pointer(folder)
    if pointer is None or not Path(pointer.pretrained.source).exists() or pointer.pretrained.source == ".":
        return
    base = Path(pointer.pretrained.source)
    if base == subject:
        shutil.copytree(base, folder / BASE)
    place = BASE if base == subject else str(base.resolve())
    write_pointer(folder, pointer.pretrained, pointer.prepend_bos, place)


def packages_of(folder: Path) -> list[str]:
    """What it takes to open an explainer's folder beside what this library always needs."""
    pointer, found = read_pointer(folder), []
    if (folder / ADAPTER[0]).is_file():
        found.append("peft")
    if pointer is not None and pointer.pretrained.device_map is not None:
        found.append("accelerate")
    return found


def save(parts: Parts, folder: Path) -> None:
    """Write what was trained, and what it takes to open it again; no hook may be on the model."""
    if isinstance(parts.projection, AffineMap):
        weights = {name: weight.detach().cpu() for name, weight in parts.projection.state_dict().items()}
        write_tensors(folder / AFFINE, weights)
    elif parts.adapted:
        # Else peft asks the hub whether the base's vocabulary grew.
        parts.model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    else:
        parts.model.save_pretrained(folder)
        parts.tokenizer.save_pretrained(folder)
    if parts.pointer is not None:
        write_pointer(folder, parts.pointer.pretrained, parts.pointer.prepend_bos)
    if isinstance(parts.projection, nn.Linear):
        write_tensors(folder / PROJECTION, {"weight": parts.projection.weight.detach().cpu()})
