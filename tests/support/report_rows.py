"""Rows of every table that the report page reads, with a text that would do harm where it is not escaped."""

import math
from dataclasses import replace

from rows import evaluation, score

from saeexplainer.records import ContextRow, EvaluationRow, FeatureRow, PreferencePair, ScoreRow

FEATURE = FeatureRow("sandbox/main/7", "main", 7, "test", maximum=20.0, density=0.01)
NASTY = """</script><script>alert(1)</script> "quoted" & 'so' <!-- 🦊 שלום \\u2028\u2028 {{ 7 * 7 }} \
${x} $id "><img src=x>"""


def context(rank: int = 0, feature_id: str = FEATURE.feature_id) -> ContextRow:
    """The tokens are bare, as the table keeps them: "dogs" is cut in two and the spaces are nobody's."""
    tokens, values = ["the", "dog", "s", "bark", "."], [0.0, 20.0, 5.0, 0.0, 0.0]
    return ContextRow(feature_id, rank, "the dogs bark .", tokens, values, 1, ["word:dog"])


def evaluated(feature_id: str = FEATURE.feature_id, accuracy: float = 0.5, **changes) -> EvaluationRow:
    row = evaluation(
        feature_id=feature_id, explanation="the word dog", log_probability=math.log(0.5),
        texts=["a dog barks", "a cat"], activations=[0.9, 0.0],
        tokens=[["a ", "dog ", "bark"], ["a ", "cat"]], token_activations=[[0.0, 0.9, 0.0041], [0.0, 0.0]],
        generative_accuracy=accuracy, hallucination=float(accuracy == 0), collision=0.0, mean_activation=0.45,
        truth_agreement=math.nan, truth_f1=math.nan,
    )  # fmt: skip
    return replace(row, **changes)


def scored(rank: int, reward: float | None, explanation: str, feature_id: str = FEATURE.feature_id) -> ScoreRow:
    return score(
        feature_id=feature_id, split="dpo", rank=rank, explanation=explanation, reward=reward,
        **({} if reward is None else {"texts": ["a dog", "a cat"], "activations": [reward, 0.0]}),
    )  # fmt: skip


def pair(chosen: ScoreRow, rejected: ScoreRow) -> PreferencePair:
    gap = chosen.reward - rejected.reward
    return PreferencePair(
        chosen.feature_id, "dpo", chosen.explanation, rejected.explanation, chosen.reward, rejected.reward, gap,
        gap / chosen.reward, gap / chosen.reward, "a dog", "a dog",
    )  # fmt: skip
