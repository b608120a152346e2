"""SAEExplainer: close the loop between a sentence about an SAE feature and the activations it causes.

    import saeexplainer

    explainer = saeexplainer.load_explainer("served")
    print(saeexplainer.explain_feature(explainer, 27).explanation)

docs/LIBRARY.md shows all of it. A name is imported when it is first used, so that this package alone costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saeexplainer.errors import UserError
    from saeexplainer.evaluation import metrics
    from saeexplainer.exchange.files import read_records, write_records
    from saeexplainer.features.measuring import Feature
    from saeexplainer.library.champion import load_champion
    from saeexplainer.library.explaining import explain_feature, explain_vector, load_explainer
    from saeexplainer.library.scoring import feature_record, score_explanation, subject_writer
    from saeexplainer.library.subjects import measure_features, open_subject
    from saeexplainer.preferences.rewards import reward

__all__ = [
    "Feature",
    "UserError",
    "explain_feature",
    "explain_vector",
    "feature_record",
    "load_champion",
    "load_explainer",
    "measure_features",
    "metrics",
    "open_subject",
    "read_records",
    "reward",
    "score_explanation",
    "subject_writer",
    "write_records",
]
_HOMES = {
    "saeexplainer.errors": ("UserError",),
    "saeexplainer.exchange.files": ("read_records", "write_records"),
    "saeexplainer.features.measuring": ("Feature",),
    "saeexplainer.library.champion": ("load_champion",),
    "saeexplainer.library.explaining": ("explain_feature", "explain_vector", "load_explainer"),
    "saeexplainer.library.scoring": ("feature_record", "score_explanation", "subject_writer"),
    "saeexplainer.library.subjects": ("measure_features", "open_subject"),
    "saeexplainer.preferences.rewards": ("reward",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "metrics":
        found: Any = import_module("saeexplainer.evaluation.metrics")
    elif name in _HOME:
        found = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'saeexplainer' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
