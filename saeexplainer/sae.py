"""Sparse autoencoders: trained and stored by sae-lens, read back by sae-lens, from disk or from a release.

Raises its own errors only where an SAE cannot be read or does not fit the subject. BatchTopK and Matryoshka SAEs are
stored by sae-lens as JumpReLU, their inference form, and read as that.
"""

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saeexplainer.config import PrepareSae, SaeSpec
from saeexplainer.errors import UserError, first_line
from saeexplainer.models import UNREADABLE, fitting
from saeexplainer.sites import Place, Site, parse_site
from saeexplainer.storage import read_json, write_json

if TYPE_CHECKING:
    from sae_lens import SAE

    from saeexplainer.reading import ReadBatch, Reader

# Those that encode each token by itself, to values from zero up. Transcoders write elsewhere than they read, temporal
# SAEs read a token's past, and AbsTopK has negative values.
ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", "matching_pursuit")


@dataclass(frozen=True)
class SaeReport:
    """How well one SAE stands in for what it reads, on held-out documents."""

    fraction_variance_unexplained: float  # squared error over variance
    l0: float  # active latents a token
    dead_features: int  # latents that never fired there
    cross_entropy_recovered: (
        float  # (zero - spliced) / (zero - clean), losses with activations zeroed, replaced, untouched
    )


