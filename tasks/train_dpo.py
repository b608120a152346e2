"""One DPO round on the validated pairs; start and reference are the round's `start`.

    python -m tasks.train_dpo r1

Writes data/explainers/<round> (an ordinary transformers folder, and in it preferences.json: the figures of the set it
was trained on, which a round that starts from it is compared with) and reports/training/<round>.csv.
"""

import tempfile
from pathlib import Path

from saeexplainer import dpo, models
from saeexplainer.config import Params
from saeexplainer.explainer import PARTS, Prompts, add_feature_tokens, attach, direction_rows
from saeexplainer.records import FeatureRow, PreferencePair
from saeexplainer.seeds import seed_torch
from saeexplainer.storage import read_json, read_rows, read_tensors, replacing, write_json
from saeexplainer.training_curves import write_curves
from tasks.stage import Report, main

ACTIVATIONS, EXPLAINERS, ROUNDS = Path("data/activations"), Path("data/explainers"), Path("data/rounds")


def run(params: Params, item: str) -> Report:
    """Train on the dpo pairs, choose the checkpoint on the valid ones."""
    round_, config = params.rounds[item], params.train_dpo
    seed = seed_torch(params.seed, f"train_dpo@{item}")
    start = EXPLAINERS / round_.start
    model, reference, tokenizer = models.open_model(start), models.open_model(start), models.open_tokenizer(start)
    directions = direction_rows(read_tensors(ACTIVATIONS / "directions.safetensors"), params.train_sft.direction)
    attach(model, tokenizer, directions, params.train_sft, config.direction_noise)
    attach(reference, tokenizer, directions, params.train_sft)
    prompts = Prompts(model.config.vocab_size, len(PARTS[params.train_sft.direction]))
    saved_tokenizer = models.open_tokenizer(start)
    add_feature_tokens(tokenizer, len(directions))
    number = {row.feature_id: at for at, row in enumerate(read_rows(ACTIVATIONS / "features.parquet", FeatureRow))}
    pairs = read_rows(ROUNDS / item / "validated.parquet", PreferencePair)
    datasets = {
        split: dpo.preference_dataset(
            [pair for pair in pairs if pair.split == split], lambda feature_id: prompts.text(number[feature_id])
        )
        for split in ("dpo", "valid")
    }
    with tempfile.TemporaryDirectory() as scratch:
        history = dpo.train(
            model, reference, tokenizer, datasets["dpo"], datasets["valid"], config, round_, seed=seed,
            scratch=Path(scratch),
        )  # fmt: skip
    with replacing(EXPLAINERS / item) as folder:
        model.save_pretrained(folder)
        saved_tokenizer.save_pretrained(folder)
        write_json(folder / "preferences.json", read_json(ROUNDS / item / "validation.json")["figures"])
    write_curves(Path(f"reports/training/{item}.csv"), history)
    best = max(entry["eval_rewards/accuracies"] for entry in history if "eval_rewards/accuracies" in entry)
    return Report(
        {"valid_preference_accuracy": best},
        [f"{len(datasets['dpo'])} pairs; validation preference accuracy {best:.3f} at the kept checkpoint"],
    )


if __name__ == "__main__":
    main(run)
