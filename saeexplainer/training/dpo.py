"""One preference round: TRL's DPOTrainer, whose reference model is the round's own start (docs/METHOD.md section 7).

The best checkpoint by validation preference accuracy, ties by reward margin, is kept in memory: no pickled optimizer
state ever touches the disk.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from saeexplainer.config import Params, Round
from saeexplainer.errors import UserError
from saeexplainer.explainer.explainer import Prompts
from saeexplainer.records import PreferencePair
from saeexplainer.runs import processes
from saeexplainer.training.sft import check_trained, on_one_device, trained_weights
from saeexplainer.training.start import Start

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel
    from trl import DPOConfig, DPOTrainer


def preference_dataset(
    pairs: Sequence[PreferencePair], prompts: Prompts, number: Callable[[str], int], bare: Callable[[], bool]
) -> "Dataset":
    """TRL's columns of token ids; `number` gives the row of a feature id in the table that the explainer reads, and
    `bare` says of one prompt after the other whether it goes without contexts."""
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "prompt_ids": [prompts.ids(number(pair.feature_id), bare=bare()) for pair in pairs],
            "chosen_ids": [prompts.answer(pair.chosen_explanation) for pair in pairs],
            "rejected_ids": [prompts.answer(pair.rejected_explanation) for pair in pairs],
        }
    )


def train(
    start: Start,
    training: "Dataset",
    validation: "Dataset",
    round_: Round,
    params: Params,
    *,
    seed: int,
    scratch: Path,
) -> list[dict[str, float]]:
    """Train the start's model in place; returns TRL's log. `params` says how: train_dpo, and of explainer how it
    computes.

    Raises UserError if there are no pairs or too few for two steps, RuntimeError if training left the weights
    unchanged.
    """
    if not len(training) or not len(validation):
        raise UserError(
            f"train_dpo: {len(training)} training and {len(validation)} validation pairs; both are needed: "
            "loosen build_preferences or raise generate_explanations.candidates"
        )
    model = start.parts.model
    before, best = trained_weights(model), best_checkpoint()
    arguments = _arguments(params, round_, len(training), seed, scratch)
    trainer = prepared_trainer()(
        model=model, ref_model=start.reference, args=cast("DPOConfig", on_one_device(arguments)),
        train_dataset=training, eval_dataset=validation, processing_class=start.parts.tokenizer, callbacks=[best],
    )  # fmt: skip
    trainer.train()
    trainer.evaluate()
    check_trained(model, before, trainer.state.global_step, "train_dpo")
    best.restore(model)
    return trainer.state.log_history


def _arguments(params: Params, round_: Round, pairs: int, seed: int, scratch: Path) -> "DPOConfig":
    from trl import DPOConfig

    config, how = params.train_dpo, params.explainer
    steps = max(1, -(-pairs // (config.batch_size * config.accumulate)))
    sft = config.sft_weight > 0
    return DPOConfig(
        output_dir=str(scratch), num_train_epochs=config.epochs, learning_rate=round_.learning_rate, beta=round_.beta,
        per_device_train_batch_size=config.batch_size // processes.count(),
        per_device_eval_batch_size=4 * config.batch_size // processes.count(),
        gradient_accumulation_steps=config.accumulate, bf16=how.bf16,
        loss_type=[config.loss.value, *["sft"] * sft], loss_weights=[1.0, config.sft_weight] if sft else None,
        lr_scheduler_type="cosine", warmup_steps=0.05, max_length=None, seed=seed, data_seed=seed,
        save_strategy="no", eval_strategy="steps", eval_steps=max(1, steps // config.evaluations_per_epoch),
        logging_steps=max(1, steps // 10), report_to="none", use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=how.gradient_checkpointing, dataloader_pin_memory=False,
        # The reference stays as it is: once for each pair, and not in every epoch and evaluation.
        precompute_ref_log_probs=True, precompute_ref_batch_size=4 * config.batch_size // processes.count(),
    )  # fmt: skip


def prepared_trainer() -> "type[DPOTrainer]":
    """TRL's trainer over token ids that are there already; its own tokenizing knows text alone, and no feature ids."""
    from trl import DPOTrainer

    class PreparedTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset, *_args, **_named):
            return dataset

    return PreparedTrainer


def best_checkpoint() -> Any:
    """A trainer callback that remembers the weights of the best evaluation; `restore` puts them back."""
    from transformers import TrainerCallback

    class BestCheckpoint(TrainerCallback):
        def __init__(self) -> None:
            self.key: tuple[float, float] | None = None
            self.weights: dict[str, Tensor] = {}

        def on_evaluate(self, args, state, control, metrics: Any = None, model: Any = None, **_):
            """Keep the weights if this is the best evaluation so far."""
            if state.global_step < 2:  # the first step's learning rate is 0: these are the weights of the start
                return
            key = (metrics["eval_rewards/accuracies"], metrics["eval_rewards/margins"])
            if self.key is None or key > self.key:
                self.key = key
                self.weights = trained_weights(model)

        def restore(self, model: "PreTrainedModel") -> None:
            """Put the kept weights back."""
            model.load_state_dict(self.weights, strict=False)

    return BestCheckpoint()
