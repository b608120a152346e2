"""What a round or a reinforcement starts from, opened twice: as what is trained, and as the reference it is held to."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from saeexplainer.config import ExplainerSettings
from saeexplainer.explainer.explainer import attach
from saeexplainer.explainer.feature_tokens import FeatureTokens
from saeexplainer.explainer.folder import Parts, open_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Start:
    """An explainer with its feature tokens on it."""

    parts: Parts  # what is trained
    hooks: FeatureTokens  # on its model, to be removed before it is saved
    reference: "PreTrainedModel | None"  # None with LoRA: TRL copies and freezes the adapter


def open_start(folder: Path, directions: Float[Tensor, "rows d_in"], config: ExplainerSettings, noise: float) -> Start:
    """The explainer of a folder. `noise` is on the directions of what is trained alone. Raises UserError."""
    parts, reference = open_parts(folder, trainable=True), None
    hooks = attach(parts.model, parts.tokenizer, directions, config, noise, projection=parts.projection)
    if not parts.adapted:
        first = open_parts(folder)
        reference = first.model
        attach(reference, first.tokenizer, directions, config, projection=first.projection)
    return Start(parts, hooks, reference)
