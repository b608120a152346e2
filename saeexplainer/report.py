"""What people look at: a table and a picture from comparison.json alone, and the rows of the plots that DVC draws.

Nothing here knows which experiment, subject or rounds there are; it draws the evaluations it finds, in their order.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saeexplainer.comparison import LOWER_IS_BETTER, bootstrap_mean, chain_of, subtractions
from saeexplainer.config import Reward
from saeexplainer.records import EvaluationRow, ScoreRow
from saeexplainer.rewards import reward

# Panels of the picture, those that the comparison holds.
PICTURED = {
    "generative_accuracy": "share of texts that make the feature fire",
    "hallucination_rate": "share of features that no text makes fire",
    "truth_agreement": "share that name what the feature encodes",
}
# Okabe and Ito's colour-blind-safe blue and vermilion; baselines stay grey.
BETTER_HIGH, BETTER_LOW, BASELINE_GREY = "#0072B2", "#D55E00", "#8A8A8A"
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
    """The distribution of rewards in each round, rounds in order; bars that hold nothing are left out."""
    return [row for name, rows in scores.items() for row in _bars(name, rows)]


def _bars(name: str, rows: Sequence[ScoreRow]) -> Iterator[RewardRow]:
    best: dict[str, float] = {}
    for row in rows:
        best[row.feature_id] = max(row.reward, best.get(row.feature_id, row.reward))
    for which, values in (("all", [row.reward for row in rows]), ("best", list(best.values()))):
        # Rounded before it is cut: a sum such as 0.7 + 0.2 + 0.1 may end a hair under 1.0.
        counts = Counter(int(round(value * BARS_A_UNIT, 6) // 1) for value in values)
        for bar, count in sorted(counts.items()):
            yield RewardRow(name, which, bar / BARS_A_UNIT, (bar + 1) / BARS_A_UNIT, count / len(values))


def reward_hallucination_rows(
    comparison: dict, evaluations: Mapping[str, Sequence[EvaluationRow]], config: Reward, resamples: int
) -> list[RewardHallucinationRow]:
    """One row an evaluation, in order."""
    rows = []
    for name, found in comparison["rounds"].items():
        earned = [reward(row.activations, row.neighbour_activations, config) for row in evaluations[name]]
        mean = bootstrap_mean(earned, resamples, comparison["seed"])
        rate = found["hallucination_rate"]
        rows.append(
            RewardHallucinationRow(name, mean.value, mean.low, mean.high, rate["value"], rate["low"], rate["high"])
        )
    return rows


def means(comparison: dict) -> dict[str, dict[str, float]]:
    """{evaluation: {metric: mean}}: what is worth a line in `dvc metrics diff` and a column in `dvc exp show`."""
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
    """Two markdown tables, a line a metric: each evaluation in percent, and the paired differences in percentage points.

    A difference whose 95 % interval leaves zero out is bold.
    """
    rounds, differences = comparison["rounds"], comparison["differences"]
    metrics = list(dict.fromkeys(metric for found in rounds.values() for metric in found))
    headings = [f"{metric.replace('_', ' ')} {'↓' if metric in LOWER_IS_BETTER else '↑'}" for metric in metrics]
    pairs = subtractions(comparison)
    results = [
        [heading, *(_percent(found.get(metric)) for found in rounds.values())]
        for heading, metric in zip(headings, metrics)
    ]
    gains = [
        [heading, *(_points(differences[f"{a}-{b}"].get(metric)) for a, b in pairs)]
        for heading, metric in zip(headings, metrics)
    ]
    return "\n".join(
        [
            *_markdown(["metric", *(f"`{name}`" for name in rounds)], results),
            "",
            f"{_caption(comparison)} Percent; in brackets the 95 % bootstrap interval; ↑ higher is better, ↓ lower.",
            "",
            *_markdown(["difference", *(f"`{a}` − `{b}`" for a, b in pairs)], gains),
            "",
            "Percentage points, paired by feature. Bold: the 95 % interval leaves zero out.",
            "",
        ]
    )


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    alignment = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (header, alignment, *rows)]


def _percent(interval: dict | None) -> str:
    if interval is None:
        return "–"
    return f"{100 * interval['value']:.1f} ({100 * interval['low']:.1f} to {100 * interval['high']:.1f})"


def _points(interval: dict | None) -> str:
    if interval is None:
        return "–"
    text = f"{100 * interval['value']:+.1f} ({100 * interval['low']:+.1f} to {100 * interval['high']:+.1f})"
    return f"**{text}**" if interval["low"] > 0 or interval["high"] < 0 else text


def _caption(comparison: dict) -> str:
    counts = sorted({interval["n"] for found in comparison["rounds"].values() for interval in found.values()})
    features = f"{counts[-1]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return f"Subject {comparison['subject']}, SAE {comparison['sae']}, {features} held-out features."


def plot_rounds(comparison: dict, path: Path) -> None:
    """Write the picture as PNG, the same bytes for the same comparison: one panel a metric, one point an evaluation.

    Rounds of training are joined by a line, baselines stand beside them in grey; bars are 95 % intervals.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {metric for metrics in comparison["rounds"].values() for metric in metrics}
    panels = [metric for metric in PICTURED if metric in found]
    names = list(comparison["rounds"])
    # Figure, not pyplot: no global state and no window system. The width grows with the number of labels.
    figure = Figure(figsize=((1.8 + 0.42 * len(names)) * len(panels), 3.6), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, metric in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, comparison, metric)
    figure.suptitle(_caption(comparison), fontsize=9, color="#444444")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without this, matplotlib stamps its version into the file.
    figure.savefig(path, format="png", metadata={"Software": None})


