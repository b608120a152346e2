"""What a round's preferences say of sentences alone: a reward model that is a sum over SAE features, fitted to its
pairs. `compare_rounds` tells it of every round, `sae-explainer attribute` of one.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from saeexplainer.config import Params
from saeexplainer.errors import UserError
from saeexplainer.figures.intervals import bootstrap_mean
from saeexplainer.preferences import attribution
from saeexplainer.records import ExplanationRow, FeatureId, PreferencePair, ScoreRow
from saeexplainer.runs.storage import read_rows
from tasks.places import LABELS, REPORTS, ROUNDS, SAES, SUBJECT

if TYPE_CHECKING:
    from saeexplainer.saes.reading import Reader

FEWEST = 10  # pairs on either side


class TooFewPairs(UserError):
    """A round has too few pairs to fit a reward model and to hold some out."""


class Ends:
    """What the features of the explained SAE do at the end of sentences."""

    def __init__(self, params: Params) -> None:
        self.params, self.sae = params, params.prepare_sae.saes[0].name

    @cached_property
    def reader(self) -> "Reader":
        from saeexplainer.saes.reading import open_reader

        return open_reader(SUBJECT, SAES, [self.sae], self.params.prepare_subject.context_length, whole=False)

    def codes(self, sentences: Sequence[str]) -> Float[np.ndarray, "sentences latents"]:
        """In activation units; zero after an empty sentence."""
        from saeexplainer.saes.text_activations import read_ends

        return read_ends(sentences, self.reader, self.sae)


class Attributed:
    """A round's reward model. Its pairs of the dpo split fit it, those of valid are held out."""

    def __init__(self, ends: Ends, name: str) -> None:
        """Raises TooFewPairs."""
        self.ends, self.name, table = ends, name, ROUNDS / name / "validated.parquet"
        pairs = read_rows(table, PreferencePair)
        self.learned, self.held_out = ([pair for pair in pairs if pair.split == split] for split in ("dpo", "valid"))
        if min(len(self.learned), len(self.held_out)) < FEWEST:
            raise TooFewPairs(
                f"{table}: {len(self.learned)} pairs to fit and {len(self.held_out)} held out; both need {FEWEST}"
            )

    def sides(self, pairs: Sequence[PreferencePair]) -> tuple[np.ndarray, np.ndarray]:
        """Codes of the chosen and of the rejected explanations."""
        chosen, rejected = [pair.chosen_explanation for pair in pairs], [pair.rejected_explanation for pair in pairs]
        both = self.ends.codes([*chosen, *rejected])
        return both[: len(pairs)], both[len(pairs) :]

    @cached_property
    def weights(self) -> Float[np.ndarray, " latents"]:
        return attribution.fit(*self.sides(self.learned))

    def terms(self, codes: Float[np.ndarray, " latents"]) -> list[dict[str, Any]]:
        """A reward, or a difference of two, as its terms, the largest first, with what the labels call the feature."""
        found = {FeatureId.parse(row.feature_id): row.explanation for row in read_rows(LABELS, ExplanationRow)}
        names = {one.index: said for one, said in found.items() if one.sae == self.ends.sae}
        terms = attribution.parts(self.weights, codes)
        return [{"latent": at, "label": names.get(at), "adds": value} for at, value in terms.items()]

    def of_one(self, explanation: str) -> dict[str, Any]:
        """The reward of an explanation and its terms."""
        terms = self.terms(self.ends.codes([explanation])[0])
        return {"reward": sum(term["adds"] for term in terms), "terms": terms}

    def summary(self) -> dict[str, Any]:
        """What held-out pairs and candidates say of it, over features, and the features that decide."""
        chosen, rejected = self.sides(self.held_out)
        right = attribution.ranked(self.weights, chosen, rejected)
        by_feature = _by_feature((pair.feature_id for pair in self.held_out), right)
        return {
            "pairs": len(self.learned),
            "held_out_pairs": len(self.held_out),
            "ranked_right": self._mean(one.mean() for one in by_feature.values()),
            "explainer_ranks_right": _own_accuracy(self.name),
            "candidates": self._candidates(),
            "terms": self.terms((chosen - rejected).mean(axis=0)),
        }

    def _candidates(self) -> dict[str, Any] | None:
        """The measured reward of the candidate that this model ranks first, of the best and of any, over features of
        valid: what a round without a writer could learn from. None if none was measured."""
        scores = read_rows(ROUNDS / self.name / "scores.parquet", ScoreRow)
        rows = [row for row in scores if row.split == "valid" and row.reward is not None]
        if not rows:
            return None
        measured = np.array([row.reward for row in rows])
        ranked = self.ends.codes([row.explanation for row in rows]) @ self.weights
        numbers = _by_feature((row.feature_id for row in rows), range(len(rows))).values()
        return {
            "ranked_first": self._mean([measured[at[np.argmax(ranked[at])]] for at in numbers]),
            "any": self._mean([measured[at].mean() for at in numbers]),
            "best": self._mean([measured[at].max() for at in numbers]),
        }

    def _mean(self, values: Iterable[float]) -> dict[str, Any]:
        params = self.ends.params
        return asdict(bootstrap_mean([float(value) for value in values], params.compare_rounds.resamples, params.seed))


def of_rounds(params: Params) -> dict[str, dict[str, Any] | None]:
    """The summary of every round; None of one that has too few pairs."""
    ends, found = Ends(params), {}
    for name in params.rounds:
        try:
            found[name] = Attributed(ends, name).summary()
        except TooFewPairs:
            found[name] = None
    return found


def _by_feature(ids: Iterable[str], values: Iterable[Any]) -> dict[str, np.ndarray]:
    found: dict[str, list[Any]] = {}
    for name, value in zip(ids, values, strict=True):
        found.setdefault(name, []).append(value)
    return {name: np.array(own) for name, own in found.items()}


def _own_accuracy(name: str) -> float | None:
    """The share of valid pairs that the explainer ranks right, as its training measured it last; None if unknown."""
    path = REPORTS / "training" / f"{name}.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8") as opened:
        values = [row["value"] for row in csv.DictReader(opened) if row["metric"] == "eval_rewards/accuracies"]
    return float(values[-1]) if values else None
