"""What an experiment makes models do, before it runs: features, calls and tokens by stage. Pure.

Calls and tokens mean what they do in `saeexplainer.costs.bills`. What only a run can tell is taken at its limit: every
description is distinct and every feature gets as many pairs as it may have, so the counts err upwards. Lengths of texts
and the share of features that training gets come from `Lengths`: measured where the domain was run, limits where not.
"""

import re
from dataclasses import dataclass, fields

from saeexplainer.config import Params
from saeexplainer.config.explainers import AskedPrompt
from saeexplainer.config.parts import (
    ChatAgentSpec,
    ChatJudgeSpec,
    EndpointWriterSpec,
    EvaluationKind,
    Judge,
    LikelihoodJudgeSpec,
    SubjectWriterSpec,
    Writer,
)
from saeexplainer.config.saes import TrainedSae

Tokens = int | float  # a mean where texts differ
PROMPT_WORDS = 4  # of the explainer's prompt: BOS, two words, the feature's token
QUESTION = 110  # bytes of a question of `saeexplainer.judges.chat` at most, beside what it is about, marks included
MARKED, TOLD = 15, 40  # bytes that `saeexplainer.evaluation.agent` puts around a text and a hypothesis at most


@dataclass(frozen=True)
class Lengths:
    """Means that a run of the domain tells, or their limits."""

    document: Tokens  # tokens of a plain document as the subject reads it
    training: Tokens  # tokens of one of the subject's training sequences
    label: Tokens  # tokens of a description that is taught, its end included
    description: Tokens  # tokens of a sampled explanation, its end included
    text: Tokens  # tokens of a written text, its end included
    prompt: Tokens  # tokens of the writer's prompt beside the description, BOS included
    training_share: float  # of the latents that are not valid or test, those that become features of sft or dpo


@dataclass(frozen=True)
class Features:
    """Features by split."""

    sft: int
    dpo: int
    valid: int
    test: int


