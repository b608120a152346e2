"""The shape of the repository: one name in five places, arrows one way, lists that are true."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml

from saeexplainer import config
from tasks.stage import REPEATED_OVER

ROOT = Path(__file__).resolve().parent.parent
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in PIPELINE.items()}
PACKAGES = ("saeexplainer", "tasks", "flows")
PYTHON_FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SHARED_SECTIONS = {"seed", "processes", "rounds", "evaluations"}  # of params.yaml: no stage's own
NOT_DEPS = {
    *(f"saeexplainer.{name}" for name in ("config", "records", "storage", "errors", "domain", "processes")),
    *(f"tasks.{name}" for name in ("params", "stage", "timings", "workspace", "surroundings", "printable")),
    *("saeexplainer", "tasks"),
}
ORCHESTRATORS = {"prefect", "dvc", "mlflow", "hydra", "great_expectations", "tasks", "flows"}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(node: ast.AST) -> Iterator[str]:
    """Every module or name that a file imports, at any depth but for type checkers."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imports(child)


def module_file(name: str) -> tuple[str, Path] | None:
    """The module of this repository that a dotted import names, or whose member it names."""
    for candidate in (name, name.rpartition(".")[0]):
        path = ROOT / candidate.replace(".", "/")
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.split(".")[0] in PACKAGES and file.is_file():
                return candidate, file
    return None


def closure(module: str, seen: set[str]) -> set[Path]:
    """The files that a module comes to import; of another stage it takes only the place of its artifacts."""
    found = module_file(module)
    others = {f"tasks.{stage}" for stage in STAGES} if seen else set()
    if found is None or found[0] in seen | NOT_DEPS | others:
        return set()
    seen.add(found[0])
    return {found[1]}.union(*(closure(name, seen) for name in imports(parsed(found[1]))))


def params_read(stage: str) -> set[str]:
    """Every `params.<section>[.<field>...]` of a stage's task and of the modules of tasks/ that it imports."""
    files = (path for path in closure(f"tasks.{stage}", set()) if path.parent.name == "tasks")
    known = {field.name for field in fields(config.Params)}
    found = {name for path in files for name in re.findall(r"\bparams\.([a-z_.]+)", path.read_text(encoding="utf-8"))}
    return {name for name in found if name.split(".")[0] in known}


def test_a_stage_is_a_task_a_params_section_and_a_dataclass() -> None:
    modules = {path.stem for path in (ROOT / "tasks").glob("*.py") if "    main(run" in path.read_text(encoding="utf-8")}
    sections = {field.name for field in fields(config.Params)} - SHARED_SECTIONS
    classes = {
        re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower() for name, kind in vars(config).items() if is_dataclass(kind)
    }
    assert set(STAGES) == modules - {"stage"} == sections
    assert sections <= classes


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_runs_the_stages_own_module(stage: str) -> None:
    repeated = PIPELINE[stage].get("foreach")
    assert STAGES[stage]["cmd"] == f"python -m tasks.{stage}" + (" ${key}" if repeated else "")
    assert repeated in (None, f"${{{REPEATED_OVER.get(stage, 'rounds')}}}")


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_modules_that_a_stage_imports(stage: str) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in closure(f"tasks.{stage}", set())}
    listed = {dep for dep in STAGES[stage]["deps"] if dep.endswith(".py")}
    assert listed == files


@pytest.mark.parametrize("stage", STAGES)
def test_params_that_a_stage_reads_are_tracked(stage: str) -> None:
    tracked = [name.removesuffix(".${key}") for name in STAGES[stage].get("params", [])]
    assert [
        name for name in sorted(params_read(stage)) if not any(f"{name}.".startswith(f"{t}.") for t in tracked)
    ] == []


def test_the_library_imports_no_orchestrator() -> None:
    found = [
        f"{path.name}: {name}"
        for path in (ROOT / "saeexplainer").rglob("*.py")
        for name in imports(parsed(path))
        if name.split(".")[0] in ORCHESTRATORS
    ]
    assert not found


def test_flows_import_no_library() -> None:
    names = {name.split(".")[0] for path in (ROOT / "flows").rglob("*.py") for name in imports(parsed(path))}
    assert names.isdisjoint({"saeexplainer", "torch", "transformers"})


def test_tasks_import_no_flow() -> None:
    names = {name.split(".")[0] for path in (ROOT / "tasks").rglob("*.py") for name in imports(parsed(path))}
    assert names.isdisjoint({"flows", "prefect", "dvc"})


def test_no_function_is_over_60_lines() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in PYTHON_FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert not long


def test_every_config_field_says_its_unit_or_effect() -> None:
    """But for those whose type is a class of the file, which says it itself."""
    path = ROOT / "saeexplainer" / "config.py"
    lines = path.read_text(encoding="utf-8").splitlines()
    classes = {node.name for node in parsed(path).body if isinstance(node, ast.ClassDef) and ast.get_docstring(node)}
    plain = [
        f"{owner.name}.{ast.unparse(field.target)}"
        for owner in parsed(path).body
        if isinstance(owner, ast.ClassDef)
        for field in owner.body
        if isinstance(field, ast.AnnAssign) and ast.unparse(field.annotation) not in classes
        if "#" not in lines[field.lineno - 1]
    ]
    assert plain == []
