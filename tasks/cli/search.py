"""Search the settings of an SAE for those whose features are best explained, and write docs/SEARCH.md.

    sae-explainer search [--report-only]

conf/search.yaml says what is drawn, and what of a run is measured. Two samplers of Optuna have as many trials each: one
draws at random, the other learns from its earlier trials (TPE). A trial is a run in a folder of its own under
.study/search, as those of `sae-explainer study` are. What was tried is kept in .study/search/trials.db: a search that
was stopped goes on, with the trial that it was stopped in.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from saeexplainer.errors import UserError
from saeexplainer.figures.comparison import LOWER_IS_BETTER, METRICS
from saeexplainer.figures.intervals import known_values
from saeexplainer.records import EvaluationRow
from saeexplainer.runs.storage import read_rows, write_json
from saeexplainer.study import search
from saeexplainer.study.plans import STUDY, VariantSpec
from tasks.cli import study as runs
from tasks.workspace import repro, surroundings
from tasks.workspace.printable import failed

if TYPE_CHECKING:
    import optuna

PLAN = Path("conf/search.yaml")
TRIALS = STUDY / "search" / "trials.db"
SAMPLERS = ("random", "tpe")
STARTUP = 6  # trials that TPE draws at random too; with the same seed they are those of the other, and are restored
FIELDS = {"trials": int, "resamples": int, "evaluation": str, "metric": str, "overrides": list, "space": dict}
VALUES, SECONDS = "values", "seconds"  # what is kept of a trial beside its settings
Measure = Callable[[VariantSpec], list[float]]


@dataclass(frozen=True)
class Plan:
    """conf/search.yaml."""

    trials: int  # of each sampler
    resamples: int
    evaluation: str  # with which a run ends, and whose rows are measured
    metric: str  # a column of them
    overrides: list[str]
    space: dict[str, list[float]]  # setting: default, lowest, highest


def load_plan(path: Path) -> Plan:
    """Raises UserError if it is no such file."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}); correct it") from None
    if not isinstance(given, dict) or set(given) != set(FIELDS):
        raise UserError(f"{path}: must have {', '.join(FIELDS)} and nothing else")
    for name, kind in FIELDS.items():
        if not isinstance(given[name], kind) or not given[name]:
            raise UserError(f"{path}: {name}: is {given[name]!r}; must be {kind.__name__}, and not empty or 0")
    if given["metric"] not in (known := [name for name, shown in METRICS.items() if shown not in LOWER_IS_BETTER]):
        raise UserError(f"{path}: metric: is {given['metric']!r}; choose from {', '.join(known)}: more of it is better")
    for name, limits in given["space"].items():
        numbers = isinstance(limits, list) and len(limits) == 3 and all(isinstance(one, (int, float)) for one in limits)
        if not numbers or not 0 < limits[1] <= limits[0] <= limits[2] or limits[1] == limits[2]:
            raise UserError(f"{path}: space.{name}: is {limits!r}; must be [default, lowest, highest], above 0")
    return Plan(**given)


def sampled(plan: Plan, sampler: str, measure: Measure, storage: str) -> None:
    """Bring a sampler's trials up to their number. A run that fails is a trial without a value."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _study(sampler, storage, plan)
    space = {name: _distribution(limits) for name, limits in plan.space.items()}
    while len(_ended(study)) < plan.trials:
        trial = study.ask(space)
        number, start = len(_ended(study)), time.perf_counter()
        spec = _spec(plan, sampler, number, trial.params)
        try:
            values = measure(spec)
        except runs.VariantFailed as error:
            print(f"{spec.name}: failed: {error}", file=sys.stderr, flush=True)
            values = []
        trial.set_user_attr(VALUES, values)
        trial.set_user_attr(SECONDS, time.perf_counter() - start)
        if values:
            study.tell(trial, sum(values) / len(values))
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _study(sampler: str, storage: str, plan: Plan) -> "optuna.Study":
    """The trials so far; what was begun and not ended comes first, and before all the default's settings."""
    import optuna

    study = optuna.create_study(storage=storage, study_name=sampler, direction="maximize", load_if_exists=True)
    seed = len(study.trials)  # so that what goes on does not draw again what it drew
    learning = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    study.sampler = learning if sampler == "tpe" else optuna.samplers.RandomSampler(seed)
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        if values := trial.user_attrs.get(VALUES):  # it was stopped when all but this was written
            study.tell(trial.number, sum(values) / len(values))
            continue
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # without values it does not count
        study.enqueue_trial(trial.params)
    if not study.trials:
        study.enqueue_trial({name: limits[0] for name, limits in plan.space.items()})
    return study


def _ended(study: "optuna.Study") -> "list[optuna.trial.FrozenTrial]":
    """Trials that ran to their end, or failed in it."""
    return [trial for trial in study.trials if VALUES in trial.user_attrs and trial.state.is_finished()]


def _distribution(limits: list[float]) -> "optuna.distributions.BaseDistribution":
    import optuna

    _, low, high = limits
    if all(isinstance(one, int) for one in limits):
        return optuna.distributions.IntDistribution(int(low), int(high), log=True)
    return optuna.distributions.FloatDistribution(low, high, log=True)


def _spec(plan: Plan, sampler: str, number: int, settings: Mapping[str, Any]) -> VariantSpec:
    drawn = [f"{name}={value}" for name, value in settings.items()]
    return VariantSpec(
        "search", f"{sampler}{number}", sampler, [*plan.overrides, *drawn], None, f"evaluate@{plan.evaluation}"
    )


def measured(plan: Plan) -> Measure:
    """A run of the pipeline as far as it is asked for, and the metric of each feature."""
    files = runs.repository_files()

    def measure(spec: VariantSpec) -> list[float]:
        try:
            with repro.holding(f"trial {spec.name}", spec.folder):
                runs.prepare(spec, files)
                runs.bring_up_to_date(spec)
        except repro.WorkspaceBusy as error:
            raise UserError(str(error)) from None
        rows = read_rows(spec.folder / "data/evaluations" / f"{plan.evaluation}.parquet", EvaluationRow)
        return known_values({row.feature_id: getattr(row, plan.metric) for row in rows})

    return measure


def trials_of(storage: str, plan: Plan) -> list[search.Trial]:
    """Everything that was tried."""
    import optuna

    return [
        search.Trial(sampler, at, trial.params, trial.user_attrs[VALUES], trial.user_attrs.get(SECONDS, 0.0))
        for sampler in SAMPLERS
        if sampler in optuna.get_all_study_names(storage)
        for at, trial in enumerate(_ended(optuna.load_study(study_name=sampler, storage=storage)))
    ]


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    surroundings.settle()
    parser = argparse.ArgumentParser("sae-explainer search", description="Search the settings of an SAE.")
    parser.add_argument("--report-only", action="store_true", help="only write the page from what was tried")
    options = parser.parse_args(arguments)
    surroundings.unwind_on_sigterm()
    try:
        plan = load_plan(PLAN)
        TRIALS.parent.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{TRIALS}"
        for sampler in () if options.report_only else SAMPLERS:
            sampled(plan, sampler, measured(plan), storage)
        found = search.summarise(trials_of(storage, plan), plan.metric, plan.resamples)
    except UserError as error:
        return failed(error)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on with the trial it stopped in", file=sys.stderr)
        return 130
    if not found["samplers"]:
        return failed("nothing was tried yet; leave --report-only out")
    write_json(runs.DOCS / "search.json", found)
    runs.write("SEARCH.md", search.page(found))
    print(f"{runs.DOCS / 'SEARCH.md'}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
