"""What an experiment will take, answered without running it: `sae-explainer plan experiment=pydoc`.

Settings are composed from conf/ as `tasks.settings.compose` does, and params.yaml stays as it is. Shapes of known
models are in conf/shapes.yaml, what was measured in conf/throughput.yaml. Estimates: docs/SCALE.md.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from saeexplainer.config import Params
from saeexplainer.config.explainers import Adapter
from saeexplainer.config.parts import DomainName, Judge, Pretrained, Writer
from saeexplainer.costs import plan as planning, workload
from saeexplainer.costs.memory import Setup
from saeexplainer.costs.plan import Held, Measured, Models, Plan, Rate
from saeexplainer.costs.shapes import Shape, parameters, shape_of, trained_config
from saeexplainer.costs.workload import Lengths, Tokens
from saeexplainer.errors import UserError
from saeexplainer.models import gguf
from tasks.settings import compose, params as settings_params

SHAPES, THROUGHPUT = compose.CONF / "shapes.yaml", compose.CONF / "throughput.yaml"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Choice:
    """What stands in place of the settings."""

    model: str | None  # a name or hub id of conf/shapes.yaml, or a folder with a config.json; None: prepare_subject's
    dtype: str | None  # of BYTES, all models'; None: their own
    lora_rank: int | None  # of the explainer's adapters; 0: all weights are trained; None: the settings'
    checkpointing: bool  # training keeps block inputs alone, whatever the settings say
    hardware: str  # a machine of conf/throughput.yaml


@dataclass(frozen=True)
class Answer:
    """A plan with what it rests on."""

    plan: Plan
    parameters: int  # of the subject
    dtype: str  # in which it is held
    notes: list[str]  # what was assumed, a sentence each


def answer(overrides: list[str], choice: Choice) -> Answer:
    """The plan under these overrides. Raises UserError."""
    params = settings_params.build(OmegaConf.create(compose.composed(overrides)), "conf")
    shapes, pretrained = known_shapes(), params.prepare_subject.pretrained
    dtype = _dtype(choice, pretrained)
    models = _models(params, choice)
    lengths, runs = measured()
    if choice.hardware not in (known := sorted({run.hardware for run in runs})):
        raise UserError(
            f"--hardware {choice.hardware}: unknown; choose from {', '.join(known)}, or add a run on it to "
            f"{_place(THROUGHPUT)}"
        )
    fitting = planning.fitting(runs, params, shapes, models, choice.hardware)
    here = lengths.get(params.prepare_subject.domain)
    trained_here = choice.model is None and pretrained is None
    found = planning.plan(params, models, here or workload.limits(params), fitting, trained_here)
    return Answer(found, parameters(models.subject.shape).total, dtype, _notes(params, here, fitting, runs))


def _models(params: Params, choice: Choice) -> Models:
    """Who plays which part, as the settings say."""
    pretrained = params.prepare_subject.pretrained
    setup = Setup(BYTES[_dtype(choice, pretrained)], 0, checkpointing=False)
    subject = Held(_subject(params, choice.model), setup, "prepare_subject")

    def played(key: str, part: Writer | Judge) -> Held | None:
        if part.kind == "endpoint":
            return None
        return _held(part.model, f"{key}.model", choice) if part.kind == "chat" else subject

    return Models(
        subject,
        _explainer(params, choice, subject),
        writer=played("score_explanations.writer", params.score_explanations.writer),
        measuring=played("evaluate.writer", params.evaluate.writer),
        judges=[played(f"evaluate.judges[{at}]", judge) for at, judge in enumerate(params.evaluate.judges)],
    )


def _explainer(params: Params, choice: Choice, subject: Held) -> Held:
    """The model that the explainer is made of, with its adapters."""
    config = params.explainer
    found = subject if config.pretrained is None else _held(config.pretrained, "explainer.pretrained", choice)
    rank = config.adapter.rank if isinstance(config.adapter, Adapter) else 0
    setup = replace(
        found.setup,
        lora_rank=rank if choice.lora_rank is None else choice.lora_rank,
        checkpointing=choice.checkpointing or config.gradient_checkpointing,
    )
    return Held(found.shape, setup, "explainer")


def _held(pretrained: Pretrained, key: str, choice: Choice) -> Held:
    """A pretrained model that is only asked; `key` names the setting."""
    setup = Setup(BYTES[_dtype(choice, pretrained)], 0, checkpointing=False)
    loaded = f"{pretrained.source}@{pretrained.revision}"
    return Held(_named(pretrained.source, f"{key}.source"), setup, loaded)


def _dtype(choice: Choice, pretrained: Pretrained | None) -> str:
    return choice.dtype or (pretrained.dtype if pretrained else "float32")


def _subject(params: Params, model: str | None) -> Shape:
    """The shape of the model that is asked about: given, pretrained, or made here."""
    if model is not None:
        return _named(model, "--model")
    pretrained = params.prepare_subject.pretrained
    return _made_here(params) if pretrained is None else _named(pretrained.source, "prepare_subject.pretrained.source")


def _notes(params: Params, lengths: Lengths | None, fitting: Measured | None, runs: list[Measured]) -> list[str]:
    domain = params.prepare_subject.domain
    told = f"lengths of texts as measured on {domain}" if lengths else f"{domain} not measured: texts at their limits"
    notes = [f"{told}; every description distinct, pairs and features at most: counts err upwards"]
    agent = params.evaluate.agent
    asked = [params.score_explanations.writer, params.evaluate.writer, *params.evaluate.judges, agent]
    if any(one is not None and one.kind == "endpoint" for one in asked):
        notes.append("a server answers: its memory and seconds are not counted, nor what its judges read")
    if params.label_features.labeller is not None:
        notes.append("labels come from a language model: its memory, calls and seconds are not counted")
    if agent is not None:
        notes.append("the agent asks a language model: its memory is not counted, its seconds are the subject's")
    if fitting:
        return [*notes, f"hours: {fitting.source}"]
    known = "; ".join(f"{run.model} on {run.hardware}" for run in runs)
    return [*notes, f"hours: unknown for this model, SAEs, judges and machine; measured: {known}"]


def known_shapes() -> dict[str, Shape]:
    """The shapes of conf/shapes.yaml by name. Raises UserError if the file is broken."""
    return {name: shape_of(config, f"{_place(SHAPES)}: {name}") for name, config in _read(SHAPES).items()}


def hub_names() -> dict[str, str]:
    """The name in conf/shapes.yaml by the hub's ids. Raises UserError if the file is broken."""
    return {source: name for name, config in _read(SHAPES).items() for source in config.get("hub", [])}


