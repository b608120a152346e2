"""What DVC knows of this workspace: its stages in order, which of them are stale."""

from dataclasses import dataclass
from pathlib import Path

import networkx
import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo


class StageFailed(Exception):
    """A stage or the plan failed; the message is one line that says what to change."""

    def __init__(self, message: str, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass  # whether the same again can succeed


@dataclass(frozen=True)
class Step:
    """One stage of the plan."""

    stage: str  # DVC's name: train_dpo@r1
    round: str | None  # the preference round whose sub-flow it belongs to

    @property
    def label(self) -> str:
        """The task run's name: train_dpo[r1]."""
        name, _, item = self.stage.partition("@")
        return f"{name}[{item}]" if item else name


def plan(until: str | None = None, rounds: int | None = None) -> list[Step]:
    """The stages of this folder's dvc.yaml in topological order, ties as the file has them.

    `until` keeps a stage and what it needs; the name of a repeated stage (`train_dpo`) stands for all its items.
    `rounds` keeps that many of the first preference rounds, and no stage that needs a later one.
    Raises StageFailed if there is no such stage or round, or no pipeline to read.
    """
    try:
        with Repo() as repo:
            stages = [stage.addressing for stage in repo.index.stages]
            needs = networkx.relabel_nodes(repo.index.graph, lambda stage: stage.addressing)
    except DvcException as error:
        raise StageFailed(" ".join(str(error).split())) from None
    of_rounds = _repeated_over_rounds()
    round_of = {stage: stage.partition("@")[2] if stage.partition("@")[0] in of_rounds else None for stage in stages}
    if rounds is not None:
        later = _later_rounds(rounds, [name for name in dict.fromkeys(round_of.values()) if name])
        out = {stage for stage in stages if round_of[stage] in later}
        needs = needs.subgraph(set(stages) - out.union(*(networkx.ancestors(needs, stage) for stage in out)))
    if until is not None:
        wanted = [stage for stage in needs if until in (stage, stage.partition("@")[0])]
        if not wanted:
            known = [stage for stage in stages if stage in needs]
            raise StageFailed(f"--until {until}: no such stage; choose from {', '.join(known)}")
        needs = needs.subgraph(set(wanted).union(*(networkx.descendants(needs, stage) for stage in wanted)))
    order = networkx.lexicographical_topological_sort(needs.reverse(), key=stages.index)
    return [Step(stage, round_of[stage]) for stage in order]


def _later_rounds(rounds: int, names: list[str]) -> list[str]:
    if not 1 <= rounds <= len(names):
        raise StageFailed(
            f"rounds: is {rounds}; params.yaml has {len(names)} ({', '.join(names)}): give 1 to {len(names)}, or add "
            "one with overrides such as '+rounds.r3={start: r2, beta: 0.15, learning_rate: 3e-4}'"
        )
    return names[rounds:]


def _repeated_over_rounds() -> set[str]:
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return {name for name, stage in stages.items() if stage.get("foreach") == "${rounds}"}


def is_unchanged(stage: str) -> bool:
    """Whether `dvc repro` would skip the stage: its own question, without its second of start-up.

    False as well where DVC cannot say; its command then tells why.
    """
    try:
        with Repo() as repo, repo.lock:
            return not repo.stage.get_target(stage).changed()
    except (DvcException, OSError):
        return False


def stale() -> dict[str, str]:
    """What `dvc status` says: stage to what changed, in the pipeline's order. Raises StageFailed."""
    try:
        with Repo() as repo:
            found = repo.status()
    except DvcException as error:
        raise StageFailed(" ".join(str(error).split())) from None
    order = [step.stage for step in plan()]
    return {stage: _changes(found[stage]) for stage in sorted(found, key=order.index)}


def _changes(entries: list) -> str:
    """From [{"changed deps": {"data/x": "modified"}}, "changed command"] to "data/x modified, changed command"."""
    told = []
    for entry in entries:
        for kind, what in entry.items() if isinstance(entry, dict) else ():
            told.extend(f"{name} {how}" if isinstance(how, str) else kind for name, how in what.items())
        if isinstance(entry, str):
            told.append(entry)
    return ", ".join(told)
