"""What the report page says about one feature: pure, records in, plain JSON values out.

Two shapes leave here. A `detail` is everything about a feature and is looked at one feature at a time; a `summary` is
its line in the table and is held for all of them. An unknown number is None, never NaN, which JSON does not have.

A text is a flat list: strings, and after each token on which the feature fires a number, its activation in units of the
feature's maximum. `["the ", "dog", 0.9, " barks"]` fires on "dog" alone. Tokens that do nothing are joined, which
keeps 30,000 features a file that a browser opens.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from saeexplainer.evaluation.metrics import FIRING
from saeexplainer.records import (
    ContextRow,
    DroppedFeature,
    DropReason,
    EvaluationRow,
    FeatureRow,
    PreferencePair,
    QuarantinedPair,
    ScoreRow,
)

FIRES, COLLIDES, HALLUCINATED, MISSING = "fires", "fires, collides", "hallucinated", "missing"
RIGHT, PARTLY, WRONG, UNCLEAR = "right", "partly right", "wrong", "unclear"
# With a lower F1 than this, feature and concept disagree on more than twice as many tokens as they share: then the
# concept with the best F1 is only the least bad one, and an explanation that does not name it is not wrong for that.
CLEAR_F1 = 0.5


@dataclass(frozen=True)
class Word:
    """One of the page's own words, as its legend and its tooltips have it."""

    meaning: str
    symbol: str = ""  # stands before the word, or alone where there is no room


VERDICTS = {
    FIRES: Word("a text makes the feature fire, and no other feature fires harder on these texts", "●"),
    COLLIDES: Word("a text makes the feature fire, but another feature of the SAE fires harder on these texts", "◐"),
    HALLUCINATED: Word("no text makes the feature fire", "○"),
    MISSING: Word("the source gave no explanation", "∅"),
}
TRUTHS = {
    RIGHT: Word("the explanation names the concept that fits best, or fits as well itself", "✓"),
    PARTLY: Word(f"the explanation fits with an F1 of {CLEAR_F1} or more, and another concept fits better", "≈"),
    WRONG: Word(f"a concept fits with an F1 of {CLEAR_F1} or more, and the explanation does not", "✗"),
    UNCLEAR: Word(f"no concept fits with an F1 of {CLEAR_F1} or more: what the feature encodes is not known", "?"),
}
LEGEND = {
    "accuracy": Word("share of the texts written from the explanation that make the feature fire"),
    **VERDICTS,
    "F1": Word(
        "how far the tokens on which a feature fires are those for which a concept or an explanation holds: 1 if they "
        "are the same, 0 if they share none"
    ),
    **TRUTHS,
    "reward": Word("what a round measured of a candidate explanation: the texts written from it make the feature fire"),
    "floor": Word(
        "the reward that a feature's best candidate must reach; a feature below it trains nothing in that round"
    ),
    "lender": Word("an SAE on the same activations with another seed; its features are for training alone"),
    "twin": Word("a feature too close to one of the valid or test split; no training sees it"),
    "spare": Word("a feature that is neither trained on nor measured"),
}
DROPPED = {
    DropReason.best_is_zero: "no candidate made it fire at all",
    DropReason.below_floor: "its best candidate earns too little",
    DropReason.best_is_empty: "its best candidate says nothing",
    DropReason.no_spread: "its candidates earn about the same",
    DropReason.no_gap: "no candidate is far enough below the best",
    DropReason.calls_failed: "a server gave too few of its candidates their texts",
}
SUMMARY_TOKENS = 4  # strongest tokens that the table shows

Segments = list[str | float]


@dataclass(frozen=True)
class RoundRecords:
    """What one preference round did with one feature; all empty where it did not see it."""

    scores: Sequence[ScoreRow] = ()
    pairs: Sequence[PreferencePair] = ()
    dropped: Sequence[DroppedFeature] = ()  # one at most
    quarantined: Sequence[QuarantinedPair] = ()


