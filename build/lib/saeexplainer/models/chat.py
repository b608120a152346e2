"""A local chat model, as all who ask one ask it: through its own template, without thinking aloud."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

from saeexplainer.config.parts import Pretrained
from saeexplainer.errors import UserError
from saeexplainer.models import replies
from saeexplainer.models.loading import load_pretrained
from saeexplainer.models.tokenizers import CHAT, load_tokenizer, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Who asks the same model as another, such as a writer and a judge, shares its weights for as long as somebody has them.
_OPEN: "WeakValueDictionary[Pretrained, PreTrainedModel]" = WeakValueDictionary()
LAST_IDS = 32  # of a prompt that are looked at for what opens thoughts: no model's is longer, even in bytes


def open_chat(pretrained: Pretrained) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    """The model and its tokenizer. Raises UserError if there is none, or if it has no chat template."""
    tokenizer = load_tokenizer(pretrained.source, pretrained.revision)
    if tokenizer.chat_template is None:
        raise UserError(f"{pretrained.source}: its tokenizer has no chat template; name a chat model")
    model = _OPEN.get(pretrained)
    if model is None:
        model = _OPEN[pretrained] = load_pretrained(pretrained)
    return model, tokenizer


def chat_prompt(tokenizer: "PreTrainedTokenizerFast", said: str) -> list[int]:
    """Token ids of a conversation in which the user said this and the model is next. Where the template has it begin
    with thoughts they are ended at once: a short answer would be cut in them, and yes or no would not come first."""
    asked = [{"role": "user", "content": said}]
    ids = cast("Any", tokenizer.apply_chat_template(asked, tokenize=True, return_dict=True, **CHAT))["input_ids"]
    more = replies.straight_to_the_answer(cast("str", tokenizer.decode(ids[-LAST_IDS:])))
    return ids + tokenizer(more, add_special_tokens=False)["input_ids"] if more else ids


def thought_marks(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """Ids of the special tokens by which the model marks its thoughts: without them they look like its answer."""
    ids = special_ids(tokenizer)
    special = dict(zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True))
    marks = [mark for pair in replies.THOUGHTS for mark in pair]
    if replies.CHANNEL in special:
        marks += replies.HARMONY
    return [special[mark] for mark in marks if mark in special]


def plain(said: str) -> str:
    """The answer in what a model said, without quotation marks around it; "" if it was cut in its thoughts."""
    return replies.unquoted(replies.answer(said))


def silence(texts: Sequence[str], setting: str) -> list[str]:
    """A line about how many of the answers are empty, and what to do about it; none if no one is."""
    empty = sum(not text for text in texts)
    advice = f"if it thinks before it answers, raise {setting}"
    return [f"{empty} of {len(texts)} answers of the chat model are empty or thoughts alone; {advice}"] if empty else []
