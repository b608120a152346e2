"""What directions do to the subject's output, for the tokens that they promote."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer.config import Params
from saeexplainer.config.parts import Promotion
from saeexplainer.errors import UserError
from saeexplainer.features import promoted
from tasks.beginnings import beginnings

if TYPE_CHECKING:
    from saeexplainer.saes.reading import Reader

BEGINNINGS, TOKENS = 4, 6  # how many directions are added to, and their length; evaluations steer others


def effects(
    params: Params, reader: "Reader", directions: Float[Tensor, "rows d_model"]
) -> Iterator[Float[Tensor, "some vocabulary"]]:
    """As `features.promoted` takes them, by `extract_activations.promoted_by`. Raises UserError if the documents are
    too short for it."""
    if params.extract_activations.promoted_by is Promotion.lens:
        return promoted.by_lens(reader.model, directions)
    found = beginnings(params, reader.tokenizer, "clamping", BEGINNINGS, TOKENS)
    if len(found) < BEGINNINGS:
        raise UserError(
            f"extract_activations.promoted_by: is clamp, but only {len(found)} documents are longer than {TOKENS} "
            f"tokens, and it takes {BEGINNINGS}; say lens"
        )
    return promoted.by_clamp(reader, torch.tensor(found), directions)
