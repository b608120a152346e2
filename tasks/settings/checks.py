"""What must hold between parameters."""

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from saeexplainer.config import (
    DTYPES,
    Corpus,
    DomainName,
    Endpoint,
    EvaluationKind,
    JudgeKind,
    Params,
    Pretrained,
    PromptKind,
    Writer,
    WriterKind,
)
from saeexplainer.errors import UserError
from saeexplainer.figures.comparison import METRICS
from tasks.places import EXPLAINERS, LABELS
from tasks.settings.schema import leaves
from tasks.settings.served import braces, model_and_endpoint
from tasks.settings.sizes import shapes

# Every number is finite and at least 0, every integer at least 1, every list and text not empty, but for these names.
MAY_BE_ZERO = {  # integers that say "the first", "none" or "no limit below"
    "seed", "hook_block", "injection_block", "shown_contexts", "lessons", "truth_documents", "context_tokens", "min_pairs",
    "warmup_examples",
}  # fmt: skip
MAY_BE_EMPTY = {"guarded"}
AS_THE_SERVER_KNOWS = {"request"}  # sections whose values are the server's business: any JSON
ABOVE_ZERO = {
    "temperature", "temperatures", "best_of_temperature", "top_p", "learning_rate", "warmup_learning_rate", "beta", "epochs", "warmup_epochs",
    "injection_scale", "alpha", "threshold", "twin_cosine", "max_density", "timeout_seconds", "max_cost",
    "norm_scaling_factor",
}  # fmt: skip
MAY_BE_GREEDY = "label_features.labeller.temperature"  # the one temperature that may be 0: one label is wanted
AT_MOST_ONE = {
    "top_p", "dropout", "min_density", "max_density", "collision_max_density", "sft_share", "modifier_share", "wrong_share",
    "warmup_modifier_share", "replay_share", "max_dropped_share", "twin_cosine", "threshold", "min_spread", "min_gap",
    "max_quarantined_share", "best_is_zero", "below_floor", "best_is_empty", "no_spread", "no_gap", "max_top_share",
    "min_distinct_share", "max_dropped_drift", "max_vocabulary_drift", "max_failed_share",
}  # fmt: skip
_COMMIT = re.compile("[0-9a-f]{40}")
CONTEXTS = Path("data/activations/contexts.parquet")  # from which domain and labeller label


def check(params: Params) -> None:
    """What types cannot say. Raises UserError (without a file's name) on the first thing that cannot run."""
    for key, name, value in leaves(params):
        _check_leaf(key, name, value)
    finders = (
        _models, shapes, _processes, _text, _explainer, _sampling, _writers, _labeller, _saes, _features, _limits,
        _rounds, _evaluations, _judges, _comparison,
    )  # fmt: skip
    for complaint in chain(*(find(params) for find in finders)):
        raise UserError(complaint)


