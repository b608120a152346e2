"""Sparse autoencoders: trained and stored by sae-lens, read back by sae-lens, from disk or from a release.

Raises its own errors only where an SAE cannot be read or does not fit the subject. BatchTopK and Matryoshka SAEs are
stored by sae-lens as JumpReLU, their inference form, and read as that.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from saeexplainer.errors import UserError, first_line
from saeexplainer.models.loading import UNREADABLE
from saeexplainer.runs.storage import read_json, write_json
from saeexplainer.saes.sites import Site, parse_site

if TYPE_CHECKING:
    from sae_lens import SAE


# Those that encode each token by itself, to values from zero up. Transcoders write elsewhere than they read, temporal
# SAEs read a token's past, and AbsTopK has negative values.
ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", "matching_pursuit")


def stored_site(folder: Path) -> Site:
    """The site that a stored SAE reads, from its settings alone. Raises UserError if there is none."""
    stored = read_json(folder / "cfg.json")
    return _named(
        stored.get("metadata") if isinstance(stored, dict) else None, f"{folder}: the metadata in its cfg.json"
    )


def read_site(path: Path) -> Site:
    """The site that `write_site` wrote. Raises UserError if there is none."""
    return _named(read_json(path), str(path))


def write_site(path: Path, site: Site) -> None:
    """Keep the site apart from the SAEs, for what depends on it and on none of them."""
    write_json(path, {"hook_name": str(site)})


def _named(found: Any, where: str) -> Site:
    name = found.get("hook_name") if isinstance(found, dict) else None
    if not isinstance(name, str):
        raise UserError(f"{where}: names no hook_name; run `dvc repro` to make it")
    return parse_site(name)


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
        _check(sae, source, d_model)
        _fold(sae, source, norm_scaling_factor)
    except KeyError as error:
        raise UserError(f"{source}: sae-lens reads no SAE of that kind ({error}); save its inference form") from None
    except (*UNREADABLE, AssertionError, SafetensorError) as error:
        advice = "check its name, and the connection"
        raise UserError(
            f"{source}: no SAE {sae_id or ''} that sae-lens reads ({first_line(error)}); {advice}"
        ) from None
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
    if architecture == "topk" and (k := cast("Any", sae.cfg).k) not in range(1, sae.cfg.d_sae + 1):
        raise UserError(f"{source}: k is {k}, of {sae.cfg.d_sae} latents; correct its cfg.json")


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
    weights = cast("Any", sae)  # which of them there are depends on the architecture
    moved = -sae.W_enc.mean(dim=0, keepdim=True).expand_as(sae.W_enc)
    if sae.cfg.apply_b_dec_to_input:
        shift = sae.b_dec @ moved
        if sae.cfg.architecture() == "gated":
            weights.b_gate += shift
            weights.b_mag += shift * weights.r_mag.exp()
        else:
            weights.b_enc += shift
    weights.W_enc += moved
    # Folded once: a copy that is saved and loaded again is left as it is.
    kwargs = sae.cfg.metadata.model_from_pretrained_kwargs
    sae.cfg.metadata.model_from_pretrained_kwargs = {**kwargs, "center_writing_weights": False}
