"""What people look at: a table and a picture from comparison.json alone, and the rows of the plots that DVC draws.

Nothing here knows which experiment, subject or rounds there are; it draws the evaluations it finds, in their order.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saeexplainer.config import Reward
from saeexplainer.figures import pictures
from saeexplainer.figures.comparison import (
    ACCURACY,
    BASELINE,
    HALLUCINATION,
    HEADLINE,
    LOWER_IS_BETTER,
    chain_of,
    metrics_of,
    subtractions,
)
from saeexplainer.figures.intervals import bootstrap_mean
from saeexplainer.figures.notation import bold, heading, held_out, literal, percent, short, table, words
from saeexplainer.preferences.rewards import reward
from saeexplainer.records import EvaluationRow, ScoreRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Panels of the picture, those that the comparison holds.
PICTURED = {
    ACCURACY: "share of texts that make the feature fire",
    HALLUCINATION: "share of features that no text makes fire",
    "truth_agreement": "share that name what the feature encodes",
}
BETTER_HIGH, BETTER_LOW = pictures.COLOURS[:2]
# Bars of the distribution of rewards to one unit of reward: a fixed grid, so that revisions can be compared.
BARS_A_UNIT = 10


@dataclass(frozen=True)
class RoundRow:
    """One line of reports/rounds.csv, which DVC plots."""

    round: str  # evaluation
    metric: str  # as in comparison.json
    value: float  # mean over features
    low: float  # ends of the 95 % interval
    high: float


@dataclass(frozen=True)
class RewardRow:
    """One bar of reports/rewards.csv: how the rewards of a round's candidates are spread."""

    round: str
    candidates: str  # "all", or "best" for the best one of each feature
    reward: float  # left end of the bar
    reward_to: float  # right end, not in it
    share: float  # of those candidates


@dataclass(frozen=True)
class RewardHallucinationRow:
    """One point of reports/reward_hallucination.csv: what the reward says of an evaluation, and what the metric."""

    round: str  # evaluation
    reward: float  # mean over features of the reward that its texts would have earned in a round
    reward_low: float  # ends of the 95 % interval
    reward_high: float
    hallucination: float  # share of features that no text makes fire
    hallucination_low: float
    hallucination_high: float


def reward_rows(scores: Mapping[str, Sequence[ScoreRow]]) -> list[RewardRow]:
    """The distribution of rewards in each round, rounds in order; bars that hold nothing are left out, and so are
    candidates without a reward."""
    return [row for name, rows in scores.items() for row in _bars(name, rows)]