@dataclass(frozen=True)
class FeatureRecords:
    """All that is known about one feature."""

    feature_id: str
    feature: FeatureRow | None = None  # None where only an evaluation names it
    contexts: Sequence[ContextRow] = ()  # strongest first
    label: str = ""  # the open-loop label; empty where there is none
    evaluations: Mapping[str, EvaluationRow] = field(default_factory=dict)  # by name, those that measured it
    rounds: Mapping[str, RoundRecords] = field(default_factory=dict)  # by name
    truth: Sequence[tuple[str, float]] = ()  # concepts with their F1, best first; empty where it is unknown


def number(value: float | None, digits: int = 3) -> float | None:
    """A rounded number, None where it is unknown."""
    return None if value is None or not math.isfinite(value) else round(float(value), digits)


def segments(tokens: Sequence[str], values: Sequence[float], rest: str = "") -> Segments:
    """A text as the page stores it. `values` are in units of the maximum; `rest` is text that was not read."""
    found: Segments = []
    plain = ""
    for token, value in zip(tokens, values, strict=True):
        activation = number(value, 2)
        if not activation or activation < 0:
            plain += token
            continue
        found += [plain, token, activation] if plain else [token, activation]
        plain = ""
    plain += rest
    return [*found, plain] if plain else found


def spaced(text: str, tokens: Sequence[str]) -> list[str]:
    """The tokens, each reaching to the start of the next, so that joined they are the text (`ContextRow` keeps bare
    tokens). Joined by spaces where they are not in the text in this order."""
    starts, position = [], 0
    for token in tokens:
        start = text.find(token, position)
        if start < 0:
            return [f"{token} " for token in tokens]
        starts.append(start)
        position = start + len(token)
    return [text[start:end] for start, end in zip([0, *starts[1:]], [*starts[1:], len(text)])] if tokens else []


def verdict(row: EvaluationRow) -> str | None:
    """One of VERDICTS; None where it is unknown, because the texts of the explanation failed."""
    if not row.explanation.strip():
        return MISSING
    if math.isnan(row.hallucination):
        return None
    if row.hallucination:
        return HALLUCINATED
    return COLLIDES if row.collision else FIRES


def truth_verdict(row: EvaluationRow, truth: Sequence[tuple[str, float]]) -> str | None:
    """One of TRUTHS, given the concepts that fit the feature best; None where no truth is known."""
    if math.isnan(row.truth_agreement):
        return None
    best = truth[0][1] if truth else 0.0
    if max(best, row.truth_f1) < CLEAR_F1:
        return UNCLEAR
    if row.truth_agreement or row.truth_f1 >= best:
        return RIGHT
    return PARTLY if row.truth_f1 >= CLEAR_F1 else WRONG


def detail(records: FeatureRecords) -> dict[str, Any]:
    """Everything about one feature."""
    return {
        "contexts": [_context(context, _maximum(records)) for context in records.contexts],
        "evaluations": {name: _evaluation(row, records.truth) for name, row in records.evaluations.items()},
        "rounds": {name: _round(found) for name, found in records.rounds.items() if found.scores or found.dropped},
        "truth": [[concept, number(score)] for concept, score in records.truth],
    }


def summary(records: FeatureRecords) -> dict[str, Any]:
    """The line of one feature in the table."""
    feature, rounds = records.feature, records.rounds
    best = {name: _best(found.scores) for name, found in rounds.items() if found.scores}
    return {
        "id": records.feature_id,
        "split": feature.split if feature else "unknown",
        "maximum": number(feature.maximum) if feature else None,
        "density": number(feature.density, 6) if feature else None,
        "tokens": top_tokens(records.contexts),
        "label": records.label or None,
        "truth": records.truth[0][0] if records.truth else None,
        "evaluations": {name: _measured(row, records.truth) for name, row in records.evaluations.items()},
        "rounds": {name: [number(row.reward), row.explanation, outcome(rounds[name])] for name, row in best.items()},
    }


def top_tokens(contexts: Sequence[ContextRow]) -> list[str]:
    """The tokens at the peaks of the contexts, most frequent first, then strongest first; case does not count."""
    peaks = [context.tokens[context.peak].strip().lower() for context in contexts if context.tokens]
    return [token for token, _ in Counter(token for token in peaks if token).most_common(SUMMARY_TOKENS)]


