"""Candidates to texts to activations to rewards.

    python -m tasks.score_explanations r1

A description is written and read once, for all features of all SAEs that it was proposed for. Writes
data/rounds/<round>/scores.parquet.
"""

from collections.abc import Mapping, Sequence

from saeexplainer.config import Params, Reward
from saeexplainer.features.neighbours import Neighbourhoods
from saeexplainer.preferences import rewards
from saeexplainer.records import CandidateRow, FeatureRow, NeighbourRow, ScoreRow, unwritten
from saeexplainer.runs.seeds import seed_torch, stage_seed
from saeexplainer.runs.storage import read_rows, write_rows
from saeexplainer.saes import text_activations
from saeexplainer.saes.reading import open_reader
from saeexplainer.writers.opening import open_writer
from tasks.places import ACTIVATIONS, ROUNDS, SAES, SUBJECT
from tasks.stage import Report, main


def run(params: Params, item: str) -> Report:
    """Write, read, reward; with `reward.shuffle` the rewards are permuted within each feature (the control)."""
    seed_torch(params.seed, f"score_explanations@{item}")
    config = params.score_explanations
    candidates = read_rows(ROUNDS / item / "candidates.parquet", CandidateRow)
    near = Neighbourhoods(
        read_rows(ACTIVATIONS / "features.parquet", FeatureRow),
        read_rows(ACTIVATIONS / "neighbours.parquet", NeighbourRow),
    )
    asked = near.asked(row.feature_id for row in candidates)
    reader = open_reader(SUBJECT, SAES, sorted(asked), params.prepare_subject.context_length)
    author = open_writer(config.writer, "score_explanations.writer", reader.model, reader.tokenizer)
    texts = author.write([row.explanation for row in candidates])
    read = text_activations.read_texts((text for written in texts.values() for text in written), reader, asked)
    scored = score(candidates, near, texts, read, config.reward)
    if config.reward.shuffle:
        scored = rewards.shuffled(scored, stage_seed(params.seed, f"shuffle@{item}"))
    usage = author.usage(texts)
    notes = None if usage is None else {"usage": usage}
    write_rows(ROUNDS / item / "scores.parquet", scored, ScoreRow, notes)
    lines = [f"{len(scored)} candidates scored on {len(read.row)} distinct texts of {len(texts)} descriptions"]
    unknown = sum(row.reward is None for row in scored)
    if unknown:
        lines.append(f"{unknown} candidates have no reward, because every call for their texts failed")
    return Report(means(scored), [*lines, *author.notes()])


def means(rows: Sequence[ScoreRow]) -> dict[str, float]:
    """Mean reward over candidates and over the best one of each feature; candidates without a reward are left out."""
    best: dict[str, float] = {}
    known = [(row.feature_id, row.reward) for row in rows if row.reward is not None]
    for feature_id, value in known:
        best[feature_id] = max(best.get(feature_id, 0.0), value)
    if not known:
        return {}
    return {
        "mean_reward": sum(value for _, value in known) / len(known),
        "mean_best_reward": sum(best.values()) / len(best),
    }


def score(
    candidates: Sequence[CandidateRow], near: Neighbourhoods, texts: Mapping[str, list[str]],
    read: text_activations.TextActivations, config: Reward,
) -> list[ScoreRow]:  # fmt: skip
    """One row a candidate; an empty explanation has no text and earns 0, one whose texts failed has no reward."""
    rows = []
    for row in candidates:
        written = texts.get(row.explanation, [])
        found = near.responses(row.feature_id, written, read)
        failed = unwritten(row.explanation, written)
        earned = None if failed else rewards.reward(found.own, found.neighbours, config)
        rows.append(
            ScoreRow(
                row.feature_id, row.split, row.rank, row.explanation, written, found.own, found.neighbours, earned
            )  # fmt: skip
        )
    return rows


if __name__ == "__main__":
    main(run, parallel=True)
