"""An explanation becomes texts, texts become activations, activations become numbers: the one place that does it.

The reward of a candidate, activation feedback in the baselines and the accuracy that `sae-explainer explain` tells all
go through here. `try_out` asks a writer and a subject; all that follows from its answers is pure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from saeexplainer.config import Reward
from saeexplainer.evaluation.metrics import generative_accuracy
from saeexplainer.features.neighbours import Neighbourhoods, Responses
from saeexplainer.preferences import rewards
from saeexplainer.records import unwritten
from saeexplainer.saes.text_activations import TextActivations
from saeexplainer.writers.writer import Writer


@dataclass(frozen=True)
class Outcome:
    """What the texts of one explanation made its feature do."""

    explanation: str
    texts: list[str]  # none of an empty explanation, and none where every call for them failed
    responses: Responses  # an entry a text

    @property
    def is_known(self) -> bool:
        """False where a served writer failed on every text: what these would have done, nothing says."""
        return not unwritten(self.explanation, self.texts)

    @property
    def accuracy(self) -> float | None:
        """The generative accuracy, 0 to 1; None where it is not known."""
        return generative_accuracy(self.responses.own) if self.is_known else None

    def reward(self, config: Reward) -> float | None:
        """What the explanation earns; an empty one earns 0. None where it is not known."""
        if not self.is_known:
            return None
        return rewards.reward(self.responses.own, self.responses.neighbours, config, len(self.explanation.split()))


def try_out(
    asked: Sequence[tuple[str, str]],
    author: Writer,
    near: Neighbourhoods,
    read: Callable[[list[str]], TextActivations],
) -> list[Outcome]:
    """The outcome of each (feature id, explanation), in the order asked.

    An explanation is written once, however many features it is tried for, and a text is read once. `read` reads texts
    on the latents that `near` asks about (`Neighbourhoods.asked`). Draws from torch's generator where the writer does.
    """
    written = author.write([explanation for _, explanation in asked])
    activations = read([text for texts in written.values() for text in texts])
    outcomes = []
    for feature_id, explanation in asked:
        texts = written.get(explanation, [])
        outcomes.append(Outcome(explanation, texts, near.responses(feature_id, texts, activations)))
    return outcomes
