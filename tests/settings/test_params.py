"""params.yaml: what is wrong gets one line that names the file, the key and the value."""

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from saeexplainer.config import Corpus
from saeexplainer.config.parts import (
    Architecture,
    Direction,
    Endpoint,
    EndpointJudgeSpec,
    EvaluationKind,
    LikelihoodJudgeSpec,
)
from saeexplainer.config.saes import TakenSae
from saeexplainer.errors import UserError
from tasks.settings import params

COMMITTED = Path(__file__).resolve().parents[2] / "params.yaml"
REMOVED = object()


def edited(tmp_path: Path, **edits: Any) -> Path:
    """The committed file with `section__field` set, or removed."""
    config = OmegaConf.load(COMMITTED)
    for name, value in edits.items():
        key = name.replace("__", ".")
        if value is REMOVED:
            parent, _, child = key.rpartition(".")
            del (OmegaConf.select(config, parent) if parent else config)[child]
        else:
            OmegaConf.update(config, key, value, merge=False, force_add=True)
    path = tmp_path / "params.yaml"
    OmegaConf.save(config, path)
    return path


def test_the_committed_file_loads_as_frozen_dataclasses() -> None:
    loaded = params.load(COMMITTED)
    assert isinstance(loaded.prepare_subject.architecture, Architecture)
    assert isinstance(loaded.explainer.direction, Direction)
    assert isinstance(loaded.evaluations["open_loop"].kind, EvaluationKind)
    assert type(loaded.prepare_sae.saes) is list and type(loaded.rounds) is dict
    with pytest.raises(FrozenInstanceError):
        loaded.seed = 1  # type: ignore[misc]


