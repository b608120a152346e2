"""Run the experiments behind the figures, each in a folder of its own, and write the pages that show them.

    sae-explainer study [--plan PLAN] [--only NAME ...] [--again] [--report-only]

Each plan is a file of conf/, and has a page under docs/ and a JSON file with the same figures beside it: study, of an
explainer that reads the direction alone (docs/STUDY.md), contexts, of one that reads contexts too (docs/CONTEXTS.md),
gated, of the default (docs/GATED.md), real, on a pretrained model (docs/REAL.md), ablation (docs/ABLATION.md),
explainer, by which the default's explainer was chosen (docs/EXPLAINER.md), further, more changes of it
(docs/FURTHER.md), variations, changes of the default (docs/VARIATIONS.md), saes, SAEs of several architectures
(docs/SAES.md), and real_saes, of several widths and sparsities on a pretrained model (docs/REAL_SAES.md).

A variant's folder .study/PLAN/NAME holds a copy of the repository's files, params.yaml composed with its overrides, and
its own results; DVC brings it up to date there. All folders of all plans share one DVC cache, and with it DVC's memory
of runs: a stage whose code, inputs and parameters another variant already had is restored, not run again. So a study
that was stopped goes on where it stopped, and one that is complete only checks that it is.

What a page needs of a run that came to its end is kept in docs/runs/PLAN/NAME, to be committed: a plan may be run piece
by piece, and what is kept is not run again, unless it is named or --again is said.

Every variant is prepared before the first one runs: a mistake in an override shows at once, and all run the same code.
What the stages print is in .study/PLAN/NAME.log. Exit status: 0; 1 if a variant failed, after the others had their
turn; 2 if nothing could start; 130 or 143 when interrupted or terminated, the running stage included.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

import yaml

from saeexplainer.domains.corpus.installed import KEPT
from saeexplainer.errors import UserError
from saeexplainer.records import EvaluationRow
from saeexplainer.runs.storage import read_json, read_rows, replacing, write_json
from saeexplainer.study import ablation, figures, kept, page, pictures, saes
from saeexplainer.study.plans import STUDY, VariantSpec, changes, chosen, load_specs
from tasks.places import ROUNDS
from tasks.settings import params as settings_params
from tasks.workspace import repro, surroundings, timings
from tasks.workspace.printable import failed
from tasks.workspace.weights import MODELS

CONF = Path("conf")
PLANS = (*page.TITLES, *ablation.TITLES, *saes.TITLES)  # files of conf/
CACHE = "cache"  # DVC's, beside the folders of the plans
DOCS = Path("docs")
RUNS = DOCS / "runs"  # what is kept of runs, by plan
DONE = "done.json"  # in a variant's folder: what was asked for when it last came to its end
SHARED = (MODELS, KEPT)  # fetched or parsed once, whoever asks
OWN = ("data", "reports", "mlruns", "params.yaml", "dvc.lock", DONE, STUDY.name)  # never copied into a variant's folder


class VariantFailed(Exception):
    """A variant cannot go on; the message is one line."""


def run(specs: Sequence[VariantSpec]) -> list[str]:
    """Bring variants up to date, one after the other; the names of those that failed."""
    failed: dict[str, str] = {}

    def fail(name: str, reason: str) -> None:
        failed[name] = reason
        print(f"{name}: failed: {reason}", file=sys.stderr, flush=True)

    with ExitStack() as held:
        files = repository_files()
        for spec in specs:
            try:
                held.enter_context(repro.holding(f"study variant {spec.name}", spec.folder))
                prepare(spec, files)
            except (VariantFailed, repro.WorkspaceBusy) as error:
                fail(spec.name, str(error))
        for spec in specs:
            if spec.name in failed:
                continue
            if spec.source in failed:
                fail(spec.name, f"it comes from {spec.source}, which failed")
                continue
            try:
                bring_up_to_date(spec)
            except VariantFailed as error:
                fail(spec.name, str(error))
    return list(failed)


def repository_files() -> list[Path]:
    """What git tracks, and what it does not know yet but would not ignore. Raises UserError."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"study: git cannot list the files here ({error}); run it in a clone") from None
    return [path for path in map(Path, filter(None, os.fsdecode(listed).split("\0"))) if path.is_file()]


