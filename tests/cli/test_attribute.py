"""`sae-explainer attribute` on a subject and an SAE of random weights, and pairs that a rule decides."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from pairs_by_hand import pair
from tiny import random_sae, tiny_model, tiny_tokenizer
from typed import Typed, typed

from saeexplainer.config.parts import Architecture
from saeexplainer.records import CandidateRow, ExplanationRow, PreferencePair, ScoreRow
from saeexplainer.runs.storage import read_rows, write_rows
from saeexplainer.saes.reading import open_reader
from saeexplainer.saes.text_activations import read_ends
from tasks.settings import compose, params
from tasks.validation import pair_suite

WORDS = ("cedar", "dog", "garden", "cat", "house", "river")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chosen explanations end in "the dog" and rejected ones in "not ?"."""
    folder = tmp_path_factory.mktemp("workspace")
    assert compose.main(["experiment=nano", "--output", str(folder / "params.yaml")]) == 0
    tiny_model(Architecture.llama).save_pretrained(folder / "data/subject")
    tiny_tokenizer().save_pretrained(folder / "data/subject")
    random_sae(folder / "data/saes/main")
    pairs = [
        replace(
            pair(), feature_id=f"sandbox-llama/main/{at}", split="valid" if at % 3 == 0 else "dpo",
            chosen_explanation=f"the word {WORDS[at % 6]} the dog", rejected_explanation=f"the {WORDS[at % 6]} not ?",
        )
        for at in range(36)
    ]  # fmt: skip
    write_rows(folder / "data/rounds/r1/validated.parquet", pairs, PreferencePair)
    scores = [
        ScoreRow("sandbox-llama/main/0", "valid", rank, said, [], [], [], reward)
        for rank, (said, reward) in enumerate([("a cat not ?", 0.75), ("a dog", 0.25), ("a dog", None)])
    ]
    write_rows(folder / "data/rounds/r1/scores.parquet", scores, ScoreRow)
    labels = [ExplanationRow(f"sandbox-llama/main/{at}", "dpo", f"label {at}") for at in range(64)]
    write_rows(folder / "data/labels.parquet", labels, ExplanationRow)
    (folder / "reports/training").mkdir(parents=True)
    (folder / "reports/training/r1.csv").write_text("step,epoch,metric,value\n2,1,eval_rewards/accuracies,0.75\n")
    return folder


def asked(folder: Path, *words: str) -> Typed:
    return typed(folder, "cli.main", "attribute", *words)


def test_what_the_sentence_decides_is_told_feature_by_feature(folder: Path) -> None:
    found = json.loads(asked(folder, "r1", "--json").stdout)
    assert (found["pairs"], found["held_out_pairs"], found["explainer_ranks_right"]) == (24, 12, 0.75)
    assert found["ranked_right"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 12}
    largest = [abs(term["adds"]) for term in found["terms"]]
    assert largest == sorted(largest, reverse=True) and found["terms"][0]["label"].startswith("label ")
    picked = {name: one["value"] for name, one in found["candidates"].items()}
    assert picked == {"ranked_first": 0.25, "any": 0.5, "best": 0.75}, "it likes the dog, which earned less"
    said = asked(folder, "r1").stdout
    assert "mean reward of held-out candidates that it ranks first 0.250, drawn at random 0.500, " in said
    assert "ranked right by the sentence alone: 1.000 (1.000 to 1.000)" in said and "0.750" in said


def test_a_reward_is_the_sum_of_its_terms(folder: Path) -> None:
    good, bad = (
        json.loads(asked(folder, "r1", "--explanation", said, "--json").stdout) for said in ("a dog", "a cat not ?")
    )
    for found in (good, bad):
        assert found["reward"] == pytest.approx(sum(term["adds"] for term in found["terms"])) and found["terms"]
    assert good["reward"] > bad["reward"]


def test_a_round_of_sentences_needs_no_text_and_its_pairs_are_valid(folder: Path) -> None:
    """Its candidates earn what the pairs of r1 say of their sentences."""
    given = yaml.safe_load((folder / "params.yaml").read_text())
    given["score_explanations"]["by_sentence"] = {"r2": "r1"}
    given["build_preferences"] |= {"floor": 0.4, "min_gap": 0.05, "min_spread": 0.05}
    (folder / "params.yaml").write_text(yaml.safe_dump(given))
    said = ("a dog", "a cat not ?", "", "the cedar")
    candidates = [
        CandidateRow(f"sandbox-llama/main/{at}", "valid" if at % 3 == 0 else "dpo", rank, words)
        for at in range(6)
        for rank, words in enumerate(said)
    ]
    write_rows(folder / "data/rounds/r2/candidates.parquet", candidates, CandidateRow)
    told = typed(folder, "score_explanations", "r2").stdout
    assert "24 candidates scored by the sentence alone, as the pairs of r1 have it; no text was written" in told
    rows = read_rows(folder / "data/rounds/r2/scores.parquet", ScoreRow)
    assert [row.explanation for row in rows] == 6 * list(said) and all(row.texts == [] for row in rows)
    earned = {row.explanation: row.reward for row in rows}
    assert earned["a dog"] > earned["a cat not ?"] > earned[""] == 0 and len({row.reward for row in rows}) == 4
    assert typed(folder, "build_preferences", "r2").returncode == 0
    pairs = read_rows(folder / "data/rounds/r2/pairs.parquet", PreferencePair)
    assert {(pair.chosen_explanation, pair.rejected_explanation) for pair in pairs} >= {("a dog", "a cat not ?")}
    known = params.load(folder / "params.yaml")
    asked = [{rule.meta["rule"] for rule in pair_suite.pair_expectations(known, name)} for name in ("r1", "r2")]
    assert asked[0] - asked[1] == {"chosen_best_text_not_empty", "rejected_best_text_not_empty"}
    assert asked[1] < asked[0]


def test_mistakes_are_one_line(folder: Path) -> None:
    failed = asked(folder, "r9")
    assert failed.returncode == 2 and failed.stderr == "error: r9: no such round; choose from r1, r2\n"
    write_rows(folder / "data/rounds/r2/validated.parquet", [pair()], PreferencePair)
    failed = asked(folder, "r2")
    assert (
        failed.returncode == 2
        and "validated.parquet: 0 pairs of the valid split; a reward of sentences needs 10" in failed.stderr
    )


def test_ends_are_the_codes_of_the_last_token(folder: Path) -> None:
    reader = open_reader(folder / "data/subject", folder / "data/saes", ["main"], 64)
    texts = ["the dog", "a much longer cedar in the garden", "", "the dog"]
    found = read_ends(texts, reader, "main")
    for text, codes in zip(texts, found):
        residual = torch.cat(list(reader.activations([text])))
        expected = reader.saes["main"].encode(residual[-1]).detach() if len(residual) else torch.zeros(64)
        assert torch.allclose(torch.tensor(codes), expected, atol=1e-5), text
