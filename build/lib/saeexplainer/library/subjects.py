"""A language model and an SAE of it, pretrained or made here, opened for reading and writing."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saeexplainer.errors import UserError
from saeexplainer.features.measuring import Feature, measure
from saeexplainer.models import blocks, loading, stream, tokenizers
from saeexplainer.saes import loading as saes_loading
from saeexplainer.saes.reading import Reader
from saeexplainer.saes.sites import Site, site_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sae_lens import SAE

CONTEXT = 128  # tokens of a text that are read where the caller does not say how many


@dataclass(frozen=True)
class Subject:
    """A model and one SAE that reads it."""

    name: str  # first part of the ids of its features
    sae_name: str  # second part, and the SAE's name in the reader
    reader: Reader  # model, tokenizer and the SAE
    site: Site  # where the SAE reads the model
    release: str | None  # of sae-lens, if the SAE is of one
    sae_id: str | None  # in the release

    @property
    def sae(self) -> "SAE":
        """sae-lens' object, ready to encode what the model has at the SAE's site."""
        return self.reader.saes[self.sae_name]


def open_subject(
    model: Path | str,
    sae: Path | str,
    *,
    revision: str | None = None,
    sae_id: str | None = None,
    context_length: int | None = None,
    prepend_bos: bool | None = None,
    norm_scaling_factor: float | None = None,
    dtype: str = "float32",
    device_map: str | None = None,
    attention: str | None = None,
    name: str | None = None,
    sae_name: str | None = None,
) -> Subject:
    """Open a language model and an SAE of it. Nothing is written, and no code that comes with them is run.

    model: a folder that transformers saved, or a hub id with the commit (40 hex digits) in `revision`.
    sae: a folder that sae-lens saved, or a release that sae-lens knows with the SAE's name in `sae_id`. It says itself
        where it reads the model.
    context_length: tokens of a text that are read, BOS included; the rest is cut. None is 128, or what the model can
        read if that is less.
    prepend_bos: whether texts begin with BOS, for an SAE that does not say how it was trained.
    norm_scaling_factor: sqrt(d_in) over the mean norm of the activations, for an SAE that asks for one and has none.
    dtype, device_map, attention: of the model, as transformers has them; device_map None is the CPU.
    name, sae_name: what feature ids call the two; else the last part of `model`, and `sae_id` or the folder's name.

    Raises UserError, one line, if one of the two is missing or damaged, if they do not fit each other, or if the model
    cannot be read in batches as a subject is.
    """
    loaded = loading.load_model(model, revision, dtype=dtype, device_map=device_map, attention=attention)
    device = str(blocks.device_of(loaded))
    width = loaded.config.get_text_config().hidden_size
    opened = saes_loading.load(sae, width, sae_id=sae_id, device=device, norm_scaling_factor=norm_scaling_factor)
    begins = _begins_with_bos(opened, prepend_bos, sae)
    tokenizer = tokenizers.load_tokenizer(model, revision, prepend_bos=begins)
    if context_length is None:
        context_length = min(CONTEXT, blocks.longest_context(loaded) or CONTEXT)
    blocks.check_context(loaded, context_length, "context_length")
    stream.check(loaded, tokenizer, "model")
    called = sae_name or (sae_id.replace("/", "-") if sae_id else _word(sae))
    site = site_of(opened, loaded)
    reader = Reader(loaded, tokenizer, site, context_length, {called: opened})
    return Subject(name or _word(model), called, reader, site, str(sae) if sae_id else None, sae_id)


def _begins_with_bos(sae: "SAE", asked: bool | None, source: Path | str) -> bool | None:
    """As the SAE was trained; as asked where it does not say. Raises UserError if the two contradict each other."""
    trained = sae.cfg.metadata.prepend_bos
    if trained is not None and asked is not None and bool(trained) != asked:
        how = "with" if trained else "without"
        raise UserError(f"prepend_bos: is {asked}, but {source} was trained {how} BOS; leave it out")
    return asked if trained is None else bool(trained)


def _word(source: Path | str) -> str:
    """The last part of a path or id as one word."""
    return "-".join(Path(os.path.abspath(source)).name.split())


def measure_features(
    subject: Subject,
    indices: "Sequence[int]",
    texts: "Sequence[str]",
    *,
    contexts: int = 10,
    context_tokens: int = 12,
    direction_contexts: int = 5,
) -> list[Feature]:
    """What some latents of the subject's SAE do on texts, a `Feature` for each of `indices`.

    texts: ordinary text of the kind that the SAE was trained on. The feature's maximum over them is the unit in which
        its activations are counted, so a few thousand are better than a few.
    contexts: how many of its strongest contexts are kept, at most one a text.
    context_tokens: on each side of the strongest token that a context holds.
    direction_contexts: contexts whose strongest tokens make the vector mean_activation.

    A latent that fires on none of the texts has maximum 0.0 and no contexts. Raises UserError if there is no text or no
    such latent.
    """
    return measure(
        subject.reader, subject.sae_name, subject.name, list(indices), list(texts), contexts, context_tokens,
        direction_contexts,
    )  # fmt: skip
