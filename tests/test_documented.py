"""Every command that README, docs/, the experiments and the code's own messages name can be typed as it stands.

A command is read where it is written and put to the program's own parser; overrides are composed. That commands do what
is said of them is tested where each of them is at home.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest
import typer.main
from omegaconf import OmegaConf
from tiny import ROOT

from tasks.cli import main
from tasks.settings import compose, params

PROGRAMS = ("sae-explainer", "python -m tasks", "python -m flows", "dvc", "make", "mlflow", "prefect")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "conf").rglob("*.yaml"))]
HISTORY = "LOG.md"  # what was typed then need not work now
INLINE = re.compile(r"`((?:" + "|".join(PROGRAMS) + r")\b[^`]*)`")
LINE = re.compile(r"^(?:# command: |#\s+labels: |#\s{2,}|\$ )?((?:" + "|".join(PROGRAMS) + r")(?: .*)?)$")


def written(path: Path) -> Iterator[str]:
    """The commands of a page, each on one line."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    if path.suffix == ".md":
        blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        yield from (
            hit[1].replace("\n", " ") for hit in INLINE.finditer(re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
        )
    else:
        lines = text.splitlines()
    yield from (hit[1] for line in lines if (hit := LINE.match(line.strip())))


def split(command: str) -> Iterator[tuple[str, ...]]:
    """The words of each program of a line, without comments."""
    words = shlex.split(command.replace("NAME", "name"), comments=True)
    for joined, part in groupby(words, lambda word: word in ("&&", "|", ";")):
        if not joined:
            yield tuple(part)


COMMANDS = sorted(
    {
        (path.relative_to(ROOT).as_posix(), words)
        for path in PAGES
        if path.name != HISTORY
        for command in written(path)
        for words in split(command)
        if words[0] in {name.split()[0] for name in PROGRAMS}
    }
)


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}"[:120] for page, words in COMMANDS]
)
def test_a_documented_command_can_be_typed(page: str, words: tuple[str, ...]) -> None:
    program, *arguments = words
    CHECKS[program](arguments)


def test_there_are_commands_of_every_program() -> None:
    assert {words[0] for _, words in COMMANDS} == {name.split()[0] for name in PROGRAMS}


def module(arguments: list[str]) -> None:
    name, given = arguments[1], arguments[2:]
    if "<" in name or "*" in name:
        return
    assert (ROOT / f"{name.replace('.', '/')}.py").is_file(), name
    if any(word.startswith("-") for word in given):
        described((sys.executable, "-m", name), given)


def sae_explainer(arguments: list[str]) -> None:
    command, words = typer.main.get_command(main.app), list(arguments)
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    if command.name == "study":  # it hands its words on
        return described((sys.executable, "-m", "tasks.cli.study"), words)
    if words:
        command.make_context(command.name, list(words))
    if command.name in ("compose", "plan"):
        composes([word for word in words if "=" in word and not word.startswith("--")])


def dvc(arguments: list[str]) -> None:
    from dvc.cli import parse_args
    from dvc.cli.parser import DvcParserError

    if "..." in arguments:
        arguments = arguments[: arguments.index("...")]
    try:
        parse_args(arguments)
    except DvcParserError:  # a group that a sentence names, such as `dvc exp`
        with pytest.raises(SystemExit) as ended:
            parse_args([*arguments, "--help"])
        assert ended.value.code == 0 and not any(word.startswith("-") for word in arguments)


def make(arguments: list[str]) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {word for word in arguments if "=" not in word} <= targets
    for word in arguments:
        if word.startswith("WITH=") and "compose" in arguments:
            composes(shlex.split(word.removeprefix("WITH=")))


def mlflow(arguments: list[str]) -> None:
    from click import Context
    from mlflow.cli import cli

    command, words = cli, list(arguments)
    while hasattr(command, "commands"):
        name = words.pop(0)
        command = command.get_command(Context(command), name)  # which knows aliases such as `ui`
    if words:  # else a sentence names the command
        command.make_context(command.name, words)


def prefect(arguments: list[str]) -> None:
    described((str(Path(sys.executable).parent / "prefect"),), arguments)


def described(program: tuple[str, ...], arguments: list[str]) -> None:
    """Its own help knows the sub-commands, and names every option."""
    words = []
    for word in arguments:
        if not re.fullmatch(r"[a-z][a-z-]*", word):
            break
        words.append(word)
    said = help_of(program, tuple(words))
    missing = [word for word in arguments if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in said]
    assert not missing


@cache
def help_of(program: tuple[str, ...], words: tuple[str, ...]) -> str:
    command = [*program, *words, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def built(overrides: tuple[str, ...]) -> None:
    params.build(OmegaConf.create(compose.composed(list(overrides))), "conf")


def composes(overrides: list[str]) -> None:
    built(tuple(word for word in overrides if not word.startswith("...")))


CHECKS = {
    "python": module, "sae-explainer": sae_explainer, "dvc": dvc, "make": make, "mlflow": mlflow, "prefect": prefect,
}  # fmt: skip
