"""Whether an explanation is true of a feature: texts written from it, and what they make the feature do."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from saeexplainer.config.parts import SubjectWriterSpec
from saeexplainer.errors import UserError
from saeexplainer.evaluation import metrics
from saeexplainer.evaluation.scoring import try_out
from saeexplainer.exchange import records as exchange_records
from saeexplainer.features.measuring import Feature
from saeexplainer.features.neighbours import Neighbourhoods
from saeexplainer.library.subjects import Subject
from saeexplainer.records import FeatureRecord, FeatureRow
from saeexplainer.saes.text_activations import read_texts, read_tokens
from saeexplainer.writers.subject import SubjectWriter
from saeexplainer.writers.writer import Writer

PROMPT = "A text about {description}:\n\n"  # which a model that was trained on plain text may continue


@dataclass(frozen=True)
class Score:
    """What the texts of one explanation made a feature do. Activations are in units of the feature's maximum."""

    feature_id: str  # subject/sae/index
    explanation: str
    texts: list[str]  # written from the explanation; none if it is empty
    activations: list[float]  # each text's maximum over its tokens, special ones left out
    tokens: list[list[str]]  # each text cut as the tokenizer cuts it, as far as it was read
    token_activations: list[list[float]]  # one a token
    generative_accuracy: float  # share of the texts that reach half the maximum; NaN if the writer wrote none
    hallucination: float  # 1.0 if no text reaches it, else 0.0; NaN if the writer wrote none


def subject_writer(
    subject: Subject,
    *,
    prompt: str = PROMPT,
    texts: int = 10,
    temperature: float = 0.7,
    top_p: float = 1.0,
    max_new_tokens: int = 40,
    batch_size: int = 64,
) -> Writer:
    """A writer of texts that is the subject itself: it continues a prompt.

    prompt: holds {description}, in whose place the explanation stands.
    texts: how many an explanation gets. temperature, top_p: of sampling. max_new_tokens: of a text.

    Raises UserError if the prompt has no {description}.
    """
    if "{description}" not in prompt:
        raise UserError(f"prompt: {prompt!r} has no {{description}}, in whose place the explanation is to stand")
    settings = SubjectWriterSpec(
        kind="subject", prompt=prompt, texts=texts, temperature=temperature, top_p=top_p,
        max_new_tokens=max_new_tokens, batch_size=batch_size,
    )  # fmt: skip
    return SubjectWriter(settings, subject.reader.model, subject.reader.tokenizer)


class _Given:
    """A writer that hands out texts which exist already."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)

    def write(self, descriptions: Sequence[str]) -> dict[str, list[str]]:
        return {description: self.texts for description in descriptions if description}

    def usage(self, descriptions: Iterable[str]) -> None:
        return None

    def notes(self) -> list[str]:
        return []


def score_explanation(
    explanation: str,
    subject: Subject,
    feature: Feature,
    *,
    writer: Writer | None = None,
    texts: Sequence[str] | None = None,
    seed: int = 0,
) -> Score:
    """Write texts from an explanation, read them with the subject and its SAE, and count where the feature fires.

    feature: of the subject's SAE, with its maximum: from `measure_features`, or `Feature(id, index, maximum)` by hand.
    writer: who writes the texts, without seeing the feature; None is `subject_writer(subject)`.
    texts: such as another model wrote from the explanation; then no writer is asked.
    seed: of the draws; the same one gives the same texts on the same machine. Torch's own generator is left as it was.

    An explanation that is empty, or only spaces, has no text and counts as a hallucination. Raises UserError if the
    feature is silent, so that its activations have no unit, or is no latent of the SAE.
    """
    if not feature.maximum > 0:
        raise UserError(f"{feature.feature_id}: its maximum is {feature.maximum:g}; measure it on texts where it fires")
    said = explanation.strip()
    author = _Given(texts) if texts is not None else writer or subject_writer(subject)
    row = _row(feature, subject)
    latents = {subject.sae_name: [feature.index]}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        (outcome,) = try_out(
            [(feature.feature_id, said)], author, Neighbourhoods([row], []),
            lambda written: read_texts(written, subject.reader, latents),
        )  # fmt: skip
    read = read_tokens([(text, feature.index) for text in outcome.texts], subject.reader, subject.sae_name)
    own, known = outcome.responses.own, outcome.is_known
    return Score(
        feature.feature_id, explanation, outcome.texts, own, [tokens for tokens, _ in read],
        [[value / feature.maximum for value in values] for _, values in read],
        metrics.generative_accuracy(own) if known else math.nan, metrics.hallucination(own) if known else math.nan,
    )  # fmt: skip


def feature_record(feature: Feature, explanation: str, subject: Subject, score: Score | None = None) -> FeatureRecord:
    """A feature and what is said of it in the shape that people exchange (`write_records`), with its contexts, the
    model, the SAE and, if it is given, the score. What is not known is null."""
    cfg = subject.sae.cfg
    known = exchange_records.metadata(
        feature.feature_id, str(subject.site), cfg.d_in, cfg.d_sae, subject.release, subject.sae_id
    )
    density = None if math.isnan(feature.density) else feature.density
    measured = {"activation_density": density, "max_activation_approx": feature.maximum}
    record = exchange_records.from_rows(_row(feature, subject), explanation, feature.contexts, known | measured)
    if score is None:
        return record
    scores = {"generative_accuracy": score.generative_accuracy, "hallucination": score.hallucination}
    shown = {name: None if math.isnan(value) else value for name, value in scores.items()}
    return replace(record, extra=json.dumps({"scores": shown}))


def _row(feature: Feature, subject: Subject) -> FeatureRow:
    return FeatureRow(feature.feature_id, subject.sae_name, feature.index, "", feature.maximum, feature.density)
