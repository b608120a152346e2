"""Tiny random models of the two architectures, with the sandbox's tokenizer: the real classes, made on the spot."""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from saeexplainer.config import Params
from saeexplainer.config.parts import Architecture
from saeexplainer.domains.sandbox.world import build_tokenizer
from saeexplainer.saes.sites import Place, Site, SiteReader
from saeexplainer.training.subject import build_model
from tasks.settings import params

ROOT = Path(__file__).resolve().parents[2]
WIDTH, BLOCKS = 16, 3


def settings() -> Params:
    """The committed parameters."""
    return params.load(ROOT / "params.yaml")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The sandbox's tokenizer."""
    return build_tokenizer()


def random_sae(folder: Path, width: int = WIDTH, k: int = 4, seed: int = 0) -> None:
    """Save a TopK SAE of 64 latents with random weights, on the residual stream after block 1."""
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    torch.manual_seed(seed)
    site = SAEMetadata(hook_name="blocks.1.hook_resid_post")
    sae = TopKSAE(TopKSAEConfig(d_in=width, d_sae=64, k=k, metadata=site))
    torch.nn.init.normal_(sae.W_enc)
    sae.save_model(folder)


def tiny_model(architecture: Architecture, seed: int = 0, blocks: int = BLOCKS) -> PreTrainedModel:
    """An untrained model in eval mode, its weights spread so far that argmax never hangs on a last digit."""
    shape = replace(
        settings().prepare_subject,
        architecture=architecture, d_model=WIDTH, blocks=blocks, heads=2, context_length=64,
    )  # fmt: skip
    model = build_model(shape, tiny_tokenizer())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.3, generator=generator)
    return model.eval()


def read_residual(
    model: PreTrainedModel, block: int, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Residual stream after a block, `hidden_states[block + 1]` of transformers: [batch, tokens, d_model]."""
    return SiteReader(model, Site(block, Place.resid_post))(input_ids, attention_mask)
