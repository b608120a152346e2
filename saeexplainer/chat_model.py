"""A local chat model, as a judge and a writer ask it: through its own template, without thinking aloud."""

from functools import lru_cache
from typing import TYPE_CHECKING

from saeexplainer.config import Pretrained
from saeexplainer.errors import UserError
from saeexplainer.models import CHAT, load_pretrained, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@lru_cache(maxsize=1)  # a writer and a judge that are the same model share its weights
def open_chat(pretrained: Pretrained) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    """The model and its tokenizer. Raises UserError if there is none, or if it has no chat template."""
    tokenizer = load_tokenizer(pretrained.source, pretrained.revision)
    if tokenizer.chat_template is None:
        raise UserError(f"{pretrained.source}: its tokenizer has no chat template; name a chat model")
    return load_pretrained(pretrained), tokenizer


def chat_prompt(tokenizer: "PreTrainedTokenizerFast", said: str) -> list[int]:
    """Token ids of a conversation in which the user said this and the model is next."""
    asked = [{"role": "user", "content": said}]
    return tokenizer.apply_chat_template(asked, tokenize=True, return_dict=True, **CHAT)["input_ids"]
