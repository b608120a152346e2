"""Gated SAEs as published (arXiv 2404.16014): the loss that trains the gates does not train the decoder.

    L = |x - x'|^2 + c * sum_i gate_i |w_i| + |x - x'_gate|^2, decoder constant in the last two terms

sae-lens 6 trains the decoder through both. Published rows have unit length; here, where they are free, a penalty that
reached them would make them short, and nothing in the last term would hold them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.registry import register_sae_training_class
from sae_lens.saes.gated_sae import GatedSAEConfig
from sae_lens.saes.sae import SAEConfig, TrainStepInput
from torch import Tensor

from saeexplainer.config.saes import Gated


@dataclass
class DetachedGatedConfig(GatedTrainingSAEConfig):
    """As sae-lens has it, under a name of its own."""

    @classmethod
    def architecture(cls) -> str:
        return "detached_gated"

    def get_inference_config_class(self) -> type[SAEConfig]:
        """A gated SAE, as any."""
        return GatedSAEConfig


class DetachedGatedSae(GatedTrainingSAE):
    """A gated SAE in training."""

    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        """The penalty of the gates, and how badly they rebuild the input through a constant decoder."""
        centred = step_input.sae_in - self.b_dec * self.cfg.apply_b_dec_to_input
        gates = torch.relu(centred @ self.W_enc + self.b_gate)
        penalty = (gates * self.W_dec.detach().norm(dim=1)).sum(dim=-1).mean()
        rebuilt = gates @ self.W_dec.detach() + self.b_dec.detach()
        return {
            "l1_loss": step_input.coefficients["l1"] * penalty,
            "auxiliary_reconstruction_loss": (rebuilt - step_input.sae_in).square().sum(dim=-1).mean(),
        }


register_sae_training_class("detached_gated", DetachedGatedSae, DetachedGatedConfig)


def new(settings: Gated, warm_up: int, shape: dict[str, Any]) -> DetachedGatedSae:
    """To train; `shape` as in `opening.training_sae`."""
    config = DetachedGatedConfig(**shape, l1_coefficient=settings.coefficient, l1_warm_up_steps=warm_up)
    return DetachedGatedSae(config)
