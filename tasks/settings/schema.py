"""Parameters as typed records, and every misfit named."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, make_dataclass
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Any, Optional, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from saeexplainer.config import Params
from saeexplainer.errors import UserError


def typed(config: DictConfig, source: str) -> DictConfig:
    """`config` in the shape, types and order of `Params`. Raises UserError on unknown, missing and mistyped keys."""
    try:
        given = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {_explained(error)}") from None
    for complaint in _misfits(given, Params):
        raise UserError(f"{source}: {complaint}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(_schema(Params)), config)
        OmegaConf.resolve(merged)
        missing = sorted(OmegaConf.missing_keys(merged))
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {_explained(error)}") from None
    if missing:
        raise UserError(f"{source}: {missing[0]}: missing; add it (`saeexplainer/config.py` says what it means)")
    assert isinstance(merged, DictConfig)
    return merged


@cache
def _schema(kind: Any) -> Any:
    """`kind` with every dataclass in it thawed: OmegaConf makes frozen ones read-only and cannot merge into them."""
    if is_dataclass(kind):
        return make_dataclass(kind.__name__, [(field.name, _schema(field.type)) for field in fields(kind)])
    if get_origin(kind) is UnionType:
        return Optional[_schema(_given(kind))]
    if get_origin(kind) in (list, dict):
        return get_origin(kind)[tuple(_schema(argument) for argument in get_args(kind))]
    return kind


def frozen(value: Any, kind: Any) -> Any:
    """The way back from `_schema`: the thawed values as instances of the dataclasses of `kind`."""
    if get_origin(kind) is UnionType:
        return None if value is None else frozen(value, _given(kind))
    if is_dataclass(kind):
        return kind(**{field.name: frozen(getattr(value, field.name), field.type) for field in fields(kind)})
    if get_origin(kind) is list:
        return [frozen(element, get_args(kind)[0]) for element in value]
    if get_origin(kind) is dict:
        return {key: frozen(element, get_args(kind)[1]) for key, element in value.items()}
    return value


def _given(kind: Any) -> Any:
    """The X of `X | None`, the one union that settings know."""
    (found,) = set(get_args(kind)) - {NoneType}
    return found


def leaves(node: Any, key: str = "", name: str = "") -> Iterator[tuple[str, str, Any]]:
    """(full key, field name, value) of every value; an empty list or mapping is a value."""
    if is_dataclass(node):
        items = [(f".{field.name}", field.name, getattr(node, field.name)) for field in fields(node)]
    elif isinstance(node, dict):
        items = [(f".{child}", name, value) for child, value in node.items()]
    elif isinstance(node, list) and node:
        items = [(f"[{index}]", name, value) for index, value in enumerate(node)]
    else:
        yield key, name, node
        return
    for suffix, child, value in items:
        yield from leaves(value, (key + suffix).removeprefix("."), child)


def _misfits(node: Any, kind: Any, key: str = "") -> Iterator[str]:
    """Unknown keys, and whatever is wrong inside a list: OmegaConf finds both, but loses their place in a list."""
    if get_origin(kind) is UnionType:
        if node is not None:
            yield from _misfits(node, _given(kind), key)
    elif is_dataclass(kind):
        yield from _misfits_of_mapping(node, kind, key)
    elif get_origin(kind) is dict and isinstance(node, dict):
        for child, value in node.items():
            yield from _misfits(value, get_args(kind)[1], f"{key}.{child}")
    elif get_origin(kind) is list and isinstance(node, list):
        element = get_args(kind)[0]
        for index, value in enumerate(node):
            yield from _misfits(value, element, f"{key}[{index}]")
            if is_dataclass(element) and isinstance(value, dict):
                try:
                    OmegaConf.merge(OmegaConf.structured(_schema(element)), value)
                except OmegaConfBaseException as error:
                    yield f"{key}[{index}].{_explained(error)}"


def _misfits_of_mapping(node: Any, kind: Any, key: str) -> Iterator[str]:
    known = {field.name: field.type for field in fields(kind)}
    if not isinstance(node, dict):
        yield f"{key}: is {node!r}; must be a mapping with {', '.join(known)}"
        return
    for child, value in node.items():
        path = f"{key}.{child}".removeprefix(".")
        if child in known:
            yield from _misfits(value, known[child], path)
        else:
            close = get_close_matches(str(child), known, n=1)
            yield f"{path}: unknown key; {f'did you mean {close[0]}?' if close else 'known here: ' + ', '.join(known)}"


def _explained(error: OmegaConfBaseException) -> str:
    place = f"{error.full_key}: " if error.full_key else ""
    return f"{place}{one_line(error.msg or error)}; correct the value"


def one_line(error: object) -> str:
    return " ".join(str(error).split("\n    full_key")[0].split())
