"""The warm-up of the explainer: it learns to say what it is reading at a token.

Its examples are centred residuals of the subject in place of SAE directions, with descriptions from what a pretrained
model would know (words and a dictionary of categories). No SAE feature is seen in it, so that it depends on the subject
and on the site that SAEs read, and on no SAE and no label.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer.config import WarmUp
from saeexplainer.config.explainers import ExplainerPrompt
from saeexplainer.domains.domain import Domain
from saeexplainer.errors import UserError
from saeexplainer.features.contexts import marked
from saeexplainer.features.token_stream import TokenBatch, concepts_at
from saeexplainer.records import WarmupRow
from saeexplainer.runs.storage import read_rows, read_tensors, write_rows, write_tensors

EXAMPLES, VECTORS = "examples.parquet", "vectors.safetensors"


@dataclass(frozen=True)
class WarmupSet:
    """Raw activations and what they are said to be."""

    vectors: Float[Tensor, "examples d_model"]  # residuals, less their mean over the text; on the CPU
    descriptions: list[str]
    contexts: list[str]  # what the prompt shows beside each, as `FeatureTable.contexts` has it of a feature; or none


def nothing(width: int) -> WarmupSet:
    """No warm-up, on a residual stream of that width."""
    return WarmupSet(torch.zeros(0, width), [], [])


def save(examples: WarmupSet, folder: Path) -> None:
    """Write what `load` reads into a new folder."""
    folder.mkdir(parents=True)
    write_tensors(folder / VECTORS, {"vectors": examples.vectors})
    contexts = examples.contexts or [""] * len(examples.descriptions)
    rows = [WarmupRow(*row) for row in zip(examples.descriptions, contexts, strict=True)]
    write_rows(folder / EXAMPLES, rows, WarmupRow)


def load(folder: Path) -> WarmupSet:
    """What `save` wrote. Raises UserError if it is missing or damaged."""
    rows = read_rows(folder / EXAMPLES, WarmupRow)
    contexts = [row.contexts for row in rows]
    vectors = read_tensors(folder / VECTORS)["vectors"]
    return WarmupSet(vectors, [row.description for row in rows], contexts if any(contexts) else [])


def warmup_set(
    batches: Iterable[TokenBatch],
    domain: Domain,
    config: WarmUp,
    prompt: ExplainerPrompt,
    context_tokens: int,
    draw: random.Random,
) -> WarmupSet:
    """`config.examples` tokens and a description true at each, from a stream of documents; with their contexts,
    `context_tokens` to each side, where the prompt shows any. The mean that is taken off is that of the documents read.

    Raises UserError if the stream has fewer describable tokens.
    """
    count, shown = config.examples, shown_places(prompt)
    residuals, descriptions, lines = [], [], []
    total, read = torch.zeros((), dtype=torch.float64), 0
    for batch in batches:
        total, read = total + batch.residual.double().sum(dim=0).cpu(), read + len(batch.residual)
        rows = []
        for local, document in enumerate(batch.documents):
            here = (batch.document == local).nonzero().flatten()
            offsets = batch.offsets[here].tolist()
            concepts = concepts_at(domain.annotate(document), offsets)
            for at, (row, keys) in enumerate(zip(here.tolist(), concepts, strict=True)):
                description = describe_token(keys, domain, config.modifier_share, draw)
                if description:
                    rows.append(row)
                    descriptions.append(description)
                    if shown:
                        lines.append(_line(document.text, offsets, at, context_tokens))
        residuals.append(batch.residual[rows].cpu())
        if len(descriptions) >= count:
            vectors = torch.cat(residuals)[:count] - (total / read).float()
            return together(vectors, descriptions[:count], lines[:count], config.places, shown, draw)
    raise UserError(
        f"warm_up.examples: {count}, but the documents have {len(descriptions)} describable tokens; lower it"
    )


def shown_places(prompt: ExplainerPrompt) -> int:
    """How many contexts the prompt shows of a feature."""
    return prompt.shown_contexts + prompt.shown_spread


def _line(text: str, offsets: Sequence[Sequence[int]], at: int, context_tokens: int) -> str:
    """The context of token number `at`, which is marked in it."""
    first, last = max(0, at - context_tokens), min(len(offsets), at + context_tokens + 1)
    tokens = [text[start:end] for start, end in offsets[first:last]]
    return f"- {marked(text[offsets[first][0] : offsets[last - 1][1]], tokens, at - first)}"


def together(
    vectors: Float[Tensor, "examples d_model"],
    descriptions: list[str],
    lines: list[str],
    places: int,
    shown: int,
    draw: random.Random,
) -> WarmupSet:
    """Examples as features are: a feature's vector is a mean over places, and its contexts are several. Of each example
    the same is said at other places too; its vector is the mean over its own and up to `places` - 1 of these,
    and it shows its own context and theirs, `shown` at most."""
    if places == 1 and not shown:
        return WarmupSet(vectors, descriptions, [])
    same: dict[str, list[int]] = defaultdict(list)
    for at, description in enumerate(descriptions):
        same[description].append(at)
    means, contexts = vectors.clone(), []
    for at, description in enumerate(descriptions):
        others = [other for other in same[description] if other != at]
        chosen = [at, *draw.sample(others, min(len(others), max(places, shown) - 1))]
        means[at] = vectors[chosen[: draw.randint(1, places)]].mean(dim=0)
        contexts.append("\n".join(lines[each] for each in chosen[:shown]))
    return WarmupSet(means, descriptions, contexts if shown else [])


def describe_token(concepts: Sequence[str], domain: Domain, modifier_share: float, draw: random.Random) -> str:
    """One of the things that are true at a token; empty if nothing can be said."""
    leads = [concept for concept in concepts if domain.can_lead(concept)]
    if not leads:
        return ""
    lead = draw.choice(leads)
    modifiers = [concept for concept in concepts if concept != lead and domain.can_modify(concept)]
    if modifiers and draw.random() < modifier_share:
        return domain.describe([lead, draw.choice(modifiers)])
    return domain.describe([lead])
