"""What `sae-explainer import`, `export` and `fetch` do: explanations and preference sets that come in and go out.

An imported file becomes two tables under data/imported: NAME.parquet, explanations that an evaluation of kind table or
`label_features.source` takes, and NAME.records.parquet, everything that the file says. Both follow from the file alone.
What is written appears whole or not at all, and nothing is overwritten unasked. docs/EXCHANGE.md shows how to use it.
"""

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saeexplainer import exchange
from saeexplainer.config import Params
from saeexplainer.errors import UserError
from saeexplainer.records import (
    ContextRow,
    EvaluationRow,
    ExplanationRow,
    FeatureRecord,
    FeatureRow,
    PreferencePair,
    by_feature,
)
from saeexplainer.storage import read_json, read_rows, replacing, write_rows
from tasks import params as parameters

ACTIVATIONS, EVALUATIONS, IMPORTED = Path("data/activations"), Path("data/evaluations"), Path("data/imported")
LABELS, ROUNDS, SAES = Path("data/labels.parquet"), Path("data/rounds"), Path("data/saes")
FEATURES = ACTIVATIONS / "features.parquet"
CARD = "README.md"
SPLITS = {"dpo": "data/train.parquet", "valid": "data/validation.parquet"}  # of a preference set to files of its export
NAME = re.compile(r"[a-z0-9_]+")


def import_file(file: Path, name: str | None, under: str | None, force: bool) -> list[str]:
    """Make the two tables of a JSON lines file, and say what they hold. Raises UserError, and then wrote nothing."""
    name = re.sub(r"[^a-z0-9]+", "_", file.name.partition(".")[0].lower()) if name is None else name
    if not NAME.fullmatch(name):
        raise UserError(f"--name: is {name!r}; use small letters, digits and _ only: it names files and evaluations")
    if under is not None and not exchange.FEATURE_ID.fullmatch(f"{under}/0"):
        raise UserError(f"--as: is {under!r}; give subject/sae, such as sandbox-llama/main")
    table, whole = IMPORTED / f"{name}.parquet", IMPORTED / f"{name}.records.parquet"
    for path in (table, whole):
        _may_write(path, force)
    records = _read(file)
    rows = exchange.explanations(records, under)
    known = _known(rows, file)
    with _writing(IMPORTED):
        write_rows(whole, records, FeatureRecord)
        write_rows(table, rows, ExplanationRow)
    said = sum(bool(row.explanation) for row in rows)
    return [
        f"{table}: explanations of {said} of {len(rows)} features; {whole}: {len(records)} records",
        *known,
        f"as a baseline: sae-explainer compose '+evaluations.{name}={{kind: table, source: {table}}}'",
        f"as labels: sae-explainer compose label_features.source={table}",
    ]


def _read(file: Path) -> list[FeatureRecord]:
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            return exchange.read(lines, str(file))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{file}: not gzip, or cut short ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give a file of JSON lines") from None


def _known(rows: Sequence[ExplanationRow], file: Path) -> list[str]:
    """How many live features of this workspace are explained; before there are any, nothing is known."""
    if not FEATURES.is_file():
        return []
    live = {row.feature_id for row in read_rows(FEATURES, FeatureRow)}
    common = [row for row in rows if row.feature_id in live]
    if not common:
        sae = exchange.prefix_of(min(live))
        raise UserError(
            f"{file}: {rows[0].feature_id} is no live feature here and neither is any other; ids here are like "
            f"{min(live)}: if the file is about one of these SAEs, add --as {sae}"
        )
    return [f"{sum(bool(row.explanation) for row in common)} of the {len(live)} live features here are explained"]


