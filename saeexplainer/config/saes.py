"""Which SAEs a run has: trained here, in one of the architectures below, or by others."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from saeexplainer.config.parts import CLOSED, Count, InnerShare, Name, Natural, NonEmpty, Positive, Text


@dataclass(frozen=True, config=CLOSED)
class TopK:
    """The k largest latents of a token are active (arXiv 2406.04093)."""

    kind: Literal["topk"]
    k: Count  # active latents a token


@dataclass(frozen=True, config=CLOSED)
class BatchTopK:
    """The k largest latents a token on average over a batch are active (arXiv 2412.06410). Kept as a JumpReLU SAE."""

    kind: Literal["batchtopk"]
    k: Count  # active latents a token, on average


@dataclass(frozen=True, config=CLOSED)
class Matryoshka:
    """BatchTopK whose first latents must do without the later ones (arXiv 2503.17547). Kept as a JumpReLU SAE."""

    kind: Literal["matryoshka"]
    k: Count  # active latents a token, on average
    shares: NonEmpty[InnerShare]  # rising: shares of all latents that must rebuild the activation alone


@dataclass(frozen=True, config=CLOSED)
class Standard:
    """ReLU latents with an L1 penalty."""

    kind: Literal["standard"]
    coefficient: Positive  # of the mean sum of latents, each times its decoder row's norm


@dataclass(frozen=True, config=CLOSED)
class Gated:
    """One path says which latents are active, the other how much (arXiv 2404.16014)."""

    kind: Literal["gated"]
    coefficient: Positive  # of the mean sum of the gates, each times its decoder row's norm


@dataclass(frozen=True, config=CLOSED)
class JumpRelu:
    """ReLU latents that are active above a threshold of their own, with an L0 penalty (arXiv 2407.14435)."""

    kind: Literal["jumprelu"]
    coefficient: Positive  # of the mean number of active latents
    threshold: Positive  # of every latent at first
    bandwidth: Positive  # width of the kernel through which the step's gradient is estimated


@dataclass(frozen=True, config=CLOSED)
class PAnneal:
    """ReLU latents with a penalty of their p-th powers, p falling from 1 to `last_p` in the second half of training
    (arXiv 2408.00113). Kept as a standard SAE."""

    kind: Literal["p_anneal"]
    coefficient: Positive  # of the mean sum of latents, while p is 1; it follows p so that the penalty is continuous
    last_p: InnerShare


@dataclass(frozen=True, config=CLOSED)
class Ordered:
    """TopK whose latents are cut off at a random place in every step, so that the first are the most useful (arXiv
    2512.02194). Kept as a TopK SAE."""

    kind: Literal["ordered"]
    k: Count  # active latents a token at the end; at first twice as many
    groups: Count  # of latents, of one size but for the first; a step keeps the latents up to a place in one of them
    first_share: InnerShare  # of all latents, in the first group


@dataclass(frozen=True, config=CLOSED)
class Meta:
    """TopK whose decoder rows a small SAE must not be able to rebuild (arXiv 2604.03436). Kept as a TopK SAE."""

    kind: Literal["meta"]
    k: Count  # active latents a token
    weight: Positive  # of the mean over rows of exp(-|row - rebuilt|^2), rows of unit length
    meta_share: InnerShare  # latents of the small SAE over those of the SAE
    meta_k: Count  # active latents a row of the small one


ArchitectureOfSae = Annotated[
    TopK | BatchTopK | Matryoshka | Standard | Gated | JumpRelu | PAnneal | Ordered | Meta,
    Field(discriminator="kind"),
]


@dataclass(frozen=True, config=CLOSED)
class PretrainedSae:
    """An SAE that others trained; it says itself where it reads the subject."""

    source: Text  # a folder that sae-lens saved, or a release that it knows
    sae_id: Text | None  # in the release; null for a folder
    norm_scaling_factor: Positive | None  # sqrt(d_in) over activations' mean norm; null unless the SAE lacks it


@dataclass(frozen=True, config=CLOSED)
class SaeSpec:
    """What all SAEs have."""

    name: Name  # its folder under data/saes
    d_sae: Count  # number of latents; of a pretrained one it must be its own


@dataclass(frozen=True, config=CLOSED)
class TrainedSae(SaeSpec):
    """An SAE that is trained here."""

    seed: Natural  # added to prepare_sae.seed


@dataclass(frozen=True, config=CLOSED)
class TakenSae(SaeSpec):
    """An SAE that is not trained here."""

    pretrained: PretrainedSae


def _kind_of_sae(given: Any) -> str:
    return "taken" if isinstance(given, TakenSae) or isinstance(given, dict) and "pretrained" in given else "trained"


Sae = Annotated[Annotated[TrainedSae, Tag("trained")] | Annotated[TakenSae, Tag("taken")], Discriminator(_kind_of_sae)]
