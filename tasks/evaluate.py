"""The metrics of one set of explanations on the features that no training saw.

    python -m tasks.evaluate r1

The explanation of an explainer is its greedy one; another prompt and other seeds than in training write the texts.
Writes data/evaluations/<name>.parquet, a row a feature.
"""

import math
from collections.abc import Sequence
from itertools import islice

import numpy as np

from saeexplainer.config import Params
from saeexplainer.evaluation import metrics, rows as evaluation_rows
from saeexplainer.evaluation.rows import Answers, Caused, Explanation, evaluation_row
from saeexplainer.features import truth
from saeexplainer.judges.judge import Judge, Question
from saeexplainer.records import EvaluationRow, unwritten
from saeexplainer.runs.seeds import seed_torch, stage_seed
from saeexplainer.runs.storage import write_rows
from saeexplainer.saes import text_activations
from tasks import sources
from tasks.bench import Bench
from tasks.places import ACTIVATIONS, EVALUATIONS
from tasks.stage import Report, main

# Metrics that the stage says itself: fields of EvaluationRow.
LOOKED_AT = ("generative_accuracy", "hallucination", "collision", "mean_activation", "truth_agreement", "truth_f1")


def run(params: Params, item: str) -> Report:
    """Explain, write, read, measure."""
    bench = Bench(params)
    # All evaluations share the writer's seed: the same explanation gets the same draws in each where order allows.
    seed_torch(params.seed, f"explanations@{item}")
    explanations = sources.explanations_of(params.evaluations[item], bench)
    seed_torch(params.seed, "evaluate")
    rows = measure(bench, explanations)
    usage = bench.author.usage(row.explanation for row in rows)
    write_rows(EVALUATIONS / f"{item}.parquet", rows, EvaluationRow, None if usage is None else {"usage": usage})
    asked = [bench.author, *bench.judges, *([bench.training_author] if "training_author" in vars(bench) else [])]
    notes = [note for one in asked for note in one.notes()]
    return Report(means(rows), [*counted(rows, params.evaluate.split), *bench.said, *notes])


def means(rows: Sequence[EvaluationRow]) -> dict[str, float]:
    """The metrics that a person looks at first, each over the features for which it is known."""
    known = {name: [value for row in rows if not math.isnan(value := getattr(row, name))] for name in LOOKED_AT}
    return {name: float(np.mean(values)) for name, values in known.items() if values}


def counted(rows: Sequence[EvaluationRow], split: str) -> list[str]:
    """How many features there are, how many have no explanation, and of how many the texts failed."""
    missing = sum(not row.explanation for row in rows)
    failed = sum(unwritten(row.explanation, row.texts) for row in rows)
    lines = [f"{len(rows)} {split} features, {missing} without an explanation"]
    if failed:
        lines.append(f"{failed} explanations were not measured on texts, because every call for theirs failed")
    return lines


def measure(bench: Bench, explanations: Sequence[Explanation]) -> list[EvaluationRow]:
    """Texts by the evaluation's writer, activations, metrics."""
    named = [explanation.text for explanation in explanations]
    texts = bench.author.write(named)
    latents, columns = [row.index for row in bench.live], bench.live_columns()
    read = bench.read([text for written in texts.values() for text in written], latents)
    maxima, rivals = bench.maxima_and_rivals()
    scores = [(math.nan, math.nan)] * len(named)
    if bench.domain.truth_known:
        table = truth.load(ACTIVATIONS / "truth.safetensors", bench.domain.concepts())
        scores = evaluation_rows.truth_scores(named, columns, table, bench.domain)
    asked = [(text, row.index) for row, name in zip(bench.features, named) for text in texts.get(name, [])]
    tokens = iter(bench.read_tokens(asked))
    inputs = input_accuracies(bench, named, texts, read)
    judged = answers(bench, named)
    rows = []
    for at, (feature, explanation) in enumerate(zip(bench.features, explanations)):
        written = texts.get(explanation.text, [])
        caused = Caused(
            texts=written,
            relative=read.of(bench.sae_name, written, latents) / maxima,
            neighbours=bench.near.responses(feature.feature_id, written, read).neighbours,
            input_accuracy=inputs[at],
            read=list(islice(tokens, len(written))),
        )
        rows.append(evaluation_row(feature, explanation, caused, columns[at], rivals, judged[at], scores[at]))
    return rows


def input_accuracies(
    bench: Bench, named: Sequence[str], texts: dict[str, list[str]], read: text_activations.TextActivations
) -> list[float]:
    """Each explanation's texts against one text of each of a few other explanations of the same evaluation, which have
    texts."""
    count = bench.params.evaluate.negatives
    able = [name if texts.get(name) else "" for name in named]
    others = evaluation_rows.other_explanations(able, count, stage_seed(bench.params.seed, "negatives"))
    found = []
    for feature, name, rivals in zip(bench.features, named, others):
        positive = texts.get(name, [])[:count]
        negative = [text for rival in rivals for text in texts[named[rival]][:1]]
        own = [read.of(bench.sae_name, some, [feature.index])[:, 0] for some in (positive, negative)]
        found.append(metrics.input_accuracy(*own))
    return found


def answers(bench: Bench, named: Sequence[str]) -> list[Answers]:
    """What the first judge makes of each explanation: contexts, tokens, and the feature's steered texts among three
    bundles; and how far the other judges agree with it about the contexts."""
    judge, probes = bench.judges[0], [bench.probes[feature.feature_id] for feature in bench.features]
    texts = [probe.text for own in probes for probe in own]
    names = [name for name, own in zip(named, probes) for _ in own]
    cut = text_activations.cut_texts(texts, bench.tokenizer, bench.params.prepare_subject.context_length)
    asked = [Question(name, text, tuple(tokens)) for name, text, tokens in zip(names, texts, cut)]
    relevances = [iter(each.relevance(asked)) for each in bench.judges]
    tokens = iter(judge.token_relevance(asked))
    found = []
    for own, output in zip(probes, output_accuracies(bench, judge, named)):
        scores, *others = [list(islice(relevance, len(own))) for relevance in relevances]
        contexts = evaluation_rows.detection(own, scores, list(islice(tokens, len(own))))
        found.append(Answers(output, *contexts, evaluation_rows.agreement(scores, others)))
    return found


def output_accuracies(bench: Bench, judge: Judge, named: Sequence[str]) -> list[float]:
    """Whether the judge finds the feature's steered texts by its explanation, among three bundles."""
    bundles = [bench.steered[feature.feature_id] for feature in bench.features]
    choices = evaluation_rows.bundles_of_three(len(named), stage_seed(bench.params.seed, "bundles"))
    asked = [Question(name, text) for name, (three, _) in zip(named, choices) for at in three for text in bundles[at]]
    relevance = iter(judge.relevance(asked))
    found = []
    for name, (three, right) in zip(named, choices):
        scores = [sum(islice(relevance, len(bundles[at]))) for at in three]
        found.append(metrics.picked(scores, right) if name else 0.0)
    return found


if __name__ == "__main__":
    main(run, parallel=True, resumes=True)
