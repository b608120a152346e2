"""A few features of an SAE alone: their encoder columns and decoder rows, without the others' weights.

Scoring asks about some hundred features of an SAE that may have a hundred thousand. Where a feature's activation
depends on its own column alone (standard, JumpReLU, gated; BatchTopK and Matryoshka SAEs, which sae-lens stores as
JumpReLU), the others can be left out. In a TopK SAE all features compete for k places, so every column is needed.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer.errors import UserError

if TYPE_CHECKING:
    from sae_lens import SAE

INDEPENDENT = ("standard", "jumprelu", "gated")


@dataclass(frozen=True)
class Columns:
    """Some features of an SAE, read as the whole SAE reads them."""

    features: tuple[int, ...]  # their numbers in the whole SAE, in the order of the activations
    sae: "SAE"  # of the same architecture, with these features alone

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch features"]:
        """Activations, in activation units: what the whole SAE's `encode` has in these columns."""
        return self.sae.encode(x)

    @property
    def directions(self) -> Float[Tensor, "features d_model"]:
        """Decoder rows."""
        return self.sae.W_dec.detach()


@torch.no_grad()
def take_columns(sae: "SAE", features: Sequence[int]) -> Columns:
    """Keep some features. Raises UserError if the others decide about them, or if there is no such feature."""
    architecture = sae.cfg.architecture()
    if architecture not in INDEPENDENT:
        raise UserError(
            f"architecture: in a {architecture} SAE all features compete, so no few can be read alone; read it whole"
        )
    for feature in features:
        if not 0 <= feature < sae.cfg.d_sae:
            raise UserError(
                f"feature: {feature}, but the SAE has features 0 to {sae.cfg.d_sae - 1}; choose one of them"
            )
    at = torch.tensor(features, device=sae.W_dec.device)
    kept = {name: _part(name, tensor, at) for name, tensor in sae.state_dict().items()}
    config = deepcopy(sae.cfg)
    config.d_sae = len(features)
    smaller = type(sae)(config)
    smaller.load_state_dict(kept, assign=True)
    return Columns(tuple(features), smaller.eval())


def _part(name: str, tensor: Tensor, at: Tensor) -> Tensor:
    """What a parameter of an SAE holds for some features: all but b_dec have a row or a column a feature."""
    if name == "b_dec":
        return tensor.clone()
    return tensor.index_select(1 if name == "W_enc" else 0, at)
