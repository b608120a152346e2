"""The metrics of one set of explanations on the features that no training saw.

    python -m tasks.evaluate r1

The explanation of an explainer is its greedy one; another prompt and other seeds than in training write the texts.
Writes data/evaluations/<name>.parquet, a row a feature.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from saeexplainer import evaluation, models, rewards, sae, truth, writer
from saeexplainer.config import Evaluation, EvaluationKind, Params
from saeexplainer.domains import open_domain
from saeexplainer.explainer import PARTS, Prompts, attach, direction_rows, explain
from saeexplainer.records import EvaluationRow, ExplanationRow, FeatureRow
from saeexplainer.seeds import seed_torch
from saeexplainer.storage import read_rows, read_tensors, write_rows
from tasks.stage import Report, main

ACTIVATIONS, SAES, SUBJECT = Path("data/activations"), Path("data/saes"), Path("data/subject")
EVALUATIONS = Path("data/evaluations")


class Bench:
    """What every evaluation needs: the features of the split, the subject as writer and reader, the explained SAE."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.all_rows = read_rows(ACTIVATIONS / "features.parquet", FeatureRow)
        self.numbers = [at for at, row in enumerate(self.all_rows) if row.split == params.evaluate.split]
        self.features = [self.all_rows[at] for at in self.numbers]
        self.model, self.tokenizer = models.load_model(SUBJECT), models.load_tokenizer(SUBJECT)
        self.sae_name = self.features[0].sae
        self.saes = {self.sae_name: sae.load(SAES / self.sae_name, self.model.config.hidden_size)}
        self.domain = open_domain(params.prepare_subject.domain, params.seed)

    def read(self, texts: Sequence[str]) -> writer.TextActivations:
        """Maxima of the explained SAE on texts."""
        return writer.read_texts(
            texts, self.model, self.tokenizer, self.saes, self.params.prepare_sae.hook_block,
            self.params.prepare_subject.context_length,
        )  # fmt: skip


def run(params: Params, item: str) -> Report:
    """Explain, write, read, measure."""
    bench = Bench(params)
    # All evaluations share the writer's seed: the same explanation gets the same draws in each where order allows.
    seed_torch(params.seed, f"explanations@{item}")
    explanations = explanations_of(params.evaluations[item], bench)
    seed_torch(params.seed, "evaluate")
    rows = measure(bench, explanations)
    write_rows(EVALUATIONS / f"{item}.parquet", rows, EvaluationRow)
    names = ("generative_accuracy", "hallucination", "collision", "mean_activation", "truth_agreement", "truth_f1")
    means = {name: float(np.mean([getattr(row, name) for row in rows])) for name in names}
    missing = sum(not row.explanation for row in rows)
    known = {name: value for name, value in means.items() if not np.isnan(value)}
    return Report(known, [f"{len(rows)} {params.evaluate.split} features, {missing} without an explanation"])


def explanations_of(source: Evaluation, bench: Bench) -> list[str]:
    """One explanation for each feature of the bench; empty where the source has none."""
    if source.kind is EvaluationKind.table:
        table = {row.feature_id: row.explanation for row in read_rows(Path(source.source), ExplanationRow)}
        return [table.get(feature.feature_id, "") for feature in bench.features]
    if source.kind is EvaluationKind.truth:
        return true_explanations(bench, Path(source.source))
    if source.kind is EvaluationKind.best_of_n:
        return best_of_n(bench, Path(source.source))
    return generated(bench, Path(source.source), temperature=0.0, samples=1)


def generated(bench: Bench, folder: Path, temperature: float, samples: int) -> list[str]:
    """Explanations of an explainer, `samples` in a row for each feature; temperature 0 is greedy."""
    params = bench.params
    model, tokenizer = models.load_model(folder), models.load_tokenizer(folder)
    tensors = read_tensors(ACTIVATIONS / "directions.safetensors")
    attach(model, tokenizer, direction_rows(tensors, params.train_sft.direction), params.train_sft)
    prompts = Prompts(model.config.vocab_size, len(PARTS[params.train_sft.direction]))
    asked = [number for number in bench.numbers for _ in range(samples)]
    config = params.generate_explanations
    return explain(
        model, tokenizer, prompts, asked, temperature=temperature, top_p=config.top_p,
        max_new_tokens=config.max_new_tokens, batch_size=config.batch_size, progress="explanations",
    )  # fmt: skip


def best_of_n(bench: Bench, folder: Path) -> list[str]:
    """The best rewarded of the greedy explanation and samples: activation feedback at inference, by the writer and reward
    of training. Ties go to the greedy one."""
    params = bench.params
    count, config = params.evaluate.best_of, params.score_explanations
    greedy = generated(bench, folder, temperature=0.0, samples=1)
    drawn = generated(bench, folder, params.evaluate.best_of_temperature, count - 1)
    choices = [[greedy[at], *drawn[at * (count - 1) : (at + 1) * (count - 1)]] for at in range(len(greedy))]
    samples = [explanation for candidates in choices for explanation in candidates]
    texts = writer.write_texts(bench.model, bench.tokenizer, samples, config.writer)
    read = bench.read([text for written in texts.values() for text in written])
    chosen = []
    for feature, candidates in zip(bench.features, choices):

        def rewarded(explanation: str, feature: FeatureRow = feature) -> float:
            written = texts.get(explanation, [])
            values = read.of(feature.sae, written)[:, feature.index] / feature.maximum if written else []
            return rewards.reward([float(value) for value in values], config.reward)

        chosen.append(max(candidates, key=rewarded))
    return chosen


def true_explanations(bench: Bench, table: Path) -> list[str]:
    """The concept with the best F1 that a description can be built on."""
    concepts = bench.domain.concepts()
    scores = truth.f1_of_all(truth.load(table, concepts))[truth_columns(bench)]
    leads = np.array([bench.domain.can_lead(concept) for concept in concepts])
    best = np.where(leads, scores, -1.0).argmax(axis=1)
    return [bench.domain.describe([concepts[at]]) for at in best]


def truth_columns(bench: Bench) -> list[int]:
    """The column of each feature of the bench in the truth table, which holds the explained SAE's features in order."""
    explained = [row.feature_id for row in bench.all_rows if row.sae == bench.sae_name]
    return [explained.index(feature.feature_id) for feature in bench.features]


def measure(bench: Bench, explanations: Sequence[str]) -> list[EvaluationRow]:
    """Texts by the evaluation's writer, activations, metrics."""
    params = bench.params
    texts = writer.write_texts(bench.model, bench.tokenizer, explanations, params.evaluate.writer)
    read = bench.read([text for written in texts.values() for text in written])
    explained = [row for row in bench.all_rows if row.sae == bench.sae_name]
    maxima = np.full(bench.saes[bench.sae_name].cfg.d_sae, np.inf)
    rivals = np.zeros(len(maxima), dtype=bool)
    for row in explained:
        maxima[row.index] = row.maximum
        rivals[row.index] = row.density <= params.evaluate.collision_max_density
    scores = [(float("nan"), float("nan"))] * len(explanations)
    if bench.domain.truth_known:
        table = truth.load(ACTIVATIONS / "truth.safetensors", bench.domain.concepts())
        scores = evaluation.truth_scores(explanations, truth_columns(bench), table, bench.domain)
    rows = []
    for feature, explanation, known in zip(bench.features, explanations, scores):
        written = texts.get(explanation, [])
        relative = read.of(bench.sae_name, written) / maxima if written else np.zeros((0, len(maxima)))
        rows.append(evaluation.evaluation_row(feature, explanation, written, relative, rivals, known))
    return rows


if __name__ == "__main__":
    main(run)
