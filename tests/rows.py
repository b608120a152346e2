"""Rows for tests that care about a few fields: the others are empty or zero, whichever fields the record comes to have."""

from dataclasses import fields
from typing import get_origin

from saeexplainer.records import EvaluationRow, ScoreRow


def evaluation(**given) -> EvaluationRow:
    """An evaluated explanation."""
    return _row(EvaluationRow, given)


def score(**given) -> ScoreRow:
    """A scored candidate."""
    return _row(ScoreRow, given)


def _row(record: type, given: dict):
    return record(**{field.name: (get_origin(field.type) or field.type)() for field in fields(record)} | given)
