"""One DPO round on the validated pairs; start and reference are the round's `start`.

    python -m tasks.train_dpo r1

Writes data/explainers/<round> (`saeexplainer.explainer.folder`, and in it preferences.json: the figures of the set it
was trained on, which a round that starts from it is compared with) and reports/training/<round>.csv.
"""

import random
import tempfile
from pathlib import Path

from saeexplainer.config import Params
from saeexplainer.explainer import folder as explainer_folder
from saeexplainer.explainer.explainer import Prompts
from saeexplainer.explainer.feature_tokens import first_feature_id
from saeexplainer.explainer.table import FeatureTable
from saeexplainer.records import PreferencePair
from saeexplainer.runs.seeds import seed_torch
from saeexplainer.runs.storage import read_json, read_rows, replacing, write_json
from saeexplainer.training import dpo
from saeexplainer.training.curves import write_curves
from saeexplainer.training.start import open_start
from tasks.places import ACTIVATIONS, EXPLAINERS, ROUNDS
from tasks.stage import Report, main


def run(params: Params, item: str) -> Report:
    """Train on the dpo pairs, choose the checkpoint on the valid ones."""
    round_, settings = params.rounds[item], params.explainer
    seed = seed_torch(params.seed, f"train_dpo@{item}")
    features = FeatureTable(ACTIVATIONS)
    start = open_start(
        EXPLAINERS / round_.start, features.vectors[settings.direction], settings, params.train_dpo.direction_noise
    )
    first_id = first_feature_id(start.parts.model, start.parts.tokenizer)
    prompts = Prompts(start.parts.tokenizer, first_id, settings, features.contexts(settings.prompt))
    pairs = read_rows(ROUNDS / item / "validated.parquet", PreferencePair)
    draw = random.Random(seed)
    bare = {"dpo": lambda: draw.random() < settings.contexts_dropped, "valid": lambda: False}
    datasets = {
        split: dpo.preference_dataset(
            [pair for pair in pairs if pair.split == split], prompts, features.number.__getitem__, without
        )
        for split, without in bare.items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        history = dpo.train(start, datasets["dpo"], datasets["valid"], round_, params, seed=seed, scratch=Path(scratch))
    start.hooks.remove()
    with replacing(EXPLAINERS / item) as folder:
        explainer_folder.save(start.parts, folder)
        write_json(folder / "preferences.json", read_json(ROUNDS / item / "validation.json")["figures"])
    write_curves(Path(f"reports/training/{item}.csv"), history)
    best = max(entry["eval_rewards/accuracies"] for entry in history if "eval_rewards/accuracies" in entry)
    return Report(
        {"valid_preference_accuracy": best},
        [f"{len(datasets['dpo'])} pairs; validation preference accuracy {best:.3f} at the kept checkpoint"],
    )


if __name__ == "__main__":
    main(run, parallel=True)
