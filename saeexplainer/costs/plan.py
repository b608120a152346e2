"""What an experiment will take, before it runs: memory, calls, tokens, hours and money by stage. Pure.

Counts are those of `saeexplainer.costs.workload`, memory that of `saeexplainer.costs.memory` with every text as long as
the settings allow. Hours are tokens over a rate that was measured with the same model, SAEs and judges on the same
hardware, else unknown. Stages without a model (labels, pairs, validation, comparison) are left out. docs/SCALE.md says
more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from saeexplainer.config import Params, Prices
from saeexplainer.config.parts import EndpointWriterSpec, Judge, LikelihoodJudgeSpec, Writer
from saeexplainer.config.saes import Meta, Ordered, TakenSae, TopK, TrainedSae
from saeexplainer.costs import bills, memory, workload
from saeexplainer.costs.memory import GIB, Memory, Setup
from saeexplainer.costs.shapes import FLOAT32, Shape
from saeexplainer.costs.workload import Features, Lengths, Load
from saeexplainer.figures.notation import aligned

READ_AT_ONCE = 512  # texts, in `saeexplainer.saes.text_activations`
MEASURED_AT_ONCE = 64  # texts, in `saeexplainer.saes.loading`


@dataclass(frozen=True)
class Held:
    """A model as the stages hold it."""

    shape: Shape
    setup: Setup
    loaded: str  # what tells it from others of its size: parts that agree in all three share its weights


@dataclass(frozen=True)
class Models:
    """Who plays which part; one model may play several. A part that no model here plays, because an endpoint does, is
    None. Models that a stage has opened lie beside the one at work."""

    subject: Held  # what the SAEs read; in prepare_subject all of its weights are trained
    explainer: Held  # trained as its setup says
    writer: Held | None  # of the texts of the rounds
    measuring: Held | None  # writer of the texts of the evaluations
    judges: list[Held | None]  # as the settings list them; the likelihood judge is the subject

    @property
    def all(self) -> list[Held]:
        """Those that are here, in that order."""
        parts = (self.subject, self.explainer, self.writer, self.measuring, *self.judges)
        return [held for held in parts if held is not None]


@dataclass(frozen=True)
class Rate:
    """What one stage did in a measured run."""

    tokens: int  # `Load.tokens` as they turned out, over all items of the stage
    seconds: float  # of the same items


@dataclass(frozen=True)
class Measured:
    """A run whose seconds are known."""

    hardware: str  # name of the machine
    model: str  # name of the shape
    saes: list[int]  # their widths
    judges: list[str]  # kinds, in order
    setup: Setup
    source: str  # where the figures stand
    stages: dict[str, Rate]  # by stage


@dataclass(frozen=True)
class Stage:
    """What one stage takes, or all of them."""

    memory: Memory  # at the peak
    load: Load
    hours: float | None  # None is unknown
    usd: float | None  # None also where nothing has a price


@dataclass(frozen=True)
class Plan:
    """All stages in order, and the sums of what is known."""

    stages: dict[str, Stage]  # by name, or name@item
    total: Stage  # the largest memory; hours and money are unknown if those of one stage are
    priced: bool  # something has a price


def memories(params: Params, models: Models, split: Features, trained_here: bool) -> dict[str, Memory]:
    """The peak of each stage, texts at the longest that the settings allow."""
    found = _subject_memories(params, models.subject, trained_here)
    found["probe_features"] = _probe_memory(params, models.subject, split)
    explainer = models.explainer
    answer = workload.explain_prompt(params) + params.generate_explanations.max_new_tokens
    for name, batch in (("warm_up", params.warm_up.batch_size), ("train_sft", params.train_sft.batch_size)):
        found[name] = memory.training(explainer.shape, explainer.setup, batch * answer, copies=2)
    widths, about = _widths(params), workload.asked_about(split)
    candidates = params.generate_explanations.candidates * about
    near = min(sum(widths), about * (1 + params.extract_activations.neighbours))
    writer, opened = params.score_explanations.writer, [models.subject, models.writer]
    scoring = _writing_memory(params, writer, models.writer, models.subject, candidates, widths, near, opened)
    # Copies: policy, reference, the start that the result is compared with, the best checkpoint.
    sides = 2 * params.train_dpo.batch_size
    preferring = memory.training(explainer.shape, explainer.setup, sides * answer, copies=4)
    for name in params.rounds:
        found |= {
            f"generate_explanations@{name}": _explaining(params, explainer),
            f"score_explanations@{name}": scoring,
            f"train_dpo@{name}": preferring,
        }
    group = params.train_grpo.features * params.generate_explanations.candidates
    sampled = _writing_memory(params, writer, models.writer, models.subject, group, widths, near, opened)
    learning = memory.training(explainer.shape, explainer.setup, group * answer, copies=3)
    for name in params.reinforcements:
        found[f"train_grpo@{name}"] = memory.largest([_beside(learning, explainer, opened), sampled])
    measured = _evaluating(params, models, getattr(split, params.evaluate.split))
    return found | {f"evaluate@{name}": measured for name in params.evaluations}


def _subject_memories(params: Params, subject: Held, trained_here: bool) -> dict[str, Memory]:
    """Of the stages in which the subject is alone."""
    config, context = params.prepare_subject, params.prepare_subject.context_length
    shape, setup, widths, found = subject.shape, subject.setup, _widths(params), {}
    if trained_here:
        found["prepare_subject"] = memory.pretraining(shape, setup, config.batch_size * context)
    found["prepare_sae"] = _sae_memory(params, subject)
    tokens = params.extract_activations.batch_size * context
    kept = params.extract_activations.top_contexts + params.extract_activations.spread_contexts
    top = 3 * kept * sum(widths)  # a value and a number of eight bytes each
    found["extract_activations"] = memory.reading(shape, setup, tokens, widths, top, _tables(params))
    return found


def _sae_memory(params: Params, subject: Held) -> Memory:
    """The SAEs of this run are trained, then all are measured on texts."""
    config, context = params.prepare_sae, params.prepare_subject.context_length
    shape, setup, tables = subject.shape, subject.setup, _tables(params)
    widest = max(shape.vocabulary, *_widths(params))
    phases = [
        memory.reading(shape, setup, MEASURED_AT_ONCE * context, _widths(params), 0, tables, memory.ROOM),
        memory.scoring(shape, setup, min(MEASURED_AT_ONCE, max(1, memory.ROOM // (context * widest))), context),
    ]
    own = [spec.d_sae for spec in config.saes if isinstance(spec, TrainedSae)]
    if own:
        phases.append(memory.sae_training(shape, setup, config.documents * context, config.batch_tokens, own))
    return memory.largest(phases)


def _widths(params: Params) -> list[int]:
    return [spec.d_sae for spec in params.prepare_sae.saes]


def _tables(params: Params) -> int:
    """Most pretrained ones are JumpReLU SAEs, or are stored as such; those trained here say what they are."""
    topk = isinstance(params.prepare_sae.architecture, (TopK, Ordered, Meta))
    return (
        memory.TOPK
        if topk and not any(isinstance(spec, TakenSae) for spec in params.prepare_sae.saes)
        else memory.JUMPRELU
    )


def _explaining(params: Params, explainer: Held) -> Memory:
    sampling, prompt = params.generate_explanations, workload.explain_prompt(params)
    return memory.generation(
        explainer.shape, explainer.setup, sampling.batch_size, prompt, prompt + sampling.max_new_tokens,
        top_p=sampling.top_p,
    )  # fmt: skip


def _evaluating(params: Params, models: Models, count: int) -> Memory:
    """The explainer answers and goes; texts are written and read, and the judges read contexts and texts. Subject,
    writer and judges stay."""
    main, opened = _widths(params)[:1], [models.subject, models.measuring, *models.judges]
    judged = zip(params.evaluate.judges, models.judges, strict=True)
    phases = [
        _beside(_explaining(params, models.explainer), None, opened),
        _writing_memory(params, params.evaluate.writer, models.measuring, models.subject, count, main, main[0], opened),
        *(_beside(_judging(params, judge, held), held, opened) for judge, held in judged if held is not None),
    ]
    return memory.largest(phases)


def _judging(params: Params, judge: Judge, held: Held) -> Memory:
    """One batch of a judge: all log-probabilities of its texts, or the first token of its answers."""
    if isinstance(judge, LikelihoodJudgeSpec):
        tokens = _prompt(params, judge.prompt) + workload.context(params)
        return memory.scoring(held.shape, held.setup, judge.batch_size, tokens)
    asked = workload.QUESTION + params.generate_explanations.max_new_tokens + workload.context(params)
    return memory.generation(held.shape, held.setup, judge.batch_size, asked, asked + 1)


def _beside(phase: Memory, working: Held | None, opened: Sequence[Held | None]) -> Memory:
    """A phase with the weights of the other models that are there; `working` is one of `opened`, or None."""
    others = {held for held in opened if held not in (working, None)}
    return replace(phase, weights=phase.weights + sum(memory.held(held.shape, held.setup) for held in others))


def _prompt(params: Params, prompt: str) -> int:
    """Tokens of a prompt with a description in it at most."""
    return workload.prompt_limit(prompt) + params.generate_explanations.max_new_tokens


def _writing_memory(
    params: Params,
    writer: Writer,
    held: Held | None,
    subject: Held,
    descriptions: int,
    widths: Sequence[int],
    asked: int,
    opened: Sequence[Held | None],
) -> Memory:
    """Texts are written, then read by the subject with a table of the `asked` latents' maxima on each text."""
    prompt = _prompt(params, writer.prompt)
    length, texts = prompt + writer.max_new_tokens, descriptions * writer.texts
    at_once = min(READ_AT_ONCE, texts) * writer.max_new_tokens
    read = memory.reading(subject.shape, subject.setup, at_once, widths, texts * asked, _tables(params), memory.ROOM)
    read = _beside(read, subject, opened)
    if held is None or isinstance(writer, EndpointWriterSpec):
        return read
    setup, loaded = held.setup, [memory.sae_parameters(subject.shape.width, width) * FLOAT32 for width in widths]
    written = memory.generation(held.shape, setup, writer.batch_size, prompt, length, top_p=writer.top_p)
    return memory.largest([_beside(replace(written, sae=sum(loaded)), held, opened), read])


