"""Every stage seeds itself, so that skipping one never changes the next."""

import hashlib
import os


def stage_seed(seed: int, stage: str) -> int:
    """A seed of its own for a named stage of a run, stable across processes and machines; below 2**31."""
    digest = hashlib.sha256(f"{seed}/{stage}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 2**31


def seed_torch(seed: int, stage: str) -> int:
    """Seed every generator a library may draw from and ask for deterministic kernels; returns the stage's seed.

    Thread count is part of a result's last digits: it is fixed by the machine unless OMP_NUM_THREADS says otherwise.
    Where there is a GPU, operations without such a kernel only warn: the cumulative sum of nucleus sampling is one.
    """
    import torch
    from accelerate.utils import set_seed  # transformers' own imports every adapter method

    value = stage_seed(seed, stage)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # Else every torch.empty is filled with NaN, a third of the time of TRL's log-probabilities on a small model.
    torch.utils.deterministic.fill_uninitialized_memory = False  # ty: ignore[missing-attribute] (a module's property)
    set_seed(value)
    return value
