"""What `sae-explainer import` and `export` do: explanations and preference sets that come in and go out.

Imported files become two tables under data/imported: NAME.parquet, explanations that an evaluation of kind table or
`label_features.source` takes, and NAME.records.parquet, everything that the files say. Both follow from the files
alone. What is written appears whole or not at all, and nothing is overwritten unasked. docs/EXCHANGE.md shows how to
use it.
"""

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saeexplainer.config import Params
from saeexplainer.config.saes import TakenSae
from saeexplainer.errors import UserError
from saeexplainer.exchange import records as exchange_records
from saeexplainer.exchange.files import read_records, write_records
from saeexplainer.records import (
    FEATURE_ID,
    ContextRow,
    EvaluationRow,
    ExplanationRow,
    FeatureId,
    FeatureRecord,
    FeatureRow,
    PreferencePair,
    by_feature,
)
from saeexplainer.runs.storage import read_json, read_rows, replacing, write_rows
from tasks.places import ACTIVATIONS, EVALUATIONS, IMPORTED, LABELS, PARAMS, ROUNDS, SAES
from tasks.settings import compose, params as settings_params

FEATURES = ACTIVATIONS / "features.parquet"
CARD = "README.md"
SPLITS = {"dpo": "data/train.parquet", "valid": "data/validation.parquet"}  # of a preference set to files of its export
NAME = re.compile(r"[a-z0-9_]+")
ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")  # of the files that are read in a folder
NUMBERS = re.compile(r"(\d+)")


