"""Preference rounds for as long as they are worth it: `sae-explainer rounds --at-most N`.

The pipeline repeats its stages over `rounds` of params.yaml, which DVC reads before anything runs; so this loop stands
outside of it. It brings the pipeline up to date as it is, adds a round and its evaluation to params.yaml, and runs this
round's first two stages, which are what measures the newest explainer on valid features
(`saeexplainer.figures.stop_rule`). If the round before was worth it, the new one stays and the whole pipeline goes on
with it; if not, it is taken out again.

The round that was added and not yet decided on is named in TRIAL. All else is in params.yaml and with DVC, so the same
command goes on after a kill.
"""

import shutil
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from saeexplainer.config import Params
from saeexplainer.config.parts import EvaluationKind
from saeexplainer.errors import UserError
from saeexplainer.figures import stop_rule
from saeexplainer.figures.notation import change
from saeexplainer.records import ScoreRow
from saeexplainer.runs.storage import read_json, read_rows, replacing
from tasks.places import COMPARISON, PARAMS, ROUNDS
from tasks.settings import params as settings_params
from tasks.workspace import repro

TRIAL = Path(".dvc/tmp/round_on_trial")  # git ignores it, and so does DVC
MEASURE = "share of firing texts"


def run(at_most: int) -> str:
    """Add rounds until one was not worth it or params.yaml has `at_most`; why it stopped, in one line.

    Raises UserError if a stage fails, another run holds the workspace, or there is no round to go on from.
    """
    if settings_params.load().evaluate.split == stop_rule.SPLIT:
        raise UserError(
            f"{PARAMS}: evaluate.split: is {stop_rule.SPLIT}, on which this decides; report on test, so that no "
            "decision is made on what is reported"
        )
    with repro.holding("sae-explainer rounds"):
        while (why := _step(at_most)) is None:
            pass
    return why


def _step(at_most: int) -> str | None:
    """Add a round, or decide on the one that was added; why to stop, None to go on."""
    params = settings_params.load()
    trial = _on_trial(params)
    if trial is not None and len(params.rounds) <= at_most:
        return _decided(params, trial)
    if trial is not None:
        _take_out(trial)
        return None
    _bring_up_to_date()
    if len(params.rounds) >= at_most:
        return f"stopped after {_last(params)}: params.yaml has {len(params.rounds)} rounds, --at-most {at_most}"
    _add(params)
    return None


def _decided(params: Params, trial: str) -> str | None:
    """Measure the round before the one on trial; why there is no further one, None if there is."""
    _bring_up_to_date(f"score_explanations@{trial}")
    newest = params.rounds[trial].start
    before, after = (read_rows(ROUNDS / name / "scores.parquet", ScoreRow) for name in (newest, trial))
    threshold, resamples = params.score_explanations.reward.threshold, params.compare_rounds.resamples
    gain = stop_rule.gain(before, after, threshold, resamples, params.seed)
    told = f"{newest} - {params.rounds[newest].start}: {change(MEASURE, asdict(gain))}, {gain.n} valid features"
    worth_it = gain.low > 0
    _remember(params, trial, f"{told}: {'worth it' if worth_it else 'not above 0'}")
    if worth_it:
        TRIAL.unlink()
        print(f"rounds: {told}: worth it, on to {trial}", flush=True)
        return None
    _take_out(trial)
    _bring_up_to_date()
    return f"stopped after {newest}: {told}, not above 0"


def _on_trial(params: Params) -> str | None:
    """The round that was added and not yet decided on, if params.yaml still ends with it."""
    try:
        name = TRIAL.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    if params.rounds and _last(params) == name and params.rounds[name].start in params.rounds:
        return name
    TRIAL.unlink()  # params.yaml was composed anew
    return None


def _last(params: Params) -> str:
    return list(params.rounds)[-1]


def _add(params: Params) -> None:
    """One more round with the last one's settings. Noted first: what is not noted would be trained undecided."""
    if not params.rounds:
        raise UserError(f"{PARAMS}: rounds: is empty; add the first one, which the next ones repeat")
    name = next(name for at in count(len(params.rounds) + 1) if (name := f"r{at}") not in params.evaluations)
    entries = {
        f"rounds.{name}": asdict(params.rounds[_last(params)]) | {"start": _last(params)},
        f"evaluations.{name}": {"kind": EvaluationKind.explainer.value, "source": f"data/explainers/{name}"},
    }
    with replacing(TRIAL) as temporary:
        temporary.write_text(name, encoding="utf-8")
    _edit(entries)
    kept = " ".join(f"'+{key}={_flow(entry)}'" for key, entry in entries.items())
    print(f"rounds: {name} added to {PARAMS}, as `sae-explainer compose ... {kept}` would", flush=True)


def _flow(entry: dict[str, Any]) -> str:
    """A mapping as Hydra's command line takes it."""
    return f"{{{', '.join(f'{key}: {value}' for key, value in entry.items())}}}"


def _take_out(name: str) -> None:
    """What it wrote goes first: left behind, it would count as a change of data/rounds. DVC's cache still has it."""
    shutil.rmtree(ROUNDS / name, ignore_errors=True)
    _edit({f"rounds.{name}": None, f"evaluations.{name}": None})
    TRIAL.unlink()


def _edit(entries: dict[str, dict[str, Any] | None]) -> None:
    """Set entries of params.yaml, or remove those that are None; all else stays byte for byte as it was composed."""
    config = OmegaConf.load(PARAMS)
    for key, entry in entries.items():
        section, _, name = key.partition(".")
        if entry is None:
            del config[section][name]
        else:
            config[section][name] = entry
    text = settings_params.text(config, str(PARAMS))
    with replacing(PARAMS) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _bring_up_to_date(*stages: str) -> None:
    with repro.started("dvc", "repro", *stages) as child:
        for line in filter(None, child):
            print(line, flush=True)
    if child.status:
        raise UserError(f"rounds: {repro.reason(child.said, child.status)}; the same command goes on from there")


def _remember(params: Params, trial: str, decision: str) -> None:
    """Leave the decision as a tag of the MLflow run of the comparison it was made on; a warning if that cannot be."""
    if not COMPARISON.is_file():
        return
    from tasks.tracking import runs, store

    compared = {
        section: {name: entry for name, entry in getattr(params, section).items() if name != trial}
        for section in ("rounds", "evaluations")
    }
    try:
        runs.tag(replace(params, **compared), read_json(COMPARISON), "stop_rule", decision)
    except Exception as error:  # whatever a server, a driver or a network can raise: the decision is printed as well
        print(f"warning: MLflow at {store.shown_uri()}: {store.one_line(error)}", flush=True)