def measured() -> tuple[dict[str, Lengths], list[Measured]]:
    """Lengths by domain and measured runs of conf/throughput.yaml. Raises UserError if the file is broken."""
    found, place = _read(THROUGHPUT), _place(THROUGHPUT)
    lengths = {
        name: Lengths(**_checked(Lengths, value, f"{place}: lengths.{name}"))
        for name, value in found.get("lengths", {}).items()
    }
    return lengths, [_run(value, f"{place}: runs[{at}]") for at, value in enumerate(found.get("runs", []))]


def _run(value: Any, place: str) -> Measured:
    run = _checked(Measured, value, place)
    setup = Setup(**_checked(Setup, run["setup"], f"{place}.setup"))
    rates = {name: Rate(**_checked(Rate, rate, f"{place}.stages.{name}")) for name, rate in run["stages"].items()}
    return Measured(**run | {"setup": setup, "stages": rates})


def _named(model: str, field: str) -> Shape:
    """A shape by its name, by an id of the hub, or from the config.json of a model's folder or a GGUF file's header;
    `field` said which."""
    shapes, hub = known_shapes(), hub_names()
    if hub.get(model, model) in shapes:
        return shapes[hub.get(model, model)]
    if gguf.is_gguf(model):
        return shape_of(gguf.config_of(Path(model)), model)
    path = Path(model) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        known = ", ".join([*shapes, *hub])
        raise UserError(
            f"{field}: {model}: size unknown; choose from {known}, name a model's folder, or add it to {_place(SHAPES)}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); name a folder that transformers saved") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds no mapping; name a folder that transformers saved")
    return shape_of(config, str(path))


def _made_here(params: Params) -> Shape:
    """The shape of the subject that prepare_subject trains. Raises UserError if it is a pretrained model."""
    if params.prepare_subject.pretrained is not None:
        raise UserError(
            f"prepare_subject.pretrained: {params.prepare_subject.pretrained.source} is not trained here; add --model "
            "with its name in conf/shapes.yaml, or its folder"
        )
    if params.prepare_subject.domain is DomainName.pydoc:
        from saeexplainer.domains.pydoc.domain import PydocDomain

        vocabulary = PydocDomain.vocabulary
    else:
        from saeexplainer.domains.sandbox.world import vocabulary as words

        vocabulary = len(words())
    return shape_of(trained_config(params.prepare_subject, vocabulary), "prepare_subject")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{_place(path)}: {error}; restore it with git") from None
    if not isinstance(found, dict):
        raise UserError(f"{_place(path)}: holds no mapping; restore it with git")
    return found


def _place(path: Path) -> str:
    return f"conf/{path.name}"


def _checked(kind: type, value: Any, place: str) -> dict[str, Any]:
    """A mapping that has the keys of a dataclass, and numbers where it has them. Raises UserError on another."""
    types = {field.name: field.type for field in fields(kind)}
    given = value if isinstance(value, dict) else {}
    if given.keys() != types.keys():
        wrong, known = ", ".join(sorted(given.keys() ^ types.keys())), ", ".join(types)
        raise UserError(f"{place}: {wrong}: missing or unknown; give {known}")
    numbers = {name: given[name] for name, found in types.items() if found in (int, float, Tokens)}
    for name, number in numbers.items():
        if not isinstance(number, int | float):
            raise UserError(f"{place}.{name}: is {number!r}; must be a number")
    return given | {name: float(number) for name, number in numbers.items() if types[name] is float}


def as_json(found: Answer) -> str:
    """The answer as JSON; bytes, tokens, hours and USD, null where unknown."""
    return json.dumps(asdict(found), indent=2)
