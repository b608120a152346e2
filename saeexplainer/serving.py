"""An explainer that stands alone: one folder with all that it needs, feature ids or raw vectors in, explanations out.

The folder holds `explainer/` (`explainer_folder`; the base model of an adapter stays where it is), `features.parquet` and `directions.safetensors` (the explained SAE's
features and what the explainer reads of them), `contexts.json` (what its prompts show of each), `settings.json`, `calibration.json` and `evaluation.parquet` (the rows
on which it was measured). Whoever registers it decides where it lies; nothing here knows about that.

The expected reward is the explainer's own confidence put on the scale of generative accuracy (`confidence.calibrate`),
over the features of its evaluation. It is no measurement of this explanation: nobody wrote a text.
"""

import math
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer.confidence import Calibration, calibrate
from saeexplainer.config import (
    Adapter,
    Direction,
    ExplainerPrompt,
    GenerateExplanations,
    Pretrained,
    PromptKind,
    TrainSft,
)
from saeexplainer.errors import UserError
from saeexplainer.explainer import PARTS, Explainer, Prompts, attach, direction_rows
from saeexplainer.explainer_folder import open_parts
from saeexplainer.feature_tokens import first_feature_id
from saeexplainer.records import EvaluationRow, FeatureRow
from saeexplainer.storage import holds_model, read_json, read_rows, read_tensors, write_json, write_rows, write_tensors

EXPLAINER, FEATURES, DIRECTIONS = "explainer", "features.parquet", "directions.safetensors"
CONTEXTS, SETTINGS, CALIBRATION, EVALUATION = "contexts.json", "settings.json", "calibration.json", "evaluation.parquet"
FILES = (FEATURES, DIRECTIONS, CONTEXTS, SETTINGS, CALIBRATION, EVALUATION)


@dataclass(frozen=True)
class Explained:
    """One answer."""

    feature_id: str  # subject/sae/index; empty where a raw vector was asked about
    explanation: str
    expected_reward: float  # generative accuracy, 0 to 1, to be expected at this confidence


def write_served(
    folder: Path, explainer: Path, features: Sequence[FeatureRow], tensors: Mapping[str, Tensor], injection: TrainSft,
    generation: GenerateExplanations, evaluated: Sequence[EvaluationRow], contexts: Sequence[str] = (),
) -> None:  # fmt: skip
    """Gather a folder that `ServedExplainer` reads. `tensors` have a row for each of `features`, and so have `contexts`
    where the explainer's prompts show any (`explainer.shown_contexts`)."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(explainer, folder / EXPLAINER)
    write_rows(folder / FEATURES, features, FeatureRow)
    write_tensors(folder / DIRECTIONS, {name: tensors[name] for name in PARTS[injection.direction]})
    write_json(folder / CONTEXTS, list(contexts))
    write_json(folder / SETTINGS, {"injection": asdict(injection), "generation": asdict(generation)})
    write_json(folder / CALIBRATION, asdict(calibrate(evaluated)))
    write_rows(folder / EVALUATION, evaluated, EvaluationRow)


def missing_files(folder: Path) -> list[str]:
    """Names of what a served explainer's folder should hold and does not."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    return missing if holds_model(folder / EXPLAINER) else [f"{EXPLAINER}/config.json", *missing]


class _Loaded(Explainer):
    """An explainer that is loaded once and reads another table of vectors at every request."""

    def __init__(self, folder: Path, injection: TrainSft, generation: GenerateExplanations) -> None:
        parts = open_parts(folder)
        self.model, self.tokenizer, self.projection = parts.model, parts.tokenizer, parts.projection
        self.injection, self.generation = injection, generation

    @contextmanager
    def reading(
        self, tensors: Mapping[str, Float[Tensor, "features d_model"]], contexts: Sequence[str]
    ) -> Iterator[None]:
        """Inside, feature number n is row n of `tensors`, and of `contexts`."""
        self.prompts = Prompts(self.tokenizer, first_feature_id(self.model, self.tokenizer), self.injection, contexts)
        directions = direction_rows(tensors, self.injection.direction)
        tokens = attach(self.model, self.tokenizer, directions, self.injection, projection=self.projection)
        try:
            yield
        finally:
            tokens.remove()


