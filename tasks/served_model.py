"""What MLflow runs when a registered explainer is loaded or served: a copy of this file goes into every version.

MLflow calls this "models from code"; no Python object is pickled, weights are safetensors. One row in, one row out: a
row gives `feature_id` (subject/sae/index, or a latent's number as text), or `index` (a latent), or the vectors that the
explainer reads, each in a column of its name.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from saeexplainer.errors import UserError
from saeexplainer.serving import Explained, ServedExplainer


class ServedModel(PythonModel):
    """`saeexplainer.serving.ServedExplainer` behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        """Load the folder that was stored with the version."""
        self.explainer = ServedExplainer(Path(context.artifacts["served"]))

    # This hint of all MLflow takes without a warning and without making a signature of it.
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A table of feature_id, explanation and expected_reward. Raises UserError if a row names nothing known."""
        answers = self._answers(model_input)
        return pd.DataFrame(answers, columns=["feature_id", "explanation", "expected_reward"])

    def _answers(self, table: pd.DataFrame) -> list[Explained]:
        given = [name for name in table.columns if table[name].notna().all()]
        for name in ("feature_id", "index"):
            if name in given:
                return self.explainer.explain(table[name].tolist())
        parts = self.explainer.parts
        if set(parts) <= set(given):
            return self.explainer.explain_vectors({name: [list(row) for row in table[name]] for name in parts})
        wanted = f"feature_id, index, or {' and '.join(parts)}"
        raise UserError(f"columns: found {', '.join(given) or 'none'} filled in every row; give {wanted}")


set_model(ServedModel())
