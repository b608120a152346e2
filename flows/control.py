"""conf/control.yaml: when stages run under Prefect and what they may take; a workspace's own comes first."""

import os
import re
import urllib.parse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

FLOWS = ("pipeline", "check", "evaluation")
CONTROL = Path("conf/control.yaml")
REPOSITORY = Path(__file__).resolve().parent.parent
SECTIONS = ("limits", "retries", "deployments", "ui")  # that the file must have
RETRIES = ("attempts", "seconds")
SCHEDULE = ("flow", "cron", "timezone", "parameters", "tags")  # what an entry of `deployments` may hold


class ControlError(Exception):
    """The file is wrong; the message is one line that names it, the key and the value."""


@dataclass(frozen=True)
class Deployed:
    """One entry of `deployments`."""

    name: str  # Prefect's, after the flow's: pipeline/nightly
    flow: str  # one of FLOWS
    cron: str | None  # five fields; None is no schedule
    timezone: str  # of the cron line, such as UTC or Europe/Berlin
    parameters: dict[str, Any]  # of the flow; what is left out keeps its default
    tags: list[str]  # Prefect's, by which its pages filter deployments and their runs


@dataclass(frozen=True)
class Ports:
    """Where `make ui` listens on this machine."""

    prefect: int  # server and pages
    mlflow: int  # MLflow's pages
    reports: int  # the files under reports/


@dataclass(frozen=True)
class Control:
    """The whole file."""

    limits: dict[str, float]  # minutes that a stage may take, by its name in dvc.yaml, and `default`
    attempts: int  # further ones at a stage that may pass
    retry_seconds: float  # before each
    deployments: list[Deployed]
    notify: str | None  # the environment variable with the webhook that hears of failed scheduled runs; None is none
    ports: Ports

    def limit(self, stage: str) -> tuple[str, float]:
        """The key and the minutes of a stage's limit; `stage` as DVC writes it: train_dpo@r1."""
        name = stage.partition("@")[0]
        key = next(key for key in (stage, name, "default") if key in self.limits)
        return f"limits.{key}", self.limits[key]

    def webhook(self) -> str | None:
        """The address that `notify` stands for. Raises ControlError if the variable has none; does not repeat it."""
        if self.notify is None:
            return None
        place, address = f"{CONTROL}: notify: {self.notify}", os.environ.get(self.notify, "").strip()
        if not address:
            raise ControlError(
                f"{place}: the environment has no such variable; export it with the webhook's address, or set notify "
                "to null"
            )
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ControlError(
                f"{place}: the variable holds no address of a webhook; it must start with http:// or https://"
            )
        return address


def load(folder: Path = Path()) -> Control:
    """Read the file and check it. Raises ControlError."""
    path = folder / CONTROL if (folder / CONTROL).is_file() else REPOSITORY / CONTROL
    place = str(CONTROL)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ControlError(f"{place}: cannot be read ({' '.join(str(error).split())})") from None
    sections = _mapping(place, document, (*SECTIONS, "notify"), SECTIONS)
    limits = _mapping(f"{place}: limits", sections["limits"], None)
    if "default" not in limits:
        raise ControlError(f"{place}: limits.default: missing; give the minutes for stages that have no line")
    retries = _mapping(f"{place}: retries", sections["retries"], RETRIES, RETRIES)
    known = tuple(field.name for field in fields(Ports))
    ports = _mapping(f"{place}: ui", sections["ui"], known, known)
    deployments = _mapping(f"{place}: deployments", sections["deployments"], None)
    return Control(
        limits={key: _number(f"{place}: limits.{key}", value, 0.001) for key, value in limits.items()},
        attempts=int(_number(f"{place}: retries.attempts", retries["attempts"])),
        retry_seconds=_number(f"{place}: retries.seconds", retries["seconds"]),
        deployments=[_deployed(f"{place}: deployments.{name}", name, entry) for name, entry in deployments.items()],
        notify=_variable(f"{place}: notify", sections.get("notify")),
        ports=Ports(**{name: port(f"{place}: ui.{name}", ports[name]) for name in known}),
    )


def port(place: str, value: Any) -> int:
    """A TCP port. Raises ControlError, which `place` opens."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if not 1 <= number <= 65535:
        raise ControlError(f"{place}: is {value!r}; must be a port from 1 to 65535")
    return number


def _deployed(place: str, name: Any, entry: Any) -> Deployed:
    entry = _mapping(place, entry, SCHEDULE)
    if not re.fullmatch(r"[a-z0-9-]+", str(name)):
        raise ControlError(f"{place}: use small letters, digits and - in its name")
    if entry.get("flow") not in FLOWS:
        raise ControlError(f"{place}.flow: is {entry.get('flow')!r}; choose from {', '.join(FLOWS)}")
    timezone = str(entry.get("timezone") or "UTC")
    _check_cron(place, entry.get("cron"), timezone)
    parameters = _mapping(f"{place}.parameters", entry.get("parameters") or {}, None)
    tags = _tags(f"{place}.tags", entry.get("tags") or [])
    return Deployed(str(name), entry["flow"], entry.get("cron"), timezone, parameters, tags)


def _tags(place: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(tag, str) and tag.strip() for tag in value):
        raise ControlError(f"{place}: is {value!r}; must be a list of texts such as [training, scheduled]")
    return value


def _variable(place: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ControlError(  # which does not repeat the value: an address often holds a token
            f"{place}: must be null or the name of an environment variable that holds the webhook's address, such as "
            "SAE_EXPLAINER_WEBHOOK; the address itself does not belong into this file"
        )
    return value


def _check_cron(place: str, cron: Any, timezone: str) -> None:
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        if cron is not None:
            CronSchedule(cron=cron, timezone=timezone)
    except (ValidationError, ValueError) as error:
        wrong = {str(one["loc"][0]) for one in error.errors()} if isinstance(error, ValidationError) else {"cron"}
        if wrong == {"timezone"}:
            raise ControlError(f"{place}.timezone: is {timezone!r}; must be one such as UTC or Europe/Berlin") from None
        raise ControlError(
            f"{place}.cron: is {cron!r}, which does not parse; give five fields (minute, hour, day of month, month, "
            'weekday) such as "0 2 * * *", or null'
        ) from None


def _mapping(place: str, value: Any, known: tuple[str, ...] | None, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """A mapping with no keys but the known ones, and all of those that are needed. Raises ControlError."""
    if not isinstance(value, dict):
        raise ControlError(f"{place}: is {value!r}; must be a mapping" + (f" of {', '.join(known)}" if known else ""))
    for key in value if known else ():
        if key not in known:
            raise ControlError(f"{place}: {key}: unknown key; known here: {', '.join(known)}")
    for key in needed:
        if key not in value:
            raise ControlError(f"{place}: {key}: missing; add it as the repository's {CONTROL} has it")
    return value


def _number(place: str, value: Any, least: float = 0) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
        raise ControlError(f"{place}: is {value!r}; must be a number of at least {least:g}")
    return float(value)
