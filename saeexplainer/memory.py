"""Memory of models at work, in bytes, from their shapes: pure. docs/SCALE.md says what is counted and what is not.

SAEs, adapters and what is computed from logits are float32, whatever the model's own type is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from saeexplainer.shapes import FLOAT32, Shape, adapter_parameters, kept_bytes, parameters

GIB = 2**30


@dataclass(frozen=True)
class Setup:
    """How a model is held and trained."""

    weight_bytes: int  # 4 is float32, 2 bfloat16
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


def reading(shape: Shape, setup: Setup, tokens: int, loaded: Sequence[int], table: int = 0) -> Memory:
    """Residuals of `tokens` tokens at once through SAEs of the widths `loaded`, one after the other; the forward pass
    ends at the hook. `table` is the number of maxima that are kept."""
    codes = 2 * tokens * max(loaded, default=0)  # before and after the activation function
    return Memory(
        weights=held(shape, setup),
        activations=working(shape, setup, tokens) + (codes + table) * FLOAT32,
        sae=sum(sae_parameters(shape.width, d_sae) for d_sae in loaded) * FLOAT32,
    )


def generation(
    shape: Shape, setup: Setup, sequences: int, prompt: int, length: int, loaded: Sequence[int] = ()
) -> Memory:
    """`sequences` at once from prompts of `prompt` tokens up to `length` tokens in all, SAEs lying beside it.

    The logits of the last position are there three times: as they are, scaled, and as probabilities.
    """
    key_values = 2 * shape.layers * shape.kv_heads * shape.head_width
    return Memory(
        weights=held(shape, setup),
        activations=working(shape, setup, sequences * prompt) + 3 * sequences * shape.vocabulary * FLOAT32,
        cache=sequences * length * key_values * setup.weight_bytes,
        sae=sum(sae_parameters(shape.width, d_sae) for d_sae in loaded) * FLOAT32,
    )


def scoring(shape: Shape, setup: Setup, sequences: int, tokens: int) -> Memory:
    """Log-probabilities of `sequences` of `tokens` tokens without a backward pass."""
    read = sequences * tokens
    logits = read * shape.vocabulary * (setup.weight_bytes + FLOAT32)
    return Memory(weights=held(shape, setup), activations=working(shape, setup, read) + logits)


def training(shape: Shape, setup: Setup, sequences: int, tokens: int, copies: int) -> Memory:
    """One step with Adam on `sequences` of `tokens` tokens. `copies` are those of all that is trained: the policy, and
    what is kept of it; with LoRA they are copies of the adapter, and the model is there once."""
    if setup.lora_rank:
        trained, size = adapter_parameters(shape, setup.lora_rank), FLOAT32
        weights = held(shape, setup) + copies * trained * size
    else:
        trained, size = parameters(shape).total, setup.weight_bytes
        weights = copies * trained * size
    return Memory(weights, 3 * trained * size, _kept(shape, setup, sequences, tokens))


def pretraining(shape: Shape, setup: Setup, sequences: int, tokens: int) -> Memory:
    """As `training`, with Muon's one moment for the blocks' matrices and Adam's two for the rest; no copy is kept."""
    found = parameters(shape)
    moments = found.attention + found.mlp + 2 * (found.total - found.attention - found.mlp)
    kept = _kept(shape, setup, sequences, tokens)
    return Memory(held(shape, setup), (found.total + moments) * setup.weight_bytes, kept)


def _kept(shape: Shape, setup: Setup, sequences: int, tokens: int) -> int:
    """Bytes of activations for the backward pass, and of logits, their float32 log-probabilities and the gradient."""
    block = kept_bytes(shape, tokens, setup.weight_bytes)
    inputs = shape.layers * shape.width * setup.weight_bytes
    blocks = inputs + block if setup.checkpointing else shape.layers * block
    logits = shape.vocabulary * (setup.weight_bytes + 2 * FLOAT32)
    return sequences * tokens * (blocks + logits)


def preference_training(shape: Shape, setup: Setup, pairs: int, tokens: int) -> Memory:
    """One DPO step on `pairs` pairs of sequences of `tokens` tokens, or the evaluation between steps, which reads four
    times as many. Copies: policy, reference, the start that the result is compared with, the best checkpoint."""
    copies = 4
    step = training(shape, setup, 2 * pairs, tokens, copies)
    read = scoring(shape, setup, 8 * pairs, tokens)
    return largest([step, Memory(step.weights, step.optimizer, read.activations)])


def sae_training(shape: Shape, setup: Setup, stored: int, batch: int, saes: Sequence[int]) -> Memory:
    """`stored` residuals in float32, twice while they are put together; then one SAE at a time with Adam, on `batch`
    residuals a step."""
    widest = max(saes)
    return Memory(
        weights=held(shape, setup),
        activations=(2 * stored * shape.width + 3 * batch * widest) * FLOAT32,
        sae=4 * sae_parameters(shape.width, widest) * FLOAT32,
    )
