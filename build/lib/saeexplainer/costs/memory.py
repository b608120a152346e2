"""Memory of models at work, in bytes, from their shapes: pure. docs/SCALE.md says what is counted and what is not.

One formula for all stages: weights, gradients and moments of what is trained, what the blocks keep or have at work, the
cache of generation, and logits; an SAE counts likewise.

SAEs, adapters and what is computed from logits are float32, whatever the model's own type is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from saeexplainer.costs.shapes import FLOAT32, Shape, adapter_parameters, matrices, parameters

GIB = 2**30
# Tables of [tokens, latents] that sae-lens' `encode` has at once: before and after the activation function; a JumpReLU
# SAE's mask and the product with it, too.
TOPK, JUMPRELU = 2, 4
ROOM = 2**28  # numbers in one of these tables at most, where texts are read: `saeexplainer.models.batches` has the same
# Bytes a logit while sampling: as it is, scaled, and as a probability; with a nucleus also sorted, with 8-byte places,
# summed up and masked.
PLAIN, NUCLEUS = 12, 40
LOGITS = 2**27  # that TRL computes at once in a step, whatever the vocabulary; of few tokens they are fewer


@dataclass(frozen=True)
class Setup:
    """How a model is held and trained."""

    weight_bytes: int  # 4 is float32, 2 bfloat16; also of what it computes
    lora_rank: int  # of adapters on every linear layer; 0: all weights are trained
    checkpointing: bool  # keeps a block's input alone and computes the block again in the backward pass


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak, by what holds them."""

    weights: int = 0  # of all copies of the model, adapters included
    optimizer: int = 0  # gradients and moments
    activations: int = 0  # what training keeps, or one block at work; logits; tables of activations
    cache: int = 0  # keys and values of generation
    sae: int = 0  # weights of the SAEs, and their moments where they are trained

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))


def largest(phases: Sequence[Memory]) -> Memory:
    """The phase that needs most: phases of a stage follow each other."""
    return max(phases, key=lambda phase: phase.total)


def sae_parameters(width: int, d_sae: int) -> int:
    """Encoder, decoder and both biases."""
    return 2 * width * d_sae + d_sae + width


def held(shape: Shape, setup: Setup) -> int:
    """Bytes of one copy of the weights."""
    return parameters(shape).total * setup.weight_bytes


def working(shape: Shape, setup: Setup, tokens: int) -> int:
    """Bytes of one block that reads `tokens` tokens and keeps nothing: residual twice, the MLP's inner vectors."""
    return tokens * (2 * shape.width + (2 + shape.gated) * shape.intermediate) * setup.weight_bytes


def reading(
    shape: Shape,
    setup: Setup,
    tokens: int,
    loaded: Sequence[int],
    table: int = 0,
    tables: int = TOPK,
    room: int | None = None,
) -> Memory:
    """Residuals of `tokens` tokens at once through SAEs of the widths `loaded`, one after the other, in float32; the
    forward pass ends at the hook. `table` is the number of maxima that are kept, `tables` TOPK or JUMPRELU; `room` is
    what such a table holds at most, where tokens are encoded in several turns."""
    codes = tokens * max(loaded, default=0)
    codes = codes if room is None else min(codes, room)
    encoded = tokens * shape.width * (setup.weight_bytes + FLOAT32) + tables * codes * FLOAT32
    return Memory(
        weights=held(shape, setup),
        activations=max(working(shape, setup, tokens), encoded) + table * FLOAT32,
        sae=sum(sae_parameters(shape.width, d_sae) for d_sae in loaded) * FLOAT32,
    )


def generation(
    shape: Shape, setup: Setup, sequences: int, prompt: int, length: int, loaded: Sequence[int] = (), top_p: float = 1.0
) -> Memory:
    """`sequences` at once from prompts of `prompt` tokens up to `length` tokens in all, SAEs lying beside it."""
    key_values = 2 * shape.layers * shape.kv_heads * shape.head_width
    logits = sequences * shape.vocabulary * (NUCLEUS if top_p < 1 else PLAIN)
    return Memory(
        weights=held(shape, setup),
        activations=max(working(shape, setup, sequences * prompt), logits),
        cache=sequences * length * key_values * setup.weight_bytes,
        sae=sum(sae_parameters(shape.width, d_sae) for d_sae in loaded) * FLOAT32,
    )


def scoring(shape: Shape, setup: Setup, sequences: int, tokens: int) -> Memory:
    """Log-probabilities of `sequences` of `tokens` tokens without a backward pass."""
    read = sequences * tokens
    logits = read * shape.vocabulary * (setup.weight_bytes + FLOAT32)
    return Memory(weights=held(shape, setup), activations=working(shape, setup, read) + logits)


def training(shape: Shape, setup: Setup, tokens: int, copies: int) -> Memory:
    """A step of a trainer of TRL with Adam on `tokens` tokens in all. `copies` are those of all that is trained: the
    policy, and what is kept of it; with LoRA they are the adapter's, and the model is there once."""
    if setup.lora_rank:
        trained, size = adapter_parameters(shape, setup.lora_rank), FLOAT32
        weights = held(shape, setup) + copies * trained * size
    else:
        trained, size = parameters(shape).total, setup.weight_bytes
        weights = copies * trained * size
    return Memory(weights, 3 * trained * size, kept(shape, setup, tokens) + LOGITS * setup.weight_bytes)


def pretraining(shape: Shape, setup: Setup, tokens: int) -> Memory:
    """As `training`, with Muon's one moment for the blocks' matrices and Adam's two for the rest, and with all logits,
    their float32 log-probabilities and the gradient; no copy is kept."""
    found = parameters(shape)
    moments = found.attention + found.mlp + 2 * (found.total - found.attention - found.mlp)
    logits = tokens * shape.vocabulary * (setup.weight_bytes + 2 * FLOAT32)
    return Memory(held(shape, setup), (found.total + moments) * setup.weight_bytes, kept(shape, setup, tokens) + logits)


def kept(shape: Shape, setup: Setup, tokens: int) -> int:
    """Bytes that the blocks keep of `tokens` tokens for the backward pass: what their matrices read and give, and what
    two norms read in float32. With checkpointing each block keeps its input, and one is computed again."""
    size = setup.weight_bytes
    block = sum(inputs + outputs for inputs, outputs in matrices(shape)) * size + 2 * shape.width * FLOAT32
    return tokens * (shape.layers * shape.width * size + block if setup.checkpointing else shape.layers * block)


def sae_training(shape: Shape, setup: Setup, stored: int, batch: int, saes: Sequence[int]) -> Memory:
    """`stored` residuals in float32, twice while they are put together; then one SAE at a time with Adam, on `batch`
    residuals a step."""
    widest = max(saes)
    return Memory(
        weights=held(shape, setup),
        activations=(2 * stored * shape.width + 3 * batch * widest) * FLOAT32,
        sae=4 * sae_parameters(shape.width, widest) * FLOAT32,
    )
