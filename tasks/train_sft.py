"""The explainer before any preference: it goes on from the warm-up with the open-loop labels of the sft split.

    python -m tasks.train_sft

Some of the warm-up's examples are mixed into the labels. Writes data/explainers/sft (`saeexplainer.explainer.folder`)
and reports/training/sft.csv.
"""

import random
from collections.abc import Mapping

import torch

from saeexplainer.config import Params
from saeexplainer.explainer import folder as explainer_folder
from saeexplainer.explainer.table import FeatureTable
from saeexplainer.records import ExplanationRow
from saeexplainer.runs.seeds import seed_torch
from saeexplainer.runs.storage import read_rows, replacing
from saeexplainer.training import sft, warmup
from saeexplainer.training.curves import write_curves
from tasks.places import ACTIVATIONS, EXPLAINERS, LABELS, REPORTS, WARMUP
from tasks.stage import Report, main


def run(params: Params) -> Report:
    """Learn the labels with some warm-up examples mixed in, save."""
    config, settings = params.train_sft, params.explainer
    seed = seed_torch(params.seed, "train_sft")
    draw = random.Random(seed)
    table, raw = FeatureTable(ACTIVATIONS), warmup.load(WARMUP)
    features, shown = table.vectors[settings.direction], table.contexts(settings.prompt)
    labels = sft_labels(table.number)
    count = min(len(raw.descriptions), replay_count(len(labels), config.replay_share))
    replayed = draw.sample(range(len(raw.descriptions)), count)
    described = labels + [(len(features) + at, raw.descriptions[number]) for at, number in enumerate(replayed)]
    contexts = [*shown, *(raw.contexts[number] for number in replayed)] if shown else []
    parts = explainer_folder.open_parts(EXPLAINERS / "warmup", trainable=True)
    if isinstance(parts.projection, torch.nn.Linear):
        parts.projection.requires_grad_()  # the rounds keep it as the labels leave it
    history = sft.learn(
        parts, torch.cat([features, raw.vectors[replayed]]), contexts, described, settings, config,
        section="train_sft", draw=draw, seed=seed,
    )  # fmt: skip
    with replacing(EXPLAINERS / "sft") as folder:
        explainer_folder.save(parts, folder)
    write_curves(REPORTS / "training/sft.csv", history)
    return Report({}, [f"{len(labels)} labels, {count} warm-up examples among them"])


def sft_labels(number: Mapping[str, int]) -> list[tuple[int, str]]:
    """(the feature's number, label) of the sft split; features without a label are left out."""
    labels = read_rows(LABELS, ExplanationRow)
    return [(number[row.feature_id], row.explanation) for row in labels if row.split == "sft" and row.explanation]


def replay_count(labels: int, share: float) -> int:
    """How many warm-up examples make up `share` of the mixture with so many labels."""
    return round(labels * share / (1 - share))


if __name__ == "__main__":
    main(run, parallel=True)