def _panel(axes, comparison: dict, metric: str) -> None:
    """One metric: grey baselines, then the chain of training from its start to the last round."""
    intervals = {name: found[metric] for name, found in comparison["rounds"].items() if metric in found}
    positions = {name: index for index, name in enumerate(comparison["rounds"])}
    chain = chain_of(comparison)
    colour = BETTER_LOW if metric in LOWER_IS_BETTER else BETTER_HIGH
    baselines = [name for name in intervals if name not in chain]
    trained = [name for name in chain if name in intervals]
    for members, shade, style in ((baselines, BASELINE_GREY, "none"), (trained, colour, "-")):
        centre = [100 * intervals[name]["value"] for name in members]
        below = [c - 100 * intervals[name]["low"] for c, name in zip(centre, members, strict=True)]
        above = [100 * intervals[name]["high"] - c for c, name in zip(centre, members, strict=True)]
        axes.errorbar(
            [positions[name] for name in members], centre, yerr=[below, above],
            fmt="o", color=shade, linestyle=style, linewidth=1.8, markersize=5.5, capsize=3,
        )  # fmt: skip
        for name, height, reach in zip(members, centre, above, strict=True):
            axes.annotate(
                f"{height:.1f}", (positions[name], height + reach), textcoords="offset points", xytext=(0, 4),
                ha="center", fontsize=8, color=shade,
            )  # fmt: skip
    _dress(axes, metric, list(positions), bool(metric in LOWER_IS_BETTER))


def _dress(axes, metric: str, names: list[str], lower_is_better: bool) -> None:
    axes.set_title(f"{metric.replace('_', ' ')}, % ({'lower' if lower_is_better else 'higher'} is better)", fontsize=10)
    axes.set_ylabel(PICTURED[metric], fontsize=8)
    long = any(len(name) > 5 for name in names)
    axes.set_xticks(
        range(len(names)), [name.replace("_", " ") for name in names], fontsize=8.5,
        rotation=30 if long else 0, ha="right" if long else "center", rotation_mode="anchor",
    )  # fmt: skip
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.tick_params(axis="y", labelsize=8.5)
    axes.margins(y=0.18)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
