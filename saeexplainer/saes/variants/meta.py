"""SAEs whose decoder rows are hard to rebuild from a few directions, against latents that blend (arXiv 2604.03436).

    L = L_TopK + weight * mean_i exp(-|w_i - w'_i|^2)

w_i is decoder row i at unit length and w'_i what a small SAE makes of it, constant in this term. The small one is
trained on the rows as they are: five of its steps after every ten.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.registry import register_sae_training_class
from sae_lens.saes.sae import SAEConfig, TrainStepInput
from sae_lens.saes.topk_sae import TopKSAEConfig
from torch import Tensor

from saeexplainer.config.saes import Meta

EVERY, OWN_STEPS = 10, 5  # steps of the SAE after which the small one has its own
LEARNING_RATE = 1e-3  # of the small one, Adam


@dataclass
class MetaConfig(TopKTrainingSAEConfig):
    """Of a TopK SAE, and of the small one."""

    weight: float = 0.3
    meta_latents: int = 1
    meta_k: int = 8

    @classmethod
    def architecture(cls) -> str:
        return "meta"

    def get_inference_config_class(self) -> type[SAEConfig]:
        """A TopK SAE, as any."""
        return TopKSAEConfig


class MetaSae(TopKTrainingSAE):
    """A TopK SAE in training beside a small SAE of its decoder rows."""

    cfg: MetaConfig  # ty: ignore[incompatible-mutable-override] (as sae-lens does it)

    def __init__(self, cfg: MetaConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        small = BatchTopKTrainingSAEConfig(d_in=cfg.d_in, d_sae=cfg.meta_latents, k=float(cfg.meta_k))
        # Not a submodule: it is no part of the SAE, neither for its optimizer nor for its folder.
        self.__dict__["small"] = BatchTopKTrainingSAE(small)
        self._optimizer = torch.optim.Adam(self.small.parameters(), lr=LEARNING_RATE)

    small: BatchTopKTrainingSAE

    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """TopK's own, and how well the small one rebuilds the rows."""
        if step_input.n_training_steps % EVERY == 0:
            self._learn_rows()
        losses = super().calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)
        rows = unit(self.W_dec)
        with torch.no_grad():
            rebuilt = self.small.decode(self.small.encode(rows))
        return {**losses, "meta_loss": self.cfg.weight * predictability(rows, rebuilt)}

    def _learn_rows(self) -> None:
        rows = unit(self.W_dec.detach())
        for _ in range(OWN_STEPS):
            self._optimizer.zero_grad()
            (self.small.decode(self.small.encode(rows)) - rows).square().sum(dim=1).mean().backward()
            self._optimizer.step()


def unit(rows: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_in"]:
    """Each row at length 1."""
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-8)


def predictability(rows: Float[Tensor, "d_sae d_in"], rebuilt: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, ""]:
    """1 if every row is rebuilt, near 0 if none is."""
    return torch.exp(-(rows - rebuilt).square().sum(dim=1)).mean()


register_sae_training_class("meta", MetaSae, MetaConfig)


def new(settings: Meta, shape: dict[str, Any]) -> MetaSae:
    """To train; `shape` as in `opening.training_sae`."""
    latents = round(settings.meta_share * shape["d_sae"])
    return MetaSae(
        MetaConfig(**shape, k=settings.k, weight=settings.weight, meta_latents=latents, meta_k=settings.meta_k)
    )
