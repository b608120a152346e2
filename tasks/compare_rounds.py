"""Put every evaluation side by side: intervals, paired differences, a table, a picture, and a record in MLflow.

    python -m tasks.compare_rounds

The files under reports/ are written first and are the result; MLflow is told afterwards (`tasks.tracking.runs`), and a
tracking server that does not answer costs a warning, not the result.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saeexplainer.config import Params
from saeexplainer.costs import bills
from saeexplainer.domains.opening import open_domain
from saeexplainer.figures import confidence
from saeexplainer.figures.comparison import ACCURACY, START, chain_of, subtractions, summarise
from saeexplainer.figures.notation import change
from saeexplainer.records import EvaluationRow, PreferencePair, ScoreRow, Usage
from saeexplainer.reports import tables
from saeexplainer.reports.page import page
from saeexplainer.runs.storage import read_notes, read_rows, replacing, write_json
from tasks import attribution
from tasks.places import ACTIVATIONS, EVALUATIONS, EXPLAINERS, LABELS, REPORTS, ROUNDS, SUBJECT
from tasks.stage import Report, main

if TYPE_CHECKING:
    from saeexplainer.explainer.table import FeatureTable


def run(params: Params) -> Report:
    """Write reports/: comparison, metrics, confidence, costs, attribution, page, table, picture and the plots' csv
    files; log them.

    Raises UserError if an evaluation or a round's scores are missing, or if it measures other features than the rest.
    """
    evaluations = {name: read_rows(EVALUATIONS / f"{name}.parquet", EvaluationRow) for name in params.evaluations}
    comparison = summarise(evaluations, params.compare_rounds.resamples, params.seed, _starts(params))
    scores = {name: read_rows(ROUNDS / name / "scores.parquet", ScoreRow) for name in params.rounds}
    reward, resamples = params.score_explanations.reward, params.compare_rounds.resamples
    against = tables.reward_hallucination_rows(comparison, evaluations, reward, resamples)
    write(comparison)
    write_csv(REPORTS / "rewards.csv", tables.reward_rows(scores), tables.RewardRow)
    write_csv(REPORTS / "reward_hallucination.csv", against, tables.RewardHallucinationRow)
    write_confidence(params, evaluations)
    write_costs(params, evaluations, scores)
    attributions = attribution.of_rounds(params)
    write_json(REPORTS / "attribution.json", attributions)
    write_page(params, comparison, attributions)
    return Report(metrics=_metrics(comparison), lines=[*_lines(comparison), *_tracked(params, comparison)])


def write(comparison: dict, folder: Path = REPORTS) -> None:
    """What the comparison alone gives, each file renamed into place."""
    with replacing(folder / "comparison.json") as temporary:
        # Not `storage.write_json`: it sorts keys, and here the order of the evaluations is information.
        temporary.write_text(json.dumps(comparison, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    means = tables.means(comparison)
    write_json(folder / "metrics.json", means)
    write_json(folder / f"{ACCURACY}.json", {name: found[ACCURACY] for name, found in means.items()})
    write_csv(folder / "rounds.csv", tables.rounds_rows(comparison), tables.RoundRow)
    with replacing(folder / "rounds.png") as temporary:
        tables.plot_rounds(comparison, temporary)
    with replacing(folder / "results.md") as temporary:
        temporary.write_text(tables.results_table(comparison), encoding="utf-8")


def write_confidence(params: Params, evaluations: Mapping[str, Sequence[EvaluationRow]]) -> None:
    """confidence.json and confidence.csv: the evaluations whose explanations a model gave a log-probability."""
    settings = params.compare_rounds
    found = {
        name: confidence.assess(
            name, rows, folds=settings.confidence_folds, bins=settings.confidence_bins, resamples=settings.resamples,
            seed=params.seed,
        )
        for name, rows in evaluations.items()
        if confidence.is_known(rows)
    }  # fmt: skip
    write_json(REPORTS / "confidence.json", found)
    points = [point for one in found.values() for point in one.curve]
    write_csv(REPORTS / "confidence.csv", points, confidence.CurvePoint)


def write_costs(
    params: Params, evaluations: Mapping[str, Sequence[EvaluationRow]], scores: Mapping[str, Sequence[ScoreRow]]
) -> None:
    """costs.json: calls and tokens of each round and evaluation; what an explainer reads and says is counted with its
    own tokenizer, texts with the subject's."""
    from saeexplainer.explainer.table import FeatureTable
    from saeexplainer.models.pointer import open_tokenizer

    tokenizer, table = open_tokenizer(SUBJECT), FeatureTable(ACTIVATIONS)
    contexts = table.contexts(params.explainer.prompt)
    rounds = {
        name: bills.RoundCosts(
            features=len({row.feature_id for row in rows}),
            pairs=len(read_rows(ROUNDS / name / "validated.parquet", PreferencePair)),
            sampling=_sampling_costs(params, name, rows, table, contexts),
            scoring=bills.texts_written(
                rows, tokenizer, params.score_explanations.writer, _usage(ROUNDS / name / "scores.parquet")
            ),
        )
        for name, rows in scores.items()
    }
    measured = {
        name: bills.evaluation_costs(rows, tokenizer, params.evaluate.writer, _usage(EVALUATIONS / f"{name}.parquet"))
        for name, rows in evaluations.items()
    }
    write_json(REPORTS / "costs.json", bills.Costs(rounds, measured))


