"""Rows for tests that care about a few fields: the others are empty or zero, whatever fields the record has."""

import math
from dataclasses import fields
from types import UnionType
from typing import get_args, get_origin

from saeexplainer.records import EvaluationRow, ScoreRow


def evaluation(**given) -> EvaluationRow:
    """An evaluated explanation."""
    return _row(EvaluationRow, given)


def score(**given) -> ScoreRow:
    """A scored candidate."""
    return _row(ScoreRow, given)


def evaluated(
    accuracies: list[float], truth: float = math.nan, sae: str = "main", **columns: list
) -> list[EvaluationRow]:
    """A row a feature, ids sandbox/<sae>/0, 1, ...; `columns` gives other fields, one value a feature."""
    return [
        evaluation(
            **_consistent(accuracy, index, truth, sae) | {name: values[index] for name, values in columns.items()}
        )
        for index, accuracy in enumerate(accuracies)
    ]


def _consistent(accuracy: float, index: int, truth: float, sae: str) -> dict:
    return dict(  # noqa: C408 (fields as a call has them)
        feature_id=f"sandbox/{sae}/{index}",
        explanation="the word dog",
        log_probability=math.nan,
        texts=["a dog"],
        activations=[accuracy],
        tokens=[["a ", "dog"]],
        token_activations=[[0.0, accuracy]],
        calls=1,
        call_tokens=8,
        generative_accuracy=accuracy,
        hallucination=float(accuracy == 0),
        collision=float(index % 2),
        mean_activation=accuracy / 2,
        judge_agreement=truth,
        truth_agreement=truth,
        truth_f1=truth,
    )


def _empty(kind: type) -> type:
    """The type whose empty value a field gets; of a number that may be unknown, the number."""
    return get_args(kind)[0] if isinstance(kind, UnionType) else get_origin(kind) or kind


def _row(record: type, given: dict):
    return record(**{field.name: _empty(field.type)() for field in fields(record)} | given)
