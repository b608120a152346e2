"""Candidates: several sampled explanations of every dpo and valid feature, by the explainer a round starts from.

    python -m tasks.generate_explanations r1

Writes data/rounds/<round>/candidates.parquet.
"""

from pathlib import Path

from saeexplainer import models
from saeexplainer.config import Params
from saeexplainer.explainer import PARTS, Prompts, attach, direction_rows, explain
from saeexplainer.records import CandidateRow, FeatureRow
from saeexplainer.seeds import seed_torch
from saeexplainer.storage import read_rows, read_tensors, write_rows
from tasks.stage import Report, main

ACTIVATIONS, EXPLAINERS, ROUNDS = Path("data/activations"), Path("data/explainers"), Path("data/rounds")
SPLITS = ("dpo", "valid")


def run(params: Params, item: str) -> Report:
    """Sample, feature by feature in the table's order."""
    config = params.generate_explanations
    seed_torch(params.seed, f"generate_explanations@{item}")
    start = EXPLAINERS / params.rounds[item].start
    model, tokenizer = models.load_model(start), models.load_tokenizer(start)
    tensors = read_tensors(ACTIVATIONS / "directions.safetensors")
    attach(model, tokenizer, direction_rows(tensors, params.train_sft.direction), params.train_sft)
    prompts = Prompts(model.config.vocab_size, len(PARTS[params.train_sft.direction]))
    rows = read_rows(ACTIVATIONS / "features.parquet", FeatureRow)
    asked = [(at, rank) for at, row in enumerate(rows) if row.split in SPLITS for rank in range(config.candidates)]
    explanations = explain(
        model, tokenizer, prompts, [at for at, _ in asked], temperature=config.temperature, top_p=config.top_p,
        max_new_tokens=config.max_new_tokens, batch_size=config.batch_size, progress="explanations",
    )  # fmt: skip
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
    main(run)
