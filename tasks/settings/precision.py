"""In which precision this processor multiplies faster, as overrides for an experiment on a pretrained model.

    python -m tasks.settings.precision

bfloat16 is no property of a processor alone: of two that have instructions for it, one multiplies 2.3 times as fast as
in float32, the other .6 times (docs/LOG.md). So it is measured, in half a second, on a product as a small model has it.
"""

import time
from typing import TYPE_CHECKING

from tasks.workspace import surroundings

if TYPE_CHECKING:
    import torch

ROWS, IN, OUT = 1024, 576, 1536  # 1,024 tokens through one matrix of a model of SmolLM2's width
TIMES = 12  # of which the quickest counts
MARGIN = 1.2  # by so much bfloat16 must be faster: it costs digits

FLOAT32 = "prepare_subject.pretrained.dtype=float32 explainer.bf16=false"
BFLOAT16 = "prepare_subject.pretrained.dtype=bfloat16 explainer.bf16=true"


def overrides() -> str:
    """Of `sae-explainer compose`, on this machine."""
    import torch

    return BFLOAT16 if seconds(torch.bfloat16) * MARGIN < seconds(torch.float32) else FLOAT32


def seconds(dtype: "torch.dtype") -> float:
    """That one product takes, when it is quickest."""
    import torch
    from torch.nn.functional import linear

    rows, weight = torch.ones(ROWS, IN, dtype=dtype), torch.ones(OUT, IN, dtype=dtype)
    taken = []
    for _ in range(TIMES):
        start = time.perf_counter()
        linear(rows, weight)
        taken.append(time.perf_counter() - start)
    return min(taken)


if __name__ == "__main__":
    surroundings.settle()
    print(overrides())
