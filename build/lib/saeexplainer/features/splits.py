"""Which features are explained, and in which split each is."""

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer.config import ExtractActivations
from saeexplainer.errors import UserError
from saeexplainer.features.statistics import FeatureStatistics
from saeexplainer.records import FeatureId, FeatureRow
from saeexplainer.runs.seeds import stage_seed


def live_features(statistics: FeatureStatistics, config: ExtractActivations) -> list[int]:
    """Latents whose density lies within the configured limits."""
    density = statistics.fired / max(statistics.tokens, 1)
    live = (density >= config.min_density) & (density <= config.max_density) & (statistics.maximum > 0)
    return live.nonzero().flatten().tolist()


def split_features(
    live: dict[str, list[int]],
    decoders: dict[str, Float[Tensor, "d_sae d_model"]],
    config: ExtractActivations,
    seed: int,
) -> dict[tuple[str, int], str]:
    """The split of every live feature. Valid and test come from the first SAE; what is too like one of them is a twin,
    and what is beyond max_features is spare.

    Raises UserError if the first SAE has fewer live features than valid and test need.
    """
    main = next(iter(live))
    needed = config.valid_features + config.test_features
    if len(live[main]) <= needed:
        raise UserError(
            f"extract_activations.test_features: valid and test need {needed} features, but the SAE {main} has "
            f"{len(live[main])} live ones; lower valid_features or test_features, or train a wider SAE"
        )
    generator = torch.Generator().manual_seed(stage_seed(seed, "split_features"))
    order = [live[main][at] for at in torch.randperm(len(live[main]), generator=generator).tolist()]
    held = order[:needed]
    splits = {(main, index): "test" if at < config.test_features else "valid" for at, index in enumerate(held)}
    held_rows = torch.nn.functional.normalize(decoders[main][held], dim=1)
    for sae, indices in live.items():
        training = [index for index in indices if (sae, index) not in splits]
        rows = torch.nn.functional.normalize(decoders[sae][training], dim=1)
        twin = (rows @ held_rows.T).max(dim=1).values >= config.twin_cosine
        chance = torch.rand(len(training), generator=generator)
        for at, index in enumerate(training):
            name = "sft" if chance[at] < config.sft_share else "dpo"
            splits[sae, index] = "twin" if twin[at] else name
    training = [feature for feature, name in splits.items() if name in ("sft", "dpo")]
    if config.max_features is not None and len(training) > config.max_features:
        order = torch.randperm(len(training), generator=generator).tolist()
        splits |= {training[at]: "spare" for at in order[config.max_features :]}
    return splits


def feature_rows(
    statistics: dict[str, FeatureStatistics], splits: dict[tuple[str, int], str], subject: str
) -> list[FeatureRow]:
    """One row a live feature, by SAE and index; its id names the subject, the SAE and the latent."""
    rows = []
    for (sae, index), split in sorted(splits.items()):
        stats = statistics[sae]
        rows.append(
            FeatureRow(
                feature_id=str(FeatureId(subject, sae, index)),
                sae=sae,
                index=index,
                split=split,
                maximum=float(stats.maximum[index]),
                density=float(stats.fired[index]) / stats.tokens,
            )  # fmt: skip
        )
    return rows
