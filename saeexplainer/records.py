"""The rows of every table, as frozen dataclasses: what is stored is defined here and nowhere else.

A table is parquet with one column a field (`storage.write_rows`, `storage.read_rows`). The Great Expectations suite of
the preference sets is built from `PreferencePair`. A feature's id is written as in the paper: subject/sae/index.

Glossary of shape names: batch, tokens (positions of a sequence), d_model (width of the residual stream), d_sae (latents
of an SAE), features (rows of a feature table), texts (texts of one explanation), rows (feature tokens).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

Row = TypeVar("Row", bound=Any)  # of a table with a column feature_id

# Splits of live features that are neither trained on nor evaluated: what is too close to a valid or test feature, and
# what extract_activations.max_features left over. They are rivals and neighbours all the same.
NOT_EXPLAINED = ("twin", "spare")


FEATURE_ID = r"[^/\s]+/[^/\s]+/(?:0|[1-9][0-9]{0,14})"  # what a column feature_id holds; the latent fits 64 bits


@dataclass(frozen=True)
class FeatureId:
    """What a column feature_id says of a feature: it is written subject/sae/index."""

    subject: str  # the last part of its name
    sae: str  # folder name under data/saes
    index: int  # latent

    @classmethod
    def parse(cls, text: str) -> "FeatureId":
        """Raises ValueError if the text is no feature's id."""
        if not re.fullmatch(FEATURE_ID, text):
            raise ValueError(f"{text!r} is no feature's id; it must be like subject/sae/index")
        subject, sae, index = text.split("/")
        return cls(subject, sae, int(index))

    @property
    def owner(self) -> str:
        """subject/sae, which the features of one SAE share."""
        return f"{self.subject}/{self.sae}"

    def __str__(self) -> str:
        return f"{self.owner}/{self.index}"


@dataclass(frozen=True)
class FeatureRow:
    """One live feature of one SAE."""

    feature_id: str  # subject/sae/index
    sae: str  # folder name under data/saes
    index: int  # latent
    split: str  # sft, dpo, valid or test; or one of NOT_EXPLAINED
    maximum: float  # largest activation over the corpus, special tokens left out
    density: float  # share of tokens on which it fires


@dataclass(frozen=True)
class NeighbourRow:
    """A latent of the same SAE that is easily taken for a feature; both are live."""

    feature_id: str
    neighbour: int  # latent
    cosine: float  # of the two decoder rows
    co_firing: float  # tokens on which both fire over tokens on which one does


@dataclass(frozen=True)
class ContextRow:
    """One top activating context of a feature."""

    feature_id: str
    rank: int  # 0 is the strongest
    text: str  # the window around the strongest token
    tokens: list[str]  # as the tokenizer cuts them, special tokens left out
    activations: list[float]  # one a token
    peak: int  # index into tokens of the strongest
    concepts: list[str]  # keys that the domain's annotation gives the strongest token


@dataclass(frozen=True)
class PromotedRow:
    """The tokens that a feature's decoder row promotes (`features.promoted`)."""

    feature_id: str
    tokens: list[str]  # the strongest first


@dataclass(frozen=True)
class WarmupRow:
    """What is said of one raw activation, which has no feature (`training.warmup`)."""

    description: str
    contexts: str  # lines that the prompt shows beside it; empty where it shows none


@dataclass(frozen=True)
class ExplanationRow:
    """An explanation of a feature from whatever source; empty text where none could be given."""

    feature_id: str
    split: str
    explanation: str


@dataclass(frozen=True)
class FeatureRecord:
    """A feature as others exchange it (docs/EXCHANGE.md): known fields as columns, all else as JSON."""

    feature_id: str  # subject/sae/index, as the file has it
    explanation: str  # empty where it has none
    texts: list[str]  # top activating ones, strongest first
    context_texts: list[str]  # these five lists: one element a top activating context
    context_maxima: list[float]  # in units of the file
    context_tokens: list[str]  # the strongest token
    context_token_indices: list[int]  # of it among the tokens of the context
    context_extras: list[str]  # JSON object of what else the context has
    metadata: str  # JSON object: model, layer, widths, density and whatever else
    extra: str  # JSON object of the fields that have no column


def unwritten(explanation: str, texts: Sequence[str]) -> bool:
    """Whether an explanation says something and has no text all the same: every call of a served writer for it failed,
    and what it would have made the feature do is unknown."""
    return bool(explanation.strip()) and not texts


@dataclass(frozen=True)
class CandidateRow:
    """One sampled explanation."""

    feature_id: str
    split: str
    rank: int  # order of sampling
    explanation: str


