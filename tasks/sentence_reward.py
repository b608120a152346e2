"""On the pipeline's files: the reward of sentences that a round's pairs give (`preferences.attribution`)."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from saeexplainer.config import Params
from saeexplainer.errors import UserError
from saeexplainer.preferences.attribution import SentenceReward
from saeexplainer.records import PreferencePair
from saeexplainer.runs.storage import read_rows
from tasks.places import ROUNDS, SAES, SUBJECT

if TYPE_CHECKING:
    from saeexplainer.saes.reading import Reader

FEWEST = 10  # pairs to fit it to, and to hold out
Codes = Callable[[Sequence[str]], Float[np.ndarray, "sentences latents"]]


class TooFewPairs(UserError):
    """A round has too few pairs."""


def codes_of(params: Params) -> Codes:
    """What the features of the explained SAE do at the end of sentences; models are opened when first asked."""
    sae = params.prepare_sae.saes[0].name

    @cache
    def reader() -> "Reader":
        from saeexplainer.saes.reading import open_reader

        return open_reader(SUBJECT, SAES, [sae], params.prepare_subject.context_length, whole=False)

    def codes(sentences: Sequence[str]) -> Float[np.ndarray, "sentences latents"]:
        from saeexplainer.saes.text_activations import read_ends

        return read_ends(sentences, reader(), sae)

    return codes


def pairs_of(name: str, split: str) -> list[PreferencePair]:
    """A round's validated pairs of one split. Raises TooFewPairs."""
    table = ROUNDS / name / "validated.parquet"
    found = [pair for pair in read_rows(table, PreferencePair) if pair.split == split]
    if len(found) < FEWEST:
        raise TooFewPairs(f"{table}: {len(found)} pairs of the {split} split; a reward of sentences needs {FEWEST}")
    return found


def fitted(name: str, codes: Codes) -> SentenceReward:
    """The reward that a round's pairs of the dpo split give. Raises TooFewPairs."""
    return SentenceReward(pairs_of(name, "dpo"), codes)