def _bars(name: str, rows: Sequence[ScoreRow]) -> Iterator[RewardRow]:
    best: dict[str, float] = {}
    known = [(row.feature_id, row.reward) for row in rows if row.reward is not None]
    for feature_id, value in known:
        best[feature_id] = max(value, best.get(feature_id, value))
    for which, values in (("all", [value for _, value in known]), ("best", list(best.values()))):
        # Rounded before it is cut: a sum such as 0.7 + 0.2 + 0.1 may end a hair under 1.0.
        counts = Counter(int(round(value * BARS_A_UNIT, 6) // 1) for value in values)
        for bar, count in sorted(counts.items()):
            yield RewardRow(name, which, bar / BARS_A_UNIT, (bar + 1) / BARS_A_UNIT, count / len(values))


def reward_hallucination_rows(
    comparison: dict, evaluations: Mapping[str, Sequence[EvaluationRow]], config: Reward, resamples: int
) -> list[RewardHallucinationRow]:
    """One row an evaluation, in order; features whose texts failed count in neither."""
    rows = []
    for name, found in comparison["rounds"].items():
        measured = [row for row in evaluations[name] if not math.isnan(row.generative_accuracy)]
        earned = [
            reward(row.activations, row.neighbour_activations, config, len(row.explanation.split())) for row in measured
        ]
        mean = bootstrap_mean(earned, resamples, comparison["seed"])
        rate = found[HALLUCINATION]
        rows.append(
            RewardHallucinationRow(name, mean.value, mean.low, mean.high, rate["value"], rate["low"], rate["high"])
        )
    return rows


def means(comparison: dict) -> dict[str, dict[str, float]]:
    """{evaluation: {metric: mean}}: what is worth a line in `dvc metrics diff`."""
    return {
        name: {metric: interval["value"] for metric, interval in found.items()}
        for name, found in comparison["rounds"].items()
    }


def rounds_rows(comparison: dict) -> list[RoundRow]:
    """Every metric of every evaluation, evaluations in order."""
    return [
        RoundRow(name, metric, interval["value"], interval["low"], interval["high"])
        for name, metrics in comparison["rounds"].items()
        for metric, interval in metrics.items()
    ]


def results_table(comparison: dict) -> str:
    """Two markdown tables, a line a metric: each evaluation in percent, and paired differences in percentage points.

    A difference whose 95 % interval leaves zero out is bold.
    """
    rounds, differences = comparison["rounds"], comparison["differences"]
    metrics, pairs = metrics_of(comparison), subtractions(comparison)
    results = [[heading(metric), *(percent(found.get(metric)) for found in rounds.values())] for metric in metrics]
    gains = [[heading(metric), *(bold(differences[f"{a}-{b}"].get(metric)) for a, b in pairs)] for metric in metrics]
    return "\n\n".join(
        [
            table(["metric", *(f"`{name}`" for name in rounds)], results),
            f"{_caption(comparison, literal)} Percent; in brackets the 95 % bootstrap interval; "
            "↑ higher is better, ↓ lower.",
            table(["difference", *(f"`{a}` − `{b}`" for a, b in pairs)], gains),
            "Percentage points, paired by feature. Bold: the 95 % interval leaves zero out.\n",
        ]
    )


def headline_table(comparison: dict) -> str:
    """A markdown table of the metrics of HEADLINE that the comparison knows, and what the last round gained.

    Training started from the first of the chain; the last column is the last of the chain minus the first.
    """
    rounds, chain = comparison["rounds"], chain_of(comparison)
    names = [name for name in rounds if name in (BASELINE, *chain)]
    last = f"{chain[-1]}-{chain[0]}"
    rows = [
        [
            heading(metric),
            *(short(rounds[name].get(metric)) for name in names),
            bold(comparison["differences"][last].get(metric)),
        ]
        for metric in metrics_of(comparison)
        if metric in HEADLINE
    ]
    header = ["%", *(f"`{name}`" for name in names), f"`{chain[-1]}` − `{chain[0]}`, 95 % interval"]
    return f"{table(header, rows)}\n\n{_caption(comparison, literal)} ↑ higher is better, ↓ lower."


def _caption(comparison: dict, named: Callable[[str], str]) -> str:
    """Whose results these are; `named` gives the subject's and the SAE's name as the medium needs it."""
    return f"Subject {named(comparison['subject'])}, SAE {named(comparison['sae'])}, {held_out(comparison)}."


def plot_rounds(comparison: dict, path: Path) -> None:
    """Write the picture as PNG, the same bytes for the same comparison: one panel a metric, one point an evaluation.

    Rounds of training are joined by a line, baselines stand beside them in grey; bars are 95 % intervals.
    """
    found = set(metrics_of(comparison))
    panels = [metric for metric in PICTURED if metric in found]
    # The width grows with the number of labels, and has room for the titles where there are few.
    width = max(3.9, 1.8 + 0.42 * len(comparison["rounds"])) * len(panels)
    figure, columns = pictures.figure_of(width, 3.6, len(panels))
    for axes, metric in zip(columns, panels, strict=True):
        _panel(axes, comparison, metric)
    figure.suptitle(_caption(comparison, str), fontsize=9, color="#444444", parse_math=False)
    pictures.save(figure, path)


def _panel(axes: "Axes", comparison: dict, metric: str) -> None:
    """One metric: grey baselines, then the chain of training from its start to the last round."""
    intervals = {name: found[metric] for name, found in comparison["rounds"].items() if metric in found}
    positions = {name: index for index, name in enumerate(comparison["rounds"])}
    chain = chain_of(comparison)
    colour = BETTER_LOW if metric in LOWER_IS_BETTER else BETTER_HIGH
    baselines = [name for name in intervals if name not in chain]
    trained = [name for name in chain if name in intervals]
    for members, shade, style in ((baselines, pictures.BASELINE_GREY, "none"), (trained, colour, "-")):
        places, found = [positions[name] for name in members], [intervals[name] for name in members]
        pictures.error_bars(axes, places, found, shade, linestyle=style, linewidth=1.8, markersize=5.5, capsize=3)
        for place, interval in zip(places, found, strict=True):
            height, top = (100 * interval[end] for end in ("value", "high"))
            axes.annotate(
                f"{height:.1f}", (place, top), textcoords="offset points", xytext=(0, 4), ha="center", fontsize=8,
                color=shade,
            )  # fmt: skip
    _dress(axes, metric, list(positions))


def _dress(axes: "Axes", metric: str, names: list[str]) -> None:
    long = any(len(name) > 5 for name in names)
    axes.set_xticks(
        range(len(names)), [words(name) for name in names],
        rotation=30 if long else 0, ha="right" if long else "center", rotation_mode="anchor",
    )  # fmt: skip
    pictures.dress(axes, pictures.title_of(metric))
    axes.set_ylabel(PICTURED[metric], fontsize=8)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.margins(y=0.18)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
