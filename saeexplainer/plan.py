"""What an experiment will take, before it runs: memory, calls, tokens, hours and money by stage. Pure.

Counts are those of `saeexplainer.workload`, memory that of `saeexplainer.memory` with every text as long as the
settings allow. Hours are tokens over a rate that was measured with the same model, SAEs and judges on the same hardware,
else unknown. Stages without a model (labels, pairs, validation, comparison) are left out. docs/SCALE.md says more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from saeexplainer import costs, memory, workload
from saeexplainer.config import Params, Prices, Writer
from saeexplainer.memory import GIB, Memory, Setup
from saeexplainer.shapes import Shape
from saeexplainer.workload import Features, Lengths, Load

READ_AT_ONCE = 512  # texts, in `saeexplainer.writer`


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


def memories(params: Params, shape: Shape, setup: Setup, split: Features, trained_here: bool) -> dict[str, Memory]:
    """The peak of each stage, texts at the longest that the settings allow."""
    config, context = params.prepare_subject, params.prepare_subject.context_length
    widths = [spec.d_sae for spec in params.prepare_sae.saes]
    answer = workload.explain_prompt(params) + params.generate_explanations.max_new_tokens
    whole = Setup(setup.weight_bytes, lora_rank=0, checkpointing=setup.checkpointing)
    found = {}
    if trained_here:
        found["prepare_subject"] = memory.pretraining(shape, whole, config.batch_size, context)
    stored = params.prepare_sae.documents * context
    found["prepare_sae"] = memory.sae_training(shape, setup, stored, params.prepare_sae.batch_tokens, widths)
    tokens = params.extract_activations.batch_size * context
    top = 3 * params.extract_activations.top_contexts * sum(widths)  # a value and a number of eight bytes each
    found["extract_activations"] = memory.reading(shape, setup, tokens, widths, top)
    found["probe_features"] = _probe_memory(params, shape, setup, split)
    sft = params.train_sft
    batch = max(sft.warmup_batch_size, sft.batch_size)
    found["train_sft"] = memory.training(shape, setup, batch, answer, copies=2)
    sampling = params.generate_explanations
    candidates = sampling.candidates * workload.asked_about(split)
    near = min(sum(widths), workload.asked_about(split) * (1 + params.extract_activations.neighbours))
    for name in params.rounds:
        found |= {
            f"generate_explanations@{name}": memory.generation(
                shape, setup, sampling.batch_size, workload.explain_prompt(params), answer
            ),
            f"score_explanations@{name}": _writing_memory(
                params, params.score_explanations.writer, shape, setup, candidates, widths, near
            ),
            f"train_dpo@{name}": memory.preference_training(shape, setup, params.train_dpo.batch_size, answer),
        }
    count = getattr(split, params.evaluate.split)
    measured = _writing_memory(params, params.evaluate.writer, shape, setup, count, widths[:1], widths[0])
    judged = memory.scoring(
        shape, setup, params.evaluate.judges[0].batch_size, _writer_prompt(params, params.evaluate.writer) + context
    )
    return found | {f"evaluate@{name}": memory.largest([measured, judged]) for name in params.evaluations}


def _writer_prompt(params: Params, writer: Writer) -> int:
    """Tokens of a question to the writer at most."""
    return workload.prompt_limit(writer) + params.generate_explanations.max_new_tokens


def _writing_memory(
    params: Params, writer: Writer, shape: Shape, setup: Setup, descriptions: int, widths: Sequence[int], asked: int
) -> Memory:
    """Texts are written, then read with a table of the `asked` latents' maxima on each text."""
    prompt = _writer_prompt(params, writer)
    length, texts = prompt + writer.max_new_tokens, descriptions * writer.texts
    written = memory.generation(shape, setup, writer.batch_size, prompt, length, widths)
    at_once = min(READ_AT_ONCE, texts) * writer.max_new_tokens
    return memory.largest([written, memory.reading(shape, setup, at_once, widths, texts * asked)])


