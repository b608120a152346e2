"""The explainer before any preference: warm-up on raw activations, then the open-loop labels of the sft split.

    python -m tasks.train_sft

Writes data/explainers/warmup and data/explainers/sft (`saeexplainer.explainer.folder`) and reports/training/sft.csv.
Without warm-up examples the warm-up is the model that starts.
"""

import random
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from saeexplainer.config import Params
from saeexplainer.domains.domain import ReadingLimit
from saeexplainer.domains.opening import open_domain
from saeexplainer.explainer import folder as explainer_folder
from saeexplainer.explainer.explainer import Prompts, attach
from saeexplainer.explainer.feature_tokens import first_feature_id
from saeexplainer.explainer.table import FeatureTable
from saeexplainer.features.contexts import promotes
from saeexplainer.features.promoted import promoted
from saeexplainer.features.token_stream import token_batches
from saeexplainer.records import ExplanationRow
from saeexplainer.runs.seeds import seed_torch
from saeexplainer.runs.storage import read_rows, replacing
from saeexplainer.saes.reading import open_reader
from saeexplainer.training import sft
from saeexplainer.training.curves import write_curves
from tasks.places import ACTIVATIONS, EXPLAINERS, LABELS, REPORTS, SAES, SUBJECT
from tasks.stage import Report, main


def run(params: Params) -> Report:
    """Warm up, save; learn the labels with some warm-up examples mixed in, save."""
    config = params.train_sft
    seed = seed_torch(params.seed, "train_sft")
    draw = random.Random(seed)
    table = FeatureTable(ACTIVATIONS)
    features = table.vectors[config.direction]
    parts = explainer_folder.start(config, SUBJECT, features.shape[1], seed)
    mean = table.vectors["corpus_mean"]
    warmup = raw_activations(params, mean, draw) if config.warmup_examples else sft.nothing(features.shape[1])
    directions = torch.cat([features, warmup.residuals - mean])
    contexts = [*table.contexts(config.prompt), *warmup.contexts]
    prompts = Prompts(parts.tokenizer, first_feature_id(parts.model, parts.tokenizer), config, contexts)

    def examples_of(described: Iterable[tuple[int, str]]) -> list[dict[str, list[int]]]:
        dropped = config.contexts_dropped if contexts else 0.0
        return [prompts.example(at, said, bare=dropped > draw.random() if dropped else False) for at, said in described]

    raw_examples = examples_of((len(features) + at, said) for at, said in enumerate(warmup.descriptions))
    labelled = examples_of(sft_labels(table.number))
    replayed = draw.sample(raw_examples, min(len(raw_examples), replay_count(len(labelled), config.replay_share)))
    history = []
    stages = (
        ("warmup", raw_examples, config.warmup_epochs, config.warmup_learning_rate, config.warmup_batch_size),
        ("sft", labelled + replayed, config.epochs, config.learning_rate, config.batch_size),
    )
    for name, examples, epochs, learning_rate, batch_size in stages:
        if name == "sft" or config.warmup_examples:
            hooks = attach(
                parts.model, parts.tokenizer, directions, config, config.direction_noise, projection=parts.projection
            )
            with tempfile.TemporaryDirectory() as scratch:
                history += sft.supervised_fine_tuning(
                    parts.model, parts.tokenizer, examples, config, epochs=epochs, learning_rate=learning_rate,
                    batch_size=batch_size, seed=seed, scratch=Path(scratch),
                )  # fmt: skip
            hooks.remove()
        with replacing(EXPLAINERS / name) as folder:
            explainer_folder.save(parts, folder)
    write_curves(REPORTS / "training/sft.csv", history)
    return Report({}, [f"warm-up on {len(raw_examples)} raw activations, then {len(labelled)} labels"])


def raw_activations(params: Params, mean: torch.Tensor, draw: random.Random) -> sft.WarmupSet:
    """Residuals of the subject at random tokens of a stream of their own, with something true about each. What the
    prompt shows of promoted tokens is what they promote, less `mean`."""
    config = params.train_sft
    reader = open_reader(SUBJECT, SAES, [], params.prepare_subject.context_length, whole=False)
    limit = ReadingLimit(reader.tokenizer, reader.context_length)
    domain = open_domain(params.prepare_subject.domain, params.seed, params.prepare_subject.corpus, limit)
    batches = token_batches(
        domain.documents("warmup", config.warmup_examples), reader, params.extract_activations.batch_size
    )
    found = sft.warmup_set(batches, domain, config, params.extract_activations.context_tokens, draw)
    if not config.prompt.shown_promoted:
        return found
    tokens = promoted(reader.model, reader.tokenizer, found.residuals - mean, config.prompt.shown_promoted)
    contexts = found.contexts or [""] * len(tokens)
    shown = ["\n".join(filter(None, [own, promotes(words)])) for own, words in zip(contexts, tokens, strict=True)]
    return replace(found, contexts=shown)


def sft_labels(number: Mapping[str, int]) -> list[tuple[int, str]]:
    """(the feature's number, label) of the sft split; features without a label are left out."""
    labels = read_rows(LABELS, ExplanationRow)
    return [(number[row.feature_id], row.explanation) for row in labels if row.split == "sft" and row.explanation]


def replay_count(labels: int, share: float) -> int:
    """How many warm-up examples make up `share` of the mixture with so many labels."""
    return round(labels * share / (1 - share))


if __name__ == "__main__":
    main(run, parallel=True)
