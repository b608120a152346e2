"""What of a model's reply is its answer, and what JSON lies in an answer. Pure.

`answer` leaves out what a model thinks before it answers, in whatever way the model marks it; local chat models and
served ones are read by it alike. Small models write JSON with a comma too many or a line break inside a string:
`last_json` and `values` take it as it was meant, but never finish what was cut in the middle.
"""

import json
import re
from typing import Any, TypeVar

THOUGHTS = (  # what opens and what closes a model's thoughts; an answer stands behind the last that closes
    ("<think>", "</think>"),  # DeepSeek R1, Qwen3, MiniMax M2 and most others
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1 and others trained on its data
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("Here is my thought process:", "Here is my response:"),  # Granite 3.2
)
CHANNEL = "<|channel|>"  # gpt-oss names before each message whether it thinks or answers
HARMONY = (CHANNEL, "<|message|>", "<|constrain|>", "<|start|>", "<|end|>")  # all of that format
SPOKEN_ALOUD = "<|channel|>final<|message|>"  # what gpt-oss says before an answer
_OPENS = re.compile("|".join(re.escape(opens) for opens, _ in THOUGHTS))
_CLOSES = re.compile("|".join(re.escape(closes) for _, closes in THOUGHTS))
_FINAL = re.compile(r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_MESSAGE_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
# gpt-oss behind a server that drops special tokens: the names of the channels run into the text.
_BARE_CHANNEL, _BARE_FINAL = re.compile("(?:analysis|commentary)(?=[A-Z])"), "assistantfinal"
QUOTES = ('""', "\u201c\u201d", "''")  # what opens and what closes a quotation
MENDABLE = 10_000  # characters; json_repair's time grows with their square where quotation marks are astray
LONGEST = 2**18  # characters of a reply; what loops through more would take minutes to read, and is no answer
_FENCE = re.compile(r"\A```\w*\s*")

Value = TypeVar("Value")


def answer(said: str) -> str:
    """What a model says once it has thought; "" if it was cut before that, or says too much."""
    if len(said) > LONGEST:
        return ""
    text = said.strip().removeprefix("\ufeff").strip()
    ends = [0, *(mark.end() for mark in _CLOSES.finditer(text))]
    if (whole := next(filter(_is_json, (text[end:].strip() for end in ends)), None)) is not None:
        return whole  # marks inside its strings are what it speaks about
    if CHANNEL in text:
        _, *finals = _FINAL.split(text)
        return _MESSAGE_END.split(finals[-1])[0].strip() if finals else ""
    if _BARE_CHANNEL.match(text):
        return text.partition(_BARE_FINAL)[2].strip()
    return _OPENS.split(text[ends[-1] :].strip())[0].strip()


def unquoted(text: str) -> str:
    """The text without quotation marks around it."""
    for first, last in QUOTES:
        if len(text) > 1 and text.startswith(first) and text.endswith(last):
            return text[1:-1].strip()
    return text


def straight_to_the_answer(prompt: str) -> str:
    """What to put behind a prompt that leaves the model about to think, so that it answers instead; "" for others."""
    end = prompt.rstrip()
    for opens, closes in THOUGHTS:
        if end.endswith(opens):
            return f"\n\n{closes}\n\n"
    return SPOKEN_ALOUD if end.endswith("<|start|>assistant") else ""


def _unfenced(text: str) -> str:
    """What stands in a fence of code, if that is all of the text."""
    return _FENCE.sub("", text.strip()).removesuffix("```").rstrip()


def ends_whole(text: str) -> bool:
    """Whether JSON closes at the end of the text, so that nothing of it was cut."""
    return _unfenced(text).endswith(("}", "]"))


def last_json(text: str, name: str, kind: type[Value]) -> Value | None:
    """What of that kind stands under `name` in the last JSON object of a text that has it; prose and code fences are
    left out, and small slips are mended where no object is right."""
    found = _last(text, name, kind)
    return _mended(text, name, kind) if found is None else found


def values(text: str, name: str, count: int) -> list[Any] | None:
    """At least `count` values under `name`, such as texts; None if there are fewer. Each may lie in an object of its
    own under the singular of the name, and a list that is all of the text needs no name. A list that had to be mended
    counts only if it has as many: a quotation mark that was misread makes others."""
    found = _last(text, name, list)
    if found is None and isinstance(alone := _parsed(_unfenced(text)), list):
        found = alone
    if found is None:
        found = _mended(text, name, list)
        found = found if found is not None and len(found) == count else None
    if found is None or len(found) < count:
        return None
    return [_unpacked(value, name.removesuffix("s")) for value in found]


def _last(text: str, name: str, kind: type[Value]) -> Value | None:
    """None also where a further one begins and cannot be read: what stands before it was a draft."""
    decoder = json.JSONDecoder(strict=False)  # line breaks may stand in strings
    found, at, behind = None, 0, 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
            value = _whole_characters(value)
        except ValueError:
            value, end = {}, at
        except RecursionError:  # it would come again at every bracket
            return None
        if isinstance(value.get(name), kind):
            found, at, behind = value[name], end, end
        else:
            at += 1  # it may lie deeper
    return None if re.search(rf"\{{\s*[\"']{name}[\"']\s*:", text[behind:]) else found


def _mended(text: str, name: str, kind: type[Value]) -> Value | None:
    """The same of an object with slips, if its end is there: what was cut is no answer, and is not made up."""
    import json_repair

    closing = "]" if kind is list else r"[\"'\u201d]"
    *_, place = [0, *(hit.start() for hit in re.finditer(rf"\b{name}\b", text))]
    start, end = text.rfind("{", 0, place), text.rfind("}") + 1
    if start < 0 or end - start > MENDABLE or not re.search(rf"{closing}[\s,]*\}}\Z", text[:end]):
        return None
    try:
        value = _whole_characters(json_repair.loads(text[start:end]))
    except (ValueError, RecursionError):
        return None
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, kind) else None


def _unpacked(value: Any, singular: str) -> Any:
    """A value that lies in an object: under its name, or alone there."""
    if not isinstance(value, dict):
        return value
    alone = next(iter(value.values())) if len(value) == 1 else value
    return value.get(singular, alone)


def _is_json(text: str) -> bool:
    return isinstance(_parsed(_unfenced(text)), dict | list)


def _parsed(text: str) -> Any:
    """The JSON that a text is; None if it is none."""
    try:
        return _whole_characters(json.loads(text, strict=False))
    except (ValueError, RecursionError):
        return None


def _whole_characters(value: Any) -> Any:
    """Without lone surrogates: they are valid JSON, and no text that a tokenizer, a file or another request takes."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
