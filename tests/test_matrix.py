"""Pretrained models and SAEs through the whole pipeline: four families by four architectures, both rounds.

Every stage runs as `dvc repro` would run it: text from files, labels from a table, LoRA on a chat explainer. The suite
takes a Latin square: each family and each architecture once, between them three sites, both local writers, both local
judges and an explainer of another width. SAE_EXPLAINER_MATRIX=1 takes all sixteen.
"""

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from families import TOKENIZERS
from omegaconf import DictConfig, OmegaConf
from published import D_SAE, TEMPLATE, save_chat_model, save_sae, teach
from tiny import settings

from saeexplainer.config import Params
from saeexplainer.config.parts import Architecture
from saeexplainer.records import ContextRow, EvaluationRow, ExplanationRow, FeatureRow, PreferencePair
from saeexplainer.runs.storage import read_json, read_rows, read_tensors, write_rows
from saeexplainer.training.subject import build_model
from tasks import (
    build_preferences,
    compare_rounds,
    evaluate,
    extract_activations,
    generate_explanations,
    label_features,
    prepare_sae,
    prepare_subject,
    probe_features,
    score_explanations,
    train_dpo,
    train_sft,
    validate_preferences,
    warm_up,
)
from tasks.settings import compose, params

WHOLE = bool(os.environ.get("SAE_EXPLAINER_MATRIX"))
LABELS = Path("data/imported/labels.parquet")
FAMILIES = {"llama": True, "gemma2": True, "gpt2": False, "qwen3": None}  # to prepend_bos
NARROW = 24  # width of the explainer that is of another width
POST = "blocks.1.hook_resid_post"
ROUNDS = ("r1", "r2")


@dataclass(frozen=True)
class Run:
    """One combination."""

    family: str
    architecture: str
    hook: str = POST
    writer: str = "chat"  # conf/writer
    judge: str = "likelihood"  # conf/judge
    narrow: bool = False  # the explainer is of another family and width

    def __str__(self) -> str:
        return f"{self.family}-{self.architecture}"


SQUARE = [
    Run("llama", "standard", judge="chat"),
    Run("gemma2", "topk", hook="blocks.2.hook_resid_pre"),
    Run("gpt2", "jumprelu", hook="blocks.1.hook_mlp_out", writer="subject"),
    Run("qwen3", "gated", narrow=True),
]
OTHERS = [
    Run(family, architecture)
    for family in FAMILIES
    for architecture in ("standard", "topk", "jumprelu", "gated")
    if (family, architecture) not in {(run.family, run.architecture) for run in SQUARE}
]


def sentences(count: int) -> list[str]:
    """Different documents of words that the tokenizers know."""
    draw = random.Random(0)
    words = ["the", "dog", "chases", "the", "cat", "in", "the", "garden", "does", "the", "chase"]
    return list(dict.fromkeys(" ".join(draw.choices(words, k=draw.randint(6, 12))) for _ in range(count)))