def outcome(found: RoundRecords) -> str:
    """What a round made of a feature, in a word or two."""
    if found.dropped:
        return found.dropped[0].reason
    held = len(found.quarantined)
    trained = len(found.pairs) - held
    counted = f"{trained} pair{'' if trained == 1 else 's'}"
    return f"{counted}, {held} in quarantine" if held else counted


def _maximum(records: FeatureRecords) -> float:
    """The feature's corpus maximum; without a feature table, the strongest activation at hand."""
    if records.feature and records.feature.maximum > 0:
        return records.feature.maximum
    return max((value for context in records.contexts for value in context.activations), default=1.0) or 1.0


def _context(context: ContextRow, maximum: float) -> dict[str, Any]:
    values = [value / maximum for value in context.activations]
    return {
        "activation": number(context.activations[context.peak], 2) if context.activations else None,
        "text": segments(spaced(context.text, context.tokens), values),
    }


def _measured(row: EvaluationRow, truth: Sequence[tuple[str, float]]) -> list[Any]:
    """Explanation, accuracy, verdict, verdict by the truth, F1."""
    return [
        row.explanation,
        number(row.generative_accuracy),
        verdict(row),
        truth_verdict(row, truth),
        number(row.truth_f1),
    ]


def _evaluation(row: EvaluationRow, truth: Sequence[tuple[str, float]]) -> dict[str, Any]:
    read = zip(row.texts, row.activations, row.tokens, row.token_activations, strict=True)
    return {
        "explanation": row.explanation,
        "sure": number(math.exp(row.log_probability)) if math.isfinite(row.log_probability) else None,
        "accuracy": number(row.generative_accuracy),
        "mean": number(row.mean_activation),
        "verdict": verdict(row),
        "truth": truth_verdict(row, truth),
        "f1": number(row.truth_f1),
        "texts": [_text(*each) for each in read],
    }


def _text(text: str, activation: float, tokens: Sequence[str], values: Sequence[float]) -> list[Any]:
    """Activation, and the text with what was not read at its end."""
    joined = "".join(tokens)
    rest = text[len(joined) :] if text.startswith(joined) else ""
    return [number(activation), segments(tokens, values, rest)]


def _best(scores: Sequence[ScoreRow]) -> ScoreRow:
    return min(scores, key=_standing)


def _standing(row: ScoreRow) -> tuple[float, int]:
    """Sorts best rewarded first, the earlier of equals before the later; who has no reward stands last."""
    return (math.inf if row.reward is None else -row.reward, row.rank)


def _round(found: RoundRecords) -> dict[str, Any]:
    ordered = sorted(found.scores, key=_standing)
    roles = _roles(ordered, found.pairs)
    return {
        "outcome": outcome(found),
        "dropped": bool(found.dropped),
        "candidates": [
            {
                "reward": number(row.reward),
                "explanation": row.explanation,
                "role": roles.get(row.rank, ""),
                "texts": [[number(value), text] for value, text in zip(row.activations, row.texts, strict=True)],
            }
            for row in ordered
        ],
        "quarantined": [
            [pair.chosen_explanation, pair.rejected_explanation, pair.reason] for pair in found.quarantined
        ],
    }


def _roles(scores: Sequence[ScoreRow], pairs: Sequence[PreferencePair]) -> dict[int, str]:
    """Rank of a candidate to its role. An explanation that was drawn twice has one role, at its first draw."""
    roles: dict[int, str] = {}
    for role, sides in (
        ("rejected", {(pair.rejected_explanation, pair.rejected_score) for pair in pairs}),
        ("chosen", {(pair.chosen_explanation, pair.chosen_score) for pair in pairs}),
    ):
        for explanation, score in sides:
            drawn = [row.rank for row in scores if (row.explanation, row.reward) == (explanation, score)]
            if drawn:
                roles[min(drawn)] = role
    return roles


def constants() -> dict[str, Any]:
    """What the page's script has to know beside the features."""
    words = {name: [word.symbol, word.meaning] for name, word in (VERDICTS | TRUTHS).items()}
    return {
        "firing": FIRING, "clear": CLEAR_F1, "words": words, "verdicts": list(VERDICTS), "truths": list(TRUTHS),
        "dropReasons": DROPPED,
    }  # fmt: skip