def prepare(spec: VariantSpec, files: Sequence[Path]) -> None:
    """The repository's files as they are now, and the variant's params.yaml. Raises VariantFailed."""
    folder = spec.folder
    copied = [path for path in files if path.parts[0] not in OWN]
    for top in {path.parts[0] for path in copied} - {".dvc"}:  # so that a removed module is gone there too
        shutil.rmtree(folder / top) if (folder / top).is_dir() else (folder / top).unlink(missing_ok=True)
    for path in copied:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, folder / path)
    for path in SHARED:
        path.mkdir(parents=True, exist_ok=True)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / path).exists():
            (folder / path).symlink_to(path.resolve())
    (folder / ROUNDS).mkdir(parents=True, exist_ok=True)  # the comparison reads it, though no round may be there
    (folder / ".dvc").mkdir(exist_ok=True)
    # .local, which DVC merges over the copied config: the folder is no git repository of its own.
    (folder / ".dvc" / "config.local").write_text(
        f"[core]\n    no_scm = true\n    check_update = false\n[cache]\n    dir = {(STUDY / CACHE).resolve()}\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "tasks.settings.compose", *spec.overrides]
    composed = subprocess.run(command, cwd=folder, env=repro.environment(), capture_output=True, encoding="utf-8")
    if composed.returncode:
        raise VariantFailed(
            f"{repro.reason(composed.stderr.splitlines(), composed.returncode)} (tasks.settings.compose)"
        )


def bring_up_to_date(spec: VariantSpec) -> None:
    """`dvc repro` in the variant's folder, a line for every stage that ran. Raises VariantFailed."""
    start = time.perf_counter()
    (spec.folder / DONE).unlink(missing_ok=True)
    counts: Counter[str] = Counter()
    command = ("dvc", "repro", *([spec.until] if spec.until else []))
    with (
        _StageLine(spec.name) as stage,
        spec.log.open("a", encoding="utf-8") as log,
        repro.started(*command, folder=spec.folder) as child,
    ):
        for line in child:
            print(line, file=log, flush=True)
            for event, pattern in repro.EVENTS.items():
                if found := pattern.match(line):
                    counts[event] += 1
                    stage.ends()
                    if event == "ran":
                        stage.starts(found[1])
    if child.status:
        said = repro.reason(child.said, child.status)
        raise VariantFailed(f"{stage.name}: {said} (see {spec.log})" if stage.name else f"{said} (see {spec.log})")
    write_json(spec.folder / DONE, spec.wish | {"params": _text(spec.folder / "params.yaml")})
    told = ", ".join(f"{counts[event]} {event}" for event in ("ran", "restored", "unchanged"))
    print(f"{spec.name}: complete, {time.perf_counter() - start:.1f} s ({told})", flush=True)


class _StageLine:
    """One line a stage: its name when it starts, its seconds when it ends."""

    def __init__(self, variant: str) -> None:
        self.variant = variant
        self.name = ""  # of the last stage that started
        self.start: float | None = None  # None while no line is open

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.ends(stopped=kind is not None)

    def starts(self, name: str) -> None:
        self.name, self.start = name, time.perf_counter()
        print(f"{self.variant}: {name}", end=" ", flush=True)

    def ends(self, stopped: bool = False) -> None:
        if self.start is not None:
            print("stopped" if stopped else f"{time.perf_counter() - self.start:.1f} s", flush=True)
        self.start = None


def collect(spec: VariantSpec, specs: Sequence[VariantSpec]) -> figures.Variant:
    """What a variant's folder holds, or else what is kept of it; its figures only if it came to its end as the plan has
    it now."""
    about = (spec.name, spec.group, spec.source, changes(spec, specs))
    if not _complete(spec) and (found := kept_run(spec)):
        return replace(found.variant, group=spec.group, source=spec.source, outdated=changed(found.used))
    if not spec.folder.is_dir():
        return figures.absent(*about, "not run")
    if not _complete(spec):
        return figures.absent(*about, "not finished, or its settings changed since")
    try:
        params = settings_params.load(spec.folder / "params.yaml")
        reports = {name: _json_or_none(spec.folder / "reports" / f"{name}.json") for name in ("subject", "sae")}
        paths = {name: spec.folder / "data/evaluations" / f"{name}.parquet" for name in params.evaluations}
        seconds = _seconds(spec, specs)
        return figures.Variant(
            *about,
            status=figures.COMPLETE,
            seed=params.seed,
            split=params.evaluate.split,
            contexts=params.label_features.contexts,
            subject=reports["subject"],
            sae=(reports["sae"] or {}).get(params.prepare_sae.saes[0].name),
            seconds=float(sum(seconds.values())),
            own_seconds=float(sum(timings.of_results(spec.folder).values())),
            outdated=changed(used(spec.folder)),
            evaluations={name: read_rows(path, EvaluationRow) for name, path in paths.items() if path.is_file()},
        )
    except UserError as error:
        return figures.absent(*about, f"not readable: {error}")


def _complete(spec: VariantSpec) -> bool:
    wish = spec.wish | {"params": _text(spec.folder / "params.yaml")}
    return _json_or_none(spec.folder / DONE) == wish


def _seconds(spec: VariantSpec, specs: Sequence[VariantSpec]) -> dict[str, float]:
    """Seconds of each stage of a variant; of a restored one, in the variant that made its results."""
    others = [candidate.folder for candidate in specs if candidate.name != spec.name]
    return timings.of_results(spec.folder, others)


def _lock(folder: Path) -> dict[str, Any]:
    text = _text(folder / "dvc.lock")
    return (yaml.safe_load(text) or {}).get("stages") or {} if text else {}


def used(folder: Path) -> list[list[str]]:
    """The code that a variant's results were made with: [path, digest], as DVC has it in its lock."""
    deps = [dep for stage in _lock(folder).values() for dep in stage.get("deps", []) if "md5" in dep]
    found = {(dep["path"], dep["md5"]) for dep in deps if Path(dep["path"]).parts[0] != "data"}
    return [[path, digest] for path, digest in sorted(found)]


def changed(code: Sequence[Sequence[str]]) -> list[str]:
    """Of the code that results were made with, what the repository now has otherwise."""
    return sorted({path for path, digest in code if _digest(Path(path)) != digest})


def kept_run(spec: VariantSpec) -> kept.KeptRun | None:
    """What is kept of a variant as the plan has it now."""
    found = kept.read(RUNS / spec.plan / spec.name)
    return found if found and found.wish == spec.wish else None


def keep_runs(specs: Sequence[VariantSpec]) -> None:
    """Keep what came to its end here."""
    for spec in specs:
        if _complete(spec) and (variant := collect(spec, specs)).status == figures.COMPLETE:
            kept.keep(RUNS / spec.plan / spec.name, kept.KeptRun(variant, spec.wish, used(spec.folder)))


def _digest(path: Path) -> str:
    """As DVC has it in its lock: of a file, or of the list of a folder's files."""
    if not path.is_dir():
        return hashlib.md5(_text(path).encode()).hexdigest()
    files = (file for file in path.rglob("*") if file.is_file() and file.parent.name != "__pycache__")
    listed = [{"md5": _digest(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    listed.sort(key=itemgetter("relpath"))
    return f"{hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest()}.dir"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _json_or_none(path: Path) -> Any:
    try:
        return read_json(path)
    except UserError:
        return None


def refuse_to_forget(plan: str, specs: Sequence[VariantSpec], wanted: Sequence[VariantSpec]) -> None:
    """Raise UserError if the pages under docs/ have figures of a run that is neither here nor kept nor about to be
    made."""
    page_has = (_json_or_none(DOCS / f"{plan}.json") or {}).get("variants", {})
    before = {name for name, found in page_has.items() if found["status"] == figures.COMPLETE}
    there = {spec.name for spec in specs if _complete(spec) or kept_run(spec)} | {spec.name for spec in wanted}
    if lost := sorted(before - there):
        cure = f"whose runs are neither in {STUDY} nor in {RUNS}; run them too, or say --forget"
        raise UserError(f"{DOCS / plan}.json: has figures of {', '.join(lost)}, {cure}")


def to_run(specs: Sequence[VariantSpec], only: Sequence[str], *, again: bool) -> list[VariantSpec]:
    """What to bring up to date: the variants that are named; else all, but without those that are kept, unless they are
    here or wanted `again`. Raises UserError."""
    if only or again:
        return chosen(specs, only)
    missing = [spec.name for spec in specs if spec.folder.is_dir() or not kept_run(spec)]
    return chosen(specs, missing) if missing else []


def write_report(plan: str, variants: Sequence[figures.Variant], resamples: int) -> list[str]:
    """A plan's figures and page under docs/; what was found, one a line. Raises UserError."""
    if plan in ablation.TITLES:
        found = ablation.summarise(variants, resamples)
        write(f"{plan}.json", figures.as_json(found))
        write(f"{plan.upper()}.md", ablation.page(found, plan))
        return ablation.verdict_lines(found)
    if plan in saes.TITLES:
        found = saes.summarise(variants, resamples)
        write(f"{plan}.json", figures.as_json(found))
        draw(DOCS / f"{plan}.png", pictures.plot_saes, found if saes.has_rounds(found) else None)
        write(f"{plan.upper()}.md", saes.page(found, plan))
        return []
    study = page.summarise(variants, resamples)
    write(f"{plan}.json", figures.as_json(study))
    draw(DOCS / f"{plan}_seeds.png", pictures.plot_seeds, study if study["pooled"] else None)
    draw(DOCS / f"{plan}_labels.png", pictures.plot_labels, study if page.has_labels(study) else None)
    write(f"{plan.upper()}.md", page.page(study, plan))
    return []


def draw(picture: Path, plot: Callable[[dict[str, Any], Path], None], found: dict[str, Any] | None) -> None:
    """A page's picture of its figures; none where there are none."""
    picture.unlink(missing_ok=True)
    if found is not None:
        with replacing(picture) as temporary:
            plot(found, temporary)


def write(name: str, text: str) -> None:
    """A page or its figures, under docs/."""
    with replacing(DOCS / name) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    surroundings.settle()
    parser = argparse.ArgumentParser("sae-explainer study", description="Run the study and write its report.")
    parser.add_argument("--plan", choices=PLANS, default=PLANS[0], help="file of conf/ (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these variants or groups of variants")
    parser.add_argument("--again", action="store_true", help=f"also what is kept in {RUNS}")
    parser.add_argument("--report-only", action="store_true", help="only write the pages from what is there")
    parser.add_argument("--forget", action="store_true", help="let go of figures whose runs are no longer here")
    options = parser.parse_args(arguments)
    surroundings.unwind_on_sigterm()
    # a variant's runs stay with it: on a shared server it might be champion
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        specs, resamples = load_specs(CONF / f"{options.plan}.yaml")
        wanted = [] if options.report_only else to_run(specs, options.only, again=options.again)
        if not options.forget:
            refuse_to_forget(options.plan, specs, wanted)
        missing = run(wanted) if wanted else []
        keep_runs(specs)
        lines = write_report(options.plan, [collect(spec, specs) for spec in specs], resamples)
    except UserError as error:
        return failed(error)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the stage it stopped in", file=sys.stderr)
        return 130
    print(*lines, sep="\n", end="\n" * bool(lines))
    print(f"{DOCS / options.plan.upper()}.md: written")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
