"""What a round's preferences say of sentences alone: `compare_rounds` tells it of every round, `sae-explainer
attribute` of one."""

import csv
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float

from saeexplainer.config import Params
from saeexplainer.figures.intervals import bootstrap_mean
from saeexplainer.preferences import attribution
from saeexplainer.records import ExplanationRow, FeatureId, ScoreRow
from saeexplainer.runs.storage import read_rows
from tasks.places import LABELS, REPORTS, ROUNDS
from tasks.sentence_reward import Codes, TooFewPairs, codes_of, fitted, pairs_of

LARGEST = 12  # terms of a round that reports/ shows


class Attributed:
    """The reward of sentences that a round's pairs of the dpo split give; those of valid are held out."""

    def __init__(self, params: Params, name: str, codes: Codes) -> None:
        """Raises TooFewPairs."""
        self.params, self.name, self.codes = params, name, codes
        self.held_out = pairs_of(name, "valid")
        self.reward = fitted(name, codes)

    def of_one(self, explanation: str) -> dict[str, Any]:
        """The r of an explanation and its terms."""
        terms = self._terms(self.codes([explanation])[0])
        return {"reward": sum(term["adds"] for term in terms), "terms": terms}

    def summary(self) -> dict[str, Any]:
        """What held-out pairs and candidates say of it, over features, and the features that decide."""
        chosen, rejected = self.reward.sides(self.held_out)
        right = attribution.ranked(self.reward.weights, chosen, rejected)
        by_feature = _by_feature((pair.feature_id for pair in self.held_out), right)
        return {
            "pairs": len(pairs_of(self.name, "dpo")),
            "held_out_pairs": len(self.held_out),
            "ranked_right": self._mean(one.mean() for one in by_feature),
            "explainer_ranks_right": _own_accuracy(self.name),
            "candidates": self._candidates(),
            "terms": self._terms((chosen - rejected).mean(axis=0)),
        }

    def _terms(self, codes: Float[np.ndarray, " latents"]) -> list[dict[str, Any]]:
        """Of a sum or a difference of two, the largest first, with what the labels call the feature."""
        found = {FeatureId.parse(row.feature_id): row.explanation for row in read_rows(LABELS, ExplanationRow)}
        main = self.params.prepare_sae.saes[0].name
        names = {one.index: said for one, said in found.items() if one.sae == main}
        terms = attribution.parts(self.reward.weights, codes)
        return [{"latent": at, "label": names.get(at), "adds": value} for at, value in terms.items()]

    def _candidates(self) -> dict[str, Any] | None:
        """The round's own reward of the candidate that this one ranks first, of the best and of any, over features of
        valid: what a round whose reward it is could learn from. None if none has a reward."""
        scores = read_rows(ROUNDS / self.name / "scores.parquet", ScoreRow)
        rows = [row for row in scores if row.split == "valid" and row.reward is not None]
        if not rows:
            return None
        measured = np.array([row.reward for row in rows])
        ranked = self.codes([row.explanation for row in rows]) @ self.reward.weights
        numbers = _by_feature((row.feature_id for row in rows), range(len(rows)))
        return {
            "ranked_first": self._mean(measured[at[np.argmax(ranked[at])]] for at in numbers),
            "any": self._mean(measured[at].mean() for at in numbers),
            "best": self._mean(measured[at].max() for at in numbers),
        }

    def _mean(self, values: Iterable[float]) -> dict[str, Any]:
        resamples, seed = self.params.compare_rounds.resamples, self.params.seed
        return asdict(bootstrap_mean([float(value) for value in values], resamples, seed))


def of_rounds(params: Params) -> dict[str, dict[str, Any] | None]:
    """The summary of every round, with its LARGEST terms; None of one that has too few pairs."""
    codes, found = codes_of(params), {}
    for name in params.rounds:
        try:
            summary = Attributed(params, name, codes).summary()
        except TooFewPairs:
            found[name] = None
        else:
            found[name] = summary | {"terms": summary["terms"][:LARGEST]}
    return found


def _by_feature(ids: Iterable[str], values: Iterable[Any]) -> list[np.ndarray]:
    """The values of each feature."""
    found: dict[str, list[Any]] = {}
    for name, value in zip(ids, values, strict=True):
        found.setdefault(name, []).append(value)
    return [np.array(own) for own in found.values()]


def _own_accuracy(name: str) -> float | None:
    """The share of valid pairs that the explainer ranks right, as its training measured it last; None if unknown."""
    path = REPORTS / "training" / f"{name}.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as opened:
        values = [row["value"] for row in csv.DictReader(opened) if row["metric"] == "eval_rewards/accuracies"]
    return float(values[-1]) if values else None
