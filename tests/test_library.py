"""`import saeexplainer` as somebody else has it: the installed wheel, another folder, a model and an SAE of theirs.

The snippets of docs/LIBRARY.md run in order, in one process that sees the wheel and no checkout; then each function is
compared with the pipeline's own answer, and its mistakes are one line.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from alone import installed_alone
from families import CONTEXT, TEXTS as WORDS, WIDTH, save_family
from published import D_SAE, save_chat_model, save_sae
from rows import evaluated
from safetensors.torch import load_file
from tiny import ROOT, settings

import saeexplainer
from saeexplainer.config import Direction
from saeexplainer.config.explainers import AskedPrompt
from saeexplainer.library import command
from saeexplainer.records import FeatureRow
from saeexplainer.serving import Explained, ServedExplainer, write_served

PAGE = ROOT / "docs/LIBRARY.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
HOOK, LATENT = "blocks.1.hook_resid_post", 27
TEXTS = [f"{one} {other}" for one in WORDS for other in WORDS] * 3
SITE_PACKAGES = sysconfig.get_paths()["purelib"]
CHECKS = f"""
import importlib.util, sys
assert saeexplainer.__file__.startswith(sys.argv[1]), saeexplainer.__file__
assert not [name for name in ("tasks", "flows", "conf") if importlib.util.find_spec(name)]
assert feature.feature_id == "model/sae/{LATENT}" and len(score.texts) == 10 and len(mine.activations) == 2
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` puts into an environment, in a folder of its own; built from a copy, offline."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("saeexplainer", "tasks", "flows", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where somebody works: a model as transformers saves it, an SAE as sae-lens does, an explainer, texts, records."""
    folder = tmp_path_factory.mktemp("elsewhere")
    save_family("llama", folder / "model")
    save_sae(folder / "model", True, "standard", folder / "sae", HOOK, TEXTS)
    (folder / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    make_explainer(folder, "explainer", Direction.decoder, "What is {feature}?", 0)
    record = {"modelId": "model", "layer": "sae", "index": str(LATENT), "maxActApprox": 1.5,
              "explanations": [{"description": "dogs"}], "activations": []}  # fmt: skip
    (folder / "neuronpedia.jsonl").write_text(json.dumps(record), encoding="utf-8")
    return folder


def make_explainer(
    folder: Path, name: str, direction: Direction, instruction: str, contexts: int, dropped: float = 0.0
) -> None:
    """An explainer of the features 0 to 3 that stands alone."""
    if not (folder / "chat").is_dir():
        save_chat_model("llama", folder / "chat", 3 * ["a dog", "the cat", "the garden"], steps=20)
    asked = settings()
    prompt = AskedPrompt("chat", instruction, contexts, 0, 0, 0)
    injection = replace(
        asked.explainer, direction=direction, injection_block=1, prompt=prompt, contexts_dropped=dropped
    )
    generation = replace(asked.generate_explanations, max_new_tokens=6)
    rows = [FeatureRow(f"model/sae/{index}", "sae", index, "test", 1.0, 0.1) for index in range(4)]
    generator = torch.Generator().manual_seed(5)
    weights = load_file(folder / "sae/sae_weights.safetensors")
    tensors = {"decoder": weights["W_dec"][:4], "mean_activation": torch.randn(4, WIDTH, generator=generator)}
    measured = [replace(row, log_probability=-1.0 - at) for at, row in enumerate(evaluated([0.75, 0.25]))]
    shown = [f"- a <<dog>> {index}" for index in range(4)] if contexts else []
    write_served(folder / name, folder / "chat", rows, tensors, injection, generation, measured, shown)


def make_registry(folder: Path) -> None:
    """An MLflow store whose one model has a champion: the explainer's folder, as a version holds it."""
    import mlflow

    (folder / "mlruns").mkdir()
    shutil.copytree(folder / "explainer", folder / "version/artifacts/served")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlruns/mlflow.db")
    client.create_registered_model("sae-explainer-sandbox")
    version = client.create_model_version("sae-explainer-sandbox", str(folder / "version"))
    client.set_registered_model_alias("sae-explainer-sandbox", "champion", version.version)


@pytest.fixture(scope="module")
def registry(folder: Path) -> str:
    """The address of MLflow's store in the folder."""
    make_registry(folder)
    return f"sqlite:///{folder}/mlruns/mlflow.db"


@pytest.fixture(scope="module")
def subject(folder: Path):
    return saeexplainer.open_subject(folder / "model", folder / "sae", context_length=40)


@pytest.fixture(scope="module")
def explainer(folder: Path) -> ServedExplainer:
    return saeexplainer.load_explainer(folder / "explainer")


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages that `pip install .` brings along: none of the pipeline's."""
    (found,) = metadata.distributions(name="sae-explainer", path=[str(wheel)])
    needed = [line for line in found.requires if "extra ==" not in line]
    return installed_alone(needed, tmp_path_factory.mktemp("core") / "site")


def run(wheel: Path, folder: Path, code: str, packages: Path) -> subprocess.CompletedProcess[str]:
    """Python with the wheel and some packages, but no checkout and no editable install, in the folder."""
    paths = {"PYTHONPATH": f"{wheel}{os.pathsep}{packages}", "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""}
    return subprocess.run(
        [sys.executable, "-S", "-c", code, str(wheel)], cwd=folder, env=os.environ | paths, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


def test_the_page_runs_from_top_to_bottom_where_only_the_wheel_is(wheel: Path, folder: Path, core: Path) -> None:
    """But for the snippet that needs MLflow, which no wheel brings along."""
    done = run(wheel, folder, "\n".join([*(one for one in SNIPPETS if "champion" not in one), CHECKS]), core)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"model/sae/{LATENT} fires on ")
    assert lines[-1].startswith(f"decoder: must be a list of {WIDTH} numbers")
    (written,) = [json.loads(line) for line in (folder / "mine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert written["metadata"]["hook_name"] == HOOK and 0 <= written["scores"]["generative_accuracy"] <= 1


def test_the_champion_of_the_page_answers_where_mlflow_is(wheel: Path, folder: Path, registry: str, core: Path) -> None:
    code = "\n".join(["import saeexplainer", *(one for one in SNIPPETS if "champion" in one)])
    done = run(wheel, folder, code, Path(SITE_PACKAGES))
    assert (done.returncode, done.stdout) == (0, f"decoder {WIDTH}\n"), done.stderr
    without = run(wheel, folder, code, core)
    assert without.returncode == 1 and "load_champion needs MLflow, which is not installed" in without.stderr


def test_the_wheel_holds_the_library_and_no_other_name(wheel: Path) -> None:
    names = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"saeexplainer", "bin"}
    inside = {path.relative_to(wheel).as_posix() for path in (wheel / "saeexplainer").rglob("*") if path.is_file()}
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "saeexplainer").rglob("*") if path.is_file()}
    cached = re.compile("__pycache__")
    assert {path for path in inside if not cached.search(path)} == {path for path in here if not cached.search(path)}


def test_the_command_says_where_its_pipeline_is(wheel: Path, folder: Path, core: Path) -> None:
    done = run(wheel, folder, "import sys; from saeexplainer.library.command import main; sys.exit(main())", core)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{command.ABSENT}\n")
    assert "make setup" in command.ABSENT and "\n" not in command.ABSENT


def test_the_command_runs_the_pipeline_beside_the_library(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["sae-explainer"])
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(ROOT))])
    assert command.main() == 0 and "Usage: sae-explainer" in capsys.readouterr().out
    assert sys.path[0] == str(ROOT)


def test_the_package_alone_imports_nothing_heavy(wheel: Path, folder: Path, core: Path) -> None:
    code = """
import sys, saeexplainer
print(sorted(saeexplainer.__all__) == [name for name in dir(saeexplainer) if name[0] != "_"])
print({"torch", "transformers", "numpy", "pyarrow", "mlflow"} & set(sys.modules))
"""
    done = run(wheel, folder, code, core)
    assert done.stdout.splitlines() == ["True", "set()"], done.stderr


def test_every_module_can_be_imported_with_what_the_wheel_asks_for(wheel: Path, folder: Path, core: Path) -> None:
    code = """
import importlib, pkgutil, saeexplainer
for module in pkgutil.walk_packages(saeexplainer.__path__, "saeexplainer."):
    importlib.import_module(module.name)
"""
    done = run(wheel, folder, code, core)
    assert done.returncode == 0, done.stderr


def test_every_name_is_there_and_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in saeexplainer.__all__:
        found = getattr(saeexplainer, name)
        assert found.__doc__ and (f"`{name}" in page or f"`{name}(" in page), name
    with pytest.raises(AttributeError, match="no attribute 'explane'"):
        saeexplainer.explane
    snippets = "\n".join(SNIPPETS)
    assert not [name for name in saeexplainer.__all__ if f"saeexplainer.{name}" not in snippets]


def test_a_subject_of_others_is_opened_as_its_sae_was_trained(subject, folder: Path) -> None:
    assert (subject.name, subject.sae_name, str(subject.site)) == ("model", "sae", HOOK)
    assert subject.reader.begins_with_bos and subject.sae.cfg.d_sae == D_SAE


def test_a_feature_is_measured_as_by_hand(subject) -> None:
    """Of each text alone: transformers' hidden states, sae-lens' codes."""
    some, again, other = saeexplainer.measure_features(subject, [LATENT, LATENT, 3], TEXTS, contexts=4)
    assert some.feature_id == again.feature_id == f"model/sae/{LATENT}" and other.index == 3
    peaks, count, total, fired = [], 0, torch.zeros(WIDTH), 0
    for text in TEXTS:
        batch = subject.reader.read([text])
        codes = subject.sae.encode(batch.of_valid)[:, LATENT].detach()
        peaks.append((float(codes.max()), batch.of_valid[int(codes.argmax())]))
        total, count, fired = total + batch.of_valid.sum(dim=0), count + len(codes), fired + int((codes > 0).sum())
    peaks.sort(key=lambda peak: -peak[0])
    assert some.maximum == pytest.approx(peaks[0][0], rel=1e-4)
    assert some.density == pytest.approx(fired / count)
    assert [max(context.activations) for context in some.contexts] == pytest.approx([p for p, _ in peaks[:4]], rel=1e-3)
    assert [context.rank for context in some.contexts] == [0, 1, 2, 3]
    torch.testing.assert_close(some.vectors["decoder"], subject.sae.W_dec[LATENT].detach())
    mean = torch.stack([residual for _, residual in peaks[:4]]).mean(dim=0) - total / count
    torch.testing.assert_close(some.vectors["mean_activation"], mean, rtol=1e-3, atol=1e-3)


def test_a_silent_feature_says_so(subject, explainer: ServedExplainer, folder: Path) -> None:
    sae = subject.sae
    with torch.no_grad():
        kept = sae.b_enc[5].clone()
        sae.b_enc[5] = -1e6
        (silent,) = saeexplainer.measure_features(subject, [5], TEXTS[:3])
        sae.b_enc[5] = kept
    assert (silent.maximum, silent.density, silent.contexts) == (0.0, 0.0, [])
    assert "mean_activation" not in silent.vectors
    with pytest.raises(saeexplainer.UserError, match="model/sae/5: its maximum is 0; measure it on texts where it"):
        saeexplainer.score_explanation("dogs", subject, silent)
    make_explainer(folder, "by_mean", Direction.mean_activation, "What is {feature}?", 0)
    with pytest.raises(saeexplainer.UserError, match="no mean_activation vector, it fires on none of the texts"):
        saeexplainer.explain_feature(saeexplainer.load_explainer(folder / "by_mean"), silent)


def test_known_features_measured_ones_and_vectors_get_the_same_answer(subject, explainer: ServedExplainer) -> None:
    (measured,) = saeexplainer.measure_features(subject, [2], TEXTS)
    by_number = saeexplainer.explain_feature(explainer, 2)
    assert by_number == saeexplainer.explain_feature(explainer, "model/sae/2") == explainer.explain([2])[0]
    found = saeexplainer.explain_feature(explainer, measured)
    assert found.explanation == by_number.explanation and found.feature_id == "model/sae/2"
    vector = measured.vectors["decoder"]
    expected = Explained("", by_number.explanation, found.expected_accuracy)
    for given in (vector, vector.tolist(), vector.numpy(), 3 * vector):
        assert saeexplainer.explain_vector(explainer, given).explanation == expected.explanation
    other = saeexplainer.explain_vector(explainer, -vector)
    assert other.feature_id == "" and 0 <= other.expected_accuracy <= 1


def test_an_explainer_that_shows_contexts_is_shown_the_measured_ones(subject, folder: Path) -> None:
    make_explainer(folder, "with_contexts", Direction.decoder, "{contexts}\nWhat is {feature}?", 2)
    explainer = saeexplainer.load_explainer(folder / "with_contexts")
    (measured,) = saeexplainer.measure_features(subject, [LATENT], TEXTS)
    assert saeexplainer.explain_feature(explainer, measured).feature_id == f"model/sae/{LATENT}"
    with pytest.raises(saeexplainer.UserError, match="reads a feature's contexts too"):
        saeexplainer.explain_vector(explainer, measured.vectors["decoder"])


def test_an_explainer_that_learnt_without_contexts_too_answers_about_a_bare_vector(subject, folder: Path) -> None:
    make_explainer(folder, "with_and_without", Direction.decoder, "{contexts}\nWhat is {feature}?", 2, dropped=0.1)
    explainer = saeexplainer.load_explainer(folder / "with_and_without")
    (measured,) = saeexplainer.measure_features(subject, [LATENT], TEXTS)
    assert saeexplainer.explain_vector(explainer, measured.vectors["decoder"]).feature_id == ""


def test_a_score_by_hand(subject) -> None:
    (feature,) = saeexplainer.measure_features(subject, [LATENT], TEXTS)
    texts = [TEXTS[0], TEXTS[5], ""]
    found = saeexplainer.score_explanation(" dogs ", subject, feature, texts=texts)
    expected = []
    for text in texts[:2]:
        codes = subject.sae.encode(subject.reader.read([text]).of_valid)[:, LATENT].detach()
        expected.append(float(codes.max()) / feature.maximum)
    assert found.activations == pytest.approx([*expected, 0.0], rel=1e-4)
    assert found.generative_accuracy == pytest.approx(sum(value >= 0.5 for value in expected) / 3)
    assert ["".join(tokens) for tokens in found.tokens] == texts and found.explanation == " dogs "
    strongest = [max(values, default=0.0) for values in found.token_activations]
    assert strongest == pytest.approx(found.activations, rel=1e-4)
    empty = saeexplainer.score_explanation(" ", subject, feature, texts=texts)
    assert (empty.texts, empty.generative_accuracy, empty.hallucination) == ([], 0.0, 1.0)
    unknown = saeexplainer.score_explanation("dogs", subject, feature, texts=[])
    assert math.isnan(unknown.generative_accuracy) and math.isnan(unknown.hallucination)


def test_a_seed_gives_the_same_texts_and_leaves_torch_alone(subject) -> None:
    (feature,) = saeexplainer.measure_features(subject, [LATENT], TEXTS)
    writer = saeexplainer.subject_writer(subject, texts=3, max_new_tokens=5)
    torch.manual_seed(7)
    first = saeexplainer.score_explanation("dogs", subject, feature, writer=writer, seed=1)
    drawn = torch.rand(2)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(2))
    assert first == saeexplainer.score_explanation("dogs", subject, feature, writer=writer, seed=1)
    assert first.texts != saeexplainer.score_explanation("dogs", subject, feature, writer=writer, seed=2).texts


def test_a_record_comes_back_as_it_went(subject, tmp_path: Path) -> None:
    (feature,) = saeexplainer.measure_features(subject, [LATENT], TEXTS)
    record = saeexplainer.feature_record(feature, "dogs", subject)
    bare = saeexplainer.feature_record(saeexplainer.Feature("model/sae/3", 3, 1.0), "cats", subject)
    saeexplainer.write_records(tmp_path / "a.jsonl", [record, bare])
    assert saeexplainer.read_records(tmp_path / "a.jsonl") == [record, bare]
    known = json.loads(record.metadata)
    assert (known["target_model"], known["sae_id"], known["feature_index"]) == ("model", "sae", LATENT)
    assert (known["layer"], known["d_in"], known["d_sae"]) == (1, WIDTH, D_SAE)
    assert known["max_activation_approx"] == feature.maximum and json.loads(bare.metadata)["activation_density"] is None
    with pytest.raises(saeexplainer.UserError, match=r"a\.jsonl/b: cannot be written"):
        saeexplainer.write_records(tmp_path / "a.jsonl/b", [record])


def test_the_champion_of_a_registry_answers(folder: Path, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = saeexplainer.load_explainer(folder / "explainer").explain([1])
    for name in ("sandbox", "sae-explainer-sandbox", None):
        assert saeexplainer.load_champion(name, registry).explain([1]) == expected
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert saeexplainer.load_champion().explain([1]) == expected
    with pytest.raises(saeexplainer.UserError, match="sae-explainer-pydoc: has no champion in this registry"):
        saeexplainer.load_champion("pydoc", registry)
    with pytest.raises(saeexplainer.UserError, match="tracking_uri: nowhere.db is no file"):
        saeexplainer.load_champion("sandbox", "sqlite:///nowhere.db")
    monkeypatch.chdir("model")
    with pytest.raises(saeexplainer.UserError, match="no MLflow store here; give tracking_uri"):
        saeexplainer.load_champion()
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(saeexplainer.UserError, match="load_champion needs MLflow, which is not installed: pip install"):
        saeexplainer.load_champion("sandbox", registry)


def test_what_does_not_fit_is_one_line(subject, explainer: ServedExplainer, folder: Path, tmp_path: Path) -> None:
    def said(do, *given, **more) -> str:
        with pytest.raises(saeexplainer.UserError) as caught:
            do(*given, **more)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    opened = saeexplainer.open_subject
    assert "not a model folder" in said(opened, folder / "sae", folder / "sae")
    assert "not an SAE folder" in said(opened, folder / "model", folder / "model")
    assert "needs a pinned revision" in said(opened, "somebody/model", folder / "sae")
    assert "was trained with BOS; leave it out" in said(opened, folder / "model", folder / "sae", prepend_bos=False)
    assert f"context_length: 9999 tokens, but the model reads {CONTEXT} at most" in said(
        opened, folder / "model", folder / "sae", context_length=9999
    )
    assert f"has features 0 to {D_SAE - 1}" in said(saeexplainer.measure_features, subject, [D_SAE], TEXTS)
    assert said(saeexplainer.measure_features, subject, [0], [" "]).startswith("texts: there is none")
    assert "has no {description}" in said(saeexplainer.subject_writer, subject, prompt="A text")
    assert "explainer/config.json is missing" in said(saeexplainer.load_explainer, tmp_path)
    assert "out of range; model/sae has features 0 to 3" in said(saeexplainer.explain_feature, explainer, LATENT)
    assert "must be finite numbers" in said(saeexplainer.explain_vector, explainer, [math.nan] * WIDTH)
    by_hand = saeexplainer.Feature("model/sae/3", 3, 1.0)
    assert "no decoder vector, it was made without" in said(saeexplainer.explain_feature, explainer, by_hand)
    far = saeexplainer.Feature("model/sae/999", 999, 1.0)
    assert f"0 to {D_SAE - 1}" in said(saeexplainer.score_explanation, "dogs", subject, far, texts=["the dog"])
