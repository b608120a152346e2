"""What must hold between parameters; the bounds of each by itself are in its type."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from itertools import chain
from operator import attrgetter
from pathlib import Path

from saeexplainer.config import Corpus, Params
from saeexplainer.config.explainers import AskedPrompt, shows_any
from saeexplainer.config.parts import (
    Architecture,
    ChatLineSpec,
    DomainName,
    EndpointLineSpec,
    EndpointWriterSpec,
    EvaluationKind,
)
from saeexplainer.config.saes import Matryoshka, Meta, TrainedSae
from saeexplainer.errors import UserError
from saeexplainer.figures.comparison import METRICS
from tasks.places import EXPLAINERS, LABELS
from tasks.settings.served import served

CONTEXTS = Path("data/activations/contexts.parquet")  # from which domain and labeller label
LATER = "explanations are asked about later contexts"
# Kinds of evaluations that take contexts away, or exchange them.
ABOUT_CONTEXTS = (EvaluationKind.vector_alone, EvaluationKind.other_vector, EvaluationKind.other_contexts)

ORDERED = (
    ("label_features.contexts", "probe_features.first_rank", LATER),
    ("extract_activations.direction_contexts", "probe_features.first_rank", LATER),
    ("explainer.prompt.shown_contexts", "probe_features.first_rank", LATER),
    ("explainer.prompt.shown_spread", "extract_activations.spread_contexts", "no more are kept"),
    ("validate_preferences.min_words", "validate_preferences.max_words", "no explanation has both"),
    ("validate_preferences.max_words", "validate_preferences.max_characters", "a word has at least one"),
)
# The first is below the second.
BELOW = (
    ("probe_features.first_rank", "extract_activations.top_contexts", "they are counted from 0"),
    ("extract_activations.min_density", "extract_activations.max_density", "no feature has both"),
    *(
        (f"{key}.max_new_tokens", "prepare_subject.context_length", "the subject reads no more at once")
        for key in ("score_explanations.writer", "evaluate.writer")
    ),
)
IN_THE_EXPLAINER = ("generate_explanations.max_new_tokens", "prepare_subject.context_length", "its model reads no more")
COUNTED = "they are counted from 0"


def check(params: Params) -> None:
    """What types cannot say. Raises UserError (without a file's name) on the first thing that cannot run."""
    finders = (
        _order, _subject, served, _processes, _text, _explainer, _sampling, _writers, _labeller, _saes,
        _architecture, _features, _rounds, _evaluations, _agent, _judges, _comparison,
    )  # fmt: skip
    for complaint in chain(*(find(params) for find in finders)):
        raise UserError(complaint)


def _order(params: Params) -> Iterator[str]:
    """Of what is not trained here the limits are not known before it is there."""
    subject_here = params.prepare_subject.pretrained is None
    explainer_here = subject_here and params.explainer.pretrained is None
    below = [*BELOW, *[IN_THE_EXPLAINER] * explainer_here]
    if explainer_here:
        below.append(("explainer.injection_block", "prepare_subject.blocks", COUNTED))
    if subject_here and any(isinstance(sae, TrainedSae) for sae in params.prepare_sae.saes):
        below.append(("prepare_sae.hook_block", "prepare_subject.blocks", COUNTED))
    for entry in ORDERED:
        yield from _ordered(params, entry)
    for entry in below:
        yield from _ordered(params, entry, below=True)
    steer, limit = params.probe_features.steer, params.prepare_subject.context_length
    if steer.prompt_tokens + steer.max_new_tokens >= limit:
        yield (
            f"probe_features.steer.max_new_tokens: is {steer.max_new_tokens}; must with prompt_tokens "
            f"({steer.prompt_tokens}) be below prepare_subject.context_length ({limit})"
        )


def _ordered(params: Params, entry: tuple[str, str, str], below: bool = False) -> Iterator[str]:
    key, limit, why = entry
    value, most = attrgetter(key)(params), attrgetter(limit)(params)
    if value > most or below and value == most:
        yield f"{key}: is {value}; must be {'below' if below else 'at most'} {limit} ({most}): {why}"


def _subject(params: Params) -> Iterator[str]:
    """The shape of one that is trained here; of another `prepare_subject` looks at it."""
    subject = params.prepare_subject
    if subject.pretrained is not None:
        if not re.fullmatch(r"[^\s/]+", Path(subject.pretrained.source).name):
            yield (
                f"prepare_subject.pretrained.source: is {subject.pretrained.source!r}; its last part names the subject "
                "in feature ids and must be there, without spaces"
            )
        return
    if subject.prepend_bos is not None:
        yield (
            f"prepare_subject.prepend_bos: is {str(subject.prepend_bos).lower()}; give null: a subject that is trained "
            "here has its domain's tokenizer"
        )
    if subject.d_model % subject.heads:
        yield f"prepare_subject.d_model: is {subject.d_model}; must be a multiple of its heads ({subject.heads})"
    if subject.architecture is Architecture.llama and subject.d_model // subject.heads % 2:
        yield (
            f"prepare_subject.heads: is {subject.heads}; a llama head must have an even width, and d_model "
            f"{subject.d_model} gives it {subject.d_model // subject.heads}"
        )


def _processes(params: Params) -> Iterator[str]:
    """A step's batch is shared among the processes."""
    for key, size in (
        ("warm_up.batch_size", params.warm_up.batch_size),
        ("train_sft.batch_size", params.train_sft.batch_size),
        ("train_dpo.batch_size", params.train_dpo.batch_size),
    ):
        if size % params.processes:
            yield f"{key}: is {size}; must be a multiple of processes ({params.processes}), which share it"


def _text(params: Params) -> Iterator[str]:
    """The source of text, and what one from outside cannot give."""
    subject, corpus = params.prepare_subject, params.prepare_subject.corpus
    if (corpus is None) is (subject.domain is DomainName.corpus):
        given = "null" if corpus is None else corpus.source
        yield f"prepare_subject.corpus: is {given}, and domain is {subject.domain}; only domain corpus has one"
    if corpus is None:
        return
    yield from _hub("prepare_subject.corpus", corpus)
    if subject.pretrained is None:
        yield "prepare_subject.pretrained: is null; a corpus has no lessons and no tokenizer, name a pretrained model"


def _hub(key: str, corpus: Corpus) -> Iterator[str]:
    """What a data set of the hub needs and files must not have; the revision tells them apart."""
    if corpus.revision is None:
        for name in ("subset", "split"):
            if getattr(corpus, name) is not None:
                yield f"{key}.{name}: is {getattr(corpus, name)!r}; files have none; give null, or a revision"
        return
    if corpus.split is None:
        yield f"{key}.split: is null; a data set of the hub needs one, such as train"


def _explainer(params: Params) -> Iterator[str]:
    config, prompt = params.explainer, params.explainer.prompt
    if isinstance(prompt, AskedPrompt):
        wanted = ["{feature}", *["{contexts}"] * shows_any(prompt)]
        if sorted(re.findall(r"{\w*}", prompt.instruction)) != sorted(wanted):
            needed = " and ".join(wanted)
            yield f"explainer.prompt.instruction: is {prompt.instruction!r}; must hold {needed}, each once"
    if config.adapter is None and config.pretrained is not None and config.pretrained.dtype != "float32":
        yield (
            f"explainer.pretrained.dtype: is {config.pretrained.dtype!r}; without explainer.adapter every weight is "
            "trained, which needs float32 (explainer.bf16 computes in bfloat16 all the same)"
        )


def _sampling(params: Params) -> Iterator[str]:
    reward = params.score_explanations.reward
    if not any((reward.weight_share, reward.weight_any, reward.weight_mean, reward.weight_max)):
        yield "score_explanations.reward: every weight is 0; raise at least one"
    for name, source in params.score_explanations.by_sentence.items():
        key = f"score_explanations.by_sentence.{name}"
        if name not in params.rounds:
            yield f"{key}: there is no such round; choose from {', '.join(params.rounds) or 'none'}"
        elif source not in (before := rounds_before(name, params)):
            yield f"{key}: is {source!r}; must be a round that {name} comes from: {', '.join(before) or 'none'}"


def rounds_before(name: str, params: Params) -> list[str]:
    """The rounds that a round comes from, the nearest first."""
    found, start = [], params.rounds[name].start
    while start in params.rounds and start not in found:
        found.append(start)
        start = params.rounds[start].start
    return found


def _writers(params: Params) -> Iterator[str]:
    for key, writer in (
        ("score_explanations.writer", params.score_explanations.writer),
        ("evaluate.writer", params.evaluate.writer),
    ):
        if not isinstance(writer, EndpointWriterSpec):
            continue
        for name in ("temperature", "top_p"):
            if name in writer.endpoint.request:
                yield f"{key}.endpoint.request.{name}: is set twice; take it out, {key} says it"


def _labeller(params: Params) -> Iterator[str]:
    key, source, labeller = "label_features.labeller", params.label_features.source, params.label_features.labeller
    if labeller is None:
        if params.label_features.promoted:
            yield (
                f"label_features.promoted: is {params.label_features.promoted}, but the domain labels by contexts "
                "alone; give 0 or a labeller"
            )
        return
    if Path(source) != CONTEXTS:
        yield (
            f"{key}: would not be asked, because label_features.source is {source!r}; give null here or {CONTEXTS} "
            "there"
        )
    yield from _sampled_once(key, labeller)


def _agent(params: Params) -> Iterator[str]:
    """One that is a language model."""
    key, agent = "evaluate.agent", params.evaluate.agent
    if agent is None:
        return
    yield from _ordered(params, (f"{key}.contexts", "probe_features.first_rank", LATER))
    if not any(one.kind is EvaluationKind.agent for one in params.evaluations.values()):
        yield (
            f"{key}: would not be asked, because no evaluation is of kind agent; give null, or add evaluations.agent: "
            "{kind: agent, source: data/activations}"
        )
    yield from _sampled_once(key, agent)


def _sampled_once(key: str, asked: ChatLineSpec | EndpointLineSpec) -> Iterator[str]:
    if isinstance(asked, EndpointLineSpec) and "temperature" in asked.endpoint.request:
        yield f"{key}.endpoint.request.temperature: is set twice; take it out, {key} says it"


def _saes(params: Params) -> Iterator[str]:
    names = [sae.name for sae in params.prepare_sae.saes]
    for index, sae in enumerate(params.prepare_sae.saes):
        key = f"prepare_sae.saes[{index}]"
        if sae.name in names[:index]:
            yield f"{key}.name: {sae.name!r} is taken by an earlier one; every SAE needs its own name"
        k = getattr(params.prepare_sae.architecture, "k", 0)
        if isinstance(sae, TrainedSae) and k > sae.d_sae:
            yield f"prepare_sae.architecture.k: is {k}; must be at most d_sae of {sae.name} ({sae.d_sae})"


def _architecture(params: Params) -> Iterator[str]:
    asked, key = params.prepare_sae.architecture, "prepare_sae.architecture"
    if isinstance(asked, Matryoshka) and asked.shares != sorted(set(asked.shares)):
        yield f"{key}.shares: is {asked.shares}; each must be above the one before it"
    if isinstance(asked, Meta):
        for sae in params.prepare_sae.saes:
            if isinstance(sae, TrainedSae) and asked.meta_k > asked.meta_share * sae.d_sae:
                small = f"{asked.meta_share * sae.d_sae:.0f} latents beside the {sae.d_sae} of {sae.name}"
                yield f"{key}.meta_k: is {asked.meta_k}, but the small SAE has {small}; lower it or raise meta_share"


def _features(params: Params) -> Iterator[str]:
    extract = params.extract_activations
    if params.prepare_subject.domain is DomainName.sandbox and not extract.truth_documents:
        yield "extract_activations.truth_documents: is 0; the sandbox knows the truth and needs at least 1"
    for name, evaluation in params.evaluations.items():
        if evaluation.kind is EvaluationKind.truth and not extract.truth_documents:
            yield (
                f"evaluations.{name}.kind: is truth; must have extract_activations.truth_documents above 0, on which "
                "every concept is compared with what fires"
            )
        if evaluation.kind in ABOUT_CONTEXTS and not params.explainer.prompt.shown_contexts:
            yield (
                f"evaluations.{name}.kind: is {evaluation.kind}; must have explainer.prompt.shown_contexts above 0, or "
                "there is nothing to take away"
            )
    if params.train_sft.replay_share and not params.warm_up.examples:
        yield (
            f"train_sft.replay_share: is {params.train_sft.replay_share}; must be 0, because warm_up.examples is 0: "
            "there is nothing to replay"
        )
    held_out = extract.valid_features if params.evaluate.split == "valid" else extract.test_features
    if held_out < 3:
        yield (
            f"extract_activations.{params.evaluate.split}_features: is {held_out}; must be at least 3: output accuracy "
            "shows the texts of three features"
        )
    source = Path(params.label_features.source)
    if source.suffix != ".parquet" or source == LABELS:
        yield (
            f"label_features.source: is {str(source)!r}; must be a table that is there before the labels: "
            "data/activations/contexts.parquet, which the domain reads, or one that `sae-explainer import` made"
        )


def _rounds(params: Params) -> Iterator[str]:
    known = ["sft"]
    for name, settings in params.rounds.items():
        if name in ("sft", "warmup", "open_loop"):
            yield f"rounds.{name}: the name is taken; choose another"
        if settings.start not in known:
            yield f"rounds.{name}.start: is {settings.start!r}; choose sft or an earlier round: {', '.join(known)}"
        known.append(name)
    for name, settings in params.reinforcements.items():
        if name in ("warmup", "open_loop", *known):
            yield f"reinforcements.{name}: the name is taken; choose another"
        if settings.start not in known:
            choices = ", ".join(known)
            yield f"reinforcements.{name}.start: is {settings.start!r}; choose what is trained before it: {choices}"
        known.append(name)


def _evaluations(params: Params) -> Iterator[str]:
    trained = [*params.rounds, *params.reinforcements]
    wanted = {"open_loop": "kind: table, source: data/labels.parquet"} | {
        name: f"kind: explainer, source: {EXPLAINERS / name}" for name in ("sft", *trained)
    }
    for name, entry in wanted.items():
        if name not in params.evaluations:
            yield f"evaluations.{name}: missing; add {name}: {{{entry}}}"
        elif name in trained and Path(params.evaluations[name].source) != EXPLAINERS / name:
            given, own = params.evaluations[name].source, str(EXPLAINERS / name)
            yield f"evaluations.{name}.source: is {given!r}; must be its own, {own!r}"
    explainers = ["warmup", "sft", *trained]
    for name, evaluation in params.evaluations.items():
        key, source = f"evaluations.{name}.source: is {evaluation.source!r}", Path(evaluation.source)
        if evaluation.kind is EvaluationKind.table:
            if source.suffix != ".parquet":
                yield f"{key}; a table ends in .parquet (or change kind)"
        elif source.suffix == ".parquet" or (source.parent == EXPLAINERS and source.name not in explainers):
            choices = ", ".join(str(EXPLAINERS / known) for known in explainers)
            yield f"{key}; there is no such explainer, choose from {choices}"


def _comparison(params: Params) -> Iterator[str]:
    settings, known = params.compare_rounds, list(METRICS.values())
    guarded = {f"guarded[{index}]": metric for index, metric in enumerate(settings.guarded)}
    for key, metric in {"criterion": settings.criterion, **guarded}.items():
        if metric not in known:
            close = get_close_matches(metric, known, n=1)
            advice = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
            yield f"compare_rounds.{key}: is {metric!r}, which is no metric; {advice}"


def _judges(params: Params) -> Iterator[str]:
    for index, judge in enumerate(params.evaluate.judges):
        if judge in params.evaluate.judges[:index]:
            yield f"evaluate.judges[{index}]: is the same as an earlier one; agreement with itself says nothing"
