"""Reading what SAEs read: a subject, its tokenizer, one site of it, and SAEs on that site, as one object.

Activations leave the model in its own dtype, wherever it lies; SAEs compute in float32 beside the model's first part.
With the subject on the CPU in float32 neither changes anything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saeexplainer.errors import UserError
from saeexplainer.models.batches import by_length, encode_batch, fitting
from saeexplainer.models.blocks import device_of
from saeexplainer.models.pointer import open_model, open_tokenizer
from saeexplainer.models.tokenizers import starts_with_bos
from saeexplainer.saes import loading
from saeexplainer.saes.sites import Site, SiteReader

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class ReadBatch:
    """Some texts, and the activations at the site."""

    ids: Int[Tensor, "batch tokens"]  # right-padded; these three on the CPU
    mask: Int[Tensor, "batch tokens"]  # 0 at padding
    valid: Bool[Tensor, "batch tokens"]  # false at every special token
    activations: Float[Tensor, "batch tokens d_model"]  # float32, on the SAEs' device; special tokens included

    @property
    def of_valid(self) -> Float[Tensor, "valid_tokens d_model"]:
        """Activations of the tokens that count, in order."""
        return self.activations[self.valid.to(self.activations.device)]


class Reader:
    """One site of one subject, and SAEs on it."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerFast",
        site: Site,
        context_length: int,
        saes: "dict[str, SAE] | None" = None,
    ) -> None:
        """`saes` by name, on `device_of(model)`. Raises UserError if the model has no such site."""
        self.model, self.tokenizer, self.context_length = model, tokenizer, context_length
        self.site = SiteReader(model, site)
        self.device = device_of(model)
        self.saes = saes or {}

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.model.config.hidden_size

    @property
    def begins_with_bos(self) -> bool:
        """Whether every text does."""
        return starts_with_bos(self.tokenizer)

    def batches(self, texts: Sequence[str], most: int) -> list[list[int]]:
        """Indices of texts to read together, at most so many; longest first."""
        return list(by_length([len(text) for text in texts], fitting(most, self.context_length * self.width)))

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> ReadBatch:
        """Run texts through the subject up to the site; they are cut at `context_length` tokens."""
        ids, mask, valid = encode_batch(self.tokenizer, texts, self.context_length)
        found = self.site(ids, mask).to(self.device, torch.float32)
        return ReadBatch(ids, mask, valid, found)

    def activations(self, texts: Sequence[str]) -> Iterator[Float[Tensor, "valid_tokens d_model"]]:
        """Activations of the valid tokens, batch by batch, in an order that depends on the texts alone; on the CPU."""
        from tqdm.auto import tqdm

        for indices in tqdm(self.batches(texts, 128), desc="residual stream"):
            yield self.read([texts[index] for index in indices]).of_valid.cpu()


def open_reader(subject: Path, saes: Path, names: Sequence[str], context_length: int, *, whole: bool = True) -> Reader:
    """Open the pipeline's subject and the named ones of its SAEs, which all read one site (`prepare_sae`).

    whole: false leaves the blocks behind the site out, with which the subject cannot write. Raises UserError if
    something is missing or does not fit.
    """
    site = stored_site(saes)
    model = open_model(subject, blocks=None if whole else site.blocks)
    reader = Reader(model, open_tokenizer(subject), site, context_length)
    reader.saes = {name: loading.load(saes / name, reader.width, device=str(reader.device)) for name in names}
    return reader


def stored_site(saes: Path) -> Site:
    """The site that the SAEs of a folder of folders read. Raises UserError if there is none."""
    found = min(saes.glob("*/cfg.json"), default=None)
    if found is None:
        raise UserError(f"{saes}: no SAE in it; run `dvc repro` to make them")
    return loading.stored_site(found.parent)
