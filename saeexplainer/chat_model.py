"""A local chat model, as judges, writers and labellers ask it: through its own template, without thinking aloud."""

from functools import lru_cache
from typing import TYPE_CHECKING

from saeexplainer.config import Pretrained
from saeexplainer.errors import UserError
from saeexplainer.models import CHAT, load_pretrained, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

THINKS, THOUGHT = "<think>", "</think>"  # around what a model that thinks aloud says before its answer
QUOTES = ('""', "\u201c\u201d", "''")


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


def plain(answer: str) -> str:
    """An answer without what was thought before it, finished or not, and without quotation marks around it."""
    text = answer.rpartition(THOUGHT)[2].partition(THINKS)[0].strip()
    for first, last in QUOTES:
        if len(text) > 1 and text.startswith(first) and text.endswith(last):
            return text[1:-1].strip()
    return text
