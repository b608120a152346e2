"""Ask a local explainer about features: its greedy explanation, and how accurate it is by fresh texts.

Any live feature may be asked about; nothing is stored. The accuracy is measured as `evaluate` measures generative
accuracy: its writer writes texts from the explanation, the subject reads them, and the share that makes the feature
fire counts. A registered explainer (`tasks.tracking.registry`) answers on the same scale, but by its confidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saeexplainer.config import Params
from saeexplainer.errors import UserError
from saeexplainer.records import FeatureRow, NeighbourRow
from saeexplainer.runs.storage import holds_model, read_rows
from tasks.places import ACTIVATIONS, EXPLAINERS, SAES, SUBJECT
from tasks.settings import params as settings_params

if TYPE_CHECKING:
    from saeexplainer.explainer.table import FeatureTable

FEATURES = ACTIVATIONS / "features.parquet"


@dataclass(frozen=True)
class Explained:
    """One feature and what an explainer says of it; `tasks.tracking.registry` answers with the same fields."""

    feature_id: str
    explanation: str  # may be empty: the explainer said nothing
    expected_accuracy: float | None  # generative accuracy by fresh texts, 0 to 1; None where every call for them failed


def known_explainers() -> list[str]:
    """Names of the explainers that lie in data/explainers."""
    return sorted(path.name for path in EXPLAINERS.glob("[!.]*") if holds_model(path))


def find(wanted: str, features: Sequence[FeatureRow], params: Params) -> str:
    """The id of the feature that someone asked for: an index of the explained SAE, or the full subject/sae/index.

    Raises UserError if it is out of range, or not among the features that the explainers know.
    """
    explained = params.prepare_sae.saes[0]
    last = explained.d_sae - 1
    if wanted.isdecimal():
        if int(wanted) > last:
            raise UserError(f"feature {wanted}: out of range; the SAE {explained.name} has features 0 to {last}")
        found = [row for row in features if row.sae == explained.name and row.index == int(wanted)]
    else:
        found = [row for row in features if row.feature_id == wanted]
    if not found:
        what = "not live: it fires too seldom or too often" if wanted.isdecimal() else "no such id"
        example = next((row.feature_id for row in features if row.sae == explained.name), "subject/sae/index")
        raise UserError(
            f"feature {wanted}: {what}; give an index of the SAE {explained.name}, 0 to {last}, or an id such as "
            f"{example}: `sae-explainer features` lists the live ones"
        )
    return found[0].feature_id


def explain(feature_ids: Sequence[str], model: str) -> list[Explained]:
    """Explain live features by the explainer of that name or folder, in the order asked. Raises UserError."""
    from saeexplainer.explainer.table import FeatureTable

    folder = _folder(model)
    params = settings_params.load()
    table = FeatureTable(ACTIVATIONS)
    numbers = [table.number[feature_id] for feature_id in feature_ids]
    asked = [table.rows[number] for number in numbers]
    explanations = _explanations(folder, table, numbers, params)
    accuracies = _accuracies(asked, explanations, params)
    return [
        Explained(row.feature_id, explanation, accuracy)
        for row, explanation, accuracy in zip(asked, explanations, accuracies, strict=True)
    ]


def _folder(model: str) -> Path:
    known = known_explainers()
    if not known:
        raise UserError(f"{EXPLAINERS}: no explainer yet; run `dvc repro` to train them, or `dvc pull` to fetch them")
    if model in known:
        return EXPLAINERS / model
    if not holds_model(Path(model)):
        raise UserError(f"explainer {model!r}: unknown; choose champion, {', '.join(known)}, or give a model's folder")
    return Path(model)


def _explanations(folder: Path, table: "FeatureTable", numbers: list[int], params: Params) -> list[str]:
    from saeexplainer.explainer.explainer import Explainer

    contexts = table.contexts(params.explainer.prompt)
    explainer = Explainer(folder, table.vectors, params.explainer, params.generate_explanations, contexts)
    return explainer.explain(numbers, temperature=0.0, progress="explanations")


def _accuracies(asked: list[FeatureRow], explanations: list[str], params: Params) -> list[float | None]:
    """Write and read, as `evaluate` does."""
    from saeexplainer.evaluation import scoring
    from saeexplainer.features.neighbours import Neighbourhoods
    from saeexplainer.runs.seeds import seed_torch
    from saeexplainer.saes import text_activations
    from saeexplainer.saes.reading import open_reader
    from saeexplainer.writers.opening import open_writer

    seed_torch(params.seed, "explain")
    near = Neighbourhoods(read_rows(FEATURES, FeatureRow), read_rows(ACTIVATIONS / "neighbours.parquet", NeighbourRow))
    latents = near.asked(row.feature_id for row in asked)
    reader = open_reader(SUBJECT, SAES, sorted(latents), params.prepare_subject.context_length)
    author = open_writer(params.evaluate.writer, "evaluate.writer", reader.model, reader.tokenizer)
    outcomes = scoring.try_out(
        [(row.feature_id, explanation) for row, explanation in zip(asked, explanations, strict=True)], author, near,
        lambda texts: text_activations.read_texts(texts, reader, latents),
    )  # fmt: skip
    return [outcome.accuracy for outcome in outcomes]
