"""What every explanation of an evaluation is measured with."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from saeexplainer.config import Params
from saeexplainer.domains.opening import open_domain
from saeexplainer.features.neighbours import Neighbourhoods
from saeexplainer.judges.opening import open_judges
from saeexplainer.records import AloneRow, FeatureRow, NeighbourRow, ProbeRow, SteeredRow, by_feature
from saeexplainer.runs.storage import read_rows
from saeexplainer.saes import text_activations
from saeexplainer.saes.reading import open_reader
from saeexplainer.writers.opening import open_writer
from saeexplainer.writers.writer import Writer
from tasks.places import ACTIVATIONS, PROBES, SAES, SUBJECT


class Bench:
    """What every evaluation needs: the features of the split, the subject, the writers, the explained SAE."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.all_rows = read_rows(ACTIVATIONS / "features.parquet", FeatureRow)
        self.numbers = [at for at, row in enumerate(self.all_rows) if row.split == params.evaluate.split]
        self.features = [self.all_rows[at] for at in self.numbers]
        self.sae_name = self.features[0].sae
        self.live = [row for row in self.all_rows if row.sae == self.sae_name]  # of the explained SAE
        self.reader = open_reader(SUBJECT, SAES, [self.sae_name], params.prepare_subject.context_length)
        self.model, self.tokenizer = self.reader.model, self.reader.tokenizer
        self.domain = open_domain(params.prepare_subject.domain, params.seed, params.prepare_subject.corpus)
        self.near = Neighbourhoods(self.all_rows, read_rows(ACTIVATIONS / "neighbours.parquet", NeighbourRow))
        self.probes = by_feature(read_rows(PROBES / "contexts.parquet", ProbeRow))
        steered = by_feature(read_rows(PROBES / "steered.parquet", SteeredRow))
        self.steered = {feature_id: [row.text for row in rows] for feature_id, rows in steered.items()}
        alone = {row.text: row.log_probabilities for row in read_rows(PROBES / "alone.parquet", AloneRow)}
        limit = params.prepare_subject.context_length
        self.judges = open_judges(params.evaluate, self.model, self.tokenizer, limit, alone)
        self.author = open_writer(params.evaluate.writer, "evaluate.writer", self.model, self.tokenizer)
        self.said: list[str] = []  # what the source of the explanations has to say, beside what writers and judges note

    @cached_property
    def training_author(self) -> Writer:
        """The writer of the rounds, whose texts activation feedback at inference goes by."""
        config = self.params.score_explanations.writer
        return open_writer(config, "score_explanations.writer", self.model, self.tokenizer)

    def read(self, texts: Sequence[str], latents: Iterable[int]) -> text_activations.TextActivations:
        """Maxima of some latents of the explained SAE on texts."""
        return text_activations.read_texts(texts, self.reader, {self.sae_name: latents})

    def read_tokens(self, asked: Sequence[tuple[str, int]]) -> list[tuple[list[str], list[float]]]:
        """Tokens of each text, and what a latent of the explained SAE does on them."""
        return text_activations.read_tokens(asked, self.reader, self.sae_name)

    def maxima_and_rivals(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each live feature: its corpus maximum, and whether it counts in collisions."""
        limit = self.params.evaluate.collision_max_density
        return np.array([row.maximum for row in self.live]), np.array([row.density <= limit for row in self.live])

    def live_columns(self) -> list[int]:
        """The place of each feature among the live ones of the explained SAE: its column in the truth table."""
        column = {row.feature_id: at for at, row in enumerate(self.live)}
        return [column[feature.feature_id] for feature in self.features]

    def sizes(self, texts: Sequence[str]) -> list[int]:
        """Tokens of texts that a model reads or writes, the special one at their end or beginning included."""
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
        return [len(ids) + 1 for ids in found]