def _probe_memory(params: Params, subject: Held, split: Features) -> Memory:
    """Contexts are read, then texts written while the SAE runs inside the model."""
    config, main = params.probe_features, params.prepare_sae.saes[0].d_sae
    features, steer = getattr(split, params.evaluate.split), config.steer
    count = features * (config.contexts + config.silent)
    tokens = min(READ_AT_ONCE, count) * workload.context(params)
    kept, tables = count * features, _tables(params)
    read = memory.reading(subject.shape, subject.setup, tokens, [main], kept, tables, memory.ROOM)
    length = steer.prompt_tokens + steer.max_new_tokens
    written = memory.generation(
        subject.shape, subject.setup, steer.batch_size, steer.prompt_tokens, length, [main], top_p=steer.top_p
    )
    return memory.largest([read, written])


def plan(params: Params, models: Models, lengths: Lengths, measured: Measured | None, trained_here: bool) -> Plan:
    """The plan. `measured` is the run that fits, or None; `trained_here`: the subject is made by prepare_subject."""
    split = workload.features(params, lengths.training_share)
    found = workload.loads(params, lengths, split, trained_here)
    peaks = memories(params, models, split, trained_here)
    rates = measured.stages if measured else {}
    prices = params.compare_rounds.prices
    priced = bool(prices.machine_hour or prices.million_tokens)
    stages = {
        name: _stage(peaks[name], load, rates.get(name.partition("@")[0]), prices) for name, load in found.items()
    }
    hours = [stage.hours for stage in stages.values() if stage.hours is not None]
    known = sum(hours) if len(hours) == len(stages) else None
    load = sum(found.values(), Load())
    return Plan(stages, Stage(memory.largest(list(peaks.values())), load, known, _usd(known, load, prices)), priced)


