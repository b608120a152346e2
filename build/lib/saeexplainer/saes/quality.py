"""How much of a reader's activations an SAE explains."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

from saeexplainer.models.batches import fitting

if TYPE_CHECKING:
    from saeexplainer.saes.reading import ReadBatch, Reader


@dataclass(frozen=True)
class SaeReport:
    """How well one SAE stands in for what it reads, on held-out documents."""

    fraction_variance_unexplained: float  # squared error over variance
    l0: float  # active latents a token
    dead_features: int  # latents that never fired there
    cross_entropy_recovered: (
        float  # (zero - spliced) / (zero - clean), losses with activations zeroed, replaced, untouched
    )


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

    Keeps all activations of the texts on the CPU; logits and codes of one batch stay within a few times `batches.ROOM`.
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
        assert value is not None  # without a value nothing calls this
        changed = there.clone()
        changed[batch.valid.to(there.device)] = value.to(there)
        return changed

    ids, mask = batch.ids.to(reader.device), batch.mask.to(reader.device)
    with nullcontext() if value is None else reader.site.changed(replace):
        return float(reader.model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss)