def import_files(paths: Sequence[Path], name: str | None, under: str | None, force: bool) -> list[str]:
    """Make the two tables of files, or of those in a folder, and say what they hold. Raises UserError, and then wrote
    nothing."""
    name = _name_of(paths) if name is None else name
    if not NAME.fullmatch(name):
        raise UserError(f"--name: is {name!r}; use small letters, digits and _ only: it names files and evaluations")
    if under is not None and not re.fullmatch(FEATURE_ID, f"{under}/0"):
        raise UserError(f"--as: is {under!r}; give subject/sae, such as sandbox-llama/main")
    table, whole = IMPORTED / f"{name}.parquet", IMPORTED / f"{name}.records.parquet"
    commands = _commands(name, table)
    for path in (table, whole):
        _may_write(path, force)
    files = [file for path in paths for file in _files_of(path)]
    records = [record for file in files for record in read_records(file)]
    rows = exchange_records.explanations(records, under)
    known = _known(rows, str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more")
    with _writing(IMPORTED):
        write_rows(whole, records, FeatureRecord)
        write_rows(table, rows, ExplanationRow)
    said = sum(bool(row.explanation) for row in rows)
    return [
        f"{table}: explanations of {said} of {len(rows)} features; {whole}: {len(records)} records",
        *known,
        *commands,
    ]


def _name_of(paths: Sequence[Path]) -> str:
    """That of a file or folder; of several files that of the folder that holds them."""
    absolute = [os.path.abspath(path) for path in paths]
    last = Path(absolute[0] if len(paths) == 1 else os.path.commonpath(absolute)).name
    return re.sub(r"[^a-z0-9]+", "_", last.partition(".")[0].lower())


def _commands(name: str, table: Path) -> list[str]:
    """What uses the table, as a shell takes it; each changes params.yaml as it is. Raises UserError if the name is
    taken, or if what reads settings would take it for something else than a name."""
    entry = f"+evaluations={{{name}: {{kind: table, source: {table}}}}}"  # Hydra takes no digit first in a dotted key
    if compose.keys_of(entry) != [name]:
        raise UserError(f"--name: {name!r} is a number or a keyword where settings are read; give another with --name")
    taken = settings_params.load().evaluations.get(name) if PARAMS.is_file() else None
    if taken is not None and taken.source != str(table):
        raise UserError(f"--name: {name!r} is an evaluation in {PARAMS} already; give another with --name")
    return [
        f"as a baseline: sae-explainer compose --keep {shlex.quote(entry)}",
        f"as labels: sae-explainer compose --keep {shlex.quote(f'label_features.source={table}')}",
    ]


def _files_of(path: Path) -> list[Path]:
    """The file itself, or what a folder holds of the kinds that are read, batch-2 before batch-10."""
    if not path.is_dir():
        return [path]
    found = [file for file in path.iterdir() if file.is_file() and file.name.lower().endswith(ENDINGS)]
    shown = [file for file in found if not file.name.startswith(".")]
    if not shown:
        raise UserError(f"{path}: holds no {', '.join(ENDINGS)} file itself; name the folder that does, or the files")
    return sorted(shown, key=lambda file: [int(part) if part.isdigit() else part for part in NUMBERS.split(file.name)])


def _known(rows: Sequence[ExplanationRow], file: str) -> list[str]:
    """How many live features of this workspace are explained; before there are any, nothing is known."""
    if not FEATURES.is_file():
        return []
    live = {row.feature_id for row in read_rows(FEATURES, FeatureRow)}
    common = [row for row in rows if row.feature_id in live]
    if not common:
        explained = settings_params.load().prepare_sae.saes[0].name
        example = min(live, key=lambda feature_id: (FeatureId.parse(feature_id).sae != explained, feature_id))
        raise UserError(
            f"{file}: {rows[0].feature_id} is no live feature here and neither is any other; ids here are like "
            f"{example}: if the file is about that SAE, add --as {shlex.quote(FeatureId.parse(example).owner)}"
        )
    return [f"{sum(bool(row.explanation) for row in common)} of the {len(live)} live features here are explained"]


def export_explanations(evaluation: str | None, to: Path, force: bool) -> str:
    """Write the explanations and scores of an evaluation, or the labels, as JSON lines. Raises UserError."""
    _may_write(to, force)
    params, scores = settings_params.load(), {}
    if evaluation is None:
        said = {row.feature_id: row.explanation for row in read_rows(LABELS, ExplanationRow)}
    else:
        _choose("--evaluation", evaluation, list(params.evaluations))
        scores = {row.feature_id: row for row in read_rows(EVALUATIONS / f"{evaluation}.parquet", EvaluationRow)}
        said = {feature_id: row.explanation for feature_id, row in scores.items()}
    contexts = by_feature(read_rows(ACTIVATIONS / "contexts.parquet", ContextRow))
    records = [
        exchange_records.from_rows(
            row,
            said[row.feature_id],
            sorted(contexts[row.feature_id], key=lambda context: context.rank),
            {**metadata(row.feature_id, params), **_measured(row)},
            scores.get(row.feature_id),
        )
        for row in read_rows(FEATURES, FeatureRow)
        if row.feature_id in said
    ]
    return _write_lines(to, records)


def export_imported(name: str, to: Path, force: bool) -> str:
    """Write an imported file again, all its records in the paper's shape. Raises UserError."""
    _may_write(to, force)
    known = sorted(path.name.partition(".")[0] for path in IMPORTED.glob("*.records.parquet"))
    _choose("--imported", name, known)
    return _write_lines(to, read_rows(IMPORTED / f"{name}.records.parquet", FeatureRecord))


def _write_lines(to: Path, records: Sequence[FeatureRecord]) -> str:
    write_records(to, records)
    return f"{to}: {len(records)} records"


def metadata(feature_id: str, params: Params) -> dict[str, Any]:
    """What a record says of the subject and the SAE of a feature; an SAE that is trained here is of no release."""
    sae = FeatureId.parse(feature_id).sae
    settings = read_json(file := SAES / sae / "cfg.json")  # as sae-lens stored it
    taken = {spec.name: spec.pretrained for spec in params.prepare_sae.saes if isinstance(spec, TakenSae)}
    released = taken.get(sae)
    of_release = (released.source, released.sae_id) if released is not None and released.sae_id is not None else ()
    try:
        return exchange_records.metadata(
            feature_id, settings["metadata"]["hook_name"], settings["d_in"], settings["d_sae"], *of_release
        )
    except (LookupError, TypeError, ValueError, AttributeError):
        raise UserError(f"{file}: lacks metadata.hook_name, d_in or d_sae; run `dvc repro` to remake it") from None


def _measured(row: FeatureRow) -> dict[str, Any]:
    return {"activation_density": row.density, "max_activation_approx": row.maximum, "split": row.split}


def export_preferences(name: str | None, to: Path, force: bool) -> str:
    """Write the validated pairs of a round, else of the last one, as a folder that `datasets.load_dataset` reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _may_write_folder(to, force)
    params = settings_params.load()
    if not params.rounds:
        raise UserError(f"{PARAMS}: rounds: is empty; there are no pairs without a round")
    name = list(params.rounds)[-1] if name is None else name
    _choose("--round", name, list(params.rounds))
    pairs = read_rows(ROUNDS / name / "validated.parquet", PreferencePair)
    rows = {
        file: [
            exchange_records.preference(pair, metadata(pair.feature_id, params))
            for pair in pairs
            if pair.split == split
        ]
        for split, file in SPLITS.items()
    }
    filled = {file: found for file, found in rows.items() if found}
    if not filled:
        raise UserError(f"{ROUNDS / name}: no pair is validated; see {ROUNDS / name / 'validation.json'}")
    with _writing(to), replacing(to.absolute()) as folder:
        for file, found in filled.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(found), folder / file)
        counts = {Path(file).stem: len(found) for file, found in filled.items()}
        (folder / CARD).write_text(
            card(name, counts, params, FeatureId.parse(pairs[0].feature_id).subject), encoding="utf-8"
        )
    return f"{to}: {', '.join(f'{count} {split} pairs' for split, count in counts.items())}"


def card(name: str, counts: dict[str, int], params: Params, subject: str) -> str:
    """The dataset card: which file is which split, what the pairs are, and how they came about."""
    files = "\n".join(f"  - split: {split}\n    path: data/{split}.parquet" for split in counts)
    pairs = "\n".join(f"| {split} | {count} |" for split, count in counts.items())
    rule = params.build_preferences
    return f"""---
configs:
- config_name: default
  data_files:
{files}
tags: [preference-pairs, sparse-autoencoder]
---
# Explanations of SAE features, chosen and rejected: round {name}

Pairs of explanations of features of sparse autoencoders on {subject}. Which one is chosen was decided by what texts
written from it made the feature do.

| split | pairs |
| --- | ---: |
{pairs}

Round {name} started from the explainer `{params.rounds[name].start}`. Pairing rule `{rule.rule}`, floor {rule.floor},
least gap {rule.min_gap}, least spread {rule.min_spread}; pairs that failed an expectation are left out. Texts came from
the prompt `{params.score_explanations.writer.prompt}`, {params.score_explanations.writer.texts} an explanation.

| column | meaning |
| --- | --- |
| `feature_id` | subject/sae/index |
| `chosen_explanation`, `rejected_explanation` | the two sentences |
| `chosen_score`, `rejected_score` | their rewards |
| `score_gap` | chosen - rejected |
| `relative_gap` | gap / chosen score |
| `spread_ratio` | (best - worst) / best over all candidates of the feature |
| `chosen_best_text`, `rejected_best_text` | the text on which the feature fired hardest |
| `metadata` | model, SAE, layer, widths, and the split it is used as here |
"""


def _choose(option: str, value: str, known: list[str]) -> None:
    if value not in known:
        raise UserError(f"{option} {value}: unknown; choose from {', '.join(known) or 'nothing, there is none yet'}")


def _may_write(path: Path, force: bool) -> None:
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    if path.exists() and not force:
        raise UserError(f"{path}: is there already; give another name, or --force to replace it")


def _may_write_folder(path: Path, force: bool) -> None:
    """Only an earlier export is ever replaced: a folder with other files in it is left alone."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; name a folder")
    if path.exists() and not force:
        raise UserError(f"{path}: is there already; give another name, or --force to replace it")
    other = next((file for file in _files(path) if file not in (CARD, *SPLITS.values())), None)
    if other is not None:
        raise UserError(f"{path}: holds {other}, which is no part of an export; name another folder")


def _files(folder: Path) -> Iterable[str]:
    return (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A disk or folder that takes no file is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
