"""Evaluation rows with every field there is: what a test does not name gets a value of its type."""

import math
from dataclasses import fields
from typing import Any

from saeexplainer.records import EvaluationRow


def evaluated(accuracies: list[float], truth: float = math.nan, sae: str = "main", **columns: list) -> list[EvaluationRow]:
    """A row a feature, ids sandbox/<sae>/0, 1, ...; `columns` gives other fields, one value a feature."""
    return [
        EvaluationRow(**_filled(
            feature_id=f"sandbox/{sae}/{index}",
            generative_accuracy=accuracy,
            hallucination=float(accuracy == 0),
            collision=float(index % 2),
            truth_agreement=truth,
            truth_f1=truth,
        ) | {name: values[index] for name, values in columns.items()})
        for index, accuracy in enumerate(accuracies)
    ]  # fmt: skip


def _filled(**given: Any) -> dict[str, Any]:
    plain = {float: 0.5, int: 1, str: "the word dog"}
    return {field.name: plain.get(field.type, []) for field in fields(EvaluationRow)} | given