class ServedExplainer:
    """The folder, loaded. Requests from several threads take turns: the hooks hold one request's vectors."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if something is missing or was written by another version of this library."""
        if missing := missing_files(folder):
            raise UserError(f"{folder}: {missing[0]} is missing; register the explainer again")
        settings = read_json(folder / SETTINGS)
        try:
            injection = _injection(settings["injection"])
            generation = GenerateExplanations(**settings["generation"])
            self.calibration = Calibration(**read_json(folder / CALIBRATION))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / SETTINGS}: from another version of this library ({error})") from None
        self.parts = PARTS[injection.direction]
        self.features = read_rows(folder / FEATURES, FeatureRow)
        self._row_of = {row.feature_id: at for at, row in enumerate(self.features)}
        self._tensors = read_tensors(folder / DIRECTIONS)
        self._contexts = read_json(folder / CONTEXTS)
        self._explainer = _Loaded(folder / EXPLAINER, injection, generation)
        self._turn = threading.Lock()

    @property
    def width(self) -> int:
        """Numbers in a raw vector."""
        return self._tensors[self.parts[0]].shape[1]

    def explain(self, asked: Sequence[str | int]) -> list[Explained]:
        """An answer for each id (subject/sae/index) or number of a latent. Raises UserError if there is no such one."""
        rows = [self._row(feature) for feature in asked]
        tensors = {name: self._tensors[name][rows] for name in self.parts}
        contexts = [self._contexts[row] for row in rows] if self._contexts else []
        return self._answer(tensors, [self.features[row].feature_id for row in rows], contexts)

    def explain_vectors(self, vectors: Mapping[str, Sequence[Sequence[float]]]) -> list[Explained]:
        """An answer for each raw vector; `vectors` has equally many of each of `parts`. Raises UserError if not."""
        if self._contexts:
            raise UserError("vectors: this explainer reads a feature's contexts too; ask about features by their id")
        lengths = {len(vectors.get(name, ())) for name in self.parts}
        if set(vectors) != set(self.parts) or len(lengths) != 1:
            found = ", ".join(f"{len(rows)} {name}" for name, rows in vectors.items()) or "none"
            raise UserError(f"vectors: got {found}; this explainer reads equally many of {' and '.join(self.parts)}")
        tensors = {name: self._checked(name, vectors[name]) for name in self.parts}
        return self._answer(tensors, [""] * lengths.pop(), [])

    def _checked(self, name: str, rows: Sequence[Sequence[float]]) -> Float[Tensor, "features d_model"]:
        for at, row in enumerate(rows):
            if len(row) != self.width:
                raise UserError(f"{name}[{at}]: holds {len(row)} numbers; this explainer reads {self.width}")
            if not all(math.isfinite(value) for value in row) or not any(row):
                raise UserError(f"{name}[{at}]: must be finite numbers, not all of them 0")
        return torch.tensor([list(row) for row in rows], dtype=torch.float32).reshape(len(rows), self.width)

    def _answer(
        self, tensors: Mapping[str, Tensor], feature_ids: Sequence[str], contexts: Sequence[str]
    ) -> list[Explained]:
        numbers = range(len(feature_ids))
        if not numbers:
            return []
        with self._turn, self._explainer.reading(tensors, contexts):
            explanations = self._explainer.explain(numbers, temperature=0.0)
            sure = self._explainer.log_probabilities(numbers, explanations)
        return [
            Explained(feature_id, explanation, self.calibration.expected(log_probability))
            for feature_id, explanation, log_probability in zip(feature_ids, explanations, sure, strict=True)
        ]

    def _row(self, asked: str | int) -> int:
        owner = self.features[0].feature_id.rpartition("/")[0]
        text = str(asked).strip()
        number = text.removeprefix(f"{owner}/")
        row = self._row_of.get(f"{owner}/{number}")
        if row is None:
            raise UserError(_unknown(text, number, owner, sorted(feature.index for feature in self.features)))
        return row


def _injection(settings: Mapping[str, Any]) -> TrainSft:
    """Back from JSON. Raises KeyError, TypeError or ValueError on what another version wrote."""
    prompt = settings["prompt"] | {"kind": PromptKind(settings["prompt"]["kind"])}
    found = {"direction": Direction(settings["direction"]), "prompt": ExplainerPrompt(**prompt)}
    for name, kind in (("pretrained", Pretrained), ("adapter", Adapter)):
        found[name] = kind(**settings[name]) if settings[name] else None
    return TrainSft(**settings | found)


def _unknown(text: str, number: str, owner: str, known: Sequence[int]) -> str:
    """Why there is no such feature, and which there are."""
    if not number.lstrip("-").isdecimal():
        return f"feature {text!r}: this explainer knows {owner}/{known[0]} to {owner}/{known[-1]}; name one of them"
    if not known[0] <= int(number) <= known[-1]:
        return f"feature {text}: out of range; {owner} has features {known[0]} to {known[-1]}"
    nearest = min(known, key=lambda index: abs(index - int(number)))
    return f"feature {text}: {owner} does not explain it, it fires too rarely or too often; the nearest is {nearest}"


def evaluation_of(folder: Path) -> list[EvaluationRow]:
    """The rows on which a served explainer was measured."""
    return read_rows(folder / EVALUATION, EvaluationRow)