def _usage(table: Path) -> Usage | None:
    """What a served writer took for the texts of a table; None where none wrote them."""
    found = read_notes(table).get("usage")
    return None if found is None else Usage(**found)


def _sampling_costs(
    params: Params, item: str, rows: Sequence[ScoreRow], table: "FeatureTable", contexts: Sequence[str]
) -> bills.Work:
    """What the round's first explainer read and wrote for its candidates; its prompts show `contexts`."""
    from saeexplainer.explainer.explainer import Prompts
    from saeexplainer.models.pointer import open_tokenizer

    tokenizer = open_tokenizer(EXPLAINERS / params.rounds[item].start)
    prompts = Prompts(tokenizer, len(tokenizer), params.explainer, contexts)
    asked = {feature_id: len(prompts.ids(table.number[feature_id])) for feature_id in {row.feature_id for row in rows}}
    read = sum(asked[row.feature_id] for row in rows)
    return bills.sampled(
        [row.explanation for row in rows], read, tokenizer, params.generate_explanations.max_new_tokens
    )


def write_page(params: Params, comparison: dict, attributions: Mapping[str, dict[str, Any] | None]) -> None:
    """report.html: every evaluation, round and feature."""
    sources = page.Sources(
        features=ACTIVATIONS / "features.parquet",
        contexts=ACTIVATIONS / "contexts.parquet",
        labels=LABELS,
        evaluations={name: EVALUATIONS / f"{name}.parquet" for name in comparison["rounds"]},
        rounds={name: ROUNDS / name for name in params.rounds},
        contexts_shown=params.compare_rounds.page_contexts,
        picture=REPORTS / "rounds.png",
    )
    domain = open_domain(params.prepare_subject.domain, params.seed, params.prepare_subject.corpus)
    table = ACTIVATIONS / "truth.safetensors"
    known = domain.truth_known and table.is_file()
    truth = page.true_concepts(table, sources.features, comparison["sae"], domain) if known else {}
    page.write(REPORTS / "report.html", comparison, sources, truth, _starts(params), attributions)


def _starts(params: Params) -> dict[str, str]:
    """What each round started from; without rounds, each reinforcement."""
    return {name: settings.start for name, settings in (params.rounds or params.reinforcements).items()}


def write_csv(path: Path, rows: Sequence[Any], record: type) -> None:
    """One line a record, a column a field of `record`, which DVC plots."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(record)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def _tracked(params: Params, comparison: dict) -> list[str]:
    """Log to MLflow and register the explainers; what happened, in lines."""
    from tasks.tracking import registry, runs, store

    lines = []
    try:
        lines += runs.log(params, comparison).lines
        lines += registry.register(params, comparison)
    except Exception as error:  # whatever a server, a driver or a network can raise: the result is already on disk
        lines.append(
            f"warning: MLflow at {store.shown_uri()} did not take the result ({store.one_line(error)}); "
            "nothing is lost, run `sae-explainer tracking rebuild` when it answers"
        )
    return lines


def _metrics(comparison: dict) -> dict[str, float]:
    return {f"{name}_{ACCURACY}": found[ACCURACY]["value"] for name, found in comparison["rounds"].items()}


def _lines(comparison: dict) -> list[str]:
    """The differences a person asks for first: each round against the one before, the last against the start."""
    chain = chain_of(comparison) or [START]
    found = {(a, b): comparison["differences"][f"{a}-{b}"].get(ACCURACY) for a, b in subtractions(comparison)}
    return [
        f"{a} - {b}: {change(ACCURACY, gain) if gain else 'fewer than two features were measured for both'}"
        for (a, b), gain in found.items()
        if {a, b} <= set(chain)
    ]


if __name__ == "__main__":
    main(run)
