"""The features that explainers are asked about, in the order of their table."""

from functools import cached_property
from pathlib import Path

from torch import Tensor

from saeexplainer.config.explainers import ExplainerPrompt, shows_any
from saeexplainer.features.contexts import at_equal_steps, line_of, listed, promotes
from saeexplainer.records import ContextRow, FeatureRow, PromotedRow, by_feature
from saeexplainer.runs.storage import read_rows, read_tensors


class FeatureTable:
    """What lies in data/activations about each feature. A feature's number is its row here, and with it the place of
    its token among those of an explainer (`saeexplainer.explainer.feature_tokens`). Files are read when they are asked
    for; each property raises UserError if its file is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def rows(self) -> list[FeatureRow]:
        """Row n is feature number n."""
        return read_rows(self.folder / "features.parquet", FeatureRow)

    @cached_property
    def number(self) -> dict[str, int]:
        """By the feature's id."""
        return {row.feature_id: at for at, row in enumerate(self.rows)}

    @cached_property
    def vectors(self) -> dict[str, Tensor]:
        """The vectors that a token may carry, [features, d_model] each by the names of `config.Direction`, and the mean
        residual of the corpus, corpus_mean [d_model]."""
        return read_tensors(self.folder / "directions.safetensors")

    def contexts(self, prompt: ExplainerPrompt) -> list[str]:
        """What the prompt shows beside each feature's vector, as `evidence` has it. The list is empty if it shows
        nothing."""
        if not shows_any(prompt):
            return []
        return self.evidence(prompt.shown_contexts, prompt.shown_promoted, prompt.shown_spread)

    def evidence(self, contexts: int, promoted: int, spread: int = 0) -> list[str]:
        """Lines about each feature: so many of its strongest contexts, the strongest token between << and >>, then of
        those that are spread over all in which it fires, and one with so many of the tokens that it promotes."""
        lines: dict[str, list[str]] = {row.feature_id: [] for row in self.rows}
        if contexts:
            rows = read_rows(self.folder / "contexts.parquet", ContextRow, filters=[("rank", "<", contexts)])
            for feature_id, shown in listed(rows, contexts).items():
                lines[feature_id].append(shown)
        if spread:
            for feature_id, rows in by_feature(read_rows(self.folder / "spread.parquet", ContextRow)).items():
                lines[feature_id] += map(line_of, at_equal_steps(rows, spread))
        if promoted:
            for row in read_rows(self.folder / "promoted.parquet", PromotedRow):
                lines[row.feature_id].append(promotes(row.tokens[:promoted]))
        return ["\n".join(shown) for shown in lines.values()]
