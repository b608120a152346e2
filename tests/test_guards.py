"""The shape of the repository: one name in five places, arrows one way, lists that are true."""

import ast
import re
import subprocess
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml

from saeexplainer import config
from saeexplainer.config import parts
from tasks.stage import REPEATED_OVER

ROOT = Path(__file__).resolve().parent.parent
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in PIPELINE.items()}
PACKAGES = ("saeexplainer", "tasks", "flows")
PYTHON_FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
# Of params.yaml: no stage's own.
SHARED_SECTIONS = {"seed", "processes", "explainer", "rounds", "reinforcements", "evaluations"}
# What no stage's result depends on, and what is tracked where it has effect: as parameters and as columns.
NOT_DEPS = {
    *(
        f"saeexplainer.{name}"
        for name in (
            "config",
            "config.explainers",
            "config.parts",
            "config.saes",
            "records",
            "errors",
            "runs.storage",
            "runs.processes",
            "runs.loop",
        )
    ),
    *("saeexplainer", "tasks", "tasks.places", "tasks.stage"),
}
NOT_DEP_PACKAGES = ("tasks.settings.", "tasks.workspace.")
WHOLE = 3  # modules of a package that a stage imports: from there on, or where it has no others, the dep is the package
# The library from the ground up: a package imports from its own floor and those below.
FLOORS = (
    ("errors", "config", "records"),
    ("domains", "runs"),
    ("models", "endpoints", "preferences", "exchange"),
    ("writers", "judges", "saes"),
    ("features",),
    ("explainer", "labellers"),
    ("evaluation", "training"),
    ("figures",),
    ("serving", "reports", "study", "costs"),
    ("library",),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
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
    if found is None or found[0] in seen | NOT_DEPS | others or found[0].startswith(NOT_DEP_PACKAGES):
        return set()
    seen.add(found[0])
    return {found[1]}.union(*(closure(name, seen) for name in imports(parsed(found[1]))))


def params_read(stage: str) -> set[str]:
    """Every `params.<section>[.<field>...]` of a stage's task and of the modules of tasks/ that it imports."""
    files = (path for path in closure(f"tasks.{stage}", set()) if path.relative_to(ROOT).parts[0] == "tasks")
    known = {field.name for field in fields(config.Params)}
    found = {name for path in files for name in re.findall(r"\bparams\.([a-z_.]+)", path.read_text(encoding="utf-8"))}
    return {name for name in found if name.split(".")[0] in known}


def test_a_stage_is_a_task_a_params_section_and_a_dataclass() -> None:
    modules = {
        path.stem for path in (ROOT / "tasks").glob("*.py") if "    main(run" in path.read_text(encoding="utf-8")
    }
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


def deps_of(files: set[Path]) -> set[str]:
    """The files as deps: a package's folder where it is most of it, else the modules."""
    deps, by_package = set(), defaultdict(set)
    for file in files:
        parts = file.relative_to(ROOT).parts
        if len(parts) > 2:
            by_package["/".join(parts[:2])].add(file)
        else:
            deps.add("/".join(parts))
    for package, found in by_package.items():
        every = {path for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"}
        whole = len(found) >= WHOLE or found == every
        deps |= {package} if whole else {path.relative_to(ROOT).as_posix() for path in found}
    return deps


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_what_a_stage_imports(stage: str) -> None:
    listed = {dep for dep in STAGES[stage]["deps"] if dep.split("/")[0] in PACKAGES}
    assert listed == deps_of(closure(f"tasks.{stage}", set()))


def test_what_the_comparison_reads_is_there_in_a_run_without_rounds() -> None:
    """Reinforcements alone write nothing there, and DVC asks for every dep."""
    kept = subprocess.run(["git", "ls-files", "data"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "data/rounds" in STAGES["compare_rounds"]["deps"] and kept.split() == ["data/rounds/.gitkeep"]


@cache
def arrows() -> dict[str, set[str]]:
    """Module -> modules that it imports, for type checkers and within functions included."""
    found = {}
    for path in PYTHON_FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        names = (
            name
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in imports(node)
        )
        found[module] = {known[0] for known in map(module_file, names) if known and known[0] != module}
    return found


def test_no_modules_import_each_other() -> None:
    try:
        tuple(TopologicalSorter(arrows()).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_library_imports_nothing_from_a_floor_above() -> None:
    def floor(module: str) -> int:
        return FLOOR[module.split(".")[1]]

    library = {module: names for module, names in arrows().items() if module.startswith("saeexplainer.")}
    assert {module.split(".")[1] for module in library} == set(FLOOR)
    upward = [
        f"{module} -> {name}"
        for module, names in library.items()
        for name in names & library.keys()
        if floor(name) > floor(module)
    ]
    assert upward == []


def test_packages_and_modules_are_small() -> None:
    crowded = [
        folder
        for package in PACKAGES
        for folder in [ROOT / package, *(ROOT / package).rglob("*/")]
        if len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) > 12
        if folder.name != "tasks"  # the stages, one file each, and what several of them share
    ]
    assert crowded == []
    assert len([path for path in (ROOT / "saeexplainer").iterdir() if path.name != "__pycache__"]) <= 25
    long = [path.relative_to(ROOT) for path in PYTHON_FILES if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    assert long == []


@pytest.mark.parametrize("stage", STAGES)
def test_params_that_a_stage_reads_are_tracked(stage: str) -> None:
    tracked = [name.removesuffix(".${key}") for name in STAGES[stage].get("params", [])]
    assert [
        name for name in sorted(params_read(stage)) if not any(f"{name}.".startswith(f"{t}.") for t in tracked)
    ] == []


def test_the_library_imports_no_orchestrator() -> None:
    """But for the registry, where somebody who has MLflow asks for its champion."""
    found = [
        f"{path.name}: {name}"
        for path in (ROOT / "saeexplainer").rglob("*.py")
        for name in imports(parsed(path))
        if name.split(".")[0] in ORCHESTRATORS
        if not (path.parent.name == "library" and path.name == "champion.py" and name.startswith("mlflow"))
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


@pytest.mark.parametrize("name", ["__init__", "parts"])
def test_every_config_field_says_its_unit_or_effect(name: str) -> None:
    """But for those whose type is a class that says it itself, and the kind, which says which class it is."""
    path = ROOT / "saeexplainer/config" / f"{name}.py"
    lines = path.read_text(encoding="utf-8").splitlines()
    documented = {
        node.name
        for module in (config, parts)
        for node in parsed(Path(module.__file__)).body
        if isinstance(node, ast.ClassDef) and ast.get_docstring(node)
    }
    plain = [
        f"{owner.name}.{ast.unparse(field.target)}"
        for owner in parsed(path).body
        if isinstance(owner, ast.ClassDef)
        for field in owner.body
        if isinstance(field, ast.AnnAssign) and ast.unparse(field.annotation) not in documented
        if ast.unparse(field.target) != "kind"
        if "#" not in lines[field.lineno - 1]
    ]
    assert plain == []


def test_shapes_are_checked_wherever_they_are_named() -> None:
    """Elsewhere the check would only slow the tests: it wraps every function."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    (checked,) = re.findall(r"--jaxtyping-packages=(\S+)", options["addopts"])
    library = (path.relative_to(ROOT) for path in PYTHON_FILES if path.is_relative_to(ROOT / "saeexplainer"))
    naming = {path.with_suffix("").parts[1] for path in library if "from jaxtyping" in (ROOT / path).read_text()}
    assert set(checked.split(",")) == {*(f"saeexplainer.{name}" for name in naming), "beartype.beartype"}
