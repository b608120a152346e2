"""Sparse autoencoders: trained and stored by sae-lens, read back by sae-lens.

Raises its own errors only where the SAE and the subject do not fit each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from saeexplainer.config import PrepareSae, SaeSpec
from saeexplainer.errors import UserError
from saeexplainer.models import by_length, encode_batch, read_residual, transformer_blocks
from saeexplainer.storage import read_json, write_json

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class SaeReport:
    """How well one SAE stands in for the residual stream, on held-out documents."""

    fraction_variance_unexplained: float  # squared error over variance
    l0: float  # active latents a token
    dead_features: int  # latents that never fired there
    cross_entropy_recovered: (
        float  # (zero - spliced) / (zero - clean), losses with residual zeroed, replaced, untouched
    )


def residuals(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", texts: list[str], block: int, context_length: int
) -> Iterator[Float[Tensor, "valid_tokens d_model"]]:
    """Residuals of the valid tokens, batch by batch, in an order that depends on the texts alone."""
    batches = list(by_length([len(text) for text in texts], 128))
    for indices in tqdm(batches, desc="residual stream"):
        ids, mask, valid = encode_batch(tokenizer, [texts[index] for index in indices], context_length)
        yield read_residual(model, block, ids, mask)[valid]


def train_and_save(
    activations: Float[Tensor, "samples d_model"], config: PrepareSae, spec: SaeSpec, seed: int, folder: Path
) -> None:
    """Train one TopK SAE on shuffled activations with sae-lens' trainer; save its inference form in `folder`.

    Raises UserError if there are fewer activations than one batch takes.
    """
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    if len(activations) < config.batch_tokens:
        raise UserError(
            f"prepare_sae.batch_tokens: {config.batch_tokens}, but the documents have {len(activations)} tokens; lower it "
            "or raise prepare_sae.documents"
        )
    shape = TopKTrainingSAEConfig(
        d_in=activations.shape[1], d_sae=spec.d_sae, k=spec.k, normalize_activations="expected_average_only_in",
        metadata=SAEMetadata(model_name="subject", hook_name=f"blocks.{config.hook_block}.hook_resid_post"),
    )  # fmt: skip
    settings = SAETrainerConfig(
        total_training_samples=config.steps * config.batch_tokens, train_batch_size_samples=config.batch_tokens,
        lr=config.learning_rate, lr_end=config.learning_rate / 10, lr_decay_steps=config.steps // 5, dead_feature_window=200,
        n_batches_for_norm_estimate=20, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    provider = _batches(activations, config.batch_tokens, seed)
    _, settings_file = SAETrainer(settings, TopKTrainingSAE(shape), provider).fit().save_inference_model(folder)
    # sae-lens writes the keys in an order that changes from process to process; equal SAEs should be equal files.
    write_json(settings_file, read_json(settings_file))


def _batches(activations: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            yield activations[order[start : start + size]]


def load(folder: Path, d_model: int) -> "SAE":
    """Load an SAE from disk. Raises UserError if it is missing or of another width than the subject."""
    from sae_lens import SAE

    if not (folder / "cfg.json").is_file():
        raise UserError(f"{folder}: not an SAE folder (no cfg.json); name one that sae-lens saved")
    sae = SAE.load_from_disk(folder, device="cpu")
    if sae.cfg.d_in != d_model:
        raise UserError(f"{folder}: d_in is {sae.cfg.d_in}, the subject's width {d_model}; choose an SAE for it")
    return sae.eval()


@dataclass
class _Sums:
    """What is added up for one SAE, over valid tokens."""

    fired: Bool[Tensor, "d_sae"]
    error: float = 0.0
    active: float = 0.0
    spliced: float = 0.0  # loss times tokens


@torch.no_grad()
def evaluate(
    saes: "dict[str, SAE]", model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", texts: list[str], block: int,
    context_length: int,
) -> dict[str, SaeReport]:  # fmt: skip
    """Measure each SAE on texts it was not trained on; special tokens are neither counted nor replaced."""
    sums = {name: _Sums(torch.zeros(sae.cfg.d_sae, dtype=torch.bool)) for name, sae in saes.items()}
    samples, clean, zero = [], 0.0, 0.0
    for indices in by_length([len(text) for text in texts], 64):
        ids, mask, valid = encode_batch(tokenizer, [texts[index] for index in indices], context_length)
        residual = read_residual(model, block, ids, mask)[valid]
        samples.append(residual)
        loss = partial(_loss_with, model, block, ids, mask, valid)
        clean += loss(None) * len(residual)
        zero += loss(torch.zeros_like(residual)) * len(residual)
        for name, sae in saes.items():
            codes = sae.encode(residual)
            rebuilt = sae.decode(codes)
            sums[name].error += float((rebuilt - residual).square().sum())
            sums[name].active += float((codes > 0).sum())
            sums[name].fired |= (codes > 0).any(dim=0)
            sums[name].spliced += loss(rebuilt) * len(residual)
    everything = torch.cat(samples)
    variance = float((everything - everything.mean(dim=0)).square().sum())
    return {
        name: SaeReport(
            fraction_variance_unexplained=found.error / variance,
            l0=found.active / len(everything),
            dead_features=int((~found.fired).sum()),
            cross_entropy_recovered=(zero - found.spliced) / (zero - clean),
        )
        for name, found in sums.items()
    }


def _loss_with(
    model: "PreTrainedModel", block: int, ids: Tensor, mask: Tensor, valid: Tensor, value: Tensor | None
) -> float:
    """The model's loss with the residual of valid tokens replaced by `value` (None: untouched)."""
    handles = []
    if value is not None:

        def replace(_module: object, _inputs: object, output: object) -> object:
            residual = (output[0] if isinstance(output, tuple) else output).clone()
            residual[valid] = value
            return (residual, *output[1:]) if isinstance(output, tuple) else residual

        handles.append(transformer_blocks(model)[block].register_forward_hook(replace))
    try:
        return float(model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss)
    finally:
        for handle in handles:
            handle.remove()
