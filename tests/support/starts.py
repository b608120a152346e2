"""What a round or a reinforcement starts from, as `open_start` gives it, of tiny models that were never saved."""

from jaxtyping import Float
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor

from saeexplainer.config import ExplainerSettings
from saeexplainer.config.parts import Architecture
from saeexplainer.explainer.explainer import attach
from saeexplainer.explainer.folder import Parts
from saeexplainer.training.start import Start


def started(architecture: Architecture, directions: Float[Tensor, "rows d_in"], config: ExplainerSettings) -> Start:
    """Model and reference with their feature tokens on."""
    model, reference = tiny_model(architecture), tiny_model(architecture)
    hooks = attach(model, tiny_tokenizer(), directions, config)
    attach(reference, tiny_tokenizer(), directions, config)
    return Start(Parts(model, tiny_tokenizer(), None, None, adapted=False), hooks, reference)