def train_and_save(
    activations: Float[Tensor, "samples d_model"], config: PrepareSae, spec: SaeSpec, seed: int, folder: Path
) -> None:
    """Train one TopK SAE on shuffled activations with sae-lens' trainer; save its inference form in `folder`.

    Raises UserError if there are fewer activations than one batch takes.
    """
    assert spec.k is not None  # `tasks.params` holds that
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
        metadata=SAEMetadata(model_name="subject", hook_name=str(trained_site(config))),
    )  # fmt: skip
    settings = SAETrainerConfig(
        total_training_samples=config.steps * config.batch_tokens, train_batch_size_samples=config.batch_tokens,
        lr=config.learning_rate, lr_end=config.learning_rate / 10, lr_decay_steps=config.steps // 5, dead_feature_window=200,
        n_batches_for_norm_estimate=20, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    provider = _batches(activations, config.batch_tokens, seed)
    _, settings_file = SAETrainer(settings, TopKTrainingSAE(shape), provider).fit().save_inference_model(folder)
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


def stored_site(folder: Path) -> Site:
    """The site that a stored SAE reads, from its settings alone. Raises UserError if there is none."""
    stored = read_json(folder / "cfg.json")
    metadata = stored.get("metadata") if isinstance(stored, dict) else None
    name = metadata.get("hook_name") if isinstance(metadata, dict) else None
    if not isinstance(name, str):
        raise UserError(f"{folder}: its cfg.json names no hook_name in its metadata; run `dvc repro` to make it")
    return parse_site(name)


def _batches(activations: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            yield activations[order[start : start + size]]


def load(
    source: Path | str,
    d_model: int,
    *,
    sae_id: str | None = None,
    device: str = "cpu",
    norm_scaling_factor: float | None = None,
) -> "SAE":
    """Load an SAE from a folder or, given its id, from a release that sae-lens knows (or a hub repository of its form).

    What its training did to activations first is folded into its weights, so that `encode` takes them as the model has
    them: a scale, and TransformerLens' centring. norm_scaling_factor: that scale (sqrt(d_in) over the mean norm), where
    the SAE asks for one and its release has none. Raises UserError if there is no such SAE, if it is of another width
    than the subject (d_model), or of a kind that does not read one place token by token.
    """
    from safetensors import SafetensorError

    if sae_id is None and not Path(source, "cfg.json").is_file():
        advice = "name one that sae-lens saved, or for a release give sae_id"
        raise UserError(f"{source}: not an SAE folder (no cfg.json); {advice}")
    try:
        with warnings.catch_warnings():
            # Both are dealt with below.
            warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty model_from_pretrained_kwargs")
            warnings.filterwarnings("ignore", message="norm_scaling_factor not found")
            sae = _read(source, sae_id, device)
    except KeyError as error:
        raise UserError(f"{source}: sae-lens reads no SAE of that kind ({error}); save its inference form") from None
    except (*UNREADABLE, AssertionError, SafetensorError) as error:
        advice = "check its name, and the connection"
        raise UserError(f"{source}: no SAE {sae_id or ''} that sae-lens reads ({first_line(error)}); {advice}") from None
    _check(sae, source, d_model)
    _fold(sae, source, norm_scaling_factor)
    return sae.eval()


def _read(source: Path | str, sae_id: str | None, device: str) -> "SAE":
    from sae_lens import SAE

    if sae_id is None:
        return SAE.load_from_disk(source, device=device, dtype="float32")
    return SAE.from_pretrained(str(source), sae_id, device=device, dtype="float32")


def _check(sae: "SAE", source: Path | str, d_model: int) -> None:
    """Raise UserError if the SAE cannot be read on this subject."""
    architecture = sae.cfg.architecture()
    if architecture not in ARCHITECTURES:
        raise UserError(f"{source}: {architecture} SAEs are not read; choose one of {', '.join(ARCHITECTURES)}")
    if sae.cfg.reshape_activations != "none":
        raise UserError(
            f"{source}: reads {sae.cfg.metadata.hook_name}, the heads before their output matrix, where no decoder row "
            "is a direction of the residual stream; choose an SAE on resid_pre, attn_out, mlp_out or resid_post"
        )
    if sae.cfg.d_in != d_model:
        raise UserError(f"{source}: d_in is {sae.cfg.d_in}, the subject's width {d_model}; choose an SAE for it")


def _fold(sae: "SAE", source: Path | str, norm_scaling_factor: float | None) -> None:
    """Fold into the weights what was done to activations before the SAE saw them; UserError if that is not known."""
    if sae.cfg.normalize_activations == "covariance_whitening":
        raise UserError(f"{source}: its whitening is not folded in; save it with sae-lens' save_inference_model")
    if sae.cfg.normalize_activations == "expected_average_only_in":
        if norm_scaling_factor is None:
            raise UserError(
                f"{source}: it reads activations times a scale that it does not hold; give norm_scaling_factor, "
                "sqrt(d_in) over their mean norm in its training"
            )
        sae.fold_activation_norm_scaling_factor(norm_scaling_factor)
    if (sae.cfg.metadata.model_from_pretrained_kwargs or {}).get("center_writing_weights"):
        for other in (sae.cfg.architecture(), sae.cfg.normalize_activations):
            if other in ("matching_pursuit", "constant_norm_rescale"):  # no affine map of the input before the centring
                raise UserError(f"{source}: center_writing_weights with {other} is not read; choose another SAE")
        _fold_centring(sae)


@torch.no_grad()
def _fold_centring(sae: "SAE") -> None:
    """Make `encode` centre its input, as TransformerLens' center_writing_weights centres all that a model writes.

    With C = I - 11'/d, (xC - b) W = (x - b) CW + b(CW - W). The reconstruction stays that of the centred activation,
    which every LayerNorm reads as it reads the activation itself.
    """
    moved = -sae.W_enc.mean(dim=0, keepdim=True).expand_as(sae.W_enc)
    if sae.cfg.apply_b_dec_to_input:
        shift = sae.b_dec @ moved
        if sae.cfg.architecture() == "gated":
            sae.b_gate += shift
            sae.b_mag += shift * sae.r_mag.exp()
        else:
            sae.b_enc += shift
    sae.W_enc += moved
    # Folded once: a copy that is saved and loaded again is left as it is.
    kwargs = sae.cfg.metadata.model_from_pretrained_kwargs
    sae.cfg.metadata.model_from_pretrained_kwargs = {**kwargs, "center_writing_weights": False}


@dataclass
class _Sums:
    """What is added up for one SAE, over valid tokens."""

    fired: Bool[Tensor, "d_sae"]
    error: float = 0.0
    active: float = 0.0
    spliced: float = 0.0  # loss times tokens


@torch.no_grad()
def evaluate(reader: "Reader", texts: list[str]) -> dict[str, SaeReport]:
    """Measure each SAE of the reader on texts it was not trained on; special tokens are neither counted nor replaced.

    Keeps all activations of the texts on the CPU; logits and codes of one batch stay within a few times `models.ROOM`.
    """
    sums = {
        name: _Sums(torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=reader.device))
        for name, sae in reader.saes.items()
    }
    from tqdm.auto import tqdm

    samples, clean, zero = [], 0.0, 0.0
    widest = max(reader.model.config.vocab_size, *(sae.cfg.d_sae for sae in reader.saes.values()))
    batches = reader.batches(texts, fitting(64, reader.context_length * widest))
    for indices in tqdm(batches, desc="how well the SAEs fit"):  # each batch runs the whole model three times or more
        batch = reader.read([texts[index] for index in indices])
        found = batch.of_valid
        samples.append(found.cpu())
        clean += _loss_with(reader, batch, None) * len(found)
        zero += _loss_with(reader, batch, torch.zeros_like(found)) * len(found)
        for name, sae in reader.saes.items():
            codes = sae.encode(found)
            rebuilt = sae.decode(codes)
            sums[name].error += float((rebuilt - found).square().sum())
            sums[name].active += float((codes > 0).sum())
            sums[name].fired |= (codes > 0).any(dim=0)
            sums[name].spliced += _loss_with(reader, batch, rebuilt) * len(found)
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


def _loss_with(reader: "Reader", batch: "ReadBatch", value: Tensor | None) -> float:
    """The model's loss with what valid tokens have at the site replaced by `value` (None: untouched)."""

    def replace(there: Tensor) -> Tensor:
        changed = there.clone()
        changed[batch.valid.to(there.device)] = value.to(there)
        return changed

    ids, mask = batch.ids.to(reader.device), batch.mask.to(reader.device)
    with nullcontext() if value is None else reader.site.changed(replace):
        return float(reader.model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss)
