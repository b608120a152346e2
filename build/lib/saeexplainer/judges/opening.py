"""The judges that a configuration names."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from saeexplainer.config import Evaluate
from saeexplainer.config.parts import ChatJudgeSpec, Judge as JudgeConfig, LikelihoodJudgeSpec
from saeexplainer.judges.judge import Judge

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def open_judges(
    config: Evaluate,
    subject: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    context_length: int,
    alone: Mapping[str, list[float]],
) -> list[Judge]:
    """The judges of the settings, in their order; the subject is who judges by likelihood, `context_length` its limit
    in tokens, and `alone` what it is known to find of texts by themselves. Raises UserError on a source without a chat
    model and on a key that is not in the environment."""
    return [
        _open(judge, f"evaluate.judges[{at}]", subject, tokenizer, context_length, alone)
        for at, judge in enumerate(config.judges)
    ]


def _open(
    config: JudgeConfig,
    where: str,
    subject: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    context_length: int,
    alone: Mapping[str, list[float]],
) -> Judge:
    if isinstance(config, LikelihoodJudgeSpec):
        from saeexplainer.judges.likelihood import LikelihoodJudge

        return LikelihoodJudge(subject, tokenizer, config.prompt, context_length, config.batch_size, alone)
    if isinstance(config, ChatJudgeSpec):
        from saeexplainer.judges.chat import ChatJudge

        return ChatJudge(config.model, config.batch_size)
    from saeexplainer.judges.endpoint import EndpointJudge

    return EndpointJudge(config, where)
