"""On-policy reinforcement: TRL's GRPOTrainer, whose rewards are what explanations earn (docs/METHOD.md section 7).

A step samples a group of explanations of each of some features, and what each earns beside the rest of its group says
how much likelier it becomes. Writer and subject answer inside the step, so nothing is written down between a sample
and its reward. Prompts travel through TRL as feature ids and become token ids here.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from saeexplainer.config import Params, Reinforcement
from saeexplainer.errors import UserError
from saeexplainer.training.sft import check_trained, on_one_device, trained_weights
from saeexplainer.training.start import Start

if TYPE_CHECKING:
    from trl import GRPOConfig, GRPOTrainer

Rewards = Callable[[list[tuple[str, str]]], list[float | None]]  # of (feature id, explanation); None is unknown


def train(
    start: Start,
    questions: Mapping[str, list[int]],
    rewards: Rewards,
    reinforcement: Reinforcement,
    params: Params,
    *,
    seed: int,
    scratch: Path,
) -> list[dict[str, float]]:
    """Train the start's model in place; returns TRL's log. `params` says how: train_grpo, generate_explanations, and of
    explainer how it computes.

    `questions` are the prompts of features, as token ids, by the features' ids. A group is as many explanations as
    there are candidates in a round; `rewards` is asked about those of a step at once. The reference is the start, from
    which `reinforcement.beta` keeps the model.

    Raises UserError if the features do not fill two steps, RuntimeError if training left the weights unchanged.
    """
    from datasets import Dataset
    from trl.trainer.utils import add_fused_lm_head

    at_once, sampling = params.train_grpo.features, params.generate_explanations
    if len(questions) * reinforcement.epochs < 2 * at_once:
        raise UserError(
            f"train_grpo.features: is {at_once}, but {len(questions)} features in {reinforcement.epochs:g} "
            "epochs are less than two steps; lower it or raise epochs"
        )

    def earned(prompts: list[str], completions: list[str], **_: object) -> list[float | None]:
        return rewards([(feature, text.strip()) for feature, text in zip(prompts, completions, strict=True)])

    model, reference = start.parts.model, start.reference
    before = trained_weights(model)
    arguments = _arguments(params, reinforcement, seed, scratch)
    # With a beta TRL would load the reference itself, from the hub, and without the feature tokens.
    arguments.beta = reinforcement.beta if reference is None else 0.0
    trainer = _trainer(questions)(
        model=model, reward_funcs=earned, args=cast("GRPOConfig", on_one_device(arguments)),
        train_dataset=Dataset.from_dict({"prompt": list(questions)}), processing_class=start.parts.tokenizer,
    )  # fmt: skip
    if reference is not None and reinforcement.beta:
        add_fused_lm_head(reference, temperature=sampling.temperature)  # as of the model: it answers log-probabilities
        trainer.beta = reinforcement.beta
        trainer.ref_model = trainer.accelerator.prepare_model(reference, evaluation_mode=True)
    trainer.train()
    check_trained(model, before, trainer.state.global_step, "train_grpo")
    return trainer.state.log_history


def _arguments(params: Params, reinforcement: Reinforcement, seed: int, scratch: Path) -> "GRPOConfig":
    from trl import GRPOConfig

    sampling, how = params.generate_explanations, params.explainer
    return GRPOConfig(
        output_dir=str(scratch), num_train_epochs=reinforcement.epochs, learning_rate=reinforcement.learning_rate,
        per_device_train_batch_size=params.train_grpo.features * sampling.candidates, steps_per_generation=1,
        num_generations=sampling.candidates, max_completion_length=sampling.max_new_tokens,
        temperature=sampling.temperature, top_p=sampling.top_p, top_k=0, disable_dropout=True,
        lr_scheduler_type="cosine", warmup_steps=0.05, bf16=how.bf16, seed=seed, data_seed=seed, save_strategy="no",
        logging_steps=5, report_to="none", use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=how.gradient_checkpointing, dataloader_pin_memory=False,
    )  # fmt: skip


def _trainer(questions: Mapping[str, list[int]]) -> "type[GRPOTrainer]":
    """TRL's trainer over feature ids; its own tokenizing knows text alone, and no feature tokens."""
    from trl import GRPOTrainer

    class FeatureTrainer(GRPOTrainer):
        def _tokenize_prompts(self, prompts):
            return [questions[feature] for feature in prompts], None, {}

    return FeatureTrainer
