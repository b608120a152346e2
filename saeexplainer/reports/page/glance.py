"""The rounds at a glance: comparison.json as tables and one headline; pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from saeexplainer.figures.comparison import ACCURACY, chain_of, direction, metrics_of, subtractions
from saeexplainer.figures.notation import DASH


@dataclass(frozen=True)
class Cell:
    """One interval as the tables show it."""

    value: str  # "42.1", DASH where it is unknown
    interval: str  # "36.9 to 47.6"; empty where it is unknown
    sure: bool = False  # whether the interval of a difference leaves zero out
    good: bool = False  # whether a sure difference is for the better


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    name: str
    cells: list[Cell]  # one a metric


def results(comparison: Mapping) -> list[Line]:
    """One line an evaluation, in percent."""
    metrics = metrics_of(comparison)
    return [Line(name, [_percent(found.get(m)) for m in metrics]) for name, found in comparison["rounds"].items()]


def differences(comparison: Mapping) -> list[Line]:
    """One line a difference, in percentage points."""
    metrics = metrics_of(comparison)
    found = comparison["differences"]
    return [
        Line(f"{a} − {b}", [_points(found[f"{a}-{b}"].get(metric), metric) for metric in metrics])
        for a, b in subtractions(comparison)
    ]


@dataclass(frozen=True)
class Paid:
    """What the pairs of a round say of sentences alone."""

    name: str  # of the round
    cells: list[Cell]  # held-out pairs ranked right by the sentence, then by the explainer; as RANKED has them
    rewards: list[str]  # mean measured reward of held-out candidates, as REWARDS has them
    terms: list[tuple[str, str, str]]  # feature, what its label says, and what it adds; the largest first


RANKED = ("pairs ranked right by the sentence alone", "by the explainer")
REWARDS = {"ranked_first": "reward of the candidates it ranks first", "any": "of any", "best": "of the best"}
TERMS = 6  # of a round


def paid(attributions: Mapping[str, Mapping | None]) -> list[Paid]:
    """One entry a round that has pairs enough."""
    return [
        Paid(
            name,
            [_percent(found["ranked_right"]), _share(found["explainer_ranks_right"])],
            [f"{found['candidates'][key]['value']:.2f}" if found["candidates"] else DASH for key in REWARDS],
            [(str(term["latent"]), term["label"] or DASH, _signed(term["adds"], 2)) for term in found["terms"][:TERMS]],
        )
        for name, found in attributions.items()
        if found
    ]


def _share(value: float | None) -> Cell:
    return Cell(DASH if value is None else f"{100 * value:.1f}", "")


def _percent(interval: Mapping | None) -> Cell:
    if interval is None:
        return Cell(DASH, "")
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    return Cell(f"{value:.1f}", f"{low:.1f} to {high:.1f}")


def _points(interval: Mapping | None, metric: str) -> Cell:
    if interval is None:
        return Cell(DASH, "")
    value, low, high = (100 * interval[key] for key in ("value", "low", "high"))
    way = direction(metric, interval)
    return Cell(_signed(value), f"{_signed(low)} to {_signed(high)}", sure=way != 0, good=way > 0)


def _signed(value: float, digits: int = 1) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def headline(comparison: Mapping) -> str:
    """One sentence: the last round against its start, by generative accuracy; empty without a round."""
    chain, metric = chain_of(comparison), ACCURACY
    if len(chain) < 2:
        return ""
    first, last = chain[0], chain[-1]
    rounds, difference = comparison["rounds"], comparison["differences"].get(f"{last}-{first}", {}).get(metric)
    if difference is None or first not in rounds:
        return ""
    cell = _points(difference, metric)
    ends = [_percent(rounds[name][metric]).value for name in (last, first)]
    doubt = "" if cell.sure else ", an interval that holds zero"
    return (
        f"Texts written from {last}'s explanations make the feature fire {ends[0]} % of the time, from {first}'s "
        f"{ends[1]} %: {cell.value} points ({cell.interval}){doubt}."
    )
