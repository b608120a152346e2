"""From the settings of an architecture to a training SAE of sae-lens, whose saved folder any sae-lens loads.

An architecture that sae-lens lacks is one more file here, a subclass of a training SAE of sae-lens, with one class in
`saeexplainer.config.saes`, one line below and one file of conf/sae/.
"""

from typing import TYPE_CHECKING, Any

from saeexplainer.config.saes import (
    ArchitectureOfSae,
    BatchTopK,
    Gated,
    JumpRelu,
    Matryoshka,
    Meta,
    Ordered,
    PAnneal,
    Standard,
    TopK,
)

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

WARM_UP = 0.1  # share of the steps in which a penalty's coefficient rises from 0


def training_sae(architecture: ArchitectureOfSae, *, steps: int, **shape: Any) -> "TrainingSAE":
    """A new SAE to train for `steps`; `shape` is what every config of sae-lens has (d_in, d_sae, ...). Its weights are
    drawn from torch's generator."""
    import sae_lens as lens

    warm_up = round(WARM_UP * steps)
    match architecture:
        case TopK(k=k):
            return lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(**shape, k=k))
        case BatchTopK(k=k):
            return lens.BatchTopKTrainingSAE(lens.BatchTopKTrainingSAEConfig(**shape, k=float(k)))
        case Matryoshka(k=k, shares=shares):
            widths = [*(round(share * shape["d_sae"]) for share in shares), shape["d_sae"]]
            return lens.MatryoshkaBatchTopKTrainingSAE(
                lens.MatryoshkaBatchTopKTrainingSAEConfig(**shape, k=float(k), matryoshka_widths=widths)
            )
        case Standard(coefficient=coefficient):
            return lens.StandardTrainingSAE(
                lens.StandardTrainingSAEConfig(**shape, l1_coefficient=coefficient, l1_warm_up_steps=warm_up)
            )
        case JumpRelu(coefficient=coefficient, threshold=threshold, bandwidth=bandwidth):
            return lens.JumpReLUTrainingSAE(
                lens.JumpReLUTrainingSAEConfig(
                    **shape, l0_coefficient=coefficient, l0_warm_up_steps=warm_up, jumprelu_init_threshold=threshold,
                    jumprelu_bandwidth=bandwidth,
                )
            )  # fmt: skip
        case Gated():
            from saeexplainer.saes.variants import gated

            return gated.new(architecture, warm_up, shape)
        case PAnneal():
            from saeexplainer.saes.variants import p_anneal

            return p_anneal.new(architecture, steps, warm_up, shape)
        case Ordered():
            from saeexplainer.saes.variants import ordered

            return ordered.new(architecture, steps, shape)
        case Meta():
            from saeexplainer.saes.variants import meta

            return meta.new(architecture, shape)