def _probe_memory(params: Params, shape: Shape, setup: Setup, split: Features) -> Memory:
    """Contexts are read, then texts written while the SAE runs inside the model."""
    config, main = params.probe_features, params.prepare_sae.saes[0].d_sae
    features = getattr(split, params.evaluate.split)
    count = features * (config.contexts + config.silent)
    read = memory.reading(shape, setup, min(READ_AT_ONCE, count) * workload.context(params), [main], count * features)
    steer = config.steer
    length = steer.prompt_tokens + steer.max_new_tokens
    return memory.largest(
        [read, memory.generation(shape, setup, steer.batch_size, steer.prompt_tokens, length, [main])]
    )


def plan(
    params: Params, shape: Shape, setup: Setup, lengths: Lengths, measured: Measured | None, trained_here: bool
) -> Plan:
    """The plan. `measured` is the run that fits, or None; `trained_here`: the subject is made by prepare_subject."""
    split = workload.features(params, lengths.training_share)
    found = workload.loads(params, lengths, split, trained_here)
    peaks = memories(params, shape, setup, split, trained_here)
    rates = measured.stages if measured else {}
    prices = params.compare_rounds.prices
    priced = bool(prices.machine_hour or prices.million_tokens)
    stages = {
        name: _stage(peaks[name], load, rates.get(name.partition("@")[0]), prices) for name, load in found.items()
    }
    hours = [stage.hours for stage in stages.values()]
    known = None if None in hours else sum(hours)
    load = sum(found.values(), Load())
    return Plan(stages, Stage(memory.largest(list(peaks.values())), load, known, _usd(known, load, prices)), priced)


def _stage(peak: Memory, load: Load, rate: Rate | None, prices: Prices) -> Stage:
    hours = None if rate is None else load.tokens / rate.tokens * rate.seconds / costs.SECONDS_AN_HOUR
    return Stage(peak, load, hours, _usd(hours, load, prices))


def _usd(hours: float | None, load: Load, prices: Prices) -> float | None:
    seconds = None if hours is None else hours * costs.SECONDS_AN_HOUR
    return costs.usd(seconds, float(load.call_tokens), prices)


def fitting(
    runs: Sequence[Measured], params: Params, model: str | None, setup: Setup, hardware: str
) -> Measured | None:
    """The measured run of this model in this setup, with these SAEs and judges, on this hardware."""
    saes = [spec.d_sae for spec in params.prepare_sae.saes]
    judges = [judge.kind.value for judge in params.evaluate.judges]
    wanted = (hardware, model, setup, saes, judges)
    return next((run for run in runs if (run.hardware, run.model, run.setup, run.saes, run.judges) == wanted), None)


def table(plan: Plan) -> list[str]:
    """A line a stage: GiB by what holds them, calls, tokens, hours and, where something has a price, money."""
    heading = ["", "weights", "optimizer", "activations", "cache", "SAE", "GiB", "calls", "tokens", "hours"]
    stages = plan.stages | {"all of these": plan.total}
    rows = [heading, *([name, *_cells(stage)] for name, stage in stages.items())]
    money = ["USD", *("unknown" if stage.usd is None else f"{stage.usd:,.2f}" for stage in stages.values())]
    rows = [[*row, cell] for row, cell in zip(rows, money, strict=True)] if plan.priced else rows
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))])
        for name, *cells in rows
    ]


def _cells(stage: Stage) -> list[str]:
    parts = (stage.memory.weights, stage.memory.optimizer, stage.memory.activations, stage.memory.cache)
    sizes = [_gib(part) for part in (*parts, stage.memory.sae, stage.memory.total)]
    hours = "unknown" if stage.hours is None else f"{stage.hours:,.3f}"
    return [*sizes, f"{stage.load.calls:,}", f"{stage.load.tokens:,.0f}", hours]


def _gib(size: int) -> str:
    return "-" if not size else f"{size / GIB:,.2f}" if size >= GIB / 100 else "<0.01"
