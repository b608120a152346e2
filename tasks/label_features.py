"""The open-loop explanations: what a labeller says who sees a handful of top contexts and never what its words cause.

    python -m tasks.label_features

The labeller is the domain, a language model (label_features.labeller), or the author of the table that
label_features.source names (docs/EXCHANGE.md). Writes data/labels.parquet, a row for every live feature that is neither
a twin nor spare: the labels that SFT learns from, and the baseline that every round is compared with.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saeexplainer.config import Params
from saeexplainer.config.parts import ChatLabellerSpec, Labeller
from saeexplainer.domains.opening import open_domain
from saeexplainer.errors import UserError
from saeexplainer.labellers import by_domain
from saeexplainer.records import NOT_EXPLAINED, ContextRow, ExplanationRow, FeatureRow, by_feature
from saeexplainer.runs.seeds import seed_torch, stage_seed
from saeexplainer.runs.storage import read_rows, write_rows
from tasks.places import ACTIVATIONS, LABELS
from tasks.stage import Report, main

if TYPE_CHECKING:
    from saeexplainer.labellers.by_model import Labels

CONTEXTS = ACTIVATIONS / "contexts.parquet"


def run(params: Params) -> Report:
    """Label every feature of every split."""
    rows = [row for row in read_rows(ACTIVATIONS / "features.parquet", FeatureRow) if row.split not in NOT_EXPLAINED]
    draw = random.Random(stage_seed(params.seed, "label_features"))
    config, source = params.label_features, Path(params.label_features.source)
    notes, said = None, []
    if config.labeller is not None:
        found = by_the_labeller(rows, config.labeller, params)
        given, notes, said = found.texts, {"usage": found.usage}, found.notes
    else:
        given = by_the_domain(rows, params, draw) if source == CONTEXTS else by_table(rows, source)
    given = by_domain.exchanged(given, config.wrong_share, draw)
    labelled = [ExplanationRow(row.feature_id, row.split, text) for row, text in zip(rows, given, strict=True)]
    write_rows(LABELS, labelled, ExplanationRow, notes)
    missing = sum(not row.explanation for row in labelled)
    distinct = len({row.explanation for row in labelled})
    return Report(
        {"labels": float(len(labelled)), "labels_missing": float(missing)},
        [f"{len(labelled)} labels, {distinct} distinct, {missing} features without one", *said],
    )


def by_the_domain(rows: Sequence[FeatureRow], params: Params, draw: random.Random) -> list[str]:
    """What the contexts of each feature share, in the words of the domain."""
    domain = open_domain(params.prepare_subject.domain, params.seed, params.prepare_subject.corpus)
    config = params.label_features
    last = params.probe_features.first_rank  # from there on they are what explanations are asked about
    contexts = by_feature(context for context in read_rows(CONTEXTS, ContextRow) if context.rank < last)
    elsewhere = by_domain.frequency([context for row in rows for context in contexts[row.feature_id]])
    return [by_domain.label(contexts[row.feature_id], domain, config, draw, elsewhere) for row in rows]


def by_the_labeller(rows: Sequence[FeatureRow], config: Labeller, params: Params) -> "Labels":
    """What a language model says of each feature's strongest contexts, and of the tokens that it promotes. Raises
    UserError if that leaves nothing to learn from, and as `by_model.ask` does."""
    from saeexplainer.explainer.table import FeatureTable
    from saeexplainer.labellers import by_model  # not for those whose domain labels: it may bring torch

    if isinstance(config, ChatLabellerSpec):
        seed_torch(params.seed, "label_features")
    table, shown = FeatureTable(ACTIVATIONS), params.label_features
    lines = table.evidence(shown.contexts, shown.promoted)
    found = by_model.ask([lines[table.number[row.feature_id]] for row in rows], config)
    if not labels_sft(rows, found.texts):
        raise UserError(
            f"{by_model.WHERE}: has no label for any feature of the sft split; change its prompt or its model"
        )
    return found


def by_table(rows: Sequence[FeatureRow], source: Path) -> list[str]:
    """What a table of explanations says of each feature; empty where it says nothing. Raises UserError if that leaves
    nothing to learn from."""
    said = {row.feature_id: row.explanation for row in read_rows(source, ExplanationRow)}
    given = [said.get(row.feature_id) or "" for row in rows]
    if not labels_sft(rows, given):
        example = next((row.feature_id for row in rows if row.split == "sft"), "subject/sae/index")
        raise UserError(
            f"label_features.source: {source} explains no feature of the sft split, such as {example}; take another"
        )
    return given


def labels_sft(rows: Sequence[FeatureRow], given: Sequence[str]) -> bool:
    """Whether the explainer has a label to learn."""
    return any(text for row, text in zip(rows, given, strict=True) if row.split == "sft")


if __name__ == "__main__":
    main(run, resumes=True)