def save_narrow(folder: Path, texts: list[str]) -> None:
    """A chat model of another width than all families here."""
    tokenizer = TOKENIZERS["llama"]()
    tokenizer.chat_template, tokenizer.pad_token = TEMPLATE, tokenizer.eos_token
    shape = replace(
        settings().prepare_subject, architecture=Architecture.llama, d_model=NARROW, blocks=3, heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(shape, tokenizer)
    teach(model, tokenizer, texts, steps=60)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What others made: the corpus and, by family, the models that a test asks for."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "texts").mkdir()
    half = len(texts := sentences(300)) // 2
    for name, part in (("a", texts[:half]), ("b", texts[half:])):
        (folder / "texts" / f"{name}.txt").write_text("\n\n".join(part), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def base() -> DictConfig:
    """The settings of a run on a pretrained model and a corpus, before models and sizes are named."""
    composed = compose.composed(
        [
            "experiment=nano", "subject=corpus", "explainer=lora", f"label_features.source={LABELS}",
            "warm_up.examples=0", "train_sft.replay_share=0", "explainer.pretrained.source=x",
        ]
    )  # fmt: skip
    return OmegaConf.create(composed)


def local(source: Path) -> dict[str, str | None]:
    """A model in a folder, as the settings name it."""
    return {"source": str(source), "revision": None, "dtype": "float32", "device_map": None, "attention": None}


SMALL = {
    "prepare_subject": {"context_length": 40, "held_out_documents": 4},
    "extract_activations": {
        "documents": 40, "batch_size": 16, "top_contexts": 4, "min_density": 0.0, "max_density": 1.0,
        "valid_features": 6, "test_features": 4, "direction_contexts": 2, "sft_share": 0.75,
    },
    "label_features": {"contexts": 2},
    "probe_features": {"first_rank": 2, "contexts": 2, "silent": 2, "steer": {"max_new_tokens": 3}},
    "explainer": {
        "bf16": False, "gradient_checkpointing": False, "accumulate": 1,
        "prompt": {"instruction": "What is {feature}?"},
    },
    "train_sft": {"batch_size": 8, "epochs": 4, "learning_rate": 0.005},
    # Colder, a tiny model says one word to most features, and too few have a pair.
    "generate_explanations": {"candidates": 5, "temperature": 1.0, "top_p": 0.8, "max_new_tokens": 8},
    "validate_preferences": {"max_words": 60},
    # At the default's weight and twice the rate DPO takes so much probability from a tiny model's words that it writes
    # lone bytes in the second round.
    "train_dpo": {"epochs": 2, "batch_size": 4, "accumulate": 1, "sft_weight": 1.0},
    "rounds": {name: {"learning_rate": 0.0005} for name in ROUNDS},
    "evaluate": {"negatives": 1},
}  # fmt: skip


def settings_of(run: Run, base: DictConfig, shelf: Path) -> Params:
    """The composed settings with this run's models, everything small."""
    model = local(shelf / run.family)
    writer = {
        "kind": run.writer, "prompt": "Say {description}.", "texts": 2, "temperature": 1.0, "max_new_tokens": 8,
    } | ({"model": model} if run.writer == "chat" else {})  # fmt: skip
    judges = {
        "likelihood": {"kind": "likelihood", "prompt": "Say {description}."},
        "chat": {"kind": "chat", "model": model},
    }
    taken = {"source": str(shelf / f"sae-{run}"), "sae_id": None, "norm_scaling_factor": None}
    brought = {
        "prepare_subject": {
            "pretrained": model, "prepend_bos": FAMILIES[run.family],
            "corpus": {
                "source": str(shelf / "texts"), "revision": None, "subset": None, "split": None, "column": "text",
                "packed": run.architecture != "topk",
            },
        },
        "prepare_sae": {"saes": [{"name": "main", "pretrained": taken, "d_sae": D_SAE}]},
        "explainer": {"pretrained": local(explainer_base(run, shelf))},
        "score_explanations": {"writer": writer},
        "evaluate": {"writer": writer, "judges": [judges[run.judge] | {"batch_size": 64}]},
    }  # fmt: skip
    return params.build(OmegaConf.merge(base, SMALL, brought), "test")


def explainer_base(run: Run, shelf: Path) -> Path:
    return shelf / ("narrow" if run.narrow else run.family)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workspace to be in, with a store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'own.db'}")
    with torch.enable_grad():  # which a stage switches off for its process
        yield tmp_path


def publish(run: Run, shelf: Path) -> None:
    """Make this run's models and SAE, unless another run has."""
    texts = sentences(300)
    for folder in {shelf / run.family, explainer_base(run, shelf)}:
        if not folder.exists():
            save_narrow(folder, texts) if folder.name == "narrow" else save_chat_model(run.family, folder, texts)
    save_sae(
        shelf / run.family, FAMILIES[run.family], run.architecture, shelf / f"sae-{run}", run.hook, texts[:40]
    )  # fmt: skip


def write_labels() -> None:
    """A table of labels: the token on which a feature's strongest context peaks."""
    split = {row.feature_id: row.split for row in read_rows(Path("data/activations/features.parquet"), FeatureRow)}
    contexts = read_rows(Path("data/activations/contexts.parquet"), ContextRow)
    rows = [
        ExplanationRow(one.feature_id, split[one.feature_id], f"the {one.tokens[one.peak].strip() or 'dog'}")
        for one in contexts
        if one.rank == 0
    ]
    write_rows(LABELS, rows, ExplanationRow)


def whole_pipeline(given: Params) -> None:
    """Every stage, in the order of dvc.yaml."""
    prepare_subject.run(given)
    prepare_sae.run(given)
    extract_activations.run(given)
    probe_features.run(given)
    write_labels()
    label_features.run(given)
    torch.set_grad_enabled(True)
    warm_up.run(given)
    train_sft.run(given)
    for name in given.rounds:
        for stage in (
            generate_explanations, score_explanations, build_preferences, validate_preferences, train_dpo,
        ):  # fmt: skip
            stage.run(given, name)
    for name in given.evaluations:
        evaluate.run(given, name)
    compare_rounds.run(given)


def digest(folder: Path) -> str:
    return sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("run", [*SQUARE, *(OTHERS if WHOLE else [])], ids=str)
def test_both_rounds_run_to_the_comparison(run: Run, base: DictConfig, shelf: Path, here: Path) -> None:
    publish(run, shelf)
    given, asked = settings_of(run, base, shelf), explainer_base(run, shelf)
    before = digest(asked)
    whole_pipeline(given)

    comparison = json.loads(Path("reports/comparison.json").read_text(encoding="utf-8"))
    assert list(comparison["rounds"]) == ["open_loop", "sft", *ROUNDS]
    assert (comparison["subject"], comparison["sae"]) == (run.family, "main")
    for name in ("sft", *ROUNDS):
        accuracy = comparison["rounds"][name]["generative_accuracy"]
        assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
        rows = read_rows(Path(f"data/evaluations/{name}.parquet"), EvaluationRow)
        assert len({row.feature_id for row in rows}) == len(rows) == given.extract_activations.test_features
    for name in ROUNDS:
        pairs = read_rows(Path(f"data/rounds/{name}/validated.parquet"), PreferencePair)
        assert {pair.split for pair in pairs} == {"dpo", "valid"}
        assert all(pair.chosen_score > pair.rejected_score for pair in pairs)
        assert read_json(Path("reports/costs.json"))["rounds"][name]["pairs"] == len(pairs)
    # Each round trained the adapter on, and nothing but the adapter.
    weights = [read_tensors(Path(f"data/explainers/{name}/adapter_model.safetensors")) for name in ("sft", *ROUNDS)]
    for earlier, later in pairwise(weights):
        assert earlier.keys() == later.keys() and any(not torch.equal(earlier[key], later[key]) for key in later)
    assert digest(asked) == before
    projected = [Path(f"data/explainers/{name}/projection.safetensors").is_file() for name in ("sft", *ROUNDS)]
    assert projected == [run.narrow] * 3
    assert Path("reports/report.html").stat().st_size > 10_000
