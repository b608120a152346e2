"""Write params.yaml from conf/: `sae-explainer compose [experiment=pydoc] [any.key=value ...] [--output FILE]`.

With --keep the file that is there is changed instead: its experiment and all that was overridden before stay, and only
what the overrides name is another.

conf/ is the source, params.yaml the committed result that DVC tracks. Overrides are Hydra's: `experiment=NAME` picks a
file of conf/experiment, `size=nano` another choice of a group, `train_sft.epochs=3` a value, `+rounds.r3={...}` adds.
What does not compose or does not pass `tasks.settings.params` is one line on stderr, and the file stays as it was.

`dvc exp run -S OVERRIDE` composes the same conf/ by itself (.dvc/config) and writes params.yaml too. What is written
here is the same, byte for byte (values and order as Hydra has them, no comment), so neither changes the other's work.
"""

import argparse
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import saeexplainer
from saeexplainer.errors import UserError
from saeexplainer.runs.storage import replacing
from tasks.settings import params
from tasks.workspace import surroundings
from tasks.workspace.printable import failed

CONF = Path(saeexplainer.__file__).resolve().parent.parent / "conf"
CONFIG = CONF / "config.yaml"  # whose defaults name the rest
STAGES = CONF / "stages"  # every default; what else is a folder there is a group
OPEN = ("request", "rounds", "evaluations")  # sections that hold entries of any name


def composed(overrides: list[str]) -> str:
    """The text of params.yaml under these overrides, checked. Raises UserError."""
    return params.text(_compose(CONFIG, overrides, "conf"), "conf")


def changed(file: Path, overrides: list[str]) -> str:
    """The text of a parameter file with these overrides on top of what it holds, checked. Raises UserError."""
    params.load(file)
    for override in overrides:
        key = override.partition("=")[0].lstrip("+")
        if key and (CONF / key).is_dir():
            raise UserError(
                f"--keep: {key} picks a file of conf/{key}, from which {file} is written anew; leave --keep out"
            )
    return params.text(_compose(file.resolve(), overrides, str(file)), str(file))


def keys_of(override: str) -> list[Any]:
    """The keys of the mapping that an override gives, as Hydra reads them: one that looks like a number is none."""
    return list(OverridesParser.create().parse_override(override).value())


def _compose(file: Path, overrides: list[str], source: str) -> DictConfig:
    """A YAML file and what its defaults name, under overrides. Raises UserError, which begins with `source`."""
    try:
        with initialize_config_dir(config_dir=str(file.parent), version_base=None):
            return compose(file.stem, overrides)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = Path(mark.name).relative_to(CONF.parent) if mark and Path(mark.name).is_relative_to(CONF) else source
        raise UserError(
            f"{place}: line {mark.line + 1 if mark else 1}: not YAML ({error.problem}); correct it"
        ) from None
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
        # ValueError of a choice that is no text, RecursionError of brackets in brackets
        raise UserError(_explained(error, overrides, source)) from None


def _explained(error: Exception, overrides: list[str], source: str) -> str:
    for override in overrides:
        key, _, value = override.partition("=")
        group = CONF / key.lstrip("+")
        if group != CONF and group.is_dir() and not (group / f"{value}.yaml").is_file():
            known = sorted(path.stem for path in group.glob("*.yaml"))
            return f"conf/{group.name}: {value!r} is unknown; choose from {', '.join(known)}"
    message = params.one_line(error)
    for override in overrides:
        key, given, value = override.partition("=")
        if given and f"'{key}'" in message:
            known = _known()
            if any(one == key or one.startswith(f"{key}.") for one in known):
                return f"{source}: {key}: has other keys than {value}; replace it whole: ~{key} '+{override}'"
            return f"{source}: {key}: unknown key; {_advice(key, known)}"
    return f"{source}: {message}; correct the override"


def _known() -> list[str]:
    """Every key of the default."""
    return [leaf for leaf, _, _ in params.leaves(params.build(_compose(CONFIG, [], "conf"), "conf"))]


def _advice(key: str, known: list[str]) -> str:
    section, _, name = key.rpartition(".")
    if name in OPEN:
        return f"to add an entry write +{key}.NAME=..."
    if section.rpartition(".")[2] in OPEN:
        return f"to add it write +{key}=..."
    if choices := _choices_with(key):
        return f"it comes with {', '.join(choices)}: choose one"
    groups = [path.name for path in CONF.iterdir() if path.is_dir() and path != STAGES]
    close = get_close_matches(key, known + groups, n=1)
    return f"did you mean {close[0]}?" if close else f"to add a new entry write +{key}=..."


def _choices_with(key: str) -> list[str]:
    """The choices of groups that bring a key which the default lacks; experiments make such choices."""
    paths = [path for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name not in (STAGES.name, "experiment")]
    return [f"{path.parent.name}={path.stem}" for path in paths if _holds(yaml.safe_load(path.read_text("utf-8")), key)]


def _holds(settings: Any, key: str) -> bool:
    for name in key.split("."):
        if not isinstance(settings, dict) or name not in settings:
            return False
        settings = settings[name]
    return True


def main(arguments: list[str] | None = None) -> int:
    """Compose, check, write; the exit status."""
    surroundings.settle()
    parser = argparse.ArgumentParser(prog="sae-explainer compose", description="Write params.yaml from conf/.")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as experiment=pydoc or train_sft.epochs=3")
    parser.add_argument("--output", type=Path, default=Path("params.yaml"), metavar="FILE")
    parser.add_argument("--keep", action="store_true", help="change FILE as it is, instead of writing it anew")
    options = parser.parse_intermixed_args(arguments)
    try:
        text = changed(options.output, options.overrides) if options.keep else composed(options.overrides)
        with replacing(options.output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except UserError as error:
        return failed(f"{error}; {options.output} is untouched")
    print(f"{options.output}: written; `dvc repro` runs it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