CORPUS = {
    "source": "texts.jsonl", "revision": None, "subset": None, "split": None, "column": "text", "packed": True,
}  # fmt: skip
PRETRAINED = {"source": "model", "revision": None, "dtype": "float32", "device_map": None, "attention": None}
ON_A_CORPUS = {
    "prepare_subject__domain": "corpus",
    "prepare_subject__corpus": CORPUS,
    "prepare_subject__pretrained": PRETRAINED,
    "label_features__source": "data/imported/labels.parquet",
    "warm_up__examples": 0,
    "train_sft__replay_share": 0,
}
HUB = CORPUS | {"source": "owner/texts", "revision": "0" * 40, "subset": "en", "split": "train"}
SHOWN = {"kind": "chat", "shown_contexts": 0, "shown_words": 0, "shown_spread": 0, "shown_promoted": 0}
BFLOAT16 = {"source": "folder", "revision": None, "dtype": "bfloat16", "device_map": None, "attention": None}
WRONG = {
    "unknown key": ({"train_sft__epoch": 3}, "train_sft.epoch", "did you mean epochs?"),
    "unknown section": ({"train_sfd": 3}, "train_sfd", "did you mean train_sft?"),
    "wrong type": ({"train_sft__epochs": "two"}, "train_sft.epochs", "'two'"),
    "fraction for a count": ({"prepare_subject__steps": 2.5}, "prepare_subject.steps", "2.5"),
    "chat without an instruction": ({"explainer__prompt__kind": "chat"}, "explainer.prompt.instruction", "missing"),
    "a batch that cannot be shared": (
        {"processes": 3, "warm_up__batch_size": 96},
        "train_sft.batch_size",
        "multiple",
    ),
    "contexts without their place": (
        {"explainer__prompt": SHOWN | {"instruction": "What is {feature}?", "shown_contexts": 2}},
        "explainer.prompt.instruction",
        "{contexts}",
    ),
    "spread contexts that are not kept": (
        {"explainer__prompt__shown_spread": 2},
        "explainer.prompt.shown_spread",
        "no more are kept",
    ),
    "promoted tokens for a domain": (
        {"label_features__promoted": 2},
        "label_features.promoted",
        "give 0 or a labeller",
    ),
    "contexts of the evaluation": (
        {"explainer__prompt": SHOWN | {"instruction": "{feature} {contexts}", "shown_contexts": 99}},
        "explainer.prompt.shown_contexts",
        "first_rank",
    ),
    "an instruction that nobody reads": (
        {"explainer__prompt__instruction": "What is {feature}?"},
        "explainer.prompt.instruction",
        "unknown key",
    ),
    "whole training in bfloat16": ({"explainer__pretrained": BFLOAT16}, "explainer.pretrained.dtype", "float32"),
    "a branch for a commit": (
        {"explainer__pretrained": PRETRAINED | {"revision": "main"}},
        "explainer.pretrained.revision",
        "40 hex digits",
    ),
    "a judge of an unknown number type": (
        {"evaluate__judges": [{"kind": "chat", "model": PRETRAINED | {"dtype": "float8"}, "batch_size": 1}]},
        "evaluate.judges[0].model.dtype",
        "'float8'; must be 'float32'",
    ),
    "an adapter that nothing reaches": (
        {"explainer__adapter": {"rank": 4, "alpha": 8, "dropout": 1.0}},
        "explainer.adapter.dropout",
        "is 1.0",
    ),
    "no value": ({"prepare_subject__steps": None}, "prepare_subject.steps", ""),
    "unknown choice": ({"explainer__direction": "up"}, "explainer.direction", "mean_activation"),
    "missing key": ({"train_sft__epochs": REMOVED}, "train_sft.epochs", "missing"),
    "missing section": ({"train_sft": REMOVED}, "train_sft", "missing"),
    "negative count": ({"prepare_subject__documents": -1}, "prepare_subject.documents", "-1"),
    "zero count": ({"generate_explanations__batch_size": 0}, "generate_explanations.batch_size", "0"),
    "negative seed": ({"seed": -1}, "seed", "-1"),
    "negative weight": ({"train_dpo__sft_weight": -0.1}, "train_dpo.sft_weight", "-0.1"),
    "not finite": ({"train_sft__learning_rate": float("nan")}, "train_sft.learning_rate", "nan"),
    "zero rate": ({"rounds__r1__beta": 0.0}, "rounds.r1.beta", "is 0.0"),
    "share over one": ({"label_features__modifier_share": 1.2}, "label_features.modifier_share", "1.2"),
    "probability over one": ({"evaluate__writer__top_p": 1.5}, "evaluate.writer.top_p", "1.5"),
    "zero temperature": ({"generate_explanations__temperature": 0.0}, "generate_explanations.temperature", "is 0.0"),
    "zero temperature of texts": ({"evaluate__writer__temperature": 0}, "evaluate.writer.temperature", "is 0;"),
    "one fold": ({"compare_rounds__confidence_folds": 1}, "compare_rounds.confidence_folds", "is 1"),
    "negative price": ({"compare_rounds__prices__machine_hour": -1.0}, "compare_rounds.prices.machine_hour", "-1"),
    "heads": ({"prepare_subject__heads": 3}, "prepare_subject.d_model", "128"),
    "odd head width": ({"prepare_subject__d_model": 132}, "prepare_subject.heads", "33"),
    "hook block": ({"prepare_sae__hook_block": 4}, "prepare_sae.hook_block", "4"),
    "injection block": ({"explainer__injection_block": 9}, "explainer.injection_block", "9"),
    "texts longer than the context": ({"evaluate__writer__max_new_tokens": 64}, "evaluate.writer.max_new_tokens", "64"),
    "one candidate": ({"generate_explanations__candidates": 1}, "generate_explanations.candidates", "1"),
    "no reward": (
        {f"score_explanations__reward__weight_{name}": 0 for name in ("share", "any", "mean")},
        "score_explanations.reward",
        "weight",
    ),
    "split": ({"evaluate__split": "train"}, "evaluate.split", "'train'"),
    "local writer that is asked for many": (
        {"evaluate__writer__prompt": "{count} of {description}"},
        "evaluate.writer.prompt",
        "{description} and no other",
    ),
    "writer without its model": ({"evaluate__writer__kind": "chat"}, "evaluate.writer.model", "missing"),
    "writer without its endpoint": (
        {
            "evaluate__writer__kind": "endpoint",
            "evaluate__writer__batch_size": REMOVED,
            "evaluate__writer__prompt": "{count} of {description}",
        },
        "evaluate.writer.endpoint",
        "missing",
    ),
    "writer without a kind": ({"evaluate__writer__kind": REMOVED}, "evaluate.writer.kind", "missing"),
    "a text for a number": ({"prepare_subject__steps": "12"}, "prepare_subject.steps", "is '12'"),
    "a text for a switch": ({"explainer__bf16": "yes"}, "explainer.bf16", "is 'yes'"),
    "a number for a section": ({"train_sft": 3}, "train_sft", "must be a mapping"),
    "a round that names no file": (
        {"rounds__R-1": {"start": "sft", "beta": 0.1, "learning_rate": 0.1}},
        "rounds.R-1",
        "small letters",
    ),
    "unknown writer": ({"evaluate__writer__kind": "poet"}, "evaluate.writer.kind", "poet"),
    "prompt": (
        {"score_explanations__writer__prompt": "<about> <text>"},
        "score_explanations.writer.prompt",
        "{description}",
    ),
    "other braces": ({"evaluate__writer__prompt": "{description} {x}"}, "evaluate.writer.prompt", "{description}"),
    "densities": ({"extract_activations__min_density": 0.1}, "extract_activations.min_density", "0.1"),
    "labels without contexts": ({"label_features__contexts": 21}, "label_features.contexts", "21"),
    "labels from the labels": (
        {"label_features__source": "data/labels.parquet"},
        "label_features.source",
        "there before the labels",
    ),
    "labels from no table": ({"label_features__source": "np.jsonl"}, "label_features.source", "sae-explainer import"),
    "sentences of a later round": (
        {"score_explanations__by_sentence": {"r1": "r2"}},
        "score_explanations.by_sentence.r1",
        "'r2'",
    ),
    "sentences of no round": (
        {"score_explanations__by_sentence": {"r9": "r1"}},
        "score_explanations.by_sentence.r9",
        "r1, r2",
    ),
    "unknown start": ({"rounds__r1__start": "r0"}, "rounds.r1.start", "'r0'"),
    "later start": ({"rounds__r1__start": "r2"}, "rounds.r1.start", "'r2'"),
    "own start": ({"rounds__r2__start": "r2"}, "rounds.r2.start", "'r2'"),
    "more active latents than there are": (
        {"prepare_sae__architecture": {"kind": "topk", "k": 769}},
        "prepare_sae.architecture.k",
        "is 769; must be at most d_sae of main (768)",
    ),
    "an unknown architecture": (
        {"prepare_sae__architecture": {"kind": "vae", "k": 8}},
        "prepare_sae.architecture.kind",
        "'vae'",
    ),
    "an architecture with another's setting": (
        {"prepare_sae__architecture": {"kind": "gated", "coefficient": 1.0, "k": 8}},
        "prepare_sae.architecture.k",
        "unknown key",
    ),
    "a penalty that is none": (
        {"prepare_sae__architecture": {"kind": "standard", "coefficient": 0.0}},
        "prepare_sae.architecture.coefficient",
        "is 0.0",
    ),
    "nested widths that fall": (
        {"prepare_sae__architecture": {"kind": "matryoshka", "k": 8, "shares": [0.5, 0.25]}},
        "prepare_sae.architecture.shares",
        "above the one before",
    ),
    "a small SAE that is too small": (
        {"prepare_sae__architecture": {"kind": "meta", "k": 8, "weight": 0.3, "meta_share": 0.01, "meta_k": 9}},
        "prepare_sae.architecture.meta_k",
        "lower it or raise meta_share",
    ),
    "a small SAE that is as large": (
        {"prepare_sae__architecture": {"kind": "meta", "k": 8, "weight": 0.3, "meta_share": 1.0, "meta_k": 9}},
        "prepare_sae.architecture.meta_share",
        "is 1.0",
    ),
    "a reinforcement that starts from none": (
        {"reinforcements__g1": {"start": "r9", "epochs": 1.0, "beta": 0.0, "learning_rate": 0.1}},
        "reinforcements.g1.start",
        "'r9'; choose what is trained before it: sft, r1, r2",
    ),
    "a reinforcement named as a round": (
        {"reinforcements__r1": {"start": "sft", "epochs": 1.0, "beta": 0.0, "learning_rate": 0.1}},
        "reinforcements.r1",
        "the name is taken",
    ),
    "a reinforcement that is not measured": (
        {"reinforcements__g1": {"start": "r1", "epochs": 1.0, "beta": 0.0, "learning_rate": 0.1}},
        "evaluations.g1",
        "kind: explainer, source: data/explainers/g1",
    ),
    "another scale that is none": (
        {"evaluations__louder": {"kind": "scaled", "source": "data/explainers/r1"}},
        "evaluations.louder.scale",
        "missing",
    ),
    "a scale of what has none": (
        {"evaluations__louder": {"kind": "explainer", "source": "data/explainers/r1", "scale": 2.0}},
        "evaluations.louder.scale",
        "",
    ),
    "round without evaluation": ({"evaluations__r2": REMOVED}, "evaluations.r2", "data/explainers/r2"),
    "no baseline": ({"evaluations__open_loop": REMOVED}, "evaluations.open_loop", "data/labels.parquet"),
    "unknown explainer": ({"evaluations__sft__source": "data/explainers/r9"}, "evaluations.sft.source", "r9"),
    "explainer that is a table": ({"evaluations__sft__kind": "table"}, "evaluations.sft.source", ".parquet"),
    "unknown criterion": ({"compare_rounds__criterion": "accuracy"}, "compare_rounds.criterion", "'accuracy'"),
    "unknown guarded metric": (
        {"compare_rounds__guarded": ["detection_auc", "collision"]},
        "compare_rounds.guarded[1]",
        "did you mean collision_rate?",
    ),
    **{
        f"an experiment named {name}": ({"compare_rounds__experiment": name}, "compare_rounds.experiment", "letters")
        for name in ("a/b", "a:b", "it's", "..", "what?", "a@1", " a", "x" * 101)
    },
    "replay of nothing": ({"warm_up__examples": 0}, "train_sft.replay_share", "0.5"),
    "corpus of the sandbox": ({"prepare_subject__corpus": CORPUS}, "prepare_subject.corpus", "texts.jsonl"),
    "domain without its corpus": ({"prepare_subject__domain": "corpus"}, "prepare_subject.corpus", "null"),
    "round measured elsewhere": ({"evaluations__r2__source": "data/explainers/r1"}, "evaluations.r2.source", "r1"),
}


