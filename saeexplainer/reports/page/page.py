"""reports/report.html: every evaluation, round and feature in one static file that needs no network.

    write(Path("reports/report.html"), comparison, sources, truth, facts)

The file has to open and search fast with 30,000 features, so it keeps two things apart. The index, one line a feature,
is parsed when the page opens. Details lie in blocks of BLOCK features, each deflated and in base64, and the browser
inflates a block when one of its features is looked at. Nothing here holds more than the tables as columns and one block
of records. Equal inputs give equal bytes.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from saeexplainer.domains.domain import Domain
from saeexplainer.features import truth as truth_tables
from saeexplainer.figures.comparison import LOWER_IS_BETTER, chain_of, metrics_of
from saeexplainer.figures.notation import DASH, held_out, words
from saeexplainer.records import (
    ContextRow,
    DroppedFeature,
    EvaluationRow,
    ExplanationRow,
    FeatureRow,
    PreferencePair,
    QuarantinedPair,
    ScoreRow,
)
from saeexplainer.reports.page import glance, payload
from saeexplainer.reports.page.payload import FeatureRecords, RoundRecords
from saeexplainer.runs.storage import read_table, replacing

BLOCK = 64  # features that are inflated together: some 100 KB, a few milliseconds
TRUTH_SHOWN = 3  # concepts a feature
TRUTH_BATCH = 2000  # features whose F1 with every concept is held at once


@dataclass(frozen=True)
class Sources:
    """Where the tables lie. One that is not there leaves its part of the page empty, and the page says so."""

    features: Path
    contexts: Path
    labels: Path
    evaluations: Mapping[str, Path]  # by name, in the order the page shows
    rounds: Mapping[str, Path]  # round to its folder, in order
    contexts_shown: int  # strongest contexts a feature
    picture: Path  # PNG of the rounds, which becomes part of the page


@dataclass(frozen=True)
class RoundFacts:
    """One preference round over all features."""

    name: str
    start: str  # the explainer it started from
    candidates: int
    mean_reward: float | None
    mean_best_reward: float | None  # the best candidate of each feature
    pairs: int
    features: int  # that gave a pair
    dropped: list[tuple[str, int]]  # reason and features, most frequent first
    quarantined: int  # pairs


class Columns:
    """A table as columns; its rows come out as records, feature by feature."""

    def __init__(self, path: Path, record: type[Any], ids: Any, rows: Any = None) -> None:
        """`ids` are the page's features in order; `rows` are filters as pyarrow takes them."""
        import pyarrow.compute as pc

        self.record = record
        self.table = _read(path, record, rows)
        found = pc.index_in(self.table["feature_id"], value_set=ids)  # ty: ignore[missing-attribute] (made at import)
        numbers = found.fill_null(-1).to_numpy()
        self.order = np.argsort(numbers, kind="stable")
        self.starts = np.searchsorted(numbers[self.order], np.arange(len(ids) + 1))

    def of(self, first: int, last: int) -> list[list[Any]]:
        """The records of the features first to last - 1, each in the table's order."""
        begin, end = self.starts[first], self.starts[last]
        rows = [self.record(**row) for row in self.table.take(self.order[begin:end]).to_pylist()]
        cuts = self.starts[first : last + 1] - begin
        return [rows[a:b] for a, b in pairwise(cuts)]


def _read(path: Path, record: type[Any], rows: Any = None) -> Any:
    """The table, empty where the file is not there. Raises UserError if it is of another shape."""
    import pyarrow as pa

    if not path.is_file():
        return pa.table({column.name: pa.array([], pa.string()) for column in fields(record)})
    return read_table(path, record, filters=rows).combine_chunks()


@dataclass(frozen=True)
class _Round:
    """The tables of one round."""

    scores: Columns
    pairs: Columns
    dropped: Columns
    quarantined: Columns

    def of(self, first: int, last: int) -> list[RoundRecords]:
        parts = (self.scores, self.pairs, self.dropped, self.quarantined)
        return [RoundRecords(*each) for each in zip(*(part.of(first, last) for part in parts))]


