"""What explanations cost: sequences generated, tokens, seconds, money. Pure: tables and seconds in, records out.

Calls and tokens are a function of the tables, so they are a result (reports/costs.json). Seconds are not: they are
those of one machine, from the run in which a stage made its results. Money comes from both by the prices in
params.yaml.

A call is one sequence that a model generates. Its tokens are counted from the text that was kept, with the subject's
tokenizer: the prompt, the text, and the end of text where the limit left room for it. A served writer generates all
texts of a description in one call, and says itself what that took. What a stage writes for a description is written
once, however many features it was proposed for. Not counted: training, the judge and steering, which generate nothing
that is asked for by explanation, and are in the seconds alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saeexplainer.config import Prices
from saeexplainer.config.parts import Writer
from saeexplainer.figures.notation import aligned
from saeexplainer.records import EvaluationRow, ScoreRow, Usage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SAMPLING, SCORING = "generate_explanations", "score_explanations"  # the stages of a round that generate
MEASURING = "evaluate"
# All that stands between an explainer and a preference set that may train the next one.
PAIR_STAGES = (SAMPLING, SCORING, "build_preferences", "validate_preferences")
SECONDS_AN_HOUR, MILLION = 3600, 1_000_000


@dataclass(frozen=True)
class Work:
    """What models generated, and read of it."""

    calls: int  # sequences generated
    prompt_tokens: int  # that they were asked with, special tokens included
    written_tokens: int  # generated, the end of text included
    read_tokens: int  # of the distinct texts, which the subject reads once more to see what they activate

    @property
    def call_tokens(self) -> int:
        """Tokens of the calls, prompts included."""
        return self.prompt_tokens + self.written_tokens


@dataclass(frozen=True)
class RoundCosts:
    """What the preference set of one round took."""

    features: int  # asked about
    pairs: int  # that passed validation
    sampling: Work  # explanations of the features
    scoring: Work  # texts of the distinct explanations


@dataclass(frozen=True)
class EvaluationCosts:
    """What the explanations of one evaluation took, and the texts that measure them."""

    explanations: int  # a feature each
    calls: int  # `EvaluationRow.calls`, all of them
    call_tokens: int  # `EvaluationRow.call_tokens`, all of them
    measuring: Work  # texts of the distinct explanations


@dataclass(frozen=True)
class Costs:
    """reports/costs.json."""

    rounds: dict[str, RoundCosts]
    evaluations: dict[str, EvaluationCosts]


@dataclass(frozen=True)
class Cost:
    """What something took; None is unknown, or does not apply."""

    seconds: float | None  # in the runs of its stages that made the results
    calls: float | None
    call_tokens: float | None  # prompts included
    usd: float | None


@dataclass(frozen=True)
class Bill:
    """Everything that was spent, in three ways of looking at it."""

    stages: dict[str, Cost]  # by name, or name@item
    total: Cost  # of the stages
    pairs: dict[str, Cost]  # one validated pair, by round; rounds without a pair are left out
    explanations: dict[str, Cost]  # one explanation, by evaluation; seconds, and their money, hold its measuring too


@dataclass(frozen=True)
class Published:
    """What a method of the literature says it costs, as a range."""

    calls: tuple[int, int]
    call_tokens: tuple[int, int]
    usd: tuple[float, float]


# docs/METHOD.md section 9: SAGE, an agent that asks a remote model at inference, for one feature.
SAGE = Published((19, 34), (350_000, 750_000), (0.15, 0.27))


def sampled(
    explanations: Sequence[str], prompt_tokens: int, tokenizer: "PreTrainedTokenizerFast", max_new_tokens: int
) -> Work:
    """The work behind explanations, empty ones included, from prompts of `prompt_tokens` tokens in all."""
    written = sum(_written_tokens(explanations, tokenizer, max_new_tokens))
    return Work(len(explanations), prompt_tokens, written, 0)


def texts_written(
    rows: Iterable[ScoreRow | EvaluationRow],
    tokenizer: "PreTrainedTokenizerFast",
    writer: Writer,
    usage: Usage | None = None,
) -> Work:
    """The work behind the texts of some rows; rows with the same explanation share their texts. `usage` is what a
    server took for all of them, failures included."""
    texts = {row.explanation: row.texts for row in rows if row.texts}
    flat = [text for written in texts.values() for text in written]
    if usage is not None:
        read = sum(_lengths(sorted(set(flat)), tokenizer, special=True))
        return Work(usage.calls, usage.prompt_tokens, usage.written_tokens, read)
    prompts = [writer.prompt.format(description=description) for description in texts]
    prompt_tokens = _lengths(prompts, tokenizer, special=True)
    return Work(
        calls=len(flat),
        prompt_tokens=sum(tokens * len(written) for tokens, written in zip(prompt_tokens, texts.values(), strict=True)),
        written_tokens=sum(_written_tokens(flat, tokenizer, writer.max_new_tokens)),
        read_tokens=sum(_lengths(sorted(set(flat)), tokenizer, special=True)),
    )


def _written_tokens(texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast", limit: int) -> list[int]:
    """Tokens generated for each text. A generated text follows its prompt after a space, as in the lessons."""
    spaced = [f" {text}" if text else "" for text in texts]
    return [min(tokens + 1, limit) for tokens in _lengths(spaced, tokenizer, special=False)]


def _lengths(texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast", special: bool) -> list[int]:
    if not texts:  # which a tokenizer does not take
        return []
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=special)["input_ids"]]


def evaluation_costs(
    rows: Sequence[EvaluationRow], tokenizer: "PreTrainedTokenizerFast", writer: Writer, usage: Usage | None = None
) -> EvaluationCosts:
    """The costs of one evaluation; `writer` is the one that measured it, `usage` as in `texts_written`."""
    calls, call_tokens = sum(row.calls for row in rows), sum(row.call_tokens for row in rows)
    return EvaluationCosts(len(rows), calls, call_tokens, texts_written(rows, tokenizer, writer, usage))


def from_json(value: Mapping[str, Any]) -> Costs:
    """Costs as `storage.write_json` wrote them. Raises KeyError or TypeError on another shape."""
    rounds = {
        name: RoundCosts(**found | {stage: Work(**found[stage]) for stage in ("sampling", "scoring")})
        for name, found in value["rounds"].items()
    }
    evaluations = {
        name: EvaluationCosts(**found | {"measuring": Work(**found["measuring"])})
        for name, found in value["evaluations"].items()
    }
    return Costs(rounds, evaluations)


def usd(seconds: float | None, call_tokens: float | None, prices: Prices) -> float | None:
    """Money for machine time and tokens; None where nothing has a price, or the machine has one and seconds lack."""
    if not prices.machine_hour and not prices.million_tokens or prices.machine_hour and seconds is None:
        return None
    machine = (seconds or 0.0) / SECONDS_AN_HOUR * prices.machine_hour
    return machine + (call_tokens or 0.0) / MILLION * prices.million_tokens


def bill(costs: Costs, timings: Mapping[str, float], stages: Sequence[str], prices: Prices) -> Bill:
    """Costs with the seconds of `timings` and the money of `prices`, for some stages in the order given; all of them
    together have seconds where each has."""
    spent = {stage: (timings.get(stage), *_stage_calls(stage, costs)) for stage in stages}
    seconds = sum(value for value, _, _ in spent.values() if value is not None)
    calls = sum(value for _, value, _ in spent.values() if value is not None)
    call_tokens = sum(value for _, _, value in spent.values() if value is not None)
    timed = all(found[0] is not None for found in spent.values())
    return Bill(
        stages={stage: _cost(*found, 1, prices) for stage, found in spent.items()},
        total=_cost(float(seconds) if timed else None, calls, call_tokens, 1, prices),
        pairs={name: _pair(name, found, timings, prices) for name, found in costs.rounds.items() if found.pairs},
        explanations={
            name: _cost(timings.get(f"{MEASURING}@{name}"), found.calls, found.call_tokens, found.explanations, prices)
            for name, found in costs.evaluations.items()
        },
    )


def _stage_calls(stage: str, costs: Costs) -> tuple[int | None, int | None]:
    """Calls and their tokens; None for a stage that generates nothing."""
    name, _, item = stage.partition("@")
    if name == MEASURING and item in costs.evaluations:
        found = costs.evaluations[item]
        return found.calls + found.measuring.calls, found.call_tokens + found.measuring.call_tokens
    if name in (SAMPLING, SCORING) and item in costs.rounds:
        work = costs.rounds[item].sampling if name == SAMPLING else costs.rounds[item].scoring
        return work.calls, work.call_tokens
    return None, None


def _pair(name: str, found: RoundCosts, timings: Mapping[str, float], prices: Prices) -> Cost:
    """All that a round did up to its validated pairs, training left out, shared among them."""
    seconds = [timings.get(f"{stage}@{name}") for stage in PAIR_STAGES]
    known = [value for value in seconds if value is not None]
    work = (found.sampling, found.scoring)
    calls, call_tokens = sum(one.calls for one in work), sum(one.call_tokens for one in work)
    return _cost(sum(known) if len(known) == len(seconds) else None, calls, call_tokens, found.pairs, prices)


def _cost(seconds: float | None, calls: int | None, call_tokens: int | None, among: int, prices: Prices) -> Cost:
    """What was spent, shared among `among`."""
    shares = [None if value is None else value / among for value in (seconds, calls, call_tokens)]
    return Cost(*shares, usd(shares[0], shares[2], prices))


def table(bill: Bill) -> list[str]:
    """The bill under one heading, then what SAGE says of itself; a dash is unknown or does not apply."""
    costs = bill.stages | {"all of these": bill.total}
    costs |= {f"{name}: a validated pair": cost for name, cost in bill.pairs.items()}
    costs |= {f"{name}: an explanation": cost for name, cost in bill.explanations.items()}
    rows = [["", "seconds", "calls", "tokens", "USD"], *([name, *_cells(cost)] for name, cost in costs.items())]
    rows.append(["SAGE: a feature (published)", "-", *map(_range, (SAGE.calls, SAGE.call_tokens, SAGE.usd))])
    return aligned(rows)


def _cells(cost: Cost) -> list[str]:
    money = "-" if cost.usd is None else f"{cost.usd:,.0f}" if cost.usd >= 10 else f"{cost.usd:.2g}"
    return [*map(_number, (cost.seconds, cost.calls, cost.call_tokens)), money]


def _number(value: float | None) -> str:
    """From a hundred on a whole number; a smaller one with the digits that are worth reading."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _range(ends: tuple[int, int] | tuple[float, float]) -> str:
    return " to ".join(f"{end:,}" for end in ends)
