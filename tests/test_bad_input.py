"""What a user gets wrong, through the commands a user types: exit status 2, one line on stderr, nothing touched."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tiny import WIDTH, random_sae, tiny_model, tiny_tokenizer
from typed import typed

from saeexplainer.config.parts import Architecture
from saeexplainer.runs.storage import write_json, write_tensors
from saeexplainer.saes.loading import write_site
from saeexplainer.saes.sites import Place, Site
from tasks.places import SITE
from tasks.settings import compose


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano parameters with a subject and SAEs that fit each other, as another project might bring them."""
    folder = tmp_path_factory.mktemp("prepared")
    assert compose.main(["experiment=nano", "--output", str(folder / "params.yaml")]) == 0
    tiny_model(Architecture.llama).save_pretrained(folder / "data/subject")
    tiny_tokenizer().save_pretrained(folder / "data/subject")
    for name in ("main", "lender1"):
        random_sae(folder / "data/saes" / name, WIDTH)
    write_site(folder / SITE, Site(1, Place.resid_post))
    return folder


@pytest.fixture
def workspace(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "workspace"))


def edit(**changes: Any) -> Callable[[Path], None]:
    """Set `section__field` in params.yaml."""

    def apply(workspace: Path) -> None:
        config = OmegaConf.load(workspace / "params.yaml")
        for name, value in changes.items():
            OmegaConf.update(config, name.replace("__", "."), value, merge=False, force_add=True)
        OmegaConf.save(config, workspace / "params.yaml")

    return apply


def narrow_sae(workspace: Path) -> None:
    random_sae(workspace / "data/saes/main", WIDTH - 4)


def no_sae(workspace: Path) -> None:
    shutil.rmtree(workspace / "data/saes/main")


def no_model(workspace: Path) -> None:
    (workspace / "data/subject/config.json").unlink()


def cut_weights(workspace: Path) -> None:
    weights = workspace / "data/subject/model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def shallow_subject(workspace: Path) -> None:
    tiny_model(Architecture.llama, blocks=1).save_pretrained(workspace / "data/subject")


def of_others(source: str, **changes: Any) -> Callable[[Path], None]:
    """A pretrained model as the subject."""
    return edit(prepare_subject__pretrained=in_folder(source), **changes)


def in_folder(source: str) -> dict[str, str | None]:
    return {"source": source, "revision": None, "dtype": "float32", "device_map": None, "attention": None}


def chat_explainer_of_a_base_model(workspace: Path) -> None:
    tensors = {"decoder": torch.ones(2, WIDTH), "corpus_mean": torch.zeros(WIDTH)}
    write_tensors(workspace / "data/activations/directions.safetensors", tensors)
    edit(
        explainer__pretrained=in_folder("data/subject"), explainer__direction="decoder",
        explainer__prompt={"kind": "chat", "instruction": "What is {feature}?"}
        | dict.fromkeys(("shown_contexts", "shown_words", "shown_spread", "shown_promoted"), 0),
    )(workspace)  # fmt: skip


def broken_line_7(workspace: Path) -> None:
    good = [f'{{"feature_id": "gpt2/6-res/{index}", "explanation": "metres"}}' for index in range(9)]
    good[6] = good[6][:30]
    (workspace / "np.jsonl").write_text("\n".join(good), encoding="utf-8")


