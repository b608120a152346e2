"""params.yaml to the frozen dataclasses of `saeexplainer.config`, checked: what passes here can run.

Every mistake is one line that names the file, the key, the value and what to change. `tasks.settings.compose` applies the same
checks to conf/, so that a params.yaml that was composed is one that loads.
"""

from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from saeexplainer.config import Params
from saeexplainer.errors import UserError
from tasks.settings.checks import check
from tasks.settings.schema import frozen, one_line, typed


def load(path: Path = Path("params.yaml")) -> Params:
    """Read, convert and check a parameter file. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; write it with `sae-explainer compose`") from None
    try:
        config = OmegaConf.create(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML ({one_line(error)}); write it with `sae-explainer compose`") from None
    if not isinstance(config, DictConfig):
        raise UserError(f"{path}: holds no mapping of sections; write it with `sae-explainer compose`")
    return build(config, str(path))


def text(config: DictConfig, source: str) -> str:
    """The text of a parameter file: values and order as they are given, checked. Raises UserError."""
    build(config, source)
    OmegaConf.resolve(config)
    return OmegaConf.to_yaml(config)


def build(config: DictConfig, source: str) -> Params:
    """A plain config to checked dataclasses; `source` is the file that error messages name."""
    params = frozen(OmegaConf.to_object(typed(config, source)), Params)
    try:
        check(params)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return params
