"""SAEs with p-annealing (arXiv 2408.00113).

    L = |x - x'| + c * sum_i f_i^p, means over a batch

The norm is not squared. p is 1 in the first half of training and falls to its last value in ten equal steps over the
second half. At each of these c is multiplied by the ratio of the penalties at the old and the new p, means over the
last ten batches, so that the penalty goes on where it was.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.registry import register_sae_training_class
from sae_lens.saes.sae import SAEConfig, TrainStepInput, TrainStepOutput
from sae_lens.saes.standard_sae import StandardSAEConfig
from torch import Tensor

from saeexplainer.config.saes import PAnneal

FALLS, REMEMBERED = 10, 10  # steps in which p falls; batches by which c follows it


@dataclass
class PAnnealConfig(StandardTrainingSAEConfig):
    """Of a standard SAE, and how p falls."""

    last_p: float = 0.2
    steps: int = 1  # of the whole training

    @classmethod
    def architecture(cls) -> str:
        return "p_anneal"

    def get_inference_config_class(self) -> type[SAEConfig]:
        """A standard SAE, as any."""
        return StandardSAEConfig


class PAnnealSae(StandardTrainingSAE):
    """An SAE in training whose penalty changes."""

    cfg: PAnnealConfig  # ty: ignore[incompatible-mutable-override] (as sae-lens does it)

    def __init__(self, cfg: PAnnealConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        self.p, self.scale = 1.0, 1.0  # c is scale times its coefficient
        self._recent: deque[Float[Tensor, "batch d_sae"]] = deque(maxlen=REMEMBERED)

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """One batch; p falls before it if it is time."""
        wanted = p_at(step_input.n_training_steps, self.cfg.steps, self.cfg.last_p)
        if wanted != self.p and self._recent:
            before, after = (sum(float(penalty(codes, p)) for codes in self._recent) for p in (self.p, wanted))
            self.scale *= before / after if after else 1.0
        self.p = wanted
        codes, hidden = self.encode_with_hidden_pre(step_input.sae_in)
        rebuilt = self.decode(codes)
        self._recent.append(codes.detach())
        losses = {
            "norm_loss": (rebuilt - step_input.sae_in).norm(dim=-1).mean(),
            "p_loss": step_input.coefficients["l1"] * self.scale * penalty(codes, self.p),
        }
        return TrainStepOutput(
            step_input.sae_in, rebuilt, codes, hidden, loss=losses["norm_loss"] + losses["p_loss"],
            losses=losses | {"mse_loss": (rebuilt - step_input.sae_in).square().sum(dim=-1).mean().detach()},
        )  # fmt: skip


def p_at(step: int, steps: int, last: float) -> float:
    """p in a step, counted from 0."""
    half = steps / 2
    fallen = 0 if step < half else min(FALLS, 1 + int((step - half) / (half / FALLS)))
    return 1.0 - (1.0 - last) * fallen / FALLS


def penalty(codes: Float[Tensor, "batch d_sae"], p: float) -> Float[Tensor, ""]:
    """Mean over a batch of the sum of p-th powers; a latent that is off adds nothing, and no gradient either, which
    would be infinite there."""
    active = codes > 0
    return torch.where(active, torch.where(active, codes, 1.0) ** p, 0.0).sum(dim=-1).mean()


register_sae_training_class("p_anneal", PAnnealSae, PAnnealConfig)


def new(settings: PAnneal, steps: int, warm_up: int, shape: dict[str, Any]) -> PAnnealSae:
    """To train; `shape` as in `opening.training_sae`."""
    return PAnnealSae(
        PAnnealConfig(
            **shape, l1_coefficient=settings.coefficient, l1_warm_up_steps=warm_up, last_p=settings.last_p, steps=steps
        )
    )