class Tables:
    """Everything on disk that the page shows."""

    def __init__(self, sources: Sources) -> None:
        import pyarrow as pa

        self.ids = _feature_ids(sources)
        ids = pa.array(self.ids, pa.string())
        shown = [("rank", "<", sources.contexts_shown)]
        self.features = Columns(sources.features, FeatureRow, ids)
        self.contexts = Columns(sources.contexts, ContextRow, ids, shown)
        self.labels = Columns(sources.labels, ExplanationRow, ids)
        self.evaluations = {name: Columns(path, EvaluationRow, ids) for name, path in sources.evaluations.items()}
        self.rounds = {
            name: _Round(
                Columns(folder / "scores.parquet", ScoreRow, ids),
                Columns(folder / "pairs.parquet", PreferencePair, ids),
                Columns(folder / "dropped.parquet", DroppedFeature, ids),
                Columns(folder / "quarantine.parquet", QuarantinedPair, ids),
            )
            for name, folder in sources.rounds.items()
        }

    def records(self, first: int, last: int, truth: Mapping[str, Sequence]) -> list[FeatureRecords]:
        """What is known about the features first to last - 1."""
        features, contexts = self.features.of(first, last), self.contexts.of(first, last)
        labels = self.labels.of(first, last)
        evaluations = {name: table.of(first, last) for name, table in self.evaluations.items()}
        rounds = {name: table.of(first, last) for name, table in self.rounds.items()}
        return [
            FeatureRecords(
                feature_id,
                feature=features[at][0] if features[at] else None,
                contexts=sorted(contexts[at], key=lambda row: row.rank),
                label=labels[at][0].explanation if labels[at] else "",
                evaluations={name: rows[at][0] for name, rows in evaluations.items() if rows[at]},
                rounds={name: rows[at] for name, rows in rounds.items()},
                truth=truth.get(feature_id, ()),
            )
            for at, feature_id in enumerate(self.ids[first:last])
        ]


def _feature_ids(sources: Sources) -> list[str]:
    """Every feature, those that an evaluation measured first, in the order of the feature table."""
    everyone = _read(sources.features, FeatureRow)["feature_id"].to_pylist()
    measured: dict[str, None] = {}
    for path in sources.evaluations.values():
        measured |= dict.fromkeys(_read(path, EvaluationRow)["feature_id"].to_pylist())
    known = set(everyone)
    return [
        *(name for name in everyone if name in measured),
        *(name for name in measured if name not in known),
        *(name for name in everyone if name not in measured),
    ]


def true_concepts(table: Path, features: Path, sae: str, domain: Domain) -> dict[str, list[tuple[str, float]]]:
    """What the features of the explained SAE encode: their best concepts in words, with F1, best first.

    `table` holds that SAE's features in the order of the feature table. Concepts without overlap are left out.
    """
    concepts = domain.concepts()
    known = truth_tables.load(table, concepts)
    rows = _read(features, FeatureRow)
    ids = [name for name, owner in zip(rows["feature_id"].to_pylist(), rows["sae"].to_pylist()) if owner == sae]
    in_words = [domain.describe([concept]) if domain.can_lead(concept) else concept for concept in concepts]
    found = {}
    for first in range(0, len(ids), TRUTH_BATCH):
        batch = ids[first : first + TRUTH_BATCH]
        part = truth_tables.TruthTable(concepts, known.holds, known.fires[:, first : first + len(batch)])
        scores = truth_tables.f1_of_all(part)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :TRUTH_SHOWN]
        for row, name in enumerate(batch):
            found[name] = [(in_words[at], float(scores[row, at])) for at in best[row] if scores[row, at] > 0]
    return found


def round_facts(name: str, start: str, tables: _Round) -> RoundFacts:
    """One round over all features."""
    scores, reasons = tables.scores.table, tables.dropped.table["reason"].value_counts().to_pylist()
    known = scores.select(["feature_id", "reward"]).filter(scores["reward"].is_valid())
    best = known.group_by("feature_id").aggregate([("reward", "max")])["reward_max"].to_numpy() if len(known) else []
    return RoundFacts(
        name,
        start,
        candidates=len(scores),
        mean_reward=float(np.mean(known["reward"].to_numpy())) if len(known) else None,
        mean_best_reward=float(np.mean(best)) if len(best) else None,
        pairs=len(tables.pairs.table),
        features=len(tables.pairs.table["feature_id"].unique()),
        dropped=sorted(((row["values"], row["counts"]) for row in reasons), key=lambda each: (-each[1], each[0])),
        quarantined=len(tables.quarantined.table),
    )


