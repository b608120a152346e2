"""Asking an explainer that stands alone (`saeexplainer.serving`) about features and vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saeexplainer.errors import UserError
from saeexplainer.features.contexts import listed
from saeexplainer.features.measuring import Feature
from saeexplainer.serving import Explained, ServedExplainer

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def load_explainer(folder: Path | str) -> ServedExplainer:
    """An explainer from a folder that stands alone: `served` of a registered version, or what `serving.write_served`
    wrote. It is loaded onto the CPU unless its own settings say otherwise, and answers from several threads in turn.

    Raises UserError, one line, if something is missing in the folder or was written by another version of the library.
    """
    return ServedExplainer(Path(folder))


def explain_feature(explainer: ServedExplainer, feature: Feature | int | str) -> Explained:
    """What a feature encodes: the explainer's greedy sentence, and the generative accuracy (0 to 1) to expect of it.

    feature: the number of a latent or an id (subject/sae/index) that the explainer knows; or a `Feature` of any SAE
        whose vectors are as wide as the explainer reads, as `measure_features` gives it.

    Raises UserError if the explainer does not know the feature, or reads what it does not have.
    """
    if not isinstance(feature, Feature):
        return explainer.explain([feature])[0]
    if explainer.kind not in feature.vectors:
        why = "it fires on none of the texts" if feature.maximum == 0 else "it was made without"
        raise UserError(
            f"{feature.feature_id}: has no {explainer.kind} vector, {why}; measure it on texts where it fires"
        )
    shown = listed(feature.contexts, explainer.shown_contexts).get(feature.feature_id, "")
    found = explainer.explain_vector(feature.vectors[explainer.kind], shown)
    return Explained(feature.feature_id, found.explanation, found.expected_accuracy)


def explain_vector(explainer: ServedExplainer, vector: "Sequence[float] | Tensor | np.ndarray") -> Explained:
    """What a raw vector of the residual stream encodes; the answer's feature_id is empty.

    vector: `explainer.width` finite numbers, not all of them 0; its length does not matter, its direction does. It is
        taken for the kind of vector that the explainer reads (`explainer.kind`: decoder or mean_activation).

    Raises UserError if the vector is of another width or kind, or if the explainer's prompt needs contexts too.
    """
    return explainer.explain_vector(vector)
