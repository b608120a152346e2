"""A feature's strongest contexts as people and models read them: a line each, the strongest token between << and >>;
and one more for the tokens that it promotes.

The explainer's prompt shows them, and labellers and the agent are asked about them.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

from saeexplainer.records import ContextRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


PROMOTES = "promotes: "  # begins the line that says what a feature does to the output


def listed(contexts: Iterable[ContextRow], count: int) -> dict[str, str]:
    """The lines of each feature that has any, by id: its `count` strongest contexts, the strongest first."""
    lines: dict[str, list[str]] = defaultdict(list)
    for context in sorted(contexts, key=lambda context: context.rank):
        if context.rank < count:
            lines[context.feature_id].append(line_of(context))
    return {feature_id: "\n".join(found) for feature_id, found in lines.items()}


def line_of(context: ContextRow) -> str:
    """A context on a line of its own."""
    return f"- {marked(context.text, context.tokens, context.peak)}"


def at_equal_steps(contexts: Iterable[ContextRow], count: int) -> list[ContextRow]:
    """So many of these contexts, from the one in which the feature fires hardest to the one in which it does least, at
    equal steps of their order; all where there are no more."""
    falling = sorted(contexts, key=lambda context: -context.activations[context.peak])
    if len(falling) <= count:
        return falling
    step = (len(falling) - 1) / max(count - 1, 1)
    return [falling[round(at * step)] for at in range(count)]


def promotes(tokens: Sequence[str]) -> str:
    """The line of the tokens that a direction promotes."""
    return f"{PROMOTES}{', '.join(map(one_line, tokens))}"


def without_special(text: str, tokenizer: "PreTrainedTokenizerFast") -> str:
    """The text without names of special tokens: in a conversation they must not end the turn that they stand in."""
    from saeexplainer.models.tokenizers import special_ids

    names = "|".join(
        re.escape(cast("str", tokenizer.convert_ids_to_tokens(number))) for number in special_ids(tokenizer)
    )
    before = None
    while text != before:  # what is left may be a name again
        before, text = text, re.sub(names, "", text)
    return text


def marked(text: str, tokens: Sequence[str], peak: int) -> str:
    """A text on one line, with one of its tokens between << and >>."""
    end = 0
    for token in tokens[: peak + 1]:
        # A character of several tokens is the text of each of them: it is found once.
        end = max(end, text.find(token, end) + len(token))
    core = tokens[peak].strip()
    start = max(0, end - len(tokens[peak].lstrip()))
    return one_line(f"{text[:start]}<<{core}>>{text[start + len(core) :]}")


def leading(line: str, words: int) -> str:
    """Of a line as `listed` has it: its last `words` words up to the strongest token, which ends it; 0: all. Of one
    that `promotes` has, its tokens."""
    if line.startswith(PROMOTES):
        return line.removeprefix(PROMOTES).replace(", ", " ")
    before, _, after = line.removeprefix("- ").rpartition("<<")
    return " ".join(f"{before}{after.partition('>>')[0]}".split()[-words:])


def shortened(line: str, words: int) -> str:
    """A line as `listed` has it with its last `words` words alone, up to the end of the one in which the strongest
    token stands, still marked; 0: the whole line. A line that `promotes` has stays as it is."""
    if not words or line.startswith(PROMOTES):
        return line
    before, mark, after = line.removeprefix("- ").rpartition("<<")
    strongest, closing, rest = after.partition(">>")
    kept = f"{before}{mark}{strongest}{closing}{rest.partition(' ')[0]}".split(" ")
    return f"- {' '.join(kept[-words - strongest.count(' ') :])}"  # a token may be several words


def one_line(text: str) -> str:
    """The text with single spaces alone."""
    return " ".join(text.split())
