"""Who may become the champion, by hand: where every feature differs by the same number, the interval is that number."""

import math
from dataclasses import fields

import pytest

from saeexplainer.errors import UserError
from saeexplainer.figures import gate
from saeexplainer.figures.gate import Verdict
from saeexplainer.figures.intervals import Interval
from saeexplainer.records import EvaluationRow

BLANK = {field.name: field.type() for field in fields(EvaluationRow)}  # "", 0, 0.0, []


def rows(accuracies: list[float], **more: list[float]) -> list[EvaluationRow]:
    """One row a feature."""
    columns = {"generative_accuracy": accuracies} | more
    return [
        EvaluationRow(**BLANK | {"feature_id": f"sandbox/main/{at}"} | dict(zip(columns, values, strict=True)))
        for at, values in enumerate(zip(*columns.values(), strict=True))
    ]


def judged(rounds: dict, opponent: list, criterion: str = "generative_accuracy", guarded: tuple = ()) -> Verdict:
    return gate.judge(rounds, opponent, criterion, guarded, 500, 0)


@pytest.mark.parametrize(
    ("rounds", "opponent", "best"),
    [
        ({"r1": [0.5, 0.5], "r2": [0.7, 0.7]}, [0.2, 0.2], "r2"),
        ({"r1": [0.7, 0.7], "r2": [0.5, 0.5]}, [0.2, 0.2], "r1"),
        ({"r1": [0.2, 0.2]}, [0.2, 0.2], None),  # not worse is not better
        ({"r1": [0.1, 0.1]}, [0.2, 0.2], None),
        ({"r1": [0.2, 1.0]}, [0.3, 0.2], None),  # better on average, but the interval reaches -0.1
        ({"r1": [0.2, 1.0], "r2": [0.3, 0.3]}, [0.25, 0.25], "r2"),  # r1's mean is larger
        ({"r1": [0.6, 0.2]}, [0.5, 0.1], "r1"),  # unpaired, 0.2 is below 0.5
    ],
)  # fmt: skip
def test_the_champion_is_beaten_only_beyond_the_interval(rounds, opponent, best):
    assert judged({name: rows(values) for name, values in rounds.items()}, rows(opponent)).best == best


def test_of_a_rate_that_should_be_low_the_lower_one_wins():
    found = {"r1": rows([0.9, 0.9], hallucination=[0.2, 0.2]), "r2": rows([0.1, 0.1], hallucination=[0.1, 0.1])}
    opponent = rows([0.5, 0.5], hallucination=[0.5, 0.5])
    verdict = judged(found, opponent, "hallucination_rate")
    assert (
        verdict.best == "r2" and verdict.reason("sft") == "r2 - sft: hallucination rate -40.0 points (-40.0 to -40.0)"
    )
    verdict = judged({"r1": opponent}, found["r1"], "hallucination_rate")
    assert verdict.reason("sft") == "r1 - sft: hallucination rate +30.0 points (+30.0 to +30.0), not below 0"


# r1's accuracy is .3 above the opponent's; what it does to a guarded metric is (r1's values, the opponent's).
GUARDS = {
    "equal": ("collision_rate", [0.5, 0.5], [0.5, 0.5], True),
    "a high rate that rises": ("collision_rate", [0.9, 0.9], [0.5, 0.5], False),
    "a rate that falls": ("collision_rate", [0.1, 0.1], [0.5, 0.5], True),
    "rises on average, within the interval": ("collision_rate", [0.4, 0.9], [0.5, 0.5], True),
    "an accuracy that falls": ("input_accuracy", [0.4, 0.4], [0.5, 0.5], False),
    "an accuracy that rises": ("input_accuracy", [0.9, 0.9], [0.5, 0.5], True),
    "falls on average, within the interval": ("output_accuracy", [0.0, 0.6], [0.5, 0.5], True),
    "known of one feature, which has no interval": ("detection_auc", [0.4, math.nan], [0.5, 0.5], True),
    "known of two features, where it falls": ("detection_auc", [0.4, 0.4], [0.5, 0.5], False),
    "known of no feature of both": ("truth_f1", [0.4, math.nan], [math.nan, 0.5], True),
}
FIELD = {"collision_rate": "collision"}


@pytest.mark.parametrize(("metric", "own", "opponent", "promoted"), GUARDS.values(), ids=GUARDS)
def test_a_loss_beyond_the_interval_on_a_guarded_metric_hinders(metric, own, opponent, promoted):
    field = FIELD.get(metric, metric)
    round_, start = rows([0.5, 0.5], **{field: own}), rows([0.2, 0.2], **{field: opponent})
    assert judged({"r1": round_}, start, guarded=(metric,)).best == ("r1" if promoted else None)
    assert judged({"r1": round_}, start).best == "r1"  # nothing is guarded


def test_the_reason_names_every_loss_with_its_interval():
    found = rows([0.5, 0.5], collision=[1.0, 1.0], input_accuracy=[0.0, 0.0], detection_auc=[0.6, 0.6])
    start = rows([0.2, 0.2], collision=[0.75, 0.75], input_accuracy=[0.5, 0.5], detection_auc=[0.5, 0.5])
    verdict = judged({"r1": found}, start, guarded=("collision_rate", "input_accuracy", "detection_auc"))
    assert verdict.losses == {"r1": {
        "collision_rate": Interval(0.25, 0.25, 0.25, 2), "input_accuracy": Interval(-0.5, -0.5, -0.5, 2),
    }}  # fmt: skip
    assert verdict.reason("sft") == (
        "r1 - sft: generative accuracy +30.0 points (+30.0 to +30.0), but it loses collision rate +25.0 points (+25.0 "
        "to +25.0), input accuracy -50.0 points (-50.0 to -50.0)"
    )


def test_the_next_best_round_is_promoted_and_the_reason_says_what_hinders_the_best():
    found = {"r1": rows([0.5, 0.5]), "r2": rows([0.7, 0.7], collision=[1.0, 1.0]), "r3": rows([0.4, 0.4])}
    verdict = judged(found, rows([0.2, 0.2]), guarded=("collision_rate",))
    assert (verdict.best, verdict.ahead) == ("r1", "r2")
    assert verdict.reason("sft") == (
        "r1 - sft: generative accuracy +30.0 points (+30.0 to +30.0); r2 - sft: generative accuracy +50.0 points "
        "(+50.0 to +50.0), but it loses collision rate +100.0 points (+100.0 to +100.0)"
    )


def test_other_features_and_an_unknown_criterion_cannot_be_judged():
    with pytest.raises(UserError, match="cannot be paired"):
        judged({"r1": rows([0.5, 0.5])}, rows([0.5]))
    nobody = rows([0.5, 0.5], truth_f1=[math.nan, 0.5])
    with pytest.raises(UserError, match="compare_rounds.criterion: truth_f1 is known of fewer than two .* of both r1"):
        judged({"r1": nobody}, nobody, "truth_f1")


def test_a_gain_on_one_feature_makes_no_champion():
    with pytest.raises(UserError, match="fewer than two features"):
        judged({"r1": rows([1.0])}, rows([0.0]))
