"""On-policy reinforcement: TRL's GRPOTrainer, whose rewards are what explanations earn (docs/METHOD.md section 7).

A step samples a group of explanations of each of some features, and what each earns beside the rest of its group says
how much likelier it becomes. Writer and subject answer inside the step, so nothing is written down between a sample
and its reward. Prompts travel through TRL as feature ids and become token ids here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from saeexplainer.config import GenerateExplanations, Reinforcement, TrainGrpo, TrainSft
from saeexplainer.errors import UserError
from saeexplainer.training.sft import check_trained, on_one_device, trained_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

Rewards = Callable[[list[tuple[str, str]]], list[float | None]]  # of (feature id, explanation); None is unknown


def train(
    model: "PreTrainedModel",
    reference: "PreTrainedModel | None",
    tokenizer: "PreTrainedTokenizerFast",
    features: Sequence[str],
    prompt: Callable[[str], list[int]],
    rewards: Rewards,
    config: TrainGrpo,
    reinforcement: Reinforcement,
    sampling: GenerateExplanations,
    how: TrainSft,
    *,
    seed: int,
    scratch: Path,
) -> list[dict[str, float]]:
    """Train `model` in place on features by their ids; returns TRL's log. The models carry their feature tokens.

    `prompt` gives the token ids of a feature's question. A group is `sampling.candidates` explanations; `rewards` is
    asked about those of a step at once. The reference is the start, from which `reinforcement.beta` keeps the model; an
    adapted model is given none, because a frozen copy of its adapter is the reference.

    Raises UserError if the features do not fill two steps, RuntimeError if training left the weights unchanged.
    """
    from datasets import Dataset
    from trl.trainer.utils import add_fused_lm_head

    if len(features) * reinforcement.epochs < 2 * config.features:
        raise UserError(
            f"train_grpo.features: is {config.features}, but {len(features)} features in {reinforcement.epochs:g} "
            "epochs are less than two steps; lower it or raise epochs"
        )

    def earned(prompts: list[str], completions: list[str], **_: object) -> list[float | None]:
        return rewards([(feature, text.strip()) for feature, text in zip(prompts, completions, strict=True)])

    before = trained_weights(model)
    arguments = _arguments(config, reinforcement, sampling, how, seed, scratch)
    # With a beta TRL would load the reference itself, from the hub, and without the feature tokens.
    arguments.beta = reinforcement.beta if reference is None else 0.0
    trainer = _trainer(prompt)(
        model=model, reward_funcs=earned, args=cast("GRPOConfig", on_one_device(arguments)),
        train_dataset=Dataset.from_dict({"prompt": list(features)}), processing_class=tokenizer,
    )  # fmt: skip
    if reference is not None and reinforcement.beta:
        add_fused_lm_head(reference, temperature=sampling.temperature)  # as of the model: it answers log-probabilities
        trainer.beta = reinforcement.beta
        trainer.ref_model = trainer.accelerator.prepare_model(reference, evaluation_mode=True)
    trainer.train()
    check_trained(model, before, trainer.state.global_step, "train_grpo")
    return trainer.state.log_history


def _arguments(
    config: TrainGrpo,
    reinforcement: Reinforcement,
    sampling: GenerateExplanations,
    how: TrainSft,
    seed: int,
    scratch: Path,
) -> "GRPOConfig":
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(scratch), num_train_epochs=reinforcement.epochs, learning_rate=reinforcement.learning_rate,
        per_device_train_batch_size=config.features * sampling.candidates, steps_per_generation=1,
        num_generations=sampling.candidates, max_completion_length=sampling.max_new_tokens,
        temperature=sampling.temperature, top_p=sampling.top_p, top_k=0, disable_dropout=True,
        lr_scheduler_type="cosine", warmup_steps=0.05, bf16=how.bf16, seed=seed, data_seed=seed, save_strategy="no",
        logging_steps=5, report_to="none", use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=how.gradient_checkpointing, dataloader_pin_memory=False,
    )  # fmt: skip


def _trainer(prompt: Callable[[str], list[int]]) -> "type[GRPOTrainer]":
    """TRL's trainer over feature ids; its own tokenizing knows text alone, and no feature tokens."""
    from trl import GRPOTrainer

    class FeatureTrainer(GRPOTrainer):
        def _tokenize_prompts(self, prompts):
            return [prompt(feature) for feature in prompts], None, {}

    return FeatureTrainer
