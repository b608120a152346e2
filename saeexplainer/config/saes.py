"""Which SAEs a run has: trained here, or by others."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag
from pydantic.dataclasses import dataclass

from saeexplainer.config.parts import CLOSED, Count, Name, Natural, Positive, Text


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

    k: Count  # active latents a token
    seed: Natural  # added to prepare_sae.seed


@dataclass(frozen=True, config=CLOSED)
class TakenSae(SaeSpec):
    """An SAE that is not trained here."""

    pretrained: PretrainedSae


def _kind_of_sae(given: Any) -> str:
    return "taken" if isinstance(given, TakenSae) or isinstance(given, dict) and "pretrained" in given else "trained"


Sae = Annotated[Annotated[TrainedSae, Tag("trained")] | Annotated[TakenSae, Tag("taken")], Discriminator(_kind_of_sae)]
