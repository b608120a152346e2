"""Supervised training of the explainer, for the warm-up as for the open-loop labels: TRL's SFTTrainer over token ids
that are prepared here, and the check that something was trained."""

import random
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saeexplainer.config import ExplainerSettings, TrainSft, WarmUp
from saeexplainer.errors import UserError
from saeexplainer.explainer.explainer import Prompts, attach
from saeexplainer.explainer.feature_tokens import first_feature_id
from saeexplainer.explainer.folder import Parts
from saeexplainer.models.blocks import check_context
from saeexplainer.runs import processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments


# A step's examples are computed in parts of like length, which transformers takes from them: prompts with and without
# contexts differ much, and this takes 0.57 of the time (docs/LOG.md). The loss is a mean over all tokens of the step,
# however many parts it has.
PARTS, FEWEST = (4, 2, 1), 8  # of a batch, the first that divides it and leaves so many sequences in each


def learn(
    parts: Parts,
    vectors: Float[Tensor, "rows d_in"],
    contexts: Sequence[str],
    described: Iterable[tuple[int, str]],
    config: ExplainerSettings,
    how: WarmUp | TrainSft,
    *,
    section: str,
    draw: random.Random,
    seed: int,
) -> list[dict[str, float]]:
    """Train an explainer in place to say of a row of `vectors` what is described of it; returns the trainer's log.

    contexts: what the prompt shows of each row, or none; a share of the prompts goes without. how: the batches, epochs
    and rate, of the settings in `section`. Raises as `supervised_fine_tuning`.
    """
    prompts = Prompts(parts.tokenizer, first_feature_id(parts.model, parts.tokenizer), config, contexts)
    examples = [prompts.example(row, said, bare=draw.random() < config.contexts_dropped) for row, said in described]
    hooks = attach(parts.model, parts.tokenizer, vectors, config, config.direction_noise, projection=parts.projection)
    with tempfile.TemporaryDirectory() as scratch:
        history = supervised_fine_tuning(
            parts.model, parts.tokenizer, examples, config, epochs=how.epochs, learning_rate=how.learning_rate,
            batch_size=how.batch_size, section=section, seed=seed, scratch=Path(scratch),
        )  # fmt: skip
    hooks.remove()
    return history


def supervised_fine_tuning(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    examples: list[dict[str, list[int]]],
    config: ExplainerSettings,
    *,
    epochs: float,
    learning_rate: float,
    batch_size: int,
    section: str,
    seed: int,
    scratch: Path,
) -> list[dict[str, float]]:
    """Train in place with TRL's SFTTrainer on prepared token ids and labels; returns its log. `config` says how it
    computes; the rest is of `section`, the warm-up's settings or those of the labels.

    Raises UserError if there is nothing to train on, too little for two steps, or an example is too long, RuntimeError
    if training left the weights unchanged.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    if not examples:
        raise UserError("train_sft: no label to train on; raise extract_activations.sft_share or label more features")
    check_context(model, max(len(example["input_ids"]) for example in examples), "explainer.prompt with its answer")
    before, at_once = trained_weights(model), batch_size // processes.count()
    parts = next(count for count in PARTS if at_once % count == 0 and at_once // count >= FEWEST or count == 1)
    arguments = SFTConfig(
        output_dir=str(scratch), num_train_epochs=epochs, learning_rate=learning_rate, max_length=None,
        per_device_train_batch_size=at_once // parts, train_sampling_strategy="batch_rebalance",
        gradient_accumulation_steps=parts * config.accumulate, lr_scheduler_type="cosine", warmup_steps=0.05,
        weight_decay=0.0, seed=seed, data_seed=seed, save_strategy="no", logging_steps=25, report_to="none",
        bf16=config.bf16, dataset_kwargs={"skip_prepare_dataset": True}, use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=config.gradient_checkpointing, dataloader_pin_memory=False, loss_type="nll",
    )  # fmt: skip
    dataset = Dataset.from_list(examples)
    trainer = SFTTrainer(model=model, args=on_one_device(arguments), train_dataset=dataset, processing_class=tokenizer)
    trainer.train()
    check_trained(model, before, trainer.state.global_step, section)
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
