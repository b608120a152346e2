"""A few features of an SAE: their activations and what they write, with no more of the SAE than that takes.

Scoring asks about some hundred features of an SAE that may have a hundred thousand. Where a feature's activation
depends on its own column alone (standard, JumpReLU, gated; BatchTopK and Matryoshka SAEs, which sae-lens stores as
JumpReLU), the others are left out. In a TopK SAE all features compete for k places, so it encodes whole.
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
    few: "SAE"  # of the same architecture, with these features alone
    whole: "SAE | None"  # what encodes where the other features decide too

    @property
    def encoded(self) -> int:
        """How many features `encode` computes for a token."""
        return (self.few if self.whole is None else self.whole).cfg.d_sae

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch features"]:
        """Activations, in activation units: what the whole SAE's `encode` has in these columns."""
        if self.whole is None:
            return self.few.encode(x)
        return self.whole.encode(x)[..., list(self.features)]

    @property
    def directions(self) -> Float[Tensor, "features d_model"]:
        """What one unit of each feature adds to the reconstruction: its decoder row as `decode` scales it.

        Of an SAE that normalises each token, in the units of the normalised token (`token_scale`).
        """
        units = torch.eye(len(self.features), dtype=self.few.W_dec.dtype, device=self.few.W_dec.device)
        return (self.few.decode(units) - self.few.decode(torch.zeros_like(units[:1]))).detach()

    def token_scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"] | None:
        """What the reconstruction of each token is multiplied by in the end; None where tokens are not normalised."""
        how = self.few.cfg.normalize_activations
        if how == "layer_norm":
            return x.std(dim=-1, keepdim=True)
        if how == "constant_norm_rescale":
            return x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return None


def decoder_rows(sae: "SAE") -> Float[Tensor, "d_sae d_model"]:
    """What each feature writes, on the CPU."""
    return sae.W_dec.detach().cpu()


@torch.no_grad()
def take_columns(sae: "SAE", features: Sequence[int]) -> Columns:
    """Keep some features, any of them more than once if asked. Raises UserError if there is no such feature."""
    for feature in features:
        if not 0 <= feature < sae.cfg.d_sae:
            raise UserError(
                f"feature: {feature}, but the SAE has features 0 to {sae.cfg.d_sae - 1}; choose one of them"
            )
    at = torch.tensor(features, dtype=torch.long, device=sae.W_dec.device)
    kept = {name: _part(name, tensor, at) for name, tensor in sae.state_dict().items()}
    config = deepcopy(sae.cfg)
    config.d_sae = len(features)
    with torch.random.fork_rng():  # a new SAE draws weights, which are then replaced
        few = type(sae)(config)
    few.load_state_dict(kept, assign=True)
    few.run_time_activation_norm_fn_out = lambda x: x  # it would ask for the last token that was encoded
    whole = None if sae.cfg.architecture() in INDEPENDENT else sae
    return Columns(tuple(features), few.eval(), whole)


def _part(name: str, tensor: Tensor, at: Tensor) -> Tensor:
    """What a parameter of an SAE holds for some features: all but b_dec have a row or a column a feature."""
    if name == "b_dec":
        return tensor.clone()
    return tensor.index_select(1 if name == "W_enc" else 0, at)
