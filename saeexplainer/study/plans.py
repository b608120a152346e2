"""The plans of experiments, files of conf/: which variants there are, and what each of them is.

conf/study.yaml says what an entry may hold.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from saeexplainer.errors import UserError
from saeexplainer.study.figures import SEEDS

STUDY = Path(".study")  # where variants run, in the working folder


@dataclass(frozen=True)
class VariantSpec:
    """One entry of a plan, what it extends worked in."""

    plan: str  # the file of conf/ that it stands in
    name: str  # its folder under that of the plan
    group: str  # section of the report
    overrides: list[str]  # of tasks.settings.compose
    source: str | None  # `from`: the variant that is brought up to date before it
    until: str | None  # the last stage; None is all

    @property
    def folder(self) -> Path:
        """Where it runs."""
        return STUDY / self.plan / self.name

    @property
    def log(self) -> Path:
        """What its stages print."""
        return self.folder.with_suffix(".log")

    @property
    def wish(self) -> dict[str, Any]:
        """What its results depend on, as far as the plan says."""
        return {"overrides": self.overrides, "until": self.until}


def load_specs(path: Path) -> tuple[list[VariantSpec], int]:
    """The variants, in the file's order, and the number of bootstrap resamples. Raises UserError."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries, resamples = document["variants"].items(), int(document["resamples"])
        everywhere = document.get("overrides", [])
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: must hold `resamples` and a mapping `variants` ({error})") from None
    specs: dict[str, VariantSpec] = {}
    everywhere = _overrides(everywhere, f"{path}: overrides")
    for name, entry in entries:
        specs[name] = _spec(path, str(name), entry, specs, everywhere)
    return list(specs.values()), resamples


def _overrides(given: Any, place: str) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(override, str) for override in given):
        raise UserError(f"{place}: is {given!r}; must be a list of texts (quote what holds a colon)")
    return given


def _spec(path: Path, name: str, entry: Any, above: dict[str, VariantSpec], everywhere: list[str]) -> VariantSpec:
    place = f"{path}: variants.{name}"
    known = ("group", "overrides", "from", "until", "extends")
    if not re.fullmatch(r"[a-z0-9_]+", name):
        raise UserError(f"{place}: use small letters, digits and _: it names a folder")
    if not isinstance(entry, dict) or (set(entry) - set(known)):
        raise UserError(f"{place}: is {entry!r}; must be a mapping of {', '.join(known)}")
    for key in ("from", "extends"):
        if entry.get(key) is not None and entry[key] not in above:
            raise UserError(f"{place}.{key}: is {entry[key]!r}; must be a variant above: {', '.join(above) or 'none'}")
    overrides = _overrides(entry.get("overrides", []), f"{place}.overrides")
    base = above.get(entry.get("extends"))
    group = entry.get("group", base and base.group)
    if not group:
        raise UserError(f"{place}.group: missing; add it, such as {SEEDS}")
    return VariantSpec(
        plan=path.stem,
        name=name,
        group=group,
        overrides=[*(base.overrides if base else everywhere), *overrides],
        source=entry.get("from", base and base.source),
        until=entry.get("until", base and base.until),
    )


def chosen(specs: Sequence[VariantSpec], only: Sequence[str]) -> list[VariantSpec]:
    """The variants to run, by their own or their group's name, with those that they come `from`. Raises UserError."""
    names = {spec.name for spec in specs}
    groups = list(dict.fromkeys(spec.group for spec in specs))
    for name in only:
        if name not in names and name not in groups:
            raise UserError(f"--only {name}: no such variant or group; choose from {', '.join([*groups, *names])}")
    wanted = {spec.name for spec in specs if not only or {spec.name, spec.group} & set(only)}
    for spec in reversed(specs):  # sources stand above
        if spec.name in wanted and spec.source:
            wanted.add(spec.source)
    return [spec for spec in specs if spec.name in wanted]


def changes(spec: VariantSpec, specs: Sequence[VariantSpec]) -> list[str]:
    """The overrides that a variant has and the one it comes from has not; none if it comes from no other."""
    sources = [candidate.overrides for candidate in specs if candidate.name == spec.source]
    return [override for theirs in sources for override in spec.overrides if override not in theirs]