@dataclass(frozen=True)
class Load:
    """What models generate, read and learn from in one stage."""

    calls: int = 0  # sequences generated
    prompt_tokens: Tokens = 0  # that they are asked with
    written_tokens: Tokens = 0  # generated, ends included
    read_tokens: Tokens = 0  # read without writing: documents, texts, what a judge and a reference see
    trained_tokens: Tokens = 0  # learnt from; those of every epoch, and of every SAE

    @property
    def call_tokens(self) -> Tokens:
        """Tokens of the calls, prompts included."""
        return self.prompt_tokens + self.written_tokens

    @property
    def tokens(self) -> Tokens:
        """All tokens."""
        return self.call_tokens + self.read_tokens + self.trained_tokens

    def __add__(self, other: "Load") -> "Load":
        return Load(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def limits(params: Params) -> Lengths:
    """Lengths that no run exceeds, whatever the domain."""
    explanation, writers = params.generate_explanations, (params.score_explanations.writer, params.evaluate.writer)
    return Lengths(
        document=params.prepare_subject.context_length,
        training=params.prepare_subject.context_length,
        label=explanation.max_new_tokens,
        description=explanation.max_new_tokens,
        text=max(writer.max_new_tokens for writer in writers),
        prompt=max(prompt_limit(writer.prompt) for writer in writers),
        training_share=1.0,
    )


def prompt_limit(prompt: str) -> int:
    """Tokens of a prompt beside what is put into it at most: BOS, and a token is at least a byte. English has four
    bytes a token, so a chat template's own tokens have room here too."""
    return 1 + len(re.sub(r"{\w+}", "", prompt).encode())


def features(params: Params, share: float) -> Features:
    """How many features each split gets if `share` of the latents that are not held out are good for training."""
    extract = params.extract_activations
    latents = sum(spec.d_sae for spec in params.prepare_sae.saes)
    training = round(share * max(0, latents - extract.valid_features - extract.test_features))
    training = training if extract.max_features is None else min(training, extract.max_features)
    sft = round(extract.sft_share * training)
    return Features(sft, training - sft, extract.valid_features, extract.test_features)


def loads(params: Params, lengths: Lengths, split: Features, trained_here: bool) -> dict[str, Load]:
    """What models do in each stage, in the pipeline's order; stages without a model are left out."""
    found = {"prepare_subject": _subject(params, lengths)} if trained_here else {}
    found |= {
        "prepare_sae": _saes(params, lengths),
        "extract_activations": _extraction(params, lengths),
        "probe_features": _probes(params, split),
        "warm_up": _warm_up(params, lengths),
        "train_sft": _supervised(params, lengths, split),
    }
    for name in params.rounds:
        found[f"generate_explanations@{name}"] = _candidates(params, lengths, split)
        if name not in params.score_explanations.by_sentence:
            asked = params.generate_explanations.candidates * asked_about(split)
            found[f"score_explanations@{name}"] = _texts(params.score_explanations.writer, lengths, asked)
        found[f"train_dpo@{name}"] = _preferences(params, lengths, split)
    for name, reinforcement in params.reinforcements.items():
        found[f"train_grpo@{name}"] = _reinforced(params, lengths, reinforcement.epochs * split.dpo)
    count = getattr(split, params.evaluate.split)
    return found | {
        f"evaluate@{name}": _explained(params, entry.kind, lengths, count)
        + _texts(params.evaluate.writer, lengths, count)
        + _judged(params, lengths, count)
        for name, entry in params.evaluations.items()
    }


def asked_about(split: Features) -> int:
    """Features that a round asks about."""
    return split.dpo + split.valid


def _subject(params: Params, lengths: Lengths) -> Load:
    config = params.prepare_subject
    return Load(trained_tokens=config.steps * config.batch_size * lengths.training)


def _saes(params: Params, lengths: Lengths) -> Load:
    """Pretrained SAEs are neither trained nor given documents to be trained on."""
    config = params.prepare_sae
    own = sum(isinstance(spec, TrainedSae) for spec in config.saes)
    read = config.documents * lengths.document if own else 0
    return Load(read_tokens=read, trained_tokens=own * config.steps * config.batch_tokens)


def _extraction(params: Params, lengths: Lengths) -> Load:
    config = params.extract_activations
    return Load(read_tokens=(config.documents + config.truth_documents) * lengths.document)


def _probes(params: Params, split: Features) -> Load:
    """Contexts read, and steered texts, which are no calls; the search for the strength is in the seconds alone. Both
    are read once more where a judge goes by likelihood."""
    config, count = params.probe_features, getattr(split, params.evaluate.split)
    texts = count * _steered(params)
    contexts = count * (config.contexts + config.silent) * context(params)
    alone = any(isinstance(judge, LikelihoodJudgeSpec) for judge in params.evaluate.judges)
    return Load(
        prompt_tokens=texts * config.steer.prompt_tokens,
        written_tokens=texts * config.steer.max_new_tokens,
        read_tokens=contexts + alone * (contexts + texts * config.steer.max_new_tokens),
    )


def _steered(params: Params) -> int:
    """Steered texts of a feature."""
    return 2 * len(params.probe_features.steer.divergences) * params.probe_features.steer.prompts


def context(params: Params) -> int:
    """Tokens of a stored context."""
    return 2 * params.extract_activations.context_tokens + 1


def explain_prompt(params: Params) -> int:
    """Tokens of a question to the explainer, an instruction at most."""
    prompt = params.explainer.prompt
    places, promoted = prompt.shown_contexts + prompt.shown_spread, 2 * prompt.shown_promoted  # and a comma each
    shown = min(1 + prompt.shown_words, context(params)) if prompt.shown_words else context(params)  # a word a token
    if isinstance(prompt, AskedPrompt):
        return prompt_limit(prompt.instruction) + 1 + places * shown + promoted
    return PROMPT_WORDS + places * shown + promoted


def _warm_up(params: Params, lengths: Lengths) -> Load:
    examples = params.warm_up.epochs * params.warm_up.examples
    return Load(trained_tokens=examples * (explain_prompt(params) + lengths.label))


def _supervised(params: Params, lengths: Lengths, split: Features) -> Load:
    config = params.train_sft
    replayed = min(params.warm_up.examples, split.sft * config.replay_share / (1 - config.replay_share))
    return Load(trained_tokens=config.epochs * (split.sft + replayed) * (explain_prompt(params) + lengths.label))


def _candidates(params: Params, lengths: Lengths, split: Features) -> Load:
    calls = asked_about(split) * params.generate_explanations.candidates
    return Load(calls, calls * explain_prompt(params), calls * lengths.description)


def _texts(writer: Writer, lengths: Lengths, descriptions: int) -> Load:
    """Texts of so many descriptions, all taken to differ, and what the subject reads of them. Lengths are those of the
    subject's texts; another writer's are taken at their limits, and an endpoint writes several texts in a call."""
    texts = descriptions * writer.texts
    if isinstance(writer, SubjectWriterSpec):
        prompt, text = lengths.prompt, min(lengths.text, writer.max_new_tokens)
    else:
        prompt, text = prompt_limit(writer.prompt), writer.max_new_tokens
    calls = descriptions if isinstance(writer, EndpointWriterSpec) else texts
    return Load(calls, calls * (prompt + lengths.description - 1), texts * text, texts * text)


def _preferences(params: Params, lengths: Lengths, split: Features) -> Load:
    """Both sides of every pair, by the policy that learns and the reference model that reads."""
    pairs = split.dpo * params.build_preferences.max_pairs
    tokens = params.train_dpo.epochs * 2 * pairs * (explain_prompt(params) + lengths.description)
    return Load(read_tokens=tokens, trained_tokens=tokens)


def _reinforced(params: Params, lengths: Lengths, groups: float) -> Load:
    """So many groups of explanations, sampled, tried out and learnt from; the reference reads them too."""
    calls = round(groups) * params.generate_explanations.candidates
    asked = Load(calls, calls * explain_prompt(params), calls * lengths.description)
    learnt = Load(read_tokens=asked.call_tokens, trained_tokens=asked.call_tokens)
    return asked + learnt + _texts(params.score_explanations.writer, lengths, calls)


def _explained(params: Params, kind: EvaluationKind, lengths: Lengths, count: int) -> Load:
    """The explanations of an evaluation; an agent that settles early needs fewer."""
    config, one = params.evaluate, count * lengths.description
    asked = Load(count, count * explain_prompt(params), one)
    if kind is EvaluationKind.truth:
        return Load()
    if kind is EvaluationKind.table:
        return Load(count, 0, one)
    if kind is EvaluationKind.agent:
        tried = count * config.agent_turns * config.agent_hypotheses
        return _hypotheses(params, lengths, tried) + _texts(params.score_explanations.writer, lengths, tried)
    if kind is EvaluationKind.best_of_n:
        each = config.best_of
        samples = Load(each * asked.calls, each * asked.prompt_tokens, each * asked.written_tokens)
        return samples + _texts(params.score_explanations.writer, lengths, config.best_of * count)
    return asked


def _hypotheses(params: Params, lengths: Lengths, tried: int) -> Load:
    """So many hypotheses of the agent, a call each. A model that states them is shown contexts and, on average, half of
    the others with their texts; what a served one writes is taken to be as long as an explanation."""
    config, agent = params.evaluate, params.evaluate.agent
    if agent is None:
        return Load(tried, 0, tried * lengths.description)
    before = (config.agent_turns * config.agent_hypotheses - 1) / 2
    written = agent.max_new_tokens if isinstance(agent, ChatAgentSpec) else lengths.description
    texts = min(agent.texts, params.score_explanations.writer.texts)
    told = TOLD + written + texts * (MARKED + params.score_explanations.writer.max_new_tokens)
    asked = prompt_limit(agent.prompts.next) + agent.contexts * (MARKED + context(params)) + before * told
    return Load(tried, tried * asked, tried * written)


def _judged(params: Params, lengths: Lengths, count: int) -> Load:
    """What judges read here; those behind an endpoint are not counted. All are asked about contexts, the first about
    their tokens and steered texts too."""
    first, *others = params.evaluate.judges
    asked = _asked(params, lengths, first, True) + sum(_asked(params, lengths, other, False) for other in others)
    return Load(read_tokens=count * asked)


def _asked(params: Params, lengths: Lengths, judge: Judge, first: bool) -> Tokens:
    """Tokens that a judge reads about one feature. The likelihood judge has all tokens of a text at once; a chat
    model is asked about each token by itself."""
    probes, steer = params.probe_features, params.probe_features.steer
    texts, length, steered = probes.contexts + probes.silent, context(params), first * _steered(params)
    if isinstance(judge, LikelihoodJudgeSpec):
        asked = (texts + 3 * steered) * (lengths.prompt + lengths.description - 1)
        return asked + texts * length + 3 * steered * steer.max_new_tokens
    if isinstance(judge, ChatJudgeSpec):
        asked = QUESTION + lengths.description - 1
        return texts * (1 + first * length) * (asked + length) + 3 * steered * (asked + steer.max_new_tokens)
    return 0