@dataclass
class Index:
    """The line of every feature, column by column, filled as the blocks go by."""

    evaluations: list[str]
    rounds: list[str]
    columns: dict[str, list] = field(default_factory=lambda: {name: [] for name in SUMMARY})
    measured: dict[str, list] = field(default_factory=dict)  # evaluation to one list a feature, None where not measured
    outcomes: dict[str, list] = field(default_factory=dict)  # round to one list a feature, None where it was not seen

    def add(self, summary: Mapping[str, Any]) -> None:
        """Append one feature."""
        for name in SUMMARY:
            self.columns[name].append(summary[name])
        for name in self.evaluations:
            self.measured.setdefault(name, []).append(summary["evaluations"].get(name))
        for name in self.rounds:
            self.outcomes.setdefault(name, []).append(summary["rounds"].get(name))


SUMMARY = ("id", "split", "maximum", "density", "tokens", "label", "truth")


def write(
    path: Path,
    comparison: Mapping,
    sources: Sources,
    truth: Mapping[str, Sequence],
    starts: Mapping[str, str],
    attributions: Mapping[str, Mapping | None],
) -> None:
    """Write the page. `truth` is `true_concepts`, empty where it is unknown; `starts` has each round's start;
    `attributions` what a round's pairs say of sentences alone (`tasks.attribution`), None of one with too few.

    Raises UserError if a table is of another shape than its record.
    """
    tables = Tables(sources)
    index = Index(list(sources.evaluations), list(sources.rounds))
    facts = [round_facts(name, starts[name], table) for name, table in tables.rounds.items()]
    context = _context(comparison, facts, attributions, len(tables.ids), sources.picture)
    with replacing(path) as temporary, temporary.open("wb") as file:
        _template().stream(
            **context,
            blocks=_blocks(tables, truth, index),
            index=lambda: deflated(_index_value(index, comparison)),
        ).dump(file, encoding="utf-8")


def _blocks(tables: Tables, truth: Mapping[str, Sequence], index: Index) -> Iterator[str]:
    """The details, block by block; fills the index on the way."""
    for first in range(0, len(tables.ids), BLOCK):
        records = tables.records(first, min(first + BLOCK, len(tables.ids)), truth)
        for each in records:
            index.add(payload.summary(each))
        yield deflated([payload.detail(each) for each in records])


def _index_value(index: Index, comparison: Mapping) -> dict[str, Any]:
    """What the page's script parses when it opens."""
    chain = chain_of(comparison)
    return {
        **payload.constants(),
        "block": BLOCK,
        "evaluations": index.evaluations,
        "rounds": index.rounds,
        "start": chain[0] if chain else None,
        "shown": chain[-1] if chain else next(iter(index.evaluations), None),
        "features": index.columns,
        "measured": index.measured,
        "outcomes": index.outcomes,
    }


def deflated(value: Any) -> str:
    """JSON, zlib, base64: what DecompressionStream("deflate") reads, with no time stamp in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")


def _context(
    comparison: Mapping,
    facts: list[RoundFacts],
    attributions: Mapping[str, Mapping | None],
    features: int,
    picture: Path,
) -> dict[str, Any]:
    """What the template shows beside the features."""
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    return {
        "comparison": comparison,
        "caption": held_out(comparison),
        "headline": glance.headline(comparison),
        "picture": base64.b64encode(picture.read_bytes()).decode("ascii") if picture.is_file() else "",
        "metrics": [(words(name), name in LOWER_IS_BETTER) for name in metrics_of(comparison)],
        "results": glance.results(comparison),
        "differences": glance.differences(comparison),
        "rounds": facts,
        "paid": glance.paid(attributions),
        "ranked": glance.RANKED,
        "rewards": glance.REWARDS,
        "features": features,
        "legend": payload.LEGEND,
        "style": style,
        "script": script,
        "style_hash": _content_hash(style),
        "script_hash": _content_hash(script),
    }


def _content_hash(text: str) -> str:
    """As a Content-Security-Policy names the one script and the one style sheet that may act."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"


def _asset(name: str) -> str:
    return (files("saeexplainer.reports.page") / name).read_text(encoding="utf-8")


def _template() -> Any:
    """Everything that a template shows is escaped, unless the template says it is the page's own."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = lambda value: DASH if value is None else f"{value:.2f}"
    environment.filters["count"] = lambda value: f"{value:,}"
    return environment.from_string(_asset("page.html"))
