"""The size of a language model, without loading it: parameters and adapters, from its config.json.

A `Shape` holds what decides the size. `shape_of` reads it from the keys of a transformers config, so that a model's own
config.json is all that is asked for. Counts are exact; the tests compare them with transformers' own models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saeexplainer.config import PrepareSubject
from saeexplainer.config.parts import Architecture
from saeexplainer.errors import UserError, first_line

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Shape:
    """What decides the size of a decoder-only language model."""

    layers: int  # transformer blocks
    width: int  # of the residual stream
    heads: int  # query heads a block
    kv_heads: int  # key and value heads a block
    head_width: int  # of one head; heads times it may differ from the width
    intermediate: int  # inner width of the MLP
    vocabulary: int  # rows of the embedding
    positions: int  # rows of learned position embeddings; 0 with rotary ones
    tied: bool  # the output head is the embedding
    gated: bool = True  # the MLP has three matrices; else two
    layer_norm: bool = False  # norms with a bias, and biases on every matrix; else RMS norms and none
    fused_qkv: bool = False  # query, key and value are one matrix, which one LoRA adapter serves
    head_norms: bool = False  # RMS norms on queries and keys
    post_norms: bool = False  # further norms behind attention and MLP


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights by part."""

    embedding: int
    positions: int
    attention: int  # biases and head norms included
    mlp: int  # biases included
    norms: int  # of the blocks, and the last one
    head: int  # 0 where it is tied to the embedding

    @property
    def total(self) -> int:
        """All weights."""
        return self.embedding + self.positions + self.attention + self.mlp + self.norms + self.head


# transformers' model_type to what its config does not say.
FAMILIES: dict[str, dict[str, bool]] = {
    "llama": {},
    "mistral": {},
    "qwen3": {"head_norms": True},
    "gemma2": {"post_norms": True},
    "gpt2": {"gated": False, "layer_norm": True, "fused_qkv": True},
}
# What a config.json leaves out when it is the family's default.
_TIED = {"gemma2", "gpt2"}
_HEAD_WIDTH = {"gemma2": 256, "qwen3": 128}


def shape_of(config: Mapping[str, Any], source: str) -> Shape:
    """The shape that a transformers config describes; `source` is what error messages name.

    Raises UserError for a family that is not known here, or a key that is missing.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(f"{source}: model_type is {family!r}; sizes are known for {', '.join(FAMILIES)}")
    try:
        known = _gpt2(config) if family == "gpt2" else _rotary(config, family)
    except KeyError as error:
        raise UserError(f"{source}: {error.args[0]}: missing; add it as in the model's config.json") from None
    except (TypeError, ArithmeticError) as error:
        raise UserError(f"{source}: its sizes make no model ({first_line(error)}); correct them") from None
    wrong = next((name for name, value in known.items() if not isinstance(value, int) or value < 0), None)
    if wrong:
        raise UserError(f"{source}: {wrong} is {known[wrong]!r}; must be a whole number from 0 on")
    return Shape(**known, tied=bool(config.get("tie_word_embeddings", family in _TIED)), **FAMILIES[family])


def _rotary(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    heads, width = config["num_attention_heads"], config["hidden_size"]
    return {
        "layers": config["num_hidden_layers"],
        "width": width,
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_width": config.get("head_dim") or _HEAD_WIDTH.get(family) or width // heads,
        "intermediate": config["intermediate_size"],
        "vocabulary": config["vocab_size"],
        "positions": 0,
    }


def _gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    heads, width = config["n_head"], config["n_embd"]
    return {
        "layers": config["n_layer"],
        "width": width,
        "heads": heads,
        "kv_heads": heads,
        "head_width": width // heads,
        "intermediate": config.get("n_inner") or 4 * width,
        "vocabulary": config["vocab_size"],
        "positions": config["n_positions"],
    }


def trained_config(config: PrepareSubject, vocabulary: int) -> dict[str, int | str | bool]:
    """The config, in transformers' words, of the subject that `saeexplainer.training.subject` builds."""
    if config.architecture is Architecture.gpt2:
        return {
            "model_type": "gpt2", "n_layer": config.blocks, "n_embd": config.d_model, "n_head": config.heads,
            "vocab_size": vocabulary, "n_positions": 2 * config.context_length,
        }  # fmt: skip
    return {
        "model_type": "llama", "num_hidden_layers": config.blocks, "hidden_size": config.d_model,
        "num_attention_heads": config.heads, "intermediate_size": 3 * config.d_model, "vocab_size": vocabulary,
        "tie_word_embeddings": True,
    }  # fmt: skip


def matrices(shape: Shape) -> list[tuple[int, int]]:
    """(inputs, outputs) of every linear layer of one block."""
    width, inner = shape.width, shape.intermediate
    query, key = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    read = [(width, query + 2 * key)] if shape.fused_qkv else [(width, query), (width, key), (width, key)]
    return [*read, (query, width), *[(width, inner)] * (1 + shape.gated), (inner, width)]


def parameters(shape: Shape) -> Parameters:
    """Weights by part."""
    found = [inputs * outputs + shape.layer_norm * outputs for inputs, outputs in matrices(shape)]
    of_mlp = 2 + shape.gated
    head_norms = 2 * shape.head_width * shape.head_norms
    norm = shape.width * (1 + shape.layer_norm)
    embedding = shape.vocabulary * shape.width
    return Parameters(
        embedding=embedding,
        positions=shape.positions * shape.width,
        attention=shape.layers * (sum(found[:-of_mlp]) + head_norms),
        mlp=shape.layers * sum(found[-of_mlp:]),
        norms=shape.layers * (2 + 2 * shape.post_norms) * norm + norm,
        head=0 if shape.tied else embedding,
    )


def adapter_parameters(shape: Shape, rank: int) -> int:
    """Weights of LoRA adapters of that rank on every linear layer of every block."""
    return shape.layers * sum(rank * (inputs + outputs) for inputs, outputs in matrices(shape))
