"""What an explainer is asked, and what of it is trained."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from saeexplainer.config.parts import CLOSED, Count, Natural, Positive, ShareBelowOne, Text


@dataclass(frozen=True, config=CLOSED)
class TokensPrompt:
    """The explainer is asked by <explain>, the feature's token, <about>: of a tokenizer made here. Contexts stand
    before <about>, each as <text> and its words up to the strongest; promoted tokens as <example> and the tokens."""

    kind: Literal["tokens"]
    shown_contexts: Natural  # as in AskedPrompt
    shown_words: Natural  # of a context, the strongest the last of them; 0: from its beginning
    shown_spread: Natural  # as in AskedPrompt
    shown_promoted: Natural  # as in AskedPrompt


@dataclass(frozen=True, config=CLOSED)
class AskedPrompt:
    """The explainer is asked in words."""

    kind: Literal["chat", "text"]  # in the user's turn of the tokenizer's chat template; or as a text that it continues
    instruction: Text  # holds {feature}, where the feature's token stands, and {contexts} where anything else is shown
    shown_contexts: Natural  # of the feature's strongest, never one that evaluations ask about; 0: none
    shown_words: Natural  # of a context, the one that holds the strongest token the last of them; 0: the whole context
    shown_spread: Natural  # at equal steps from its strongest to its weakest in a random sample, after these; 0: none
    shown_promoted: Natural  # tokens that its decoder row promotes, a line after the contexts; 0: none


ExplainerPrompt = Annotated[TokensPrompt | AskedPrompt, Field(discriminator="kind")]


def shows_any(prompt: ExplainerPrompt) -> bool:
    """Whether the explainer reads anything beside the vector."""
    return bool(prompt.shown_contexts or prompt.shown_spread or prompt.shown_promoted)


@dataclass(frozen=True, config=CLOSED)
class Adapter:
    """Low-rank weights (LoRA) on every linear layer but the output head; the model itself stays as it is."""

    rank: Count  # of each layer's update
    alpha: Positive  # the update counts alpha / rank times
    dropout: ShareBelowOne  # of the updates' inputs, in supervised training; TRL's DPO switches it off


@dataclass(frozen=True, config=CLOSED)
class Affine:
    """A SelfIE adapter (arXiv 2602.10352): a direction is scaled and shifted into the embedding of the feature's token,
    before any block. One number and one vector are trained, and the model stays as it is."""

    length: Positive  # of the result at first, over the mean length of the model's embeddings


def _kind_of_adapter(given: Any) -> str:
    return "affine" if isinstance(given, Affine) or isinstance(given, dict) and "length" in given else "lora"


AnyAdapter = Annotated[
    Annotated[Adapter, Tag("lora")] | Annotated[Affine, Tag("affine")], Discriminator(_kind_of_adapter)
]
