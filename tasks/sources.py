"""Where the explanations under evaluation come from: an explainer, its baselines, and what each of them costs.

`tasks.evaluate` measures what these functions return. Whoever uses activation feedback gets it by the writer, the
prompt and the reward of training, never by those of the evaluation.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saeexplainer.config import Evaluation, ScaledEvaluation
from saeexplainer.config.parts import EvaluationKind
from saeexplainer.errors import UserError
from saeexplainer.evaluation import agent, scoring
from saeexplainer.evaluation.proposing import Proposal, open_proposer
from saeexplainer.evaluation.rows import Explanation
from saeexplainer.explainer.explainer import Explainer
from saeexplainer.explainer.table import FeatureTable
from saeexplainer.features import truth
from saeexplainer.features.neighbours import Responses
from saeexplainer.records import ContextRow, ExplanationRow
from saeexplainer.runs.seeds import stage_seed
from saeexplainer.runs.storage import read_notes, read_rows
from tasks.places import ACTIVATIONS

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.bench import Bench


def explanations_of(source: Evaluation, bench: "Bench") -> list[Explanation]:
    """One explanation for each feature of the bench; empty where the source has none."""
    if isinstance(source, ScaledEvaluation):
        return from_scaled(bench, Path(source.source), source.scale)
    ask = {
        EvaluationKind.table: from_table,
        EvaluationKind.truth: from_truth,
        EvaluationKind.agent: from_agent,
        EvaluationKind.other_feature: from_other_feature,
        EvaluationKind.zero_vector: from_zero_vector,
        EvaluationKind.vector_alone: from_vector_alone,
        EvaluationKind.other_vector: from_other_vector,
        EvaluationKind.other_contexts: from_other_contexts,
        EvaluationKind.unmodified: from_unmodified,
        EvaluationKind.best_of_n: from_best_of_n,
        EvaluationKind.explainer: from_explainer,
    }[source.kind]
    return ask(bench, Path(source.source))


def from_table(bench: "Bench", path: Path) -> list[Explanation]:
    """A table of explanations, such as the labels; one call each, of the mean of its labeller's tokens where a model
    gave them. Raises UserError if it is about other features."""
    table = {row.feature_id: row.explanation for row in read_rows(path, ExplanationRow)}
    if not any(feature.feature_id in table for feature in bench.features):
        example = bench.features[0].feature_id
        raise UserError(f"{path}: explains none of the features that are evaluated; its ids must be like {example}")
    named = [table.get(feature.feature_id) or "" for feature in bench.features]
    usage, sizes = read_notes(path).get("usage"), bench.sizes(named)
    if usage is not None:
        sizes = [round((usage["prompt_tokens"] + usage["written_tokens"]) / len(table))] * len(named)
    return [Explanation(text, calls=1, call_tokens=size) for text, size in zip(named, sizes, strict=True)]


def from_truth(bench: "Bench", path: Path) -> list[Explanation]:
    """The concept with the best F1 that a description can be built on; no model is asked."""
    concepts = bench.domain.concepts()
    scores = truth.f1_of_all(truth.load(path, concepts))[bench.live_columns()]
    leads = np.array([bench.domain.can_lead(concept) for concept in concepts])
    best = np.where(leads, scores, -1.0).argmax(axis=1)
    return [Explanation(bench.domain.describe([concepts[at]]), calls=0, call_tokens=0) for at in best]


def from_explainer(bench: "Bench", folder: Path) -> list[Explanation]:
    """The greedy explanation."""
    return _greedy(bench, _explainer(bench, folder))


def from_zero_vector(bench: "Bench", folder: Path) -> list[Explanation]:
    """The greedy explanation of an explainer to which every feature's vector is zero, so that its token adds nothing.
    Contexts that its prompt shows stay."""
    return _greedy(bench, _explainer(bench, folder, vectors=0.0 * _vectors(bench)))


def from_vector_alone(bench: "Bench", folder: Path) -> list[Explanation]:
    """The greedy explanation without the contexts that its prompt would show."""
    return _greedy(bench, _explainer(bench, folder, contexts=[]))


def from_other_vector(bench: "Bench", folder: Path) -> list[Explanation]:
    """The greedy explanation of another feature's vector beside the feature's own contexts."""
    return _greedy(bench, _explainer(bench, folder, vectors=_vectors(bench)[_in_a_circle(bench)]))


def from_other_contexts(bench: "Bench", folder: Path) -> list[Explanation]:
    """The greedy explanation of the feature's own vector beside another feature's contexts."""
    contexts = FeatureTable(ACTIVATIONS).contexts(bench.params.explainer.prompt)
    return _greedy(bench, _explainer(bench, folder, contexts=[contexts[at] for at in _in_a_circle(bench)]))


def from_scaled(bench: "Bench", folder: Path, scale: float) -> list[Explanation]:
    """The greedy explanation where every vector is added at `scale` times the scale of training."""
    return _greedy(bench, _explainer(bench, folder, scale=scale))


def from_unmodified(bench: "Bench", folder: Path) -> list[Explanation]:
    """The greedy explanation without the second concept where it names two; what is in no description stays."""
    found = []
    for one in from_explainer(bench, folder):
        lead = bench.domain.parse(one.text)[:1]
        text = bench.domain.describe(lead) if lead else one.text
        found.append(Explanation(text, one.calls, one.call_tokens))  # how sure it was, it was of the whole
    return found


def _vectors(bench: "Bench") -> "Tensor":
    """What the explainer reads of every feature, a row each."""
    return FeatureTable(ACTIVATIONS).vectors[bench.params.explainer.direction]


def _in_a_circle(bench: "Bench") -> list[int]:
    """For each feature its own number; for one of the bench that of another one there, in a random circle."""
    circle = list(bench.numbers)
    random.Random(stage_seed(bench.params.seed, "other_feature")).shuffle(circle)
    before = dict(zip(circle, [circle[-1], *circle]))
    return [before.get(at, at) for at in range(len(bench.all_rows))]


def _greedy(bench: "Bench", explainer: Explainer) -> list[Explanation]:
    greedy = explainer.explain(bench.numbers, temperature=0.0, progress="explanations")
    sure = explainer.log_probabilities(bench.numbers, greedy)
    return [
        Explanation(text, calls=1, call_tokens=_asked(explainer, number, [text]), log_probability=how)
        for number, text, how in zip(bench.numbers, greedy, sure, strict=True)
    ]


def from_other_feature(bench: "Bench", folder: Path) -> list[Explanation]:
    """The explainer's explanation of another feature of the split: everyone's is the one before, in a random circle."""
    own = dict(zip(bench.numbers, from_explainer(bench, folder), strict=True))
    whose = _in_a_circle(bench)
    others = [own[whose[at]] for at in bench.numbers]
    return [Explanation(other.text, calls=other.calls, call_tokens=other.call_tokens) for other in others]


def from_best_of_n(bench: "Bench", folder: Path) -> list[Explanation]:
    """The best rewarded of the greedy explanation and samples: activation feedback at inference. Ties go to the greedy
    one, then to the earlier sample; where none earned anything, it is the greedy one."""
    count = bench.params.evaluate.best_of
    explainer = _explainer(bench, folder)
    greedy = explainer.explain(bench.numbers, temperature=0.0, progress="explanations")
    asked = [number for number in bench.numbers for _ in range(count - 1)]
    drawn = explainer.explain(asked, bench.params.evaluate.best_of_temperature, progress="samples")
    tried = [[greedy[at], *drawn[at * (count - 1) : (at + 1) * (count - 1)]] for at in range(len(greedy))]
    trials = iter(try_out(bench, [(at, text) for at, texts in enumerate(tried) for text in texts]))
    outcomes = [list(islice(trials, count)) for _ in tried]
    chosen = [best_tried(outcome) for outcome in outcomes]
    named = [texts[at] for texts, at in zip(tried, chosen)]
    sure = explainer.log_probabilities(bench.numbers, named)
    return [
        Explanation(
            text,
            calls=count + sum(trial.calls for trial in _distinct(texts, outcome)),
            call_tokens=_asked(explainer, number, texts) + sum(trial.tokens for trial in _distinct(texts, outcome)),
            log_probability=how,
        )
        for number, text, texts, outcome, how in zip(bench.numbers, named, tried, outcomes, sure, strict=True)
    ]


def best_tried(outcome: "Sequence[Trial]") -> int:
    """The place of the best rewarded trial, the earliest of equals; 0 if none earned anything or none was measured.

    A trial whose texts failed is not in the choice, and none of the others is preferred to the first for having earned
    0.
    """
    earned = {at: trial.reward for at, trial in enumerate(outcome) if trial.reward}
    return max(earned, key=earned.__getitem__, default=0)


def _distinct(explanations: Sequence[str], trials: "Sequence[Trial]") -> "list[Trial]":
    """One trial an explanation: the same sentence twice is written once."""
    return list(dict(zip(explanations, trials, strict=True)).values())


def from_agent(bench: "Bench", folder: Path) -> list[Explanation]:
    """Hypotheses, tests, refinement: `saeexplainer.evaluation.agent`, all features in step. `folder` holds the top
    contexts, of which the agent sees those that are not kept for the probes. A hypothesis is one call, or what a model
    took for it; a text is another. A feature is done when a hypothesis is settled or a turn brings nothing new."""
    params, config = bench.params, bench.params.evaluate
    contexts = read_rows(folder / "contexts.parquet", ContextRow)
    seen = [row for row in contexts if row.rank < params.probe_features.first_rank]
    proposer = open_proposer(config.agent, seen, bench.domain)
    place = {feature.feature_id: at for at, feature in enumerate(bench.features)}
    tested: dict[str, list[agent.Hypothesis]] = {feature_id: [] for feature_id in place}
    spent, going = dict.fromkeys(place, (0, 0)), list(place)  # calls and tokens; features that are not done
    for _ in range(config.agent_turns):
        proposed = proposer.propose({feature_id: tested[feature_id] for feature_id in going}, config.agent_hypotheses)
        for proposal in proposed:
            spent[proposal.feature_id] = _added(spent[proposal.feature_id], _stated(bench, proposal))
        new = [(proposal.feature_id, proposal.explanation) for proposal in proposed if proposal.explanation]
        asked = [(place[feature_id], explanation) for feature_id, explanation in new]
        trials = try_out(bench, asked)
        for (feature_id, explanation), trial, read in zip(new, trials, read_trials(bench, asked, trials), strict=True):
            settled = bool(trial.texts) and min(trial.found.own) >= trial.threshold
            tested[feature_id].append(agent.Hypothesis(explanation, trial.reward, settled, read))
            spent[feature_id] = _added(spent[feature_id], (trial.calls, trial.tokens))
        going = [one for one in dict(new) if not any(hypothesis.settled for hypothesis in tested[one])]
    bench.said += proposer.notes()
    return [Explanation(agent.best(tested[feature_id]), *spent[feature_id]) for feature_id in place]


def _stated(bench: "Bench", proposal: Proposal) -> tuple[int, int]:
    """Calls and tokens behind a hypothesis; where no model was asked it is one call, of its own tokens."""
    if proposal.usage is None:
        return 1, sum(bench.sizes([proposal.explanation]))
    return proposal.usage.calls, proposal.usage.prompt_tokens + proposal.usage.written_tokens


def _added(spent: tuple[int, int], more: tuple[int, int]) -> tuple[int, int]:
    return spent[0] + more[0], spent[1] + more[1]


@dataclass(frozen=True)
class Trial:
    """One explanation of one feature, tried out as in training."""

    texts: list[str]  # by the writer; none for an empty explanation
    found: Responses
    reward: float | None  # None where it is unknown, as its texts are `unwritten`
    threshold: float  # at which a text counts as firing, in units of the feature's corpus maximum
    calls: int  # of the writer
    tokens: int  # of its texts with their prompts


def try_out(bench: "Bench", asked: Sequence[tuple[int, str]]) -> list[Trial]:
    """Texts by the writer of training and their reward, for each (position in the bench, explanation)."""
    config = bench.params.score_explanations
    latents = bench.near.asked(feature.feature_id for feature in bench.features)[bench.sae_name]
    outcomes = scoring.try_out(
        [(bench.features[at].feature_id, explanation) for at, explanation in asked], bench.training_author, bench.near,
        lambda texts: bench.read(texts, latents),
    )  # fmt: skip
    written = {one.explanation: one.texts for one in outcomes if one.explanation}
    spent = {explanation: _spent(bench, explanation, texts) for explanation, texts in written.items()}
    return [
        Trial(
            one.texts, one.responses, one.reward(config.reward), config.reward.threshold,
            *spent.get(one.explanation, (0, 0)),
        )
        for one in outcomes
    ]  # fmt: skip


def _spent(bench: "Bench", explanation: str, texts: list[str]) -> tuple[int, int]:
    """Calls and tokens behind the texts of one explanation."""
    usage = bench.training_author.usage([explanation])
    if usage is not None:
        return usage.calls, usage.prompt_tokens + usage.written_tokens
    prompt = bench.params.score_explanations.writer.prompt.format(description=explanation)
    return len(texts), sum(bench.sizes([prompt] * len(texts) + texts))


def read_trials(
    bench: "Bench", asked: Sequence[tuple[int, str]], trials: "Sequence[Trial]"
) -> list[tuple[agent.Reading, ...]]:
    """What each asked feature (by its position in the bench) does on every token of the texts of its trial."""
    features = [bench.features[at] for at, _ in asked]
    texts = [(text, one.index) for one, trial in zip(features, trials, strict=True) for text in trial.texts]
    read = iter(bench.read_tokens(texts))
    return [
        tuple(agent.Reading(text, *next(read), trial.threshold * one.maximum) for text in trial.texts)
        for one, trial in zip(features, trials, strict=True)
    ]


def _explainer(
    bench: "Bench",
    folder: Path,
    vectors: "Tensor | None" = None,
    contexts: Sequence[str] | None = None,
    scale: float = 1.0,
) -> Explainer:
    """The explainer of a folder; it reads the features' own vectors and contexts, at the scale of its training, unless
    it is given others."""
    trained = bench.params.explainer
    settings = replace(trained, injection_scale=scale * trained.injection_scale)
    read = {settings.direction.value: _vectors(bench) if vectors is None else vectors}
    shown = FeatureTable(ACTIVATIONS).contexts(settings.prompt) if contexts is None else contexts
    return Explainer(folder, read, settings, bench.params.generate_explanations, shown)


def _asked(explainer: Explainer, number: int, texts: Sequence[str]) -> int:
    """Tokens of as many prompts about a feature as there are answers, and of the answers; the explainer's tokens."""
    answers = explainer.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return sum(len(explainer.prompts.ids(number)) + len(answer) + 1 for answer in answers)