def _check_leaf(key: str, name: str, value: Any) -> None:
    if name in AS_THE_SERVER_KNOWS:
        return
    if isinstance(value, str | list) and not value and name not in MAY_BE_EMPTY:
        raise UserError(f"{key}: is empty; give at least one value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    least = 1 if isinstance(value, int) and name not in MAY_BE_ZERO else 0
    if not math.isfinite(value) or value < least:
        raise UserError(f"{key}: is {value}; must be a finite number of at least {least}")
    if name in ABOVE_ZERO and value == 0 and key != MAY_BE_GREEDY:
        raise UserError(f"{key}: is {value}; must be above 0")
    if name in AT_MOST_ONE and value > 1:
        raise UserError(f"{key}: is {value}; must be at most 1")


def _models(params: Params) -> Iterator[str]:
    """What can be said of models of others, wherever they stand, before they are there."""
    for key, model in _pretrained(params):
        if model.revision is not None and not _COMMIT.fullmatch(model.revision):
            yield f"{key}.revision: is {model.revision!r}; must be the 40 hex digits of a commit, or null for a folder"
        if model.dtype not in DTYPES:
            yield f"{key}.dtype: is {model.dtype!r}; choose one of {', '.join(DTYPES)}"


def _pretrained(node: Any, key: str = "") -> Iterator[tuple[str, Pretrained]]:
    """(full key, model) of every model of others."""
    if isinstance(node, Pretrained):
        yield key, node
    elif is_dataclass(node):
        for field in fields(node):
            yield from _pretrained(getattr(node, field.name), f"{key}.{field.name}".removeprefix("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _pretrained(value, f"{key}[{index}]")


def _processes(params: Params) -> Iterator[str]:
    """A step's batch is shared among the processes."""
    for key, size in (
        ("train_sft.warmup_batch_size", params.train_sft.warmup_batch_size),
        ("train_sft.batch_size", params.train_sft.batch_size),
        ("train_dpo.batch_size", params.train_dpo.batch_size),
    ):
        if size % params.processes:
            yield f"{key}: is {size}; must be a multiple of processes ({params.processes}), which share it"


def _text(params: Params) -> Iterator[str]:
    """The source of text, and what one without concepts cannot give."""
    subject, corpus = params.prepare_subject, params.prepare_subject.corpus
    if (corpus is None) is (subject.domain is DomainName.corpus):
        given = "null" if corpus is None else corpus.source
        yield f"prepare_subject.corpus: is {given}, and domain is {subject.domain}; only domain corpus has one"
    if corpus is None:
        return
    yield from _hub("prepare_subject.corpus", corpus)
    if subject.pretrained is None:
        yield "prepare_subject.pretrained: is null; a corpus has no lessons and no tokenizer, name a model of others"
    if Path(params.label_features.source) == CONTEXTS and params.label_features.labeller is None:
        yield (
            f"label_features.source: is {CONTEXTS}, but a corpus has no concepts to label it with; name a table that "
            "`sae-explainer import` made, or let a model label: labeller=chat or labeller=endpoint (docs/EXCHANGE.md)"
        )
    if params.train_sft.warmup_examples:
        yield (
            f"train_sft.warmup_examples: is {params.train_sft.warmup_examples}; must be 0: a corpus says nothing about "
            "its words"
        )
    for name, evaluation in params.evaluations.items():
        if evaluation.kind in (EvaluationKind.agent, EvaluationKind.truth):
            yield f"evaluations.{name}.kind: is {evaluation.kind}; a corpus has no concepts, take it out"


def _hub(key: str, corpus: Corpus) -> Iterator[str]:
    """What a data set of the hub needs and files must not have; the revision tells them apart."""
    if corpus.revision is None:
        for name in ("subset", "split"):
            if getattr(corpus, name) is not None:
                yield f"{key}.{name}: is {getattr(corpus, name)!r}; files have none; give null, or a revision"
        return
    if not _COMMIT.fullmatch(corpus.revision):
        yield f"{key}.revision: is {corpus.revision!r}; must be the 40 hex digits of a commit, or null for files"
    if corpus.split is None:
        yield f"{key}.split: is null; a data set of the hub needs one, such as train"


def _explainer(params: Params) -> Iterator[str]:
    config, prompt = params.train_sft, params.train_sft.prompt
    if prompt.shown_contexts > params.probe_features.first_rank:
        yield (
            f"train_sft.prompt.shown_contexts: is {prompt.shown_contexts}; must be at most probe_features.first_rank "
            f"({params.probe_features.first_rank}): explanations are asked about later contexts"
        )
    if prompt.kind is PromptKind.tokens and (prompt.instruction is not None or prompt.shown_contexts):
        yield "train_sft.prompt.kind: is tokens; an instruction and shown_contexts need kind chat, else null and 0"
    wanted = ["{feature}", *["{contexts}"] * bool(prompt.shown_contexts)]
    if prompt.kind is PromptKind.chat and sorted(re.findall(r"{\w*}", prompt.instruction or "")) != sorted(wanted):
        yield f"train_sft.prompt.instruction: is {prompt.instruction!r}; must hold {' and '.join(wanted)}, each once"
    if config.adapter is not None and config.adapter.dropout == 1:
        yield "train_sft.adapter.dropout: is 1.0; must be below 1, or nothing reaches the adapter"
    if config.adapter is None and config.pretrained is not None and config.pretrained.dtype != "float32":
        yield (
            f"train_sft.pretrained.dtype: is {config.pretrained.dtype!r}; without train_sft.adapter every weight is "
            "trained, which needs float32 (train_sft.bf16 computes in bfloat16 all the same)"
        )


def _sampling(params: Params) -> Iterator[str]:
    if params.generate_explanations.candidates < 2:
        yield "generate_explanations.candidates: is 1; a preference needs at least 2"
    reward = params.score_explanations.reward
    if not any((reward.weight_share, reward.weight_any, reward.weight_mean, reward.weight_max)):
        yield "score_explanations.reward: every weight is 0; raise at least one"
    if params.evaluate.split not in ("valid", "test"):
        yield f"evaluate.split: is {params.evaluate.split!r}; must be valid or test"


def _writers(params: Params) -> Iterator[str]:
    for key, writer in (
        ("score_explanations.writer", params.score_explanations.writer),
        ("evaluate.writer", params.evaluate.writer),
    ):
        served = writer.kind is WriterKind.endpoint
        if braces(writer.prompt) != ({"description", "count"} if served else {"description"}):
            wanted = "{description} and {count}" if served else "{description}"
            yield f"{key}.prompt: is {writer.prompt!r}; kind {writer.kind} must hold {wanted} and no other braces"
        if len(writer.temperatures) > writer.texts:
            yield f"{key}.temperatures: are {len(writer.temperatures)}; must be at most {key}.texts ({writer.texts})"
        yield from model_and_endpoint(key, writer)
        if writer.endpoint is not None:
            yield from _served(key, writer, writer.endpoint)


def _served(key: str, writer: Writer, endpoint: Endpoint) -> Iterator[str]:
    """What a writer says itself in each request."""
    if len(set(writer.temperatures)) < len(writer.temperatures):
        yield f"{key}.temperatures: are {writer.temperatures}; the same call would be made twice, give each once"
    for name in ("temperature", "top_p"):
        if name in endpoint.request:
            yield f"{key}.endpoint.request.{name}: is set twice; take it out, {key} says it"


def _labeller(params: Params) -> Iterator[str]:
    key, source, labeller = "label_features.labeller", params.label_features.source, params.label_features.labeller
    if labeller is None:
        return
    if braces(labeller.prompt) != {"contexts"}:
        yield f"{key}.prompt: is {labeller.prompt!r}; must hold {{contexts}} and no other braces"
    if Path(source) != CONTEXTS:
        yield f"{key}: would not be asked, because label_features.source is {source!r}; give null here, or {CONTEXTS} there"
    yield from model_and_endpoint(key, labeller)
    if labeller.endpoint is not None and "temperature" in labeller.endpoint.request:
        yield f"{key}.endpoint.request.temperature: is set twice; take it out, {key} says it"


def _saes(params: Params) -> Iterator[str]:
    names = [sae.name for sae in params.prepare_sae.saes]
    for index, sae in enumerate(params.prepare_sae.saes):
        key = f"prepare_sae.saes[{index}]"
        if sae.name in names[:index]:
            yield f"{key}.name: {sae.name!r} is taken by an earlier one; every SAE needs its own name"
        if not _is_name(sae.name):
            yield f"{key}.name: is {sae.name!r}; {_NAME_RULE}"
        for name in ("k", "seed"):
            if (getattr(sae, name) is None) is (sae.pretrained is None):
                given = (
                    "null; an SAE that is trained here needs it" if sae.pretrained is None else "of training; give null"
                )
                yield f"{key}.{name}: is {given}"
        if sae.k is not None and sae.k > sae.d_sae:
            yield f"{key}.k: is {sae.k}; must be at most its d_sae ({sae.d_sae})"


def _features(params: Params) -> Iterator[str]:
    extract = params.extract_activations
    if extract.min_density >= extract.max_density:
        yield (
            f"extract_activations.min_density: is {extract.min_density}; must be below max_density "
            f"({extract.max_density})"
        )
    if not 0 < extract.sft_share < 1:
        yield (
            f"extract_activations.sft_share: is {extract.sft_share}; must lie between 0 and 1, so that both sft and "
            "dpo have features"
        )
    if params.prepare_subject.domain is DomainName.sandbox and not extract.truth_documents:
        yield "extract_activations.truth_documents: is 0; the sandbox knows the truth and needs at least 1"
    if params.train_sft.replay_share == 1:
        yield "train_sft.replay_share: is 1; must be below 1, so that labels are left"
    if params.train_sft.replay_share and not params.train_sft.warmup_examples:
        yield (
            f"train_sft.replay_share: is {params.train_sft.replay_share}; must be 0, because warmup_examples is 0: there "
            "is nothing to replay"
        )
    if params.probe_features.steer.prompt_tokens < 2:
        yield "probe_features.steer.prompt_tokens: is 1; must be at least 2: the first token is BOS, which is not steered"
    if params.probe_features.first_rank >= extract.top_contexts:
        yield (
            f"probe_features.first_rank: is {params.probe_features.first_rank}; must be below "
            f"extract_activations.top_contexts ({extract.top_contexts}), which are counted from 0"
        )
    held_out = extract.valid_features if params.evaluate.split == "valid" else extract.test_features
    if held_out < 3:
        yield (
            f"extract_activations.{params.evaluate.split}_features: is {held_out}; must be at least 3: output accuracy "
            "shows the texts of three features"
        )
    if extract.direction_contexts > params.probe_features.first_rank:
        yield (
            f"extract_activations.direction_contexts: is {extract.direction_contexts}; must be at most "
            f"probe_features.first_rank ({params.probe_features.first_rank}): explanations are asked about later contexts"
        )
    source = Path(params.label_features.source)
    if source.suffix != ".parquet" or source == LABELS:
        yield (
            f"label_features.source: is {str(source)!r}; must be a table that is there before the labels: "
            "data/activations/contexts.parquet, which the domain reads, or one that `sae-explainer import` made"
        )
    if params.label_features.contexts > params.probe_features.first_rank:
        yield (
            f"label_features.contexts: is {params.label_features.contexts}; must be at most "
            f"probe_features.first_rank ({params.probe_features.first_rank}): explanations are asked about later contexts"
        )


def _limits(params: Params) -> Iterator[str]:
    limits = params.validate_preferences
    if limits.min_words > limits.max_words:
        yield (
            f"validate_preferences.min_words: is {limits.min_words}; must be at most its max_words ({limits.max_words})"
        )
    if params.compare_rounds.confidence_folds < 2:
        yield "compare_rounds.confidence_folds: is 1; a fit over other features needs at least 2"
    if limits.max_characters < limits.max_words:
        yield (
            f"validate_preferences.max_characters: is {limits.max_characters}; must be at least its max_words "
            f"({limits.max_words})"
        )


_NAME_RULE = "use small letters, digits and _ only: it names files and stages"


def _is_name(text: str) -> bool:
    return re.fullmatch(r"[a-z0-9_]+", text) is not None


def _rounds(params: Params) -> Iterator[str]:
    known = ["sft"]
    for name, settings in params.rounds.items():
        if not _is_name(name):
            yield f"rounds.{name}: {_NAME_RULE}"
        if name in ("sft", "warmup", "open_loop"):
            yield f"rounds.{name}: the name is taken; choose another"
        if settings.start not in known:
            yield f"rounds.{name}.start: is {settings.start!r}; choose sft or an earlier round: {', '.join(known)}"
        known.append(name)


def _evaluations(params: Params) -> Iterator[str]:
    wanted = {"open_loop": "kind: table, source: data/labels.parquet"} | {
        name: f"kind: explainer, source: {EXPLAINERS / name}" for name in ("sft", *params.rounds)
    }
    for name, entry in wanted.items():
        if name not in params.evaluations:
            yield f"evaluations.{name}: missing; add {name}: {{{entry}}}"
        elif name in params.rounds and Path(params.evaluations[name].source) != EXPLAINERS / name:
            given, own = params.evaluations[name].source, str(EXPLAINERS / name)
            yield f"evaluations.{name}.source: is {given!r}; must be the round's own, {own!r}"
    explainers = ["warmup", "sft", *params.rounds]
    for name, evaluation in params.evaluations.items():
        key, source = f"evaluations.{name}.source: is {evaluation.source!r}", Path(evaluation.source)
        if not _is_name(name):
            yield f"evaluations.{name}: {_NAME_RULE}"
        if evaluation.kind is EvaluationKind.table:
            if source.suffix != ".parquet":
                yield f"{key}; a table ends in .parquet (or change kind)"
        elif source.suffix == ".parquet" or (source.parent == EXPLAINERS and source.name not in explainers):
            choices = ", ".join(str(EXPLAINERS / known) for known in explainers)
            yield f"{key}; there is no such explainer, choose from {choices}"


def _comparison(params: Params) -> Iterator[str]:
    settings, known = params.compare_rounds, list(METRICS.values())
    if not re.fullmatch(r"\w([\w .-]{0,98}\w)?", settings.experiment):
        yield (
            f"compare_rounds.experiment: is {settings.experiment!r}; use letters, digits, _, and between them spaces, . "
            "and -, 100 at most: it names an experiment and a model of MLflow, and a folder"
        )
    guarded = {f"guarded[{index}]": metric for index, metric in enumerate(settings.guarded)}
    for key, metric in {"criterion": settings.criterion, **guarded}.items():
        if metric not in known:
            close = get_close_matches(metric, known, n=1)
            advice = f"did you mean {close[0]}?" if close else f"choose from {', '.join(known)}"
            yield f"compare_rounds.{key}: is {metric!r}, which is no metric; {advice}"


def _judges(params: Params) -> Iterator[str]:
    for index, judge in enumerate(params.evaluate.judges):
        key, kind = f"evaluate.judges[{index}]", judge.kind
        if judge in params.evaluate.judges[:index]:
            yield f"{key}: is the same as an earlier one; agreement with itself says nothing"
        if (judge.prompt is None) is (kind is JudgeKind.likelihood):
            yield f"{key}.prompt: kind is {kind}; only kind likelihood has one, and must"
        if judge.prompt is not None and braces(judge.prompt) != {"description"}:
            yield f"{key}.prompt: is {judge.prompt!r}; must hold {{description}} and no other braces"
        yield from model_and_endpoint(key, judge)
