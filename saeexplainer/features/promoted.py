"""The tokens that a direction promotes when it is written into the residual stream.

Said of decoder rows it is evidence of what a feature does, as its contexts are of what it reads. `by_lens`, the logit
lens, is VocabProj of arXiv 2501.08319; `by_clamp` is its TokenChange, with the direction added to whatever is there.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeexplainer.models.batches import fitting
from saeexplainer.models.blocks import device_of, embedding_of, transformer_blocks
from saeexplainer.models.tokenizers import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from saeexplainer.saes.reading import Reader

AT_ONCE = 512  # directions
SPARE = 4  # so many times more tokens are looked at: some are empty, or the same but for a space


def promoted(
    effects: Iterable[Float[Tensor, "some vocabulary"]], tokenizer: "PreTrainedTokenizerFast", count: int
) -> list[list[str]]:
    """Of each direction the `count` tokens whose logits it raises most, the strongest first, as words: without spaces
    around them, each once, special tokens left out. Fewer where the vocabulary has no more. `effects` are those of
    `by_lens` or `by_clamp`."""
    special = set(special_ids(tokenizer))
    found = []
    for logits in effects:
        likeliest = logits.topk(min(SPARE * count + len(special), logits.shape[1])).indices.tolist()
        kept = ([[token] for token in row if token not in special] for row in likeliest)
        words = ([text.strip() for text in tokenizer.batch_decode(row)] for row in kept)
        found += [list(dict.fromkeys(filter(None, row)))[:count] for row in words]
    return found


@torch.no_grad()
def by_lens(
    model: "PreTrainedModel", directions: Float[Tensor, "rows d_model"]
) -> Iterator[Float[Tensor, "some vocabulary"]]:
    """The logits that the last norm and the output head make of directions alone, less those of no direction; on the
    CPU, some directions at a time. A direction is as long as a residual whose entries are 1 on average."""
    size = fitting(AT_ONCE, len(embedding_of(model)))
    unit = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-8)
    nothing = torch.zeros(1, directions.shape[1])
    for some in (unit * directions.shape[1] ** 0.5).split(size):
        logits = _read_out(model, torch.cat([nothing, some.cpu()]))
        yield logits[1:] - logits[:1]


@torch.no_grad()
def by_clamp(
    reader: "Reader", beginnings: Int[Tensor, "prompts tokens"], directions: Float[Tensor, "rows d_model"]
) -> Iterator[Float[Tensor, "some vocabulary"]]:
    """How much the log-probabilities of the next token rise while each direction, at its own length, is added where the
    SAEs read, at every position but that of BOS: their mean over positions and beginnings; on the CPU, some directions
    at a time. The reader has the whole subject."""
    from tqdm.auto import tqdm

    first = 1 if reader.begins_with_bos else 0
    prompts = beginnings.to(device_of(reader.model))

    def log_probabilities(rows: int) -> Float[Tensor, "rows vocabulary"]:
        total = torch.zeros(())
        for prompt in prompts:
            logits = reader.model(input_ids=prompt.expand(rows, -1), use_cache=False).logits[:, first:]
            total = total + logits.float().log_softmax(-1).mean(1).cpu()
        return total / len(prompts)

    clean = log_probabilities(1)
    parts = directions.split(fitting(AT_ONCE, prompts.shape[1] * clean.shape[1]))
    for some in tqdm(parts, desc="directions added where the SAEs read"):

        def add(there: Tensor, some: Tensor = some) -> Tensor:
            found = there.clone()
            found[:, first:] += some.to(there).unsqueeze(1)
            return found

        with reader.site.changed(add):
            raised = log_probabilities(len(some))
        yield raised - clean


def _read_out(model: "PreTrainedModel", residuals: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocabulary"]:
    """The logits of residuals that leave the last block."""

    def replaced(_block: nn.Module, _inputs: object, output: Any) -> Any:
        whole = isinstance(output, tuple)
        there = residuals.to(output[0] if whole else output).unsqueeze(1)
        return (there, *output[1:]) if whole else there

    handle = transformer_blocks(model)[-1].register_forward_hook(replaced)
    try:
        ids = torch.zeros(len(residuals), 1, dtype=torch.long, device=device_of(model))
        return model(input_ids=ids, use_cache=False).logits[:, 0].float().cpu()
    finally:
        handle.remove()
