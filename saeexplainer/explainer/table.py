"""The features that explainers are asked about, in the order of their table."""

from functools import cached_property
from pathlib import Path

from torch import Tensor

from saeexplainer.config import ExplainerPrompt
from saeexplainer.features.contexts import listed
from saeexplainer.records import ContextRow, FeatureRow
from saeexplainer.runs.storage import read_rows, read_tensors


class FeatureTable:
    """What lies in data/activations about each feature. A feature's number is its row here, and with it the place of its
    tokens among those of an explainer (`saeexplainer.explainer.feature_tokens`)."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if the folder holds no table of features."""
        self.folder = folder
        self.rows = read_rows(folder / "features.parquet", FeatureRow)
        self.number = {row.feature_id: at for at, row in enumerate(self.rows)}  # by the feature's id

    @cached_property
    def vectors(self) -> dict[str, Tensor]:
        """The vectors that a token may carry, [features, d_model] each by the names of `explainer.PARTS`, and the mean
        residual of the corpus, corpus_mean [d_model]. Raises UserError if they are not there."""
        return read_tensors(self.folder / "directions.safetensors")

    def contexts(self, prompt: ExplainerPrompt) -> list[str]:
        """What stands for {contexts} in the prompt of each feature: a line for each of its strongest contexts, the
        strongest token between << and >>. The list is empty if the prompt shows none."""
        if not prompt.shown_contexts:
            return []
        lines = listed(read_rows(self.folder / "contexts.parquet", ContextRow), prompt.shown_contexts)
        return [lines.get(row.feature_id, "") for row in self.rows]
