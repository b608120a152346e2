"""One explainer reinforced on-policy by what its explanations earn; start and reference are its `start`.

    python -m tasks.train_grpo g1

Samples, texts and rewards are those of a round (generate_explanations, score_explanations), on the features of the dpo
split. Writes data/explainers/<name> (`saeexplainer.explainer.folder`) and reports/training/<name>.csv.
"""

import random
import tempfile
from pathlib import Path

from saeexplainer.config import Params
from saeexplainer.evaluation import scoring
from saeexplainer.explainer import folder as explainer_folder
from saeexplainer.explainer.explainer import Prompts
from saeexplainer.explainer.feature_tokens import first_feature_id
from saeexplainer.explainer.table import FeatureTable
from saeexplainer.features.neighbours import Neighbourhoods
from saeexplainer.preferences import rewards
from saeexplainer.records import NeighbourRow
from saeexplainer.runs.seeds import seed_torch
from saeexplainer.runs.storage import read_rows, replacing
from saeexplainer.saes import text_activations
from saeexplainer.saes.reading import open_reader
from saeexplainer.training import grpo
from saeexplainer.training.curves import write_curves
from saeexplainer.training.start import open_start
from saeexplainer.writers.opening import open_writer
from tasks.places import ACTIVATIONS, EXPLAINERS, SAES, SUBJECT
from tasks.stage import Report, main

SPLIT = "dpo"


class Teacher:
    """What explanations earn, and what it took to say so."""

    def __init__(self, params: Params, table: FeatureTable, seed: int) -> None:
        self._config = params.score_explanations
        self._near = Neighbourhoods(table.rows, read_rows(ACTIVATIONS / "neighbours.parquet", NeighbourRow))
        self._asked = self._near.asked(row.feature_id for row in table.rows if row.split == SPLIT)
        self._reader = open_reader(SUBJECT, SAES, sorted(self._asked), params.prepare_subject.context_length)
        self.author = open_writer(
            self._config.writer, "score_explanations.writer", self._reader.model, self._reader.tokenizer
        )
        self._draw = random.Random(seed)
        self.descriptions = self.texts = 0  # written so far

    def rewards(self, asked: list[tuple[str, str]]) -> list[float | None]:
        """The reward of each (feature id, explanation), as score_explanations has it."""
        outcomes = scoring.try_out(
            asked, self.author, self._near, lambda texts: text_activations.read_texts(texts, self._reader, self._asked)
        )
        written = {outcome.explanation: len(outcome.texts) for outcome in outcomes}
        self.descriptions += sum(map(bool, written.values()))
        self.texts += sum(written.values())
        found = [outcome.reward(self._config.reward) for outcome in outcomes]
        if self._config.reward.shuffle:
            found = rewards.permuted([feature_id for feature_id, _ in asked], found, self._draw)
        return found


def run(params: Params, item: str) -> Report:
    """Train; the last step's weights are kept."""
    reinforcement, settings = params.reinforcements[item], params.explainer
    seed = seed_torch(params.seed, f"train_grpo@{item}")
    table = FeatureTable(ACTIVATIONS)
    start = open_start(
        EXPLAINERS / reinforcement.start,
        table.vectors[settings.direction],
        settings,
        params.train_grpo.direction_noise,
    )
    first_id = first_feature_id(start.parts.model, start.parts.tokenizer)
    prompts = Prompts(start.parts.tokenizer, first_id, settings, table.contexts(settings.prompt))
    draw = random.Random(seed)
    questions = {
        row.feature_id: prompts.ids(number, bare=draw.random() < settings.contexts_dropped)
        for number, row in enumerate(table.rows)
        if row.split == SPLIT
    }
    teacher = Teacher(params, table, seed)
    with tempfile.TemporaryDirectory() as scratch:
        history = grpo.train(start, questions, teacher.rewards, reinforcement, params, seed=seed, scratch=Path(scratch))
    start.hooks.remove()
    with replacing(EXPLAINERS / item) as folder:
        explainer_folder.save(start.parts, folder)
    write_curves(Path(f"reports/training/{item}.csv"), history)
    earned = [entry["reward"] for entry in history if "reward" in entry]
    lines = [
        f"{len(questions)} features, {params.generate_explanations.candidates} samples of each an epoch; "
        f"{teacher.texts} texts of {teacher.descriptions} descriptions",
        *teacher.author.notes(),
    ]
    return Report({"first_mean_reward": earned[0], "last_mean_reward": earned[-1]}, lines)


if __name__ == "__main__":
    main(run)
