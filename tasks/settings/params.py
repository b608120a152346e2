"""params.yaml to the frozen dataclasses of `saeexplainer.config`, checked: what passes here can run.

Every mistake is one line that names the file, the key, the value and what to change. `tasks.settings.compose` applies
the same checks to conf/, so that a params.yaml that was composed is one that loads.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from saeexplainer.config import Params
from saeexplainer.errors import SHOWN, UserError
from tasks.settings.checks import check
from tasks.settings.misfits import explained

UNREADABLE = (
    yaml.YAMLError, OmegaConfBaseException, ValueError, LookupError, TypeError, AttributeError, RecursionError,
)  # fmt: skip


def load(path: Path = Path("params.yaml")) -> Params:
    """Read, convert and check a parameter file. Raises UserError."""
    try:
        config = OmegaConf.create(_without_aliases(path.read_text(encoding="utf-8"), path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; write it with `sae-explainer compose`") from None
    except UNREADABLE as error:  # YAML's constructors of numbers, times and the like let Python's own errors through
        raise UserError(f"{path}: not YAML ({one_line(error)}); write it with `sae-explainer compose`") from None
    if not isinstance(config, DictConfig):
        raise UserError(f"{path}: holds no mapping of sections; write it with `sae-explainer compose`")
    return build(config, str(path))


def _without_aliases(text: str, path: Path) -> str:
    """The text of a YAML file in which every value stands for itself: a few aliases of aliases would fill the memory.
    Raises UserError on an alias."""
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            place = f"{path}: line {event.start_mark.line + 1}"
            raise UserError(f"{place}: *{event.anchor} stands for what is written elsewhere; write it out here")
    return text


def text(config: DictConfig, source: str) -> str:
    """The text of a parameter file: values and order as they are given, checked. Raises UserError."""
    build(config, source)
    OmegaConf.resolve(config)
    return OmegaConf.to_yaml(config)


def build(config: DictConfig, source: str) -> Params:
    """A plain config to checked dataclasses; `source` is the file that error messages name."""
    try:
        if missing := OmegaConf.missing_keys(config):
            raise UserError(f"{min(missing)}: missing; add it (`saeexplainer/config/__init__.py` says what it means)")
        params = TypeAdapter(Params).validate_python(OmegaConf.to_container(config, resolve=True))
        check(params)
    except OmegaConfBaseException as error:
        place = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{source}: {place}{one_line(error.msg or error)}; correct the value") from None
    except ValidationError as error:
        raise UserError(f"{source}: {explained(error, Params)}") from None
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return params


def leaves(params: Params) -> Iterator[tuple[str, str, Any]]:
    """(full key, field name, value) of every value; an empty list or mapping is a value."""
    return _leaves(asdict(params), "", "")


def _leaves(node: Any, key: str, name: str) -> Iterator[tuple[str, str, Any]]:
    if isinstance(node, dict) and node:
        for child, value in node.items():
            yield from _leaves(value, f"{key}.{child}".removeprefix("."), child)
    elif isinstance(node, list) and node:
        for index, value in enumerate(node):
            yield from _leaves(value, f"{key}[{index}]", name)
    else:
        yield key, name, node


def one_line(error: object) -> str:
    """The beginning of what OmegaConf or YAML says, without where: that the key says."""
    return " ".join(str(error).split("\n    full_key")[0].split())[:SHOWN]