@pytest.mark.parametrize(("edits", "key", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_one_line(tmp_path: Path, edits: dict[str, Any], key: str, said: str) -> None:
    path = edited(tmp_path, **edits)
    with pytest.raises(UserError) as caught:
        params.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {key}: ") and said in message and "\n" not in message


@pytest.mark.parametrize("corpus", [CORPUS, HUB, HUB | {"subset": None}], ids=["files", "hub", "hub, no subset"])
def test_a_corpus_loads(tmp_path: Path, corpus: dict[str, Any]) -> None:
    loaded = params.load(edited(tmp_path, **ON_A_CORPUS | {"prepare_subject__corpus": corpus}))
    assert loaded.prepare_subject.corpus == Corpus(**corpus)


def test_a_corpus_labels_warms_up_and_has_hypotheses_to_test(tmp_path: Path) -> None:
    edits = {
        "label_features__source": "data/activations/contexts.parquet",
        "warm_up__examples": 9,
        "train_sft__replay_share": 0.5,
        "evaluations__agent": {"kind": "agent", "source": "data/activations"},
        "evaluations__ceiling": {"kind": "truth", "source": "data/activations/truth.safetensors"},
    }
    loaded = params.load(edited(tmp_path, **ON_A_CORPUS | edits))
    assert loaded.label_features.labeller is None and loaded.warm_up.examples == 9


WRONG_ON_A_CORPUS = {
    "a subject trained here": ({"prepare_subject__pretrained": None}, "prepare_subject.pretrained", "no lessons"),
    "the best hypothesis on no documents": (
        {
            "evaluations__ceiling": {"kind": "truth", "source": "t"},
            "extract_activations__truth_documents": 0,
        },
        "evaluations.ceiling.kind", "truth_documents",
    ),
    "a branch of the hub": (
        {"prepare_subject__corpus": HUB | {"revision": "main"}}, "prepare_subject.corpus.revision", "40 hex digits",
    ),
    "no split of the hub": (
        {"prepare_subject__corpus": HUB | {"split": None}}, "prepare_subject.corpus.split", "such as train",
    ),
    "a subset of files": (
        {"prepare_subject__corpus": HUB | {"revision": None}}, "prepare_subject.corpus.subset", "'en'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("edits", "key", "said"), WRONG_ON_A_CORPUS.values(), ids=WRONG_ON_A_CORPUS)
def test_what_a_corpus_cannot_give_is_one_line(tmp_path: Path, edits: dict[str, Any], key: str, said: str) -> None:
    path = edited(tmp_path, **ON_A_CORPUS | edits)
    with pytest.raises(UserError) as caught:
        params.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {key}: ") and said in message and "\n" not in message


PUBLISHED = {"source": "owner/gpt2", "revision": None, "dtype": "bfloat16", "device_map": None, "attention": None}
TAKEN = {"name": "main", "d_sae": 768, "pretrained": {"source": "release", "sae_id": "id", "norm_scaling_factor": None}}
OF_OTHERS: dict[str, Any] = {"prepare_subject__pretrained": PUBLISHED, "prepare_sae__saes": [TAKEN]}


def test_the_shape_of_what_is_not_trained_here_is_not_asked_about(tmp_path: Path) -> None:
    shape = {"prepare_subject__heads": 3, "prepare_sae__hook_block": 20, "explainer__injection_block": 9}
    loaded = params.load(edited(tmp_path, **OF_OTHERS, **shape, prepare_subject__prepend_bos=False))
    assert loaded.prepare_subject.pretrained is not None and isinstance(loaded.prepare_sae.saes[0], TakenSae)


WRONG_OF_OTHERS = {
    "a name with a space": (
        {"prepare_subject__pretrained": PUBLISHED | {"source": "models/my gpt2"}},
        "prepare_subject.pretrained.source", "without spaces",
    ),
    "BOS of a tokenizer made here": ({"prepare_subject__prepend_bos": True}, "prepare_subject.prepend_bos", "is true"),
    "training of what is there": ({"prepare_sae__saes": [TAKEN | {"k": 8}]}, "prepare_sae.saes[0].k", "unknown key"),
    "nothing to train by": (
        {"prepare_sae__saes": [{"name": "main", "d_sae": 768}]}, "prepare_sae.saes[0].seed", "missing",
    ),
    "no scale": (
        {"prepare_sae__saes": [TAKEN | {"pretrained": TAKEN["pretrained"] | {"norm_scaling_factor": 0.0}}]},
        "prepare_sae.saes[0].pretrained.norm_scaling_factor", "is 0.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("edits", "key", "said"), WRONG_OF_OTHERS.values(), ids=WRONG_OF_OTHERS)
def test_a_wrong_model_or_sae_of_others_is_one_line(tmp_path: Path, edits: dict[str, Any], key: str, said: str) -> None:
    path = edited(tmp_path, **edits)
    with pytest.raises(UserError) as caught:
        params.load(path)
    assert str(caught.value).startswith(f"{path}: {key}: ") and said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "field", "value"), [(1, "name", "main"), (1, "name", "../x"), (0, "k", 8), (0, "kk", 1)]
)
def test_a_wrong_sae_is_one_line(tmp_path: Path, name: int, field: str, value: Any) -> None:
    saes = OmegaConf.to_container(OmegaConf.load(COMMITTED).prepare_sae.saes)
    saes[name][field] = value
    with pytest.raises(UserError, match=rf"prepare_sae\.saes\[{name}\]\.{field}: .*") as caught:
        params.load(edited(tmp_path, prepare_sae__saes=saes))
    assert "\n" not in str(caught.value)


ENDPOINT = {
    "base_url": "https://host/v1", "model": "m", "key_variable": "KEY", "request": {}, "structured": "json_schema",
    "timeout_seconds": 1.0, "attempts": 1, "backoff_seconds": 0.0, "concurrency": 1, "cache": "c",
    "max_failed_share": 0.1, "max_cost": None, "million_prompt_tokens": 0.0, "million_completion_tokens": 0.0,
}  # fmt: skip
LOCAL = {"source": "folder", "revision": None, "dtype": "float32", "device_map": None, "attention": None}
SERVED = {"kind": "endpoint", "batch_size": 1, "endpoint": ENDPOINT}
PLAIN = {"kind": "likelihood", "prompt": "{description}", "batch_size": 1}
WRONG_JUDGES = {
    "nobody": ([], ": ", "at least 1"),
    "twice the same": ([SERVED, PLAIN, PLAIN], "[2]: ", "earlier"),
    "unknown kind": ([PLAIN | {"kind": "oracle"}], "[0].kind: ", "oracle"),
    "no record": (["likelihood"], "[0]: ", "must be a mapping"),
    "likelihood of another": ([PLAIN | {"model": LOCAL}], "[0].model: ", "unknown key"),
    "likelihood of nothing": ([{"kind": "likelihood", "batch_size": 1}], "[0].prompt: ", "missing"),
    "likelihood of no description": ([PLAIN | {"prompt": "{text}"}], "[0].prompt: ", "{description}"),
    "served with a prompt": ([SERVED | {"prompt": "{description}"}], "[0].prompt: ", "unknown key"),
    "chat without a model": ([{"kind": "chat", "batch_size": 1}], "[0].model: ", "missing"),
    "chat with an endpoint": ([SERVED | {"kind": "chat", "model": LOCAL}], "[0].endpoint: ", "unknown key"),
    "endpoint without one": ([SERVED | {"endpoint": None}], "[0].endpoint: ", "must be a mapping"),
    "unknown key": ([SERVED | {"endpoint": ENDPOINT | {"attempt": 2}}], "[0].endpoint.attempt: ", "attempts"),
    "missing key": ([SERVED | {"endpoint": {"cache": "c"}}], "[0].endpoint.base_url: ", "missing"),
    "unknown structure": (
        [SERVED | {"endpoint": ENDPOINT | {"structured": "xml"}}],
        "[0].endpoint.structured: ",
        "json",
    ),
    "a limit of nothing": ([SERVED | {"endpoint": ENDPOINT | {"max_cost": 0.0}}], "[0].endpoint.max_cost: ", "is 0.0"),
    "a limit without prices": (
        [SERVED | {"endpoint": ENDPOINT | {"max_cost": 1.0}}],
        "[0].endpoint.max_cost: ",
        "price",
    ),
    "no address": ([SERVED | {"endpoint": ENDPOINT | {"base_url": "host/v1"}}], "[0].endpoint.base_url: ", "https://"),
    "no patience": (
        [SERVED | {"endpoint": ENDPOINT | {"timeout_seconds": 0.0}}],
        "[0].endpoint.timeout_seconds: ",
        "is 0.0",
    ),
}


@pytest.mark.parametrize(("judges", "key", "said"), WRONG_JUDGES.values(), ids=WRONG_JUDGES)
def test_a_wrong_judge_is_one_line(tmp_path: Path, judges: list[dict[str, Any]], key: str, said: str) -> None:
    path = edited(tmp_path, evaluate__judges=judges)
    with pytest.raises(UserError) as caught:
        params.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: evaluate.judges{key}") and said in message and "\n" not in message


def served(**changes: Any) -> dict[str, Any]:
    """Parameters with an endpoint as the first judge."""
    return {"evaluate__judges": [SERVED | {"endpoint": ENDPOINT | changes}, PLAIN]}


@pytest.mark.parametrize(
    "host", ["https://host/v1", "http://[::1]:8000/v1", "https://h.org/d/x?api-version=2024-10-21", "http://h"]
)
def test_addresses_and_requests_of_any_json_load_and_compose(tmp_path: Path, host: str) -> None:
    request = {
        "temperature": 0, "presence_penalty": -1.5, "reasoning_effort": "low", "store": False, "user": None, "stop": [],
        "chat_template_kwargs": {"enable_thinking": False}, "logit_bias": {"50256": -100},
    }  # fmt: skip
    path = edited(tmp_path, **served(base_url=host, request=request))
    found = params.load(path).evaluate.judges[0].endpoint
    assert (found.base_url, found.request) == (host, request)
    text = params.text(OmegaConf.load(path), "again")
    assert OmegaConf.create(text).evaluate.judges[0].endpoint.request == request


WRONG_ENDPOINTS = {
    "a port of letters": ({"base_url": "http://host:port/v1"}, "base_url", "http://[::1]:8000/v1"),
    "half an address of IPv6": ({"base_url": "http://[::1/v1"}, "base_url", "must be like"),
    "a user": ({"base_url": "http://me:pw@host/v1"}, "base_url", "without user"),
    "a key in the query": ({"base_url": "https://h/v1?api_key=sk-1"}, "base_url", "has api_key"),
    "no JSON": ({"request": {"seed": float("nan")}}, "request.seed", "must be JSON"),
    "our own field": ({"request": {"model": "other"}}, "request.model", "take it out"),
    "two formats": ({"request": {"response_format": {"type": "text"}}}, "request.response_format", "structured"),
    "a stream": ({"request": {"stream": True}}, "request.stream", "take it out"),
    "a limit of words": (
        {"request": {"max_tokens": "many"}},
        "request.max_tokens",
        "is 'many'; must be a whole number",
    ),
    "no room": ({"request": {"max_completion_tokens": 0}}, "request.max_completion_tokens", "at least 1"),
}


@pytest.mark.parametrize(("changes", "key", "said"), WRONG_ENDPOINTS.values(), ids=WRONG_ENDPOINTS)
def test_a_wrong_endpoint_is_one_line(tmp_path: Path, changes: dict[str, Any], key: str, said: str) -> None:
    path = edited(tmp_path, **served(**changes))
    with pytest.raises(UserError) as caught:
        params.load(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: evaluate.judges[0].endpoint.{key}: ") and said in line and "\n" not in line
    assert "sk-1" not in line and "pw" not in line


def test_judges_load_with_and_without_an_endpoint(tmp_path: Path) -> None:
    served, plain = params.load(edited(tmp_path, evaluate__judges=[SERVED, PLAIN])).evaluate.judges
    assert served == EndpointJudgeSpec(kind="endpoint", endpoint=Endpoint(**ENDPOINT), batch_size=1)
    assert plain == LikelihoodJudgeSpec(kind="likelihood", prompt="{description}", batch_size=1)


WRITES = {
    "kind": "endpoint",
    "batch_size": REMOVED,
    "endpoint": ENDPOINT,
    "prompt": "{count} texts about {description}",
}
WRONG_WRITERS = {
    "asked for no number": (WRITES | {"prompt": "{description}"}, "prompt", "{description} and {count}"),
    "temperature said twice": (
        WRITES | {"endpoint": ENDPOINT | {"request": {"temperature": 1.0}}},
        "endpoint.request.temperature",
        "take it out",
    ),
    "an address that holds a key": (
        WRITES | {"endpoint": ENDPOINT | {"base_url": "https://h/v1?key=sk"}}, "endpoint.base_url", "key_variable",
    ),
    "a model beside the server": (WRITES | {"model": LOCAL}, "model", "unknown key"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "key", "said"), WRONG_WRITERS.values(), ids=WRONG_WRITERS)
def test_a_wrong_served_writer_is_one_line(tmp_path: Path, changes: dict[str, Any], key: str, said: str) -> None:
    path = edited(tmp_path, **{f"score_explanations__writer__{name}": value for name, value in changes.items()})
    with pytest.raises(UserError) as caught:
        params.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: score_explanations.writer.{key}: ") and said in message and "\n" not in message


LABELS = {"kind": "endpoint", "endpoint": ENDPOINT, "prompt": "What do these share? {contexts}", "temperature": 0.0}
WRONG_LABELLERS = {
    "asked about nothing": ({"prompt": "What is it?"}, ".prompt", "{contexts}"),
    "temperature said twice": (
        {"endpoint": ENDPOINT | {"request": {"temperature": 1.0}}}, ".endpoint.request.temperature", "take it out",
    ),
    "a model beside the server": ({"model": LOCAL}, ".model", "unknown key"),
    "no server": ({"endpoint": None}, ".endpoint", "must be a mapping"),
    "an address that holds a key": (
        {"endpoint": ENDPOINT | {"base_url": "https://h/v1?key=sk"}}, ".endpoint.base_url", "key_variable",
    ),
    "nobody": ({"kind": "domain"}, ".kind", "domain"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "key", "said"), WRONG_LABELLERS.values(), ids=WRONG_LABELLERS)
def test_a_wrong_labeller_is_one_line(tmp_path: Path, changes: dict[str, Any], key: str, said: str) -> None:
    path = edited(tmp_path, label_features__labeller=LABELS | changes)
    with pytest.raises(UserError) as caught:
        params.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: label_features.labeller{key}: ") and said in message and "\n" not in message


def test_a_labeller_reads_contexts_and_then_alone_labels(tmp_path: Path) -> None:
    assert params.load(edited(tmp_path, label_features__labeller=LABELS)).label_features.labeller.temperature == 0
    chat = {
        "kind": "chat",
        "model": LOCAL,
        "prompt": "{contexts}",
        "max_new_tokens": 60,
        "temperature": 0.0,
        "batch_size": 8,
    }
    contexts = {"label_features__source": "data/activations/contexts.parquet"}
    assert params.load(edited(tmp_path, **ON_A_CORPUS | contexts, label_features__labeller=chat))
    with pytest.raises(
        UserError, match="label_features.labeller: would not be asked, because .* 'data/imported/labels"
    ):
        params.load(edited(tmp_path, **ON_A_CORPUS, label_features__labeller=chat))


STATES = {
    "kind": "endpoint",
    "endpoint": ENDPOINT,
    "prompts": {"first": "{contexts}", "next": "{contexts} {tested}"},
    "contexts": 4,
    "texts": 3,
    "temperature": 0.0,
}
TRIED = {"evaluations__agent": {"kind": "agent", "source": "data/activations"}}
WRONG_AGENTS = {
    "asked about nothing": ({"prompts": {"first": "?", "next": "{contexts} {tested}"}}, ".prompts.first", "{contexts}"),
    "told nothing": (
        {"prompts": {"first": "{contexts}", "next": "{contexts}"}}, ".prompts.next", "{contexts} and {tested}",
    ),
    "one prompt": ({"prompts": {"first": "{contexts}"}}, ".prompts.next", "missing"),
    "contexts of the evaluation": ({"contexts": 11}, ".contexts", "is 11; must be at most probe_features.first_rank"),
    "no texts": ({"texts": 0}, ".texts", "is 0"),
    "temperature said twice": (
        {"endpoint": ENDPOINT | {"request": {"temperature": 1.0}}}, ".endpoint.request.temperature", "take it out",
    ),
    "a model beside the server": ({"model": LOCAL}, ".model", "unknown key"),
    "an address that holds a key": (
        {"endpoint": ENDPOINT | {"base_url": "https://h/v1?key=sk"}}, ".endpoint.base_url", "key_variable",
    ),
    "nobody": ({"kind": "domain"}, ".kind", "domain"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "key", "said"), WRONG_AGENTS.values(), ids=WRONG_AGENTS)
def test_a_wrong_agent_is_one_line(tmp_path: Path, changes: dict[str, Any], key: str, said: str) -> None:
    path = edited(tmp_path, **TRIED, evaluate__agent=STATES | changes)
    with pytest.raises(UserError) as caught:
        params.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: evaluate.agent{key}: ") and said in message and "\n" not in message


def test_an_agent_loads_and_is_evaluated(tmp_path: Path) -> None:
    assert params.load(edited(tmp_path, **TRIED, evaluate__agent=STATES)).evaluate.agent.prompts.first == "{contexts}"
    with pytest.raises(UserError, match="evaluate.agent: would not be asked, .* add evaluations.agent: {kind: agent"):
        params.load(edited(tmp_path, evaluate__agent=STATES))


SECRETS = {
    "for the variable's name": {"key_variable": "sk-a1b2"},
    "in the address": {"base_url": "https://me:sk-a1b2@host/v1"},
    "in a list": {"key_variable": ["sk-a1b2"]},
    "for a number": {"attempts": "sk-a1b2"},
    "for a mapping": {"request": "sk-a1b2"},
    "under a name of its own": {"api_key": "sk-a1b2"},
    "for a choice": {"structured": "sk-a1b2"},
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_a_key_in_the_settings_is_refused_and_not_repeated(tmp_path: Path, secret: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        params.load(edited(tmp_path, evaluate__judges=[SERVED | {"endpoint": ENDPOINT | secret}]))
    assert f"endpoint.{next(iter(secret))}: " in str(caught.value) and "sk-a1b2" not in str(caught.value)


def test_a_key_that_stands_for_the_whole_endpoint_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        params.load(edited(tmp_path, evaluate__judges=[SERVED | {"endpoint": "sk-a1b2"}]))
    assert "evaluate.judges[0].endpoint: must be a mapping" in str(caught.value) and "sk-a1b2" not in str(caught.value)


def test_an_absent_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file.*sae-explainer compose"):
        params.load(tmp_path / "params.yaml")


def test_no_metric_need_be_guarded(tmp_path: Path) -> None:
    assert params.load(edited(tmp_path, compare_rounds__guarded=[])).compare_rounds.guarded == []


def test_one_more_round_needs_no_code(tmp_path: Path) -> None:
    third = {"start": "r2", "beta": 0.2, "learning_rate": 1e-4}
    measured = {"kind": "explainer", "source": "data/explainers/r3"}
    loaded = params.load(edited(tmp_path, rounds__r3=third, evaluations__r3=measured))
    assert list(loaded.rounds) == ["r1", "r2", "r3"]
