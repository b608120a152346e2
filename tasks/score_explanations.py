"""Candidates to texts to activations to rewards.

    python -m tasks.score_explanations r1

A description is written and read once, for all features of all SAEs that it was proposed for. A round that
`score_explanations.by_sentence` names has no texts: its candidates earn what an earlier round's pairs say of sentences
alone. Writes data/rounds/<round>/scores.parquet.
"""

from collections.abc import Sequence

from saeexplainer.config import Params, Reward
from saeexplainer.evaluation import scoring
from saeexplainer.evaluation.scoring import Outcome
from saeexplainer.features.neighbours import Neighbourhoods
from saeexplainer.preferences import rewards
from saeexplainer.records import CandidateRow, FeatureRow, NeighbourRow, ScoreRow
from saeexplainer.runs.seeds import seed_torch, stage_seed
from saeexplainer.runs.storage import read_rows, write_rows
from saeexplainer.saes import text_activations
from saeexplainer.saes.reading import open_reader
from saeexplainer.writers.opening import open_writer
from tasks.places import ACTIVATIONS, ROUNDS, SAES, SUBJECT
from tasks.stage import Report, main


def run(params: Params, item: str) -> Report:
    """Write, read, reward; with `reward.shuffle` the rewards are permuted within each feature (the control)."""
    if item in params.score_explanations.by_sentence:
        return by_sentence(params, item)
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
    outcomes = scoring.try_out(
        [(row.feature_id, row.explanation) for row in candidates], author, near,
        lambda texts: text_activations.read_texts(texts, reader, asked),
    )  # fmt: skip
    scored = _perhaps_shuffled(score_rows(candidates, outcomes, config.reward), params, item)
    described = {row.explanation for row in candidates if row.explanation}
    usage = author.usage(described)
    notes = None if usage is None else {"usage": usage}
    write_rows(ROUNDS / item / "scores.parquet", scored, ScoreRow, notes)
    texts = {text for outcome in outcomes for text in outcome.texts}
    lines = [f"{len(scored)} candidates scored on {len(texts)} distinct texts of {len(described)} descriptions"]
    unknown = sum(row.reward is None for row in scored)
    if unknown:
        lines.append(f"{unknown} candidates have no reward, because every call for their texts failed")
    return Report(means(scored), [*lines, *author.notes()])


def by_sentence(params: Params, item: str) -> Report:
    """Reward each explanation by itself. Raises UserError if the earlier round has too few pairs."""
    from tasks.sentence_reward import codes_of, fitted

    source = params.score_explanations.by_sentence[item]
    candidates = read_rows(ROUNDS / item / "candidates.parquet", CandidateRow)
    earned = fitted(source, codes_of(params)).rewards([row.explanation for row in candidates])
    scored = [
        ScoreRow(row.feature_id, row.split, row.rank, row.explanation, [], [], [], reward)
        for row, reward in zip(candidates, earned, strict=True)
    ]
    scored = _perhaps_shuffled(scored, params, item)
    write_rows(ROUNDS / item / "scores.parquet", scored, ScoreRow)
    told = (
        f"{len(scored)} candidates scored by the sentence alone, as the pairs of {source} have it; no text was written"
    )
    return Report(means(scored), [told])


def _perhaps_shuffled(rows: list[ScoreRow], params: Params, item: str) -> list[ScoreRow]:
    if not params.score_explanations.reward.shuffle:
        return rows
    return rewards.shuffled(rows, stage_seed(params.seed, f"shuffle@{item}"))


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


def score_rows(candidates: Sequence[CandidateRow], outcomes: Sequence[Outcome], config: Reward) -> list[ScoreRow]:
    """One row a candidate; an empty explanation has no text and earns 0, one whose texts failed has no reward."""
    return [
        ScoreRow(
            row.feature_id, row.split, row.rank, row.explanation, outcome.texts, outcome.responses.own,
            outcome.responses.neighbours, outcome.reward(config),
        )
        for row, outcome in zip(candidates, outcomes, strict=True)
    ]  # fmt: skip


if __name__ == "__main__":
    main(run, parallel=True, resumes=True)
