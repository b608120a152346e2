"""Candidates: several sampled explanations of every dpo and valid feature, by the explainer a round starts from.

    python -m tasks.generate_explanations r1

Writes data/rounds/<round>/candidates.parquet.
"""

from saeexplainer.config import Params
from saeexplainer.explainer.explainer import Explainer
from saeexplainer.explainer.table import FeatureTable
from saeexplainer.records import CandidateRow
from saeexplainer.runs.seeds import seed_torch
from saeexplainer.runs.storage import write_rows
from tasks.places import ACTIVATIONS, EXPLAINERS, ROUNDS
from tasks.stage import Report, main

SPLITS = ("dpo", "valid")


def run(params: Params, item: str) -> Report:
    """Sample, feature by feature in the table's order."""
    config = params.generate_explanations
    seed_torch(params.seed, f"generate_explanations@{item}")
    table = FeatureTable(ACTIVATIONS)
    contexts = table.contexts(params.explainer.prompt)
    explainer = Explainer(EXPLAINERS / params.rounds[item].start, table.vectors, params.explainer, config, contexts)
    rows = table.rows
    asked = [(at, rank) for at, row in enumerate(rows) if row.split in SPLITS for rank in range(config.candidates)]
    explanations = explainer.explain([at for at, _ in asked], config.temperature, progress="explanations")
    candidates = [
        CandidateRow(rows[at].feature_id, rows[at].split, rank, explanation)
        for (at, rank), explanation in zip(asked, explanations)
    ]
    write_rows(ROUNDS / item / "candidates.parquet", candidates, CandidateRow)
    distinct = len({row.explanation for row in candidates})
    return Report(
        {}, [f"{len(candidates)} candidates of {len(asked) // config.candidates} features, {distinct} distinct"]
    )


if __name__ == "__main__":
    main(run, parallel=True, resumes=True)
