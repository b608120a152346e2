"""The open-loop explanations: what a labeller says who sees a handful of top contexts and never what its words cause.

    python -m tasks.label_features

Writes data/labels.parquet, a row for every live feature that is not a twin: the labels that SFT learns from, and the
baseline that every round is compared with.
"""

import random
from collections import defaultdict
from pathlib import Path

from saeexplainer import labels
from saeexplainer.config import Params
from saeexplainer.domains import open_domain
from saeexplainer.records import ContextRow, ExplanationRow, FeatureRow
from saeexplainer.seeds import stage_seed
from saeexplainer.storage import read_rows, write_rows
from tasks.stage import Report, main

ACTIVATIONS = Path("data/activations")
LABELS = Path("data/labels.parquet")


def run(params: Params) -> Report:
    """Label every feature of every split."""
    domain = open_domain(params.prepare_subject.domain, params.seed)
    rows = [row for row in read_rows(ACTIVATIONS / "features.parquet", FeatureRow) if row.split != "twin"]
    contexts: dict[str, list[ContextRow]] = defaultdict(list)
    for context in read_rows(ACTIVATIONS / "contexts.parquet", ContextRow):
        if context.rank < params.probe_features.first_rank:  # later ones are what explanations are asked about
            contexts[context.feature_id].append(context)
    draw = random.Random(stage_seed(params.seed, "label_features"))
    config = params.label_features
    frequency = labels.concept_frequency(context for row in rows for context in contexts[row.feature_id])
    given = [labels.label(contexts[row.feature_id], domain, config, draw, frequency) for row in rows]
    given = labels.exchanged(given, config.wrong_share, draw)
    labelled = [ExplanationRow(row.feature_id, row.split, text) for row, text in zip(rows, given, strict=True)]
    write_rows(LABELS, labelled, ExplanationRow)
    missing = sum(not row.explanation for row in labelled)
    distinct = len({row.explanation for row in labelled})
    return Report(
        {"labels": float(len(labelled)), "labels_missing": float(missing)},
        [f"{len(labelled)} labels, {distinct} distinct, {missing} features without one"],
    )


if __name__ == "__main__":
    main(run)
