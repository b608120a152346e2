"""The metrics of docs/METHOD.md section 8, a row a feature: pure, from texts' activations to numbers.

An explanation that is missing counts as failure in every metric; nothing drops out. One whose texts a served writer
failed to write is there, but what its texts would have done is not known: NaN in the metrics of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from saeexplainer.domains.domain import Domain
from saeexplainer.evaluation import metrics
from saeexplainer.features.truth import TruthTable, f1, f1_of_all, firing_tokens, tokens_of
from saeexplainer.records import EvaluationRow, FeatureRow, ProbeRow, unwritten


@dataclass(frozen=True)
class Explanation:
    """What is measured."""

    text: str  # empty where the source has none
    calls: int  # this and the following fields as in `EvaluationRow`
    call_tokens: int
    log_probability: float = math.nan


@dataclass(frozen=True)
class Answers:
    """The metrics of one explanation that do not come from its own texts alone; fields as in `EvaluationRow`."""

    input_accuracy: float
    output_accuracy: float
    detection_auc: float
    fuzzing_auc: float
    predictive_correlation: float
    judge_agreement: float
    truth_agreement: float
    truth_f1: float


@dataclass(frozen=True)
class Caused:
    """What the texts of one explanation did."""

    texts: list[str]
    relative: Float[np.ndarray, "texts live"]  # maximum over the corpus maximum, of every live feature of the SAE
    neighbours: Sequence[float]  # as in `ScoreRow`
    read: Sequence[tuple[list[str], list[float]]]  # each text's tokens, and the feature on them in activation units


def evaluation_row(
    feature: FeatureRow,
    explanation: Explanation,
    caused: Caused,
    target: int,
    rivals: Bool[np.ndarray, "live"],
    answers: Answers,
) -> EvaluationRow:
    """All metrics of one explanation. `target` is the feature's place among the live ones, of which `rivals` count in
    collisions. What is measured on texts is NaN if they are `unwritten`."""
    own = caused.relative[:, target]
    missing, failed = len(caused.texts) == 0, unwritten(explanation.text, caused.texts)
    no_share, no_text = (math.nan, math.nan) if failed else (0.0, 1.0)
    return EvaluationRow(
        feature_id=feature.feature_id,
        explanation=explanation.text,
        log_probability=explanation.log_probability,
        texts=caused.texts,
        activations=[float(value) for value in own],
        neighbour_activations=list(caused.neighbours),
        tokens=[tokens for tokens, _ in caused.read],
        token_activations=[[round(value / feature.maximum, 4) for value in values] for _, values in caused.read],
        calls=explanation.calls,
        call_tokens=explanation.call_tokens,
        generative_accuracy=no_share if missing else metrics.generative_accuracy(own),
        hallucination=no_text if missing else metrics.hallucination(own),
        collision=no_text if missing else float(metrics.collides(caused.relative, target, rivals)),
        mean_activation=no_share if missing else float(own.mean()),
        input_accuracy=math.nan if failed else answers.input_accuracy,
        output_accuracy=answers.output_accuracy,
        detection_auc=answers.detection_auc,
        fuzzing_auc=answers.fuzzing_auc,
        predictive_correlation=answers.predictive_correlation,
        judge_agreement=answers.judge_agreement,
        truth_agreement=answers.truth_agreement,
        truth_f1=answers.truth_f1,
    )


def truth_scores(
    explanations: Sequence[str], columns: Sequence[int], table: TruthTable, domain: Domain
) -> list[tuple[float, float]]:
    """(agreement, F1) of each explanation with the feature in that column of the truth table.

    Agreement is 1.0 if the explanation names the single concept with the best F1, ties included. An explanation outside
    the language of descriptions names nothing: 0.0 in both.
    """
    all_f1 = f1_of_all(table)
    column_of = {concept: at for at, concept in enumerate(table.concepts)}
    scores = []
    for explanation, feature in zip(explanations, columns):
        named = domain.parse(explanation)
        best = all_f1[feature].max()
        hits = [concept for concept in named if all_f1[feature, column_of[concept]] >= best > 0]
        score = f1(tokens_of(table, named), firing_tokens(table, feature))
        scores.append((float(bool(hits)), score))
    return scores


def detection(
    probes: Sequence[ProbeRow], relevance: Sequence[float], token_relevance: Sequence[Sequence[float]]
) -> tuple[float, float, float]:
    """(detection AUC, fuzzing AUC, correlation) from a judge's score of each probe and of each of its tokens.

    Detection ranks contexts. Fuzzing ranks the tokens of the contexts in which the feature fires; it fires on a token
    at half its maximum of that context or more. The correlation is over all tokens of all contexts. Equal scores, as
    those of a missing explanation, are at chance.
    """
    firing = [max(probe.activations) > 0 for probe in probes]
    tokens: list[float] = []
    positive = []
    for probe, scores in zip(probes, token_relevance, strict=True):
        peak = max(probe.activations)
        if peak > 0:
            tokens += scores
            positive += [value >= metrics.FIRING * peak for value in probe.activations]
    return (
        metrics.auc(relevance, firing),
        metrics.auc(tokens, positive),
        metrics.correlation(
            [score for scores in token_relevance for score in scores],
            [value for probe in probes for value in probe.activations],
        ),
    )


def agreement(first: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    """Spearman's rank correlation of the first judge's scores with each other judge's, averaged over those for whom it
    is defined; NaN if there is none, as where scores are constant."""
    from scipy.stats import spearmanr

    able = [other for other in others if len(set(first)) > 1 and len(set(other)) > 1]
    return float(np.mean([spearmanr(first, other).statistic for other in able])) if able else math.nan


def other_explanations(explanations: Sequence[str], count: int, seed: int) -> list[list[int]]:
    """For each position up to `count` positions of other explanations, all different, drawn without replacement."""
    draw = np.random.default_rng(seed)
    first = {explanation: at for at, explanation in reversed(list(enumerate(explanations))) if explanation}
    named, places = np.array(list(first), dtype=object), np.array(list(first.values()), dtype=np.int64)
    return [draw.permutation(places[named != explanation])[:count].tolist() for explanation in explanations]


def bundles_of_three(count: int, seed: int) -> list[tuple[list[int], int]]:
    """For each of `count` features three features, itself and two others in random order, and its place among them.

    Raises ValueError for fewer than three features.
    """
    if count < 3:
        raise ValueError(f"{count} features: bundles of three need at least 3")
    draw = np.random.default_rng(seed)
    found = []
    for own in range(count):
        others = draw.choice(np.delete(np.arange(count), own), size=2, replace=False)
        three = draw.permutation([own, *others]).tolist()
        found.append((three, three.index(own)))
    return found
