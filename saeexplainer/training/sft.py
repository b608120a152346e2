"""The explainer before any preference: warm-up on raw activations, then the open-loop labels.

The warm-up asks the model to say what it is reading at a token: centred residuals of the subject instead of SAE
directions, descriptions from what a pretrained model would know (words and a dictionary of categories). No SAE feature
is seen in it. Both parts are TRL's SFTTrainer over token ids prepared here.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer.config import TrainSft
from saeexplainer.domains.domain import Domain
from saeexplainer.errors import UserError
from saeexplainer.features.contexts import marked
from saeexplainer.features.token_stream import TokenBatch, concepts_at
from saeexplainer.models.blocks import check_context
from saeexplainer.runs import processes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments


@dataclass(frozen=True)
class WarmupSet:
    """Raw activations and what they are said to be."""

    residuals: Float[Tensor, "examples d_model"]  # not centred; on the CPU
    descriptions: list[str]
    contexts: list[str]  # what the prompt shows beside each, as `FeatureTable.contexts` has it of a feature


def nothing(width: int) -> WarmupSet:
    """No warm-up, on a residual stream of that width."""
    return WarmupSet(torch.zeros(0, width), [], [])


def warmup_set(
    batches: "Iterable[TokenBatch]", domain: Domain, config: TrainSft, context_tokens: int, draw: random.Random
) -> WarmupSet:
    """`config.warmup_examples` tokens and a description true at each, from a stream of documents; with their contexts,
    `context_tokens` to each side, where the prompt shows any.

    Raises UserError if the stream has fewer describable tokens.
    """
    count = config.warmup_examples
    residuals, descriptions, lines = [], [], []
    for batch in batches:
        rows = []
        for local, document in enumerate(batch.documents):
            here = (batch.document == local).nonzero().flatten()
            offsets = batch.offsets[here].tolist()
            concepts = concepts_at(domain.annotate(document), offsets)
            for at, (row, keys) in enumerate(zip(here.tolist(), concepts, strict=True)):
                description = describe_token(keys, domain, config.warmup_modifier_share, draw)
                if description:
                    rows.append(row)
                    descriptions.append(description)
                    if shown_places(config):
                        lines.append(_line(document.text, offsets, at, context_tokens))
        residuals.append(batch.residual[rows].cpu())
        if len(descriptions) >= count:
            return together(torch.cat(residuals)[:count], descriptions[:count], lines[:count], config, draw)
    raise UserError(
        f"train_sft.warmup_examples: {count}, but the documents have {len(descriptions)} describable tokens; lower it"
    )


def shown_places(config: TrainSft) -> int:
    """How many contexts the prompt shows of a feature."""
    return config.prompt.shown_contexts + config.prompt.shown_spread


def _line(text: str, offsets: Sequence[Sequence[int]], at: int, context_tokens: int) -> str:
    """The context of token number `at`, which is marked in it."""
    first, last = max(0, at - context_tokens), min(len(offsets), at + context_tokens + 1)
    tokens = [text[start:end] for start, end in offsets[first:last]]
    return f"- {marked(text[offsets[first][0] : offsets[last - 1][1]], tokens, at - first)}"


def together(
    residuals: Float[Tensor, "examples d_model"],
    descriptions: list[str],
    lines: list[str],
    config: TrainSft,
    draw: random.Random,
) -> WarmupSet:
    """Examples as features are: a feature's vector is a mean over places, and its contexts are several. Of each example
    the same is said at other places too; its vector is the mean over its own and up to `warmup_places` - 1 of these,
    and it shows its own context and theirs."""
    places, shown = config.warmup_places, shown_places(config)
    if places == 1 and not shown:
        return WarmupSet(residuals, descriptions, [])
    same: dict[str, list[int]] = defaultdict(list)
    for at, description in enumerate(descriptions):
        same[description].append(at)
    means, contexts = residuals.clone(), []
    for at, description in enumerate(descriptions):
        others = [other for other in same[description] if other != at]
        chosen = [at, *draw.sample(others, min(len(others), max(places, shown) - 1))]
        means[at] = residuals[chosen[: draw.randint(1, places)]].mean(dim=0)
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


def supervised_fine_tuning(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    examples: list[dict[str, list[int]]],
    config: TrainSft,
    *,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    seed: int,
    scratch: Path,
) -> list[dict[str, float]]:
    """Train in place with TRL's SFTTrainer on prepared token ids and labels; returns its log. `config` says how it
    computes; the rest is of the warm-up or of the labels.

    Raises UserError if there is nothing to train on, too little for two steps, or an example is too long, RuntimeError
    if training left the weights unchanged.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    if not examples:
        raise UserError("train_sft: no label to train on; raise extract_activations.sft_share or label more features")
    check_context(model, max(len(example["input_ids"]) for example in examples), "train_sft.prompt with its answer")
    before = trained_weights(model)
    arguments = SFTConfig(
        output_dir=str(scratch), num_train_epochs=epochs, learning_rate=learning_rate, max_length=None,
        per_device_train_batch_size=batch_size // processes.count(), lr_scheduler_type="cosine", warmup_steps=0.05,
        weight_decay=0.0, seed=seed, data_seed=seed, save_strategy="no", logging_steps=25, report_to="none",
        bf16=config.bf16, dataset_kwargs={"skip_prepare_dataset": True}, use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=config.gradient_checkpointing, gradient_accumulation_steps=config.accumulate,
        dataloader_pin_memory=False, loss_type="nll",
    )  # fmt: skip
    dataset = Dataset.from_list(examples)
    trainer = SFTTrainer(model=model, args=on_one_device(arguments), train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    check_trained(model, before, trainer.state.global_step, "train_sft")
    return trainer.state.log_history


def on_one_device(arguments: "TrainingArguments") -> "TrainingArguments":
    """The same, on a machine with several GPUs too: transformers would copy the model to each (DataParallel), and the
    copies would share the hooks of one set of feature tokens."""
    arguments._n_gpu = min(arguments.n_gpu, 1)  # as transformers itself does where a model lies on several
    return arguments


def trained_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of all that a trainer would change: an adapted model's adapter, and a projection that is not frozen."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def check_trained(model: torch.nn.Module, before: dict[str, Tensor], steps: int, section: str) -> None:
    """Raise if no weight differs from `before`: a run that trains nothing looks healthy in its curves.

    UserError if there was no second of the optimizer's `steps`, RuntimeError if it is no matter of settings.
    """
    after = dict(model.named_parameters())
    # A trainer moves a model to the GPU.
    if not all(torch.equal(after[name].to(weight), weight) for name, weight in before.items()):
        return
    if steps < 2:
        raise UserError(
            f"{section}: one step in all, and the first one's learning rate is 0; lower batch_size or accumulate, "
            "raise epochs, or give more to train on"
        )
    raise RuntimeError("training left every weight as it was; no parameter is trainable")
