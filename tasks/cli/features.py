"""The live features as a list: what each fires on and promotes, what was said of it. Reads tables, loads no model."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from saeexplainer.records import ContextRow, EvaluationRow, ExplanationRow, FeatureRow, PromotedRow
from saeexplainer.runs.storage import read_rows, read_table
from tasks.places import ACTIVATIONS, EVALUATIONS, LABELS
from tasks.workspace.printable import printable

TOP_TOKENS = 4  # a feature
SORTS = ("index", "density", "maximum")
HEAD = "feature"  # of the column of ids
PROMOTES = "promotes"


@dataclass(frozen=True)
class ListedFeature:
    """One live feature and everything short that is known of it."""

    feature_id: str
    index: int  # latent
    split: str
    density: float  # share of tokens on which it fires
    maximum: float  # largest activation over the corpus
    top_tokens: list[str]  # distinct tokens at the peaks of its strongest contexts, strongest first
    promoted: list[str]  # tokens that its decoder row promotes, the strongest first
    explanations: dict[str, str]  # evaluation to explanation; "label" is the open-loop label

    @property
    def text(self) -> str:
        """What a search looks through, in small letters."""
        return " ".join(
            [self.feature_id, self.split, *self.top_tokens, *self.promoted, *self.explanations.values()]
        ).lower()


def listed(sae: str, split: str | None = None, search: str = "", sort: str = "index") -> list[ListedFeature]:
    """The live features of an SAE that match, by index or with the largest first. Raises UserError without tables."""
    rows = [row for row in read_rows(ACTIVATIONS / "features.parquet", FeatureRow) if row.sae == sae]
    rows = [row for row in rows if split in (None, row.split)]
    tokens, said = _top_tokens({row.feature_id for row in rows}), _explanations()
    written = ACTIVATIONS / "promoted.parquet"
    promoted = {row.feature_id: row.tokens for row in read_rows(written, PromotedRow)} if written.is_file() else {}
    found = [
        ListedFeature(
            row.feature_id, row.index, row.split, row.density, row.maximum,
            tokens.get(row.feature_id, []), promoted.get(row.feature_id, [])[:TOP_TOKENS], said.get(row.feature_id, {}),
        )
        for row in rows
    ]  # fmt: skip
    found = [feature for feature in found if search.lower() in feature.text]
    return sorted(found, key=lambda feature: getattr(feature, sort) * (1 if sort == "index" else -1))


def _top_tokens(wanted: set[str]) -> dict[str, list[str]]:
    path = ACTIVATIONS / "contexts.parquet"
    if not path.is_file():
        return {}
    # Not `read_rows`: the columns that are left out are nearly all of the table.
    table = read_table(path, ContextRow, columns=["feature_id", "rank", "tokens", "peak"], filters=[("rank", "<", 10)])
    tokens: dict[str, dict[str, None]] = defaultdict(dict)
    for row in sorted(table.to_pylist(), key=lambda row: row["rank"]):
        if row["feature_id"] in wanted and len(tokens[row["feature_id"]]) < TOP_TOKENS:
            tokens[row["feature_id"]][row["tokens"][row["peak"]]] = None
    return {feature_id: list(found) for feature_id, found in tokens.items()}


def _explanations() -> dict[str, dict[str, str]]:
    said: dict[str, dict[str, str]] = defaultdict(dict)
    if LABELS.is_file():
        for row in read_rows(LABELS, ExplanationRow):
            said[row.feature_id]["label"] = row.explanation
    for path in sorted(EVALUATIONS.glob("*.parquet")):
        if path.stem != "open_loop":  # which are the labels
            for found in read_rows(path, EvaluationRow):
                said[found.feature_id][path.stem] = found.explanation
    return said


def table(features: Sequence[ListedFeature]) -> list[str]:
    """Lines that a terminal can show: aligned columns, and under each feature what was said of it."""
    wide = max([len(HEAD), *(len(feature.feature_id) for feature in features)])
    named = max([10, *(len(name) for feature in features for name in feature.explanations)])
    lines = [f"{HEAD:<{wide}} {'split':<6} {'fires on':>9} {'maximum':>8}  top tokens"]
    for feature in features:
        percent = f"{100 * feature.density:.2f} %"
        tokens = " ".join(feature.top_tokens)
        lines.append(f"{feature.feature_id:<{wide}} {feature.split:<6} {percent:>9} {feature.maximum:>8.1f}  {tokens}")
        if feature.promoted:
            lines.append(f"    {PROMOTES:<{named}} {' '.join(feature.promoted)}")
        lines += [f"    {name:<{named}} {text or '-'}" for name, text in feature.explanations.items()]
    return [printable(line) for line in lines]
