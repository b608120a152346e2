"""What pydantic found wrong with settings, as one line: the key, its value, and what it must be."""

import re
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import Tag, ValidationError

UNKNOWN = "unexpected_keyword_argument"
MAY_HOLD_A_KEY = "endpoint"  # a section whose texts are not repeated

SHOWN = 100  # characters of a wrong value that a message repeats
LARGEST = 1024  # bits of a number that is written out


def explained(error: ValidationError, kind: type) -> str:
    """The first mistake in settings of `kind`; an unknown key comes before the missing one that it was meant for."""
    first = min(error.errors(include_url=False), key=lambda one: one["type"] != UNKNOWN)
    key, record = _place(kind, first["loc"])
    match first["type"]:
        case "unexpected_keyword_argument":
            return f"{key}: unknown key; {_advice(str(first['loc'][-1]), [field.name for field in fields(record)])}"
        case "missing":
            return f"{key}: missing; add it (`saeexplainer/config/__init__.py` says what it means)"
        case "union_tag_invalid":
            return f"{key}.kind: is {first['ctx']['tag']!r}; must be one of {first['ctx']['expected_tags']}"
        case "union_tag_not_found" if isinstance(first["input"], dict):
            return f"{key}.kind: missing; it says which other keys there are (`saeexplainer/config/parts.py`)"
        case "union_tag_not_found" | "model_attributes_type" | "dataclass_type":
            return f"{key}: {_shown(key, first['input'])}must be a mapping"
    said = re.sub(r"^(Value error, must|(Input|String|List|Dictionary) should)", "must", first["msg"])
    return f"{key}: {_shown(key, first['input'])}{said}"


def _advice(name: str, known: list[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"


def _shown(key: str, value: Any) -> str:
    hidden = isinstance(value, str) and MAY_HOLD_A_KEY in key.split(".")
    if hidden or isinstance(value, dict | list):
        return ""
    long = isinstance(value, int) and value.bit_length() > LARGEST  # Python itself refuses to write thousands of digits
    return f"is {'too large' if long else repr(value)[:SHOWN]}; "


def _place(kind: Any, loc: tuple[str | int, ...]) -> tuple[str, Any]:
    """(key, record): what `loc` is called in the file, where no tag of a union stands, and the record that holds it."""
    key, record = "", kind
    for part in loc:
        choices = _choices(kind)
        if len(choices) > 1:
            kind = choices[part]
        elif part != "[key]":  # pydantic's word for a key of a mapping, whose name stands before it
            key = f"{key}[{part}]" if isinstance(part, int) else f"{key}.{part}".removeprefix(".")
            (kind,) = choices.values()
            if is_dataclass(kind):
                record, kind = kind, get_type_hints(kind, include_extras=True).get(part)
            else:
                kind = get_args(kind)[-1]
    return key, record


def _choices(kind: Any) -> dict[Any, Any]:
    """The types that a value may have, by the tag that tells them apart."""
    if get_origin(kind) is Annotated:
        inner, *notes = get_args(kind)
        tags = [note.tag for note in notes if isinstance(note, Tag)]
        return {tags[0]: inner} if tags else _choices(inner)
    if get_origin(kind) in (Union, UnionType):
        return {tag: one for part in get_args(kind) if part is not NoneType for tag, one in _choices(part).items()}
    return {get_args(get_type_hints(kind)["kind"])[0] if _is_told_apart(kind) else None: kind}


def _is_told_apart(kind: Any) -> bool:
    return is_dataclass(kind) and bool(get_args(get_type_hints(kind).get("kind")))
