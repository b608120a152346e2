"""Who states the agent's hypotheses: a language model, or the domain's concepts. `agent` has what both go by."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from saeexplainer.config.parts import Agent
from saeexplainer.domains.domain import Domain
from saeexplainer.evaluation import agent
from saeexplainer.evaluation.agent import Hypothesis
from saeexplainer.features.contexts import listed
from saeexplainer.labellers import by_domain
from saeexplainer.labellers.asking import Line, open_asked
from saeexplainer.records import ContextRow, Usage, by_feature

WHERE = "evaluate.agent"  # the setting that messages name


@dataclass(frozen=True)
class Proposal:
    """What one call for a hypothesis brought."""

    feature_id: str
    explanation: str  # empty if it is nothing new
    usage: Usage | None  # of the call; None if no model was asked, and the sentence is what it took


@runtime_checkable
class Proposer(Protocol):
    """One who states hypotheses."""

    def propose(self, tested: Mapping[str, Sequence[Hypothesis]], count: int) -> list[Proposal]:
        """Up to `count` new hypotheses about each feature, by id, of which these were tested."""

    def notes(self) -> list[str]:
        """What a person should know, such as what it cost."""


class ByConcepts:
    """The domain's concepts, by what stood where the feature fired."""

    def __init__(self, contexts: Iterable[ContextRow], domain: Domain) -> None:
        self.domain = domain
        self.contexts = by_feature(contexts)
        self.frequency = by_domain.held(context for rows in self.contexts.values() for context in rows)

    def propose(self, tested: Mapping[str, Sequence[Hypothesis]], count: int) -> list[Proposal]:
        """The likeliest."""
        return [
            Proposal(feature_id, explanation, None)
            for feature_id, done in tested.items()
            for explanation in agent.hypotheses(self._seen(feature_id, done), done, self.domain, self.frequency, count)
        ]

    def _seen(self, feature_id: str, tested: Sequence[Hypothesis]) -> list[agent.Observation]:
        own = [agent.from_reading(reading, self.domain) for one in tested for reading in one.readings]
        return agent.from_contexts(self.contexts[feature_id]) + own

    def notes(self) -> list[str]:
        """Nothing: it is asked for nothing that it does not have."""
        return []


class ByModel:
    """A language model, local or served, that is asked for one hypothesis at a time."""

    def __init__(self, contexts: Iterable[ContextRow], config: Agent) -> None:
        """Raises UserError as `open_asked` does."""
        self.config = config
        self.lines = listed(contexts, config.contexts)
        self.model = open_asked(config, WHERE, "the prompt (contexts, texts)")
        self._answers: Counter[str] = Counter()  # how many were of which use

    def propose(self, tested: Mapping[str, Sequence[Hypothesis]], count: int) -> list[Proposal]:
        """All features in step, equal questions once. A feature without contexts is not asked about, and one whose
        answer says nothing new is not asked about again: the next question would be the same."""
        found: list[Proposal] = []
        waiting: dict[str, list[str]] = {feature_id: [] for feature_id in tested if feature_id in self.lines}
        for _ in range(count):
            answers = self._asked(tested, waiting)
            told = {
                feature_id: self._told(line, [*waiting[feature_id], *(one.explanation for one in tested[feature_id])])
                for feature_id, line in answers.items()
            }
            found += [Proposal(feature_id, told[feature_id], line.usage) for feature_id, line in answers.items()]
            waiting = {feature_id: [*waiting[feature_id], one] for feature_id, one in told.items() if one}
        return found

    def notes(self) -> list[str]:
        """What was paid for, how many answers are empty, and how many say nothing new."""
        useless = ", ".join(f"{what} {count}" for what, count in sorted(self._answers.items()) if what != "new")
        said = f"{WHERE}: {self._answers.total() - self._answers['new']} of {self._answers.total()} answers"
        return [*self.model.notes(), *([f"{said} brought no new hypothesis ({useless})"] if useless else [])]

    def _asked(
        self, tested: Mapping[str, Sequence[Hypothesis]], waiting: Mapping[str, Sequence[str]]
    ) -> dict[str, Line]:
        """The answer about each feature of `waiting`."""
        asked = {
            feature_id: agent.question(
                self.config.prompts, self.lines[feature_id], tested[feature_id], said, self.config.texts
            )
            for feature_id, said in waiting.items()
        }
        answers = self.model.ask(asked.values(), "stating hypotheses")
        return {feature_id: answers[question.text()] for feature_id, question in asked.items()}

    def _told(self, line: Line, known: Sequence[str]) -> str:
        """The hypothesis of an answer; empty if it holds none, or a known one."""
        sentence = agent.sentence(line.text)
        new = agent.is_new(sentence, known)
        self._answers["new" if new else "said before" if sentence else "unusable"] += 1
        return sentence if new else ""


def open_proposer(config: Agent | None, contexts: Iterable[ContextRow], domain: Domain) -> Proposer:
    """Who the settings name; `contexts` are those that the agent may see. Raises UserError as `ByModel` does."""
    return ByConcepts(contexts, domain) if config is None else ByModel(contexts, config)
