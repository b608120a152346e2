"""Checks that texts, prompts and the subject fit one another."""

import re
from collections.abc import Iterator
from pathlib import Path

from saeexplainer.config import Architecture, Params, PrepareSubject


def shapes(params: Params) -> Iterator[str]:
    subject = params.prepare_subject
    yield from _pretrained_subject(subject) if subject.pretrained else _trained_subject(params)
    # Of an explainer of others the limits are not known before it is there.
    made_here = params.train_sft.pretrained is None and subject.pretrained is None
    lengths = [("generate_explanations.max_new_tokens", params.generate_explanations.max_new_tokens)] * made_here
    for key, tokens in (
        *lengths,
        ("score_explanations.writer.max_new_tokens", params.score_explanations.writer.max_new_tokens),
        ("evaluate.writer.max_new_tokens", params.evaluate.writer.max_new_tokens),
        ("probe_features.steer.max_new_tokens", _steered_tokens(params)),
    ):
        if tokens >= subject.context_length:
            yield f"{key}: is {tokens}; must be below prepare_subject.context_length ({subject.context_length})"


def _trained_subject(params: Params) -> Iterator[str]:
    subject = params.prepare_subject
    if subject.prepend_bos is not None:
        yield (
            f"prepare_subject.prepend_bos: is {str(subject.prepend_bos).lower()}; give null: a subject that is trained "
            "here has its domain's tokenizer"
        )
    if subject.d_model % subject.heads:
        yield f"prepare_subject.d_model: is {subject.d_model}; must be a multiple of its heads ({subject.heads})"
    if subject.architecture is Architecture.llama and subject.d_model // subject.heads % 2:
        yield (
            f"prepare_subject.heads: is {subject.heads}; a llama head must have an even width, and d_model "
            f"{subject.d_model} gives it {subject.d_model // subject.heads}"
        )
    blocks = {}
    if params.train_sft.pretrained is None:
        blocks["train_sft.injection_block"] = params.train_sft.injection_block
    if any(spec.pretrained is None for spec in params.prepare_sae.saes):
        blocks["prepare_sae.hook_block"] = params.prepare_sae.hook_block
    for key, block in blocks.items():
        if block >= subject.blocks:
            yield f"{key}: is {block}; must be below prepare_subject.blocks ({subject.blocks}), counting from 0"


def _pretrained_subject(subject: PrepareSubject) -> Iterator[str]:
    """Its shape is not known before it is there; `prepare_subject` looks at it."""
    name = Path(subject.pretrained.source).name
    if not re.fullmatch(r"[^\s/]+", name):
        yield (
            f"prepare_subject.pretrained.source: is {subject.pretrained.source!r}; its last part names the subject in "
            "feature ids and must be there, without spaces"
        )


def _steered_tokens(params: Params) -> int:
    """Tokens that a steered continuation reaches with its beginning."""
    return params.probe_features.steer.prompt_tokens + params.probe_features.steer.max_new_tokens