WRONG: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "an SAE of another width": (
        "extract_activations", narrow_sae, f"data/saes/main: d_in is {WIDTH - 4}, the subject's width {WIDTH}",
    ),
    "no SAE": ("extract_activations", no_sae, "data/saes/main: not an SAE folder"),
    "no model": ("prepare_sae", no_model, "data/subject: not a model folder"),
    "half a model": ("prepare_sae", cut_weights, "data/subject: no causal language model in it"),
    "a block the subject does not have": (
        "prepare_sae", shallow_subject, "prepare_sae.hook_block: 1, but the model has blocks 0 to 0",
    ),
    "fewer tokens than a batch": (
        "prepare_sae", edit(prepare_sae__documents=1), "prepare_sae.batch_tokens: 256, but the documents have",
    ),
    "fewer live features than the split needs": (
        "extract_activations",
        edit(extract_activations__test_features=60, extract_activations__documents=20),
        "extract_activations.test_features: valid and test need 68 features, but the SAE main has",
    ),
    "an empty corpus": (
        "prepare_subject", edit(prepare_subject__documents=0), "params.yaml: prepare_subject.documents: is 0",
    ),
    "a context that no document fits into": (
        "prepare_subject",
        edit(
            prepare_subject__context_length=4,
            prepare_subject__steps=1,
            probe_features__steer__prompt_tokens=2,
            probe_features__steer__max_new_tokens=1,
            generate_explanations__max_new_tokens=2,
            score_explanations__writer__max_new_tokens=2,
            evaluate__writer__max_new_tokens=2,
        ),
        "prepare_subject.context_length: 4, and no held-out document is that short; raise it",
    ),
    "a pretrained model that is not there": (
        "prepare_subject", of_others("models/absent"), "models/absent: no such folder, and a model of the hub needs",
    ),
    "a context longer than the pretrained model reads": (
        "prepare_subject",
        of_others("data/subject", prepare_subject__context_length=200),
        "prepare_subject.context_length: 200 tokens, but the model reads 128 at most; lower it",
    ),
    "an explainer without a chat template": (
        "warm_up", chat_explainer_of_a_base_model, "no chat template; name an instruction-tuned",
    ),
    "a site that is none": (
        "warm_up", lambda workspace: write_json(workspace / SITE, []), "data/site.json: names no hook_name",
    ),
    "a warm-up of one step": (
        "warm_up", edit(warm_up__examples=20), "warm_up: one step in all",
    ),
    "a broken line 7": ("cli.main import np.jsonl", broken_line_7, "np.jsonl:line 7: not JSON in UTF-8"),
    "a round with an unknown start": (
        "generate_explanations r1", edit(rounds__r1__start="r7"), "params.yaml: rounds.r1.start: is 'r7'",
    ),
    "an unknown round": (
        "train_dpo r9", edit(), "python -m tasks.train_dpo: got 'r9'; give one of params.yaml's rounds: r1, r2",
    ),
    "a round whose input is missing": ("build_preferences r1", edit(), "data/rounds/r1/scores.parquet: no such table"),
    "a misspelled key": (
        "label_features",
        edit(label_features__context=2),
        "label_features.context: unknown key; did you mean contexts?",
    ),
    "a wrong type": ("label_features", edit(train_sft__epochs="two"), "params.yaml: train_sft.epochs: "),
    "a negative count": (
        "label_features", edit(prepare_sae__documents=-3), "params.yaml: prepare_sae.documents: is -3",
    ),
    "replay without warm-up": (
        "label_features", edit(warm_up__examples=0), "params.yaml: train_sft.replay_share: is 0.5",
    ),
    "nothing but replay": (
        "label_features", edit(train_sft__replay_share=1.0), "params.yaml: train_sft.replay_share: is 1",
    ),
    "no sample of the truth": (
        "label_features",
        edit(extract_activations__truth_documents=0),
        "params.yaml: extract_activations.truth_documents: is 0",
    ),
    "an unknown experiment": (
        "settings.compose experiment=nanoo", edit(), "conf/experiment: 'nanoo' is unknown; choose from ",
    ),
    "a misspelled override": (
        "settings.compose train_sft.epoch=1", edit(), "train_sft.epoch: unknown key; did you mean train_sft.epochs?",
    ),
}  # fmt: skip


def snapshot(workspace: Path) -> dict[str, tuple[int, bytes]]:
    """All but .cache, where a stage that fails late keeps what it had read."""
    files = sorted(path for path in workspace.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize(("command", "damage", "said"), WRONG.values(), ids=WRONG)
def test_is_one_line_with_status_2_and_touches_nothing(
    workspace: Path, command: str, damage: Callable[[Path], None], said: str
) -> None:
    damage(workspace)
    before = snapshot(workspace)
    module, *arguments = command.split()
    process = typed(workspace, module, *arguments)
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1, process.stderr
    assert said in process.stderr
    assert snapshot(workspace) == before