@dataclass(frozen=True)
class ScoreRow:
    """A candidate with what its texts made the feature do."""

    feature_id: str
    split: str
    rank: int
    explanation: str
    texts: list[str]
    activations: list[float]  # maximum over valid tokens of each text, in units of the feature's corpus maximum
    neighbour_activations: list[
        float
    ]  # of each text: the hardest that a nearest neighbour fires, in units of its maximum
    reward: float | None  # `rewards.reward`; None where it is unknown, as its texts are `unwritten`


@dataclass(frozen=True)
class Usage:
    """What the replies of a server took, as it reports them; where it does not, four characters are a token."""

    calls: int  # replies
    prompt_tokens: int
    written_tokens: int

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.written_tokens + other.written_tokens,
        )


@dataclass(frozen=True)
class PreferencePair:
    """One row of a preference set."""

    feature_id: str
    split: str  # dpo or valid
    chosen_explanation: str
    rejected_explanation: str
    chosen_score: float
    rejected_score: float
    score_gap: float  # chosen - rejected
    relative_gap: float  # score_gap / chosen
    spread_ratio: float  # (best - worst) / best over the feature's candidates
    chosen_best_text: str
    rejected_best_text: str


class DropReason(StrEnum):
    """Why a feature has no pair (docs/METHOD.md section 6)."""

    best_is_zero = "best is zero"  # no text of any candidate made it fire
    below_floor = "below floor"  # no candidate reached build_preferences.floor
    best_is_empty = "best is empty"  # the explainer was rewarded for saying nothing
    no_spread = "no spread"  # the candidates are worth the same
    no_gap = "no gap"  # no candidate is far enough below the best
    calls_failed = (
        "calls failed"  # a server gave fewer than two candidates their texts; the feature might have had a pair
    )


@dataclass(frozen=True)
class DroppedFeature:
    """A feature without a pair, and why."""

    feature_id: str
    split: str
    reason: str  # a DropReason


@dataclass(frozen=True)
class ProbeRow:
    """A context that explanations of the feature are asked about; the feature is silent in it or it fires."""

    feature_id: str
    text: str
    activations: list[float]  # one a token of the text read by itself, in units of the feature's corpus maximum


@dataclass(frozen=True)
class SteeredRow:
    """A text that the subject wrote while the feature was held at a value."""

    feature_id: str
    target: float  # asked KL divergence in nats; its sign is that of the change
    value: float  # what the feature was held at, in units of its corpus maximum
    divergence: float  # reached, nats
    text: str  # without the prompt


@dataclass(frozen=True)
class AloneRow:
    """A text that explanations are judged by, read by the subject with nothing said about it."""

    text: str
    log_probabilities: list[float]  # one a token, nats; special tokens left out


@dataclass(frozen=True)
class EvaluationRow:
    """The metrics of one explanation (docs/METHOD.md section 8); a missing explanation counts as failure.

    What is measured on its texts is NaN where these are `unwritten`.
    """

    feature_id: str
    explanation: str
    log_probability: float  # mean over the explanation's tokens under the explainer that wrote it; NaN where none did
    texts: list[str]
    activations: list[float]  # maximum of each text, in units of the feature's corpus maximum
    neighbour_activations: list[float]  # as in `ScoreRow`
    tokens: list[list[str]]  # each text cut as the tokenizer cuts it; joined they are the text as far as it was read
    token_activations: list[list[float]]  # one a token, in units of the feature's corpus maximum
    calls: int  # sequences that models generated to arrive at the explanation: explanations, and texts to choose it by
    call_tokens: int  # tokens of those, prompts included
    generative_accuracy: float  # share of texts at or over half the maximum
    hallucination: float  # 1.0 if no text reaches half the maximum, else 0.0
    collision: float  # 1.0 if another feature fires harder on the texts, else 0.0
    mean_activation: float  # mean of activations
    input_accuracy: float  # 1.0 if its texts make the feature fire harder, on average, than those of five others
    output_accuracy: float  # 1.0 if the judge finds the feature's steered texts by it, among three bundles (chance 1/3)
    detection_auc: float  # does the judge tell contexts where the feature fires from silent ones (chance 0.5)
    fuzzing_auc: float  # and the tokens on which it fires, in those contexts (chance 0.5)
    predictive_correlation: float  # Pearson r of the judge's token score and the feature over tokens of all contexts
    judge_agreement: float  # Spearman r of the judges' scores of those contexts; NaN with one judge or constant scores
    truth_agreement: float  # 1.0 if it names the concept with the best F1; NaN where no truth is known
    truth_f1: float  # F1 over tokens of the named concepts and the feature; NaN where no truth is known


@dataclass(frozen=True)
class QuarantinedPair(PreferencePair):
    """A pair that no training may see."""

    reason: str  # names of the expectations it fails, joined by "; "


def by_feature(rows: Iterable[Row]) -> defaultdict[str, list[Row]]:
    """The rows of each feature, in the table's order; none of a feature that the table does not have."""
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.feature_id].append(row)
    return found
