"""The open-loop labeller that is a language model: it reads a feature's strongest contexts and says what they share.

It answers with one sentence (`asking`); where none can be had the feature has no label. Equal contexts are asked about
once. `by_domain` is the labeller that a domain is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from saeexplainer.config.parts import Labeller
from saeexplainer.features.contexts import one_line
from saeexplainer.labellers.asking import Question, open_asked
from saeexplainer.records import Usage

WHERE = "label_features.labeller"  # the setting that messages name


@dataclass(frozen=True)
class Labels:
    """What a labeller said."""

    texts: list[str]  # one for each feature; empty where it said nothing
    usage: Usage  # of all answers; a local model's tokens are counted from what was kept
    notes: list[str]  # what a person should know, such as what it cost


def ask(contexts: Sequence[str], config: Labeller) -> Labels:
    """A label for each feature's lines (`contexts.listed`); a feature without lines is not asked about.

    A local model draws from torch's generator. Raises UserError on a source without a chat model, on a prompt that it
    cannot read, and as `endpoint.Client` does.
    """
    asked = {lines: Question(config.prompt, {"contexts": lines}) for lines in contexts if lines}
    model = open_asked(config, WHERE)
    answers = model.ask(asked.values(), "labels")
    said = {lines: one_line(answers[question.text()].text) for lines, question in asked.items()}
    usage = sum((answer.usage for answer in answers.values()), Usage(0, 0, 0))
    return Labels([said.get(lines, "") for lines in contexts], usage, model.notes())
