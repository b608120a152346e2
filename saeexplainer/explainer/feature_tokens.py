"""Feature tokens: how an SAE feature enters an unmodified language model.

Token ids from the base vocabulary's size upward stand for rows of a table of directions. A hook before the embedding
turns such an id into the placeholder's; a hook after one block adds the row's direction at those positions:

    h <- h + scale * ||h|| * v / ||v||          (docs/METHOD.md section 2)

added, not replaced; norm-matched; neither v nor the norm carries a gradient. Where the model is of another width than
v, v is a linear map of the direction, and the map alone is trained through it. A SelfIE adapter (arXiv 2602.10352)
embeds the token anew instead, before any block, and trains nothing else:

    a * scale * v / ||v|| + b

Because the direction travels as a token id, batching, left padding, `generate`, the KV cache and TRL's trainers work
untouched: a cached decode step holds no feature id, so nothing is added there.
"""

from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saeexplainer.models.blocks import check_block, embedding_of, text_config, transformer_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


PROJECTION = "feature_projection"  # the model's submodule of that name, as long as the hooks are on it


def first_feature_id(model: nn.Module, tokenizer: "PreTrainedTokenizerFast") -> int:
    """The first id that is neither a row of the embedding nor a token: some models pad the one, some lack the other."""
    return max(len(embedding_of(model)), len(tokenizer))


def new_projection(from_width: int, to_width: int, seed: int) -> nn.Linear:
    """A map from the subject's residual stream to the explainer's: at first orthogonal, so that angles (of the wider
    one's subspace) are kept."""
    projection = nn.Linear(from_width, to_width, bias=False)
    nn.init.orthogonal_(projection.weight, generator=torch.Generator().manual_seed(seed))
    return projection


class AffineMap(nn.Module):
    """What a SelfIE adapter trains: the number a and the vector b."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.in_features = width
        self.scale = nn.Parameter(torch.tensor(scale))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, direction: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The embedding in place of a feature's token."""
        return self.scale * direction + self.bias


def new_affine_map(model: nn.Module, scale: float) -> AffineMap:
    """A map whose results are at first `scale` times as long as the model's embeddings are on average."""
    embedding = embedding_of(model).detach().float()
    return AffineMap(embedding.shape[1], scale * float(embedding.norm(dim=1).mean()))


class FeatureTokens:
    """The hooks on one model. Use one set a model; `remove` takes them off again.

    rows: number of feature tokens; `first_id + row` is the token id of a row of `directions`.
    """

    def __init__(
        self,
        model: nn.Module,
        directions: Float[Tensor, "rows d_in"],
        *,
        first_id: int,
        placeholder_id: int,
        block: int,
        scale: float,
        noise: float = 0.0,
        projection: nn.Linear | AffineMap | None = None,
    ) -> None:
        """Attach to `model`. Noise is relative gaussian noise on the direction, where there is training: in training
        mode, but not in the forward pass of a reference that is the same model. A projection becomes part of the model,
        so that a trainer of the model trains it too, unless it is frozen.

        Raises UserError if the model has no such block, ValueError if what is added would have another width.
        """
        check_block(model, block, "explainer.injection_block")
        width = text_config(model).hidden_size
        if directions.shape[1] != (width if projection is None else projection.in_features):
            raise ValueError(f"directions have width {directions.shape[1]}, the explainer {width}")
        self.first_id = first_id
        directions = directions.detach()
        self.directions = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-8)
        self.placeholder_id = placeholder_id
        self.scale = scale
        self.noise = noise
        self._model = model
        self._projection = projection
        embedding = cast("PreTrainedModel", model).get_input_embeddings()
        changed = embedding if isinstance(projection, AffineMap) else transformer_blocks(model)[block]
        if projection is not None:
            model.add_module(PROJECTION, projection.to(next(changed.parameters()).device))
        self._rows: Int[Tensor, "batch tokens"] | None = None
        self._handles = [
            embedding.register_forward_pre_hook(self._read_ids),
            changed.register_forward_hook(self._inject),
        ]

    def remove(self) -> None:
        """Take the hooks off the model, and the projection."""
        for handle in self._handles:
            handle.remove()
        if self._projection is not None:
            delattr(self._model, PROJECTION)

    def _read_ids(self, _module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        ids = inputs[0]
        is_feature = ids >= self.first_id
        if not is_feature.any():
            self._rows = None
            return inputs
        self._rows = torch.where(is_feature, ids - self.first_id, -1)
        return (torch.where(is_feature, self.placeholder_id, ids),)

    def _inject(self, _module: nn.Module, _inputs: object, output: Any) -> Any:
        if self._rows is None:
            return output
        residual = output[0] if isinstance(output, tuple) else output
        rows = self._rows.to(residual.device)
        # A fresh tensor: an in-place write into the residual would break the backward pass.
        residual = self._changed(residual, self._units(rows), (rows >= 0).unsqueeze(-1))
        return (residual, *output[1:]) if isinstance(output, tuple) else residual

    def _units(self, rows: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens d_in"]:
        """The directions of a batch, of unit length; any where there is no feature."""
        self.directions = self.directions.to(rows.device)
        unit = self.directions[rows.clamp_min(0)]
        if self.noise and self._model.training and torch.is_grad_enabled():
            unit = unit + torch.randn_like(unit) * self.noise
            unit = unit / unit.norm(dim=-1, keepdim=True)
        return unit

    def _changed(
        self,
        residual: Float[Tensor, "batch tokens d_model"],
        unit: Float[Tensor, "batch tokens d_in"],
        here: Bool[Tensor, "batch tokens 1"],
    ) -> Float[Tensor, "batch tokens d_model"]:
        if isinstance(self._projection, AffineMap):
            return torch.where(here, self._projection(self.scale * unit).to(residual.dtype), residual)
        if self._projection is not None:
            unit = self._projection(unit).float()
            unit = unit / unit.norm(dim=-1, keepdim=True).clamp_min(1e-8)
        added = self.scale * residual.detach().float().norm(dim=-1, keepdim=True) * unit
        return residual + torch.where(here, added, 0.0).to(residual.dtype)
