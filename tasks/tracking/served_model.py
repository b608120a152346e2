"""What MLflow runs when a registered explainer is loaded or served: a copy of this file goes into every version.

MLflow calls this "models from code"; no Python object is pickled, weights are safetensors. One row in, one row out: a
row gives `feature_id` (subject/sae/index, or a latent's number as text), or `index` (a latent), or the vectors that the
explainer reads, each in the column of its kind. A row that cannot be answered says why in the column `error`.
"""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from saeexplainer.errors import UserError
from saeexplainer.serving import QUESTIONS, Reply, ServedExplainer


class ServedModel(PythonModel):
    """`saeexplainer.serving.ServedExplainer` behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        """Load the folder that was stored with the version."""
        self.explainer = ServedExplainer(Path(context.artifacts["served"]))

    # This hint of all MLflow takes without a warning and without making a signature of it.
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """The fields of `Reply`, a row for each row asked. Raises UserError if no column of the table is known."""
        if not set(QUESTIONS) & set(model_input.columns):  # MLflow has taken unknown columns out, and their rows
            raise UserError(f"columns: none that is known; give feature_id, index, or {self.explainer.kind}")
        rows = [
            {name: value for name, value in row.items() if pd.api.types.is_list_like(value) or pd.notna(value)}
            for row in model_input.to_dict("records")
        ]
        replies = [asdict(reply) for reply in self.explainer.reply(rows)]
        # As objects: pandas would make NaN of what a row lacks, and that is not JSON.
        table = pd.DataFrame(replies, columns=[field.name for field in fields(Reply)], dtype=object)
        return table.astype({"expected_accuracy": float}) if table["error"].isna().all() else table


set_model(ServedModel())
