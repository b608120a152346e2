"""An explainer that stands alone: one folder with all that it needs, feature ids or raw vectors in, explanations out.

The folder holds `explainer/` (`explainer_folder`; of an adapter's base `explainer_folder.keep_base` says where it
is), `features.parquet` and `directions.safetensors` (the explained SAE's features and their vectors of each kind),
`contexts.json` (what the explainer's prompts show of each), `settings.json`, `calibration.json` and
`evaluation.parquet` (the rows on which it was measured). Where it lies is up to the caller.

The expected accuracy is the explainer's own confidence put on the scale of generative accuracy
(`confidence.calibrate`), over the features of its evaluation. It does not measure the explanation that it stands
beside: no text is written.
"""

import shutil
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import TypeAdapter
from torch import Tensor

from saeexplainer.config import ExplainerSettings, GenerateExplanations
from saeexplainer.config.parts import Direction
from saeexplainer.errors import UserError, first_line
from saeexplainer.explainer.explainer import Explainer, Prompts, attach
from saeexplainer.explainer.feature_tokens import first_feature_id
from saeexplainer.explainer.folder import keep_base, open_parts
from saeexplainer.figures.confidence import Calibration, calibrate
from saeexplainer.records import EvaluationRow, FeatureId, FeatureRow
from saeexplainer.runs.storage import (
    holds_model,
    read_json,
    read_rows,
    read_tensors,
    write_json,
    write_rows,
    write_tensors,
)

EXPLAINER, FEATURES, DIRECTIONS = "explainer", "features.parquet", "directions.safetensors"
CONTEXTS, SETTINGS, CALIBRATION, EVALUATION = "contexts.json", "settings.json", "calibration.json", "evaluation.parquet"
FILES = (FEATURES, DIRECTIONS, CONTEXTS, SETTINGS, CALIBRATION, EVALUATION)
KINDS = tuple(one.value for one in Direction)  # of vectors, by the names of their tensors
QUESTIONS = ("feature_id", "index", *KINDS)  # what a row may give
SAME = 0.999  # cosine from which two vectors are one, but for rounding


@dataclass(frozen=True)
class Explained:
    """One answer."""

    feature_id: str  # subject/sae/index; empty where a raw vector was asked about
    explanation: str
    expected_accuracy: float  # generative accuracy, 0 to 1, to be expected at this confidence


@dataclass(frozen=True)
class Reply:
    """What comes back for one row of a request: an answer, or why there is none."""

    feature_id: str | None  # these three as in `Explained`; None where there is no answer
    explanation: str | None
    expected_accuracy: float | None
    error: str | None  # one line; None where there is an answer


@dataclass(frozen=True)
class Question:
    """One thing to explain."""

    feature_id: str  # as in `Explained`
    vector: Float[Tensor, "d_model"]  # of the kind that the explainer reads
    context: str  # what its prompt shows; empty where it shows none


