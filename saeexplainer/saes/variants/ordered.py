"""Ordered SAEs: TopK with nested dropout on single latents (arXiv 2512.02194).

Every step draws one place and sets all latents from there on to zero before decoding, so that the first latents learn
what matters most and the order means something. The place is drawn from a piecewise uniform distribution: a group of
latents at random, then a place in it. The first group is smaller than the others, which are of one size. k falls from
twice its value to its value over the first half of training.
"""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.registry import register_sae_training_class
from sae_lens.saes.sae import SAEConfig, TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import TopK, TopKSAEConfig
from torch import Tensor

from saeexplainer.config.saes import Ordered


@dataclass
class OrderedConfig(TopKTrainingSAEConfig):
    """Of a TopK SAE, and how latents are cut off."""

    groups: int = 5
    first_share: float = 0.125
    steps: int = 1  # of the whole training

    @classmethod
    def architecture(cls) -> str:
        return "ordered"

    def get_inference_config_class(self) -> type[SAEConfig]:
        """A TopK SAE, as any."""
        return TopKSAEConfig


class OrderedSae(TopKTrainingSAE):
    """A TopK SAE in training, cut off at another place in every step."""

    cfg: OrderedConfig  # ty: ignore[incompatible-mutable-override] (as sae-lens does it)

    def __init__(self, cfg: OrderedConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.kept = cfg.d_sae  # latents before the cut

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One batch with a cut of its own."""
        k = k_at(step_input.n_training_steps, self.cfg.steps, self.cfg.k, self.cfg.d_sae)
        self.activation_fn = TopK(k, use_sparse_activations=False)
        self.kept = draw_cut(self.cfg.d_sae, self.cfg.groups, self.cfg.first_share)
        return super().training_forward_pass(step_input)

    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, zero from the cut on, and what they were before the activation function."""
        codes, hidden = super().encode_with_hidden_pre(x)
        return torch.where(torch.arange(self.cfg.d_sae, device=codes.device) < self.kept, codes, 0.0), hidden


def k_at(step: int, steps: int, k: int, most: int) -> int:
    """Active latents a token in a step, counted from 0."""
    left = max(0.0, 1.0 - 2.0 * step / steps)
    return min(most, round(k * (1.0 + left)))


def group_ends(latents: int, groups: int, first_share: float) -> list[int]:
    """Where groups end: the first has a share of the latents, the others are of one size up to rounding."""
    first = first_share if groups > 1 else 1.0
    rest = (1.0 - first) / max(groups - 1, 1)
    return [max(1, round(latents * (first + rest * at))) for at in range(groups)]


def draw_cut(latents: int, groups: int, first_share: float) -> int:
    """How many latents are kept, at least one: uniform in a group that torch's generator draws."""
    ends = [0, *group_ends(latents, groups, first_share)]
    group = int(torch.randint(groups, ()))
    return int(torch.randint(ends[group], max(ends[group + 1], ends[group] + 1), ())) + 1


register_sae_training_class("ordered", OrderedSae, OrderedConfig)


def new(settings: Ordered, steps: int, shape: dict[str, Any]) -> OrderedSae:
    """To train; `shape` as in `opening.training_sae`."""
    return OrderedSae(
        OrderedConfig(**shape, k=settings.k, groups=settings.groups, first_share=settings.first_share, steps=steps)
    )