def _stage(peak: Memory, load: Load, rate: Rate | None, prices: Prices) -> Stage:
    hours = None if rate is None else load.tokens / rate.tokens * rate.seconds / bills.SECONDS_AN_HOUR
    return Stage(peak, load, hours, _usd(hours, load, prices))


def _usd(hours: float | None, load: Load, prices: Prices) -> float | None:
    seconds = None if hours is None else hours * bills.SECONDS_AN_HOUR
    return bills.usd(seconds, float(load.call_tokens), prices)


def fitting(
    runs: Sequence[Measured], params: Params, shapes: Mapping[str, Shape], models: Models, hardware: str
) -> Measured | None:
    """The measured run of these models, held as they are, with these SAEs and judges, on this hardware.

    `shapes`: those of known models by name. A run has one model, which plays all parts; its setup is the explainer's.
    """
    saes, judges = _widths(params), [judge.kind for judge in params.evaluate.judges]
    used, setup = {held.shape for held in models.all}, models.explainer.setup
    if models.writer is None or models.measuring is None:
        return None
    found = (hardware, setup, saes, judges)
    return next(
        (
            run
            for run in runs
            if (run.hardware, run.setup, run.saes, run.judges) == found and used == {shapes[run.model]}
        ),
        None,
    )


def table(plan: Plan) -> list[str]:
    """A line a stage: GiB by what holds them, calls, tokens, hours and, where something has a price, money."""
    heading = ["", "weights", "optimizer", "activations", "cache", "SAE", "GiB", "calls", "tokens", "hours"]
    stages = plan.stages | {"all of these": plan.total}
    rows = [heading, *([name, *_cells(stage)] for name, stage in stages.items())]
    money = ["USD", *("unknown" if stage.usd is None else f"{stage.usd:,.2f}" for stage in stages.values())]
    rows = [[*row, cell] for row, cell in zip(rows, money, strict=True)] if plan.priced else rows
    return aligned(rows)


def _cells(stage: Stage) -> list[str]:
    parts = (stage.memory.weights, stage.memory.optimizer, stage.memory.activations, stage.memory.cache)
    sizes = [_gib(part) for part in (*parts, stage.memory.sae, stage.memory.total)]
    hours = "unknown" if stage.hours is None else f"{stage.hours:,.3f}"
    return [*sizes, f"{stage.load.calls:,}", f"{stage.load.tokens:,.0f}", hours]


def _gib(size: int) -> str:
    return "-" if not size else f"{size / GIB:,.2f}" if size >= GIB / 100 else "<0.01"