def export_explanations(evaluation: str | None, to: Path, force: bool) -> str:
    """Write the explanations and scores of an evaluation, or the labels, as JSON lines. Raises UserError."""
    _may_write(to, force)
    params, scores = parameters.load(), {}
    if evaluation is None:
        said = {row.feature_id: row.explanation for row in read_rows(LABELS, ExplanationRow)}
    else:
        _choose("--evaluation", evaluation, list(params.evaluations))
        scores = {row.feature_id: row for row in read_rows(EVALUATIONS / f"{evaluation}.parquet", EvaluationRow)}
        said = {feature_id: row.explanation for feature_id, row in scores.items()}
    contexts = by_feature(read_rows(ACTIVATIONS / "contexts.parquet", ContextRow))
    records = [
        exchange.from_rows(
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
    """Write an imported file again, all its records in the reference's shape. Raises UserError."""
    _may_write(to, force)
    known = sorted(path.name.partition(".")[0] for path in IMPORTED.glob("*.records.parquet"))
    _choose("--imported", name, known)
    return _write_lines(to, read_rows(IMPORTED / f"{name}.records.parquet", FeatureRecord))


def _write_lines(to: Path, records: Sequence[FeatureRecord]) -> str:
    with _writing(to), replacing(to.absolute()) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(exchange.to_lines(records))
    return f"{to}: {len(records)} records"


def metadata(feature_id: str, params: Params) -> dict[str, Any]:
    """What a record says of the subject and the SAE of a feature; an SAE that is trained here is of no release."""
    subject, sae, index = feature_id.split("/")
    settings = read_json(SAES / sae / "cfg.json")  # as sae-lens stored it
    hook_name = settings["metadata"]["hook_name"]
    block = int(hook_name.split(".")[1])  # blocks.<n>.<place>
    released = {spec.name: spec.pretrained for spec in params.prepare_sae.saes}.get(sae)
    from_release = released is not None and released.sae_id is not None
    return {
        "target_model": subject,
        "sae_id": sae,
        "feature_index": int(index),
        "layer": block,
        "hook_name": hook_name,
        "hook_layer": block,
        "d_in": settings["d_in"],
        "d_sae": settings["d_sae"],
        "saelens_release": released.source if from_release else None,
        "saelens_sae_id": released.sae_id if from_release else None,
    }


def _measured(row: FeatureRow) -> dict[str, Any]:
    return {"activation_density": row.density, "max_activation_approx": row.maximum, "split": row.split}


def export_preferences(name: str | None, to: Path, force: bool) -> str:
    """Write the validated pairs of a round, else of the last one, as a folder that `datasets.load_dataset` reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _may_write_folder(to, force)
    params = parameters.load()
    name = list(params.rounds)[-1] if name is None else name
    _choose("--round", name, list(params.rounds))
    pairs = read_rows(ROUNDS / name / "validated.parquet", PreferencePair)
    rows = {
        file: [exchange.preference(pair, metadata(pair.feature_id, params)) for pair in pairs if pair.split == split]
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
        (folder / CARD).write_text(card(name, counts, params, pairs[0].feature_id.split("/")[0]), encoding="utf-8")
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


def fetch(source: str, wanted: str, to: Path, base_url: str, per_minute: float, cache: Path, force: bool) -> list[str]:
    """Ask Neuronpedia about features of a source (model/source) and write JSON lines. Raises UserError."""
    from saeexplainer import neuronpedia

    if not exchange.FEATURE_ID.fullmatch(f"{source}/0"):
        raise UserError(f"{source}: must be model/source, such as llama3.1-8b/15-llamascope-res-32k")
    _may_write(to, force)
    ids = [f"{source}/{index}" for index in indices(wanted)]
    found = neuronpedia.fetch(ids, neuronpedia.Server(base_url, cache, per_minute))
    lines = [f"unreadable, left out: {feature_id}: {reason}" for feature_id, reason in found.unreadable.items()]
    if found.missing:
        lines.append(f"not there: {len(found.missing)} of {len(ids)} features, such as {found.missing[0]}")
    if not found.records:
        raise UserError(f"{base_url}: no record of {source}; {'; '.join(lines[:2])}")
    return [_write_lines(to, found.records), *lines]


def indices(text: str) -> list[int]:
    """0-3,7 as 0, 1, 2, 3, 7; each once, in the order given. Raises UserError."""
    found: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise UserError(f"--features: {part!r} is no index and no range; give something like 0-99,123")
        found.update(dict.fromkeys(range(first, last + 1)))
    return list(found)


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
