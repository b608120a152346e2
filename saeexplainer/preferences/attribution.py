"""A reward that is a sum over SAE features of an explanation, fitted to pairs: what preferences say of sentences alone.

After SARM (arXiv 2508.08746): r = w . z, z the codes of the explanation's last token, minimising -log sigmoid of r of
the chosen less r of the rejected. Subject and SAE stay as they are, so it is a logistic regression on differences of
codes. It is not told which feature is explained: what it ranks right is preferred for the sentence alone.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from saeexplainer.records import PreferencePair

PENALTY = 100.0  # strength of the L2 penalty: pairs are about as many as latents, and a weaker one learns them by heart


def fit(
    chosen: Float[np.ndarray, "pairs latents"], rejected: Float[np.ndarray, "pairs latents"]
) -> Float[np.ndarray, " latents"]:
    """The weights w, from the codes of both sides of each pair."""
    from sklearn.linear_model import LogisticRegression

    differences = chosen - rejected
    both = np.concatenate([differences, -differences])  # each pair both ways, so that no side is the rule
    model = LogisticRegression(C=1 / PENALTY, fit_intercept=False, solver="liblinear")
    return model.fit(both, np.arange(len(both)) < len(differences)).coef_.ravel()


def ranked(
    weights: Float[np.ndarray, " latents"],
    chosen: Float[np.ndarray, "pairs latents"],
    rejected: Float[np.ndarray, "pairs latents"],
) -> Float[np.ndarray, " pairs"]:
    """1 of a pair whose chosen side has the higher reward, 0 of one whose rejected side has it, 0.5 of a draw."""
    return (np.sign((chosen - rejected) @ weights) + 1) / 2


def parts(weights: Float[np.ndarray, " latents"], codes: Float[np.ndarray, " latents"]) -> dict[int, float]:
    """The terms of a reward, or of a difference of two, that are not zero, the largest first: latent to w_i z_i."""
    terms = weights * codes
    return {int(at): float(terms[at]) for at in np.argsort(-np.abs(terms), kind="stable") if terms[at]}


class SentenceReward:
    """The reward model of a set of pairs."""

    def __init__(
        self,
        pairs: Sequence[PreferencePair],
        codes: Callable[[Sequence[str]], Float[np.ndarray, "sentences latents"]],
    ) -> None:
        """`codes` are what the features of an SAE do at the end of sentences."""
        self.codes = codes
        self.weights = fit(*self.sides(pairs))

    def sides(
        self, pairs: Sequence[PreferencePair]
    ) -> tuple[Float[np.ndarray, "pairs latents"], Float[np.ndarray, "pairs latents"]]:
        """Codes of the chosen and of the rejected explanations."""
        chosen, rejected = [pair.chosen_explanation for pair in pairs], [pair.rejected_explanation for pair in pairs]
        both = self.codes([*chosen, *rejected])
        return both[: len(pairs)], both[len(pairs) :]

    def rewards(self, sentences: Sequence[str]) -> list[float]:
        """Of each how often it would be preferred to a sentence of r = 0, sigmoid of r; 0 of an empty one."""
        values = expit(self.codes(sentences) @ self.weights)
        return [float(value) if sentence.strip() else 0.0 for sentence, value in zip(sentences, values, strict=True)]