def write_served(
    folder: Path,
    explainer: Path,
    features: Sequence[FeatureRow],
    tensors: Mapping[str, Tensor],
    injection: ExplainerSettings,
    generation: GenerateExplanations,
    evaluated: Sequence[EvaluationRow],
    contexts: Sequence[str] = (),
    subject: Path = Path("data/subject"),
) -> None:
    """Gather a folder that `ServedExplainer` reads. `tensors` have a row for each of `features`, and so have `contexts`
    where the explainer's prompts show any (`FeatureTable.contexts`). Kinds of vectors that the explainer does not
    read are kept too: they tell when one of them is sent in place of what it reads. `subject` as in `keep_base`."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(explainer, folder / EXPLAINER)
    keep_base(folder / EXPLAINER, subject)
    write_rows(folder / FEATURES, features, FeatureRow)
    write_tensors(folder / DIRECTIONS, {name: tensor for name, tensor in tensors.items() if name in KINDS})
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

    def __init__(self, folder: Path, injection: ExplainerSettings, generation: GenerateExplanations) -> None:
        parts = open_parts(folder)
        self.model, self.tokenizer, self.projection = parts.model, parts.tokenizer, parts.projection
        self.injection, self.generation = injection, generation

    @contextmanager
    def reading(
        self, vectors: Float[Tensor, "features d_model"], contexts: Sequence[str]
    ) -> Generator[None, None, None]:
        """Inside, feature number n is row n of `vectors`, and of `contexts`."""
        self.prompts = Prompts(self.tokenizer, first_feature_id(self.model, self.tokenizer), self.injection, contexts)
        tokens = attach(self.model, self.tokenizer, vectors, self.injection, projection=self.projection)
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
            injection = TypeAdapter(ExplainerSettings).validate_python(settings["injection"])
            generation = GenerateExplanations(**settings["generation"])
            self.calibration = Calibration(**read_json(folder / CALIBRATION))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder / SETTINGS}: from another version of this library ({first_line(error)})"
            ) from None
        self.kind = injection.direction.value  # of vector that it reads
        self.features = read_rows(folder / FEATURES, FeatureRow)
        self._row_of = {row.feature_id: at for at, row in enumerate(self.features)}
        self._tensors = read_tensors(folder / DIRECTIONS)
        self._contexts = read_json(folder / CONTEXTS)
        self._explainer = _Loaded(folder / EXPLAINER, injection, generation)
        self._turn = threading.Lock()

    @property
    def width(self) -> int:
        """Numbers in a raw vector."""
        return self._tensors[self.kind].shape[1]

    def explain(self, asked: Sequence[str | int]) -> list[Explained]:
        """An answer for each id (subject/sae/index) or number of a latent. Raises UserError if there is no such one."""
        return self._answer([self._feature(one) for one in asked])

    def explain_vector(self, given: Any, contexts: str = "") -> Explained:
        """An answer about a vector of any origin, of `kind`: `width` numbers. `contexts` are lines as
        `features.contexts.listed` makes them, for an explainer whose prompt shows any (`shown_contexts`).

        Raises UserError if the vector is of another width, not finite or zero, if it is a known feature's vector of
        another kind, or if there are no contexts to show and the explainer never learnt without.
        """
        return self._answer([self._raw(self.kind, given, contexts)])[0]

    @property
    def shown_contexts(self) -> int:
        """How many of a feature's strongest contexts stand in the prompt."""
        return self._explainer.injection.prompt.shown_contexts

    def reply(self, rows: Iterable[Mapping[str, Any]]) -> list[Reply]:
        """A reply for each row, which gives `feature_id`, or `index`, or a vector in the name of its kind."""
        asked = [self._question(row) for row in rows]
        answers = iter(self._answer([one for one in asked if isinstance(one, Question)]))
        return [
            Reply(None, None, None, one) if isinstance(one, str) else Reply(**asdict(next(answers)), error=None)
            for one in asked
        ]

    def _question(self, row: Mapping[str, Any]) -> Question | str:
        """What a row asks, or what is wrong with it."""
        given = [name for name in QUESTIONS if name in row]
        try:
            if given in (["feature_id"], ["index"]):
                return self._feature(row[given[0]])
            if len(given) == 1:
                return self._raw(given[0], row[given[0]])
        except UserError as error:
            return str(error)
        return f"row: gives {' and '.join(given) or 'nothing'}; give feature_id, or index, or {self.kind}"

    def _feature(self, asked: str | int | float) -> Question:
        row = self._row(asked)
        context = self._contexts[row] if self._contexts else ""
        return Question(self.features[row].feature_id, self._tensors[self.kind][row], context)

    def _raw(self, kind: str, given: Any, contexts: str = "") -> Question:
        if self._contexts and not contexts and not self._explainer.injection.contexts_dropped:
            raise UserError(f"{kind}: this explainer reads a feature's contexts too; ask about features by their id")
        if kind != self.kind:
            raise UserError(f"{kind}: this explainer reads {self.kind}; give that, or feature_id or index")
        return Question("", self._vector(given), contexts if self._contexts else "")

    def _vector(self, given: Any) -> Float[Tensor, "d_model"]:
        given = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
        numbers = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else []
        if len(numbers) != self.width or not all(isinstance(one, Real) for one in numbers):
            raise UserError(f"{self.kind}: must be a list of {self.width} numbers; this explainer reads no other")
        try:
            vector = torch.tensor([float(one) for one in numbers], dtype=torch.float32)
        except OverflowError:
            vector = torch.full((self.width,), torch.inf)
        if not vector.isfinite().all() or not vector.any():
            raise UserError(f"{self.kind}: must be finite numbers of 32 bits, not all of them 0")
        self._check_kind(vector)
        return vector

    def _check_kind(self, vector: Float[Tensor, "d_model"]) -> None:
        """Raise UserError if a vector is a known feature's, but of another kind than this explainer reads."""
        kind = self.kind
        for other in self._tensors.keys() - {kind}:
            alike = F.cosine_similarity(self._tensors[other], vector[None])
            at = int(alike.argmax())
            own = F.cosine_similarity(self._tensors[kind][at], vector, dim=0)
            if alike[at] >= SAME and own < alike[at]:
                feature = self.features[at].feature_id
                raise UserError(f"{kind}: is the {other} vector of {feature}; this explainer reads its {kind} vector")

    def _answer(self, asked: Sequence[Question]) -> list[Explained]:
        if not asked:
            return []
        vectors = torch.stack([one.vector for one in asked])
        numbers, contexts = range(len(asked)), [one.context for one in asked] if self._contexts else []
        with self._turn, self._explainer.reading(vectors, contexts):
            explanations = self._explainer.explain(numbers, temperature=0.0)
            sure = self._explainer.log_probabilities(numbers, explanations)
        return [
            Explained(one.feature_id, explanation, self.calibration.expected(log_probability))
            for one, explanation, log_probability in zip(asked, explanations, sure, strict=True)
        ]

    def _row(self, asked: str | int | float) -> int:
        owner = FeatureId.parse(self.features[0].feature_id).owner
        # A table has 5.0 for 5 in a column that some of its rows leave open.
        text = str(int(asked) if isinstance(asked, float) and asked.is_integer() else asked).strip()
        number = text.removeprefix(f"{owner}/")
        row = self._row_of.get(f"{owner}/{number}")
        if row is None:
            raise UserError(_unknown(text, number, owner, sorted(feature.index for feature in self.features)))
        return row


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
