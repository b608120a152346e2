"""Training SAEs with sae-lens, and keeping them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer.config import PrepareSae
from saeexplainer.config.saes import TrainedSae
from saeexplainer.errors import UserError
from saeexplainer.runs.storage import read_json, write_json
from saeexplainer.saes.sites import Place, Site
from saeexplainer.saes.variants.opening import training_sae

if TYPE_CHECKING:
    from sae_lens import SAE


def train_and_save(
    activations: Float[Tensor, "samples d_model"], config: PrepareSae, spec: TrainedSae, seed: int, folder: Path
) -> None:
    """Train one SAE on shuffled activations with sae-lens' trainer; save its inference form in `folder`.

    Raises UserError if there are fewer activations than one batch takes.
    """
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    if len(activations) < config.batch_tokens:
        raise UserError(
            f"prepare_sae.batch_tokens: {config.batch_tokens}, but the documents have {len(activations)} tokens; lower "
            "it or raise prepare_sae.documents"
        )
    new = training_sae(
        config.architecture, steps=config.steps, d_in=activations.shape[1], d_sae=spec.d_sae,
        normalize_activations="expected_average_only_in",
        metadata=SAEMetadata(model_name="subject", hook_name=str(trained_site(config))),
    )  # fmt: skip
    settings = SAETrainerConfig(
        total_training_samples=config.steps * config.batch_tokens, train_batch_size_samples=config.batch_tokens,
        lr=config.learning_rate, lr_end=config.learning_rate / 10, lr_decay_steps=config.steps // 5,
        dead_feature_window=200, n_batches_for_norm_estimate=20, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    provider = _batches(activations, config.batch_tokens, seed)
    _, settings_file = SAETrainer(settings, new, provider).fit().save_inference_model(folder)
    _sort_keys(settings_file)


def trained_site(config: PrepareSae) -> Site:
    """What the SAEs read that are trained here."""
    return Site(config.hook_block, Place.resid_post)


def save(sae: "SAE", site: Site, folder: Path) -> None:
    """Store an SAE as `load` reads it: what was folded into its weights is no longer asked for, and where it reads goes
    by the name of a hook, whatever its training called it."""
    metadata = sae.cfg.metadata
    if metadata.hook_name != str(site):
        metadata.hook_name, metadata.model_class_name = str(site), "HookedTransformer"  # the class that has such hooks
    _, settings_file = sae.save_model(folder)
    _sort_keys(settings_file)


def _sort_keys(settings_file: Path | str) -> None:
    """sae-lens writes keys in an order that changes from process to process; equal SAEs should be equal files."""
    write_json(Path(settings_file), read_json(Path(settings_file)))


def _batches(activations: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            yield activations[order[start : start + size]]
