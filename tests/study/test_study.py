"""The study: variants share what they have in common, go on after a kill, outlive a failure, and are reported whole."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import timed
import yaml
from rows import evaluated

from saeexplainer.errors import UserError
from saeexplainer.records import EvaluationRow
from saeexplainer.runs.storage import write_json, write_rows
from saeexplainer.study import ablation, page as study_page, pictures, plans
from saeexplainer.study.ablation import BASE
from saeexplainer.study.figures import COMPLETE, CONTROL, LABELS, LOOKED_AT, SEEDS, Variant, absent, as_json
from saeexplainer.study.page import summarise
from tasks.cli import study
from tasks.settings.compose import composed

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = """
stages:
  first:
    cmd: python step.py first
    deps: [step.py]
    params: [seed]
    outs: [data/first.txt]
    metrics: [reports/first.json: {cache: false}]
  second:
    cmd: python step.py second
    deps: [step.py, data/first.txt]
    params: [mode]
    outs: [data/second.txt]
"""
STEP = """
import os, pathlib, sys, time, yaml
name, params = sys.argv[1], yaml.safe_load(open("params.yaml"))
pathlib.Path("data").mkdir(exist_ok=True)
pathlib.Path("reports").mkdir(exist_ok=True)
print(name, params["seed"], params["mode"], file=open("../../../ran.txt", "a"))
if name == "second" and params["mode"] == "wrong":
    sys.exit("error: mode: is 'wrong'; change it")
if name == "second" and params["mode"] == "slow" and not os.path.exists("../../../quick"):
    open("../../../pid", "w").write(str(os.getpid()))
    time.sleep(60)
pathlib.Path("data", name + ".txt").write_text(str(params))
if name == "first":
    pathlib.Path("reports/first.json").write_text("{}")
"""
COMPOSE = """
import sys
params = {"seed": "0", "mode": "plain"} | dict(override.split("=") for override in sys.argv[1:])
if params["mode"] == "impossible":
    sys.exit("error: conf: mode: is 'impossible'; correct the override")
open("params.yaml", "w").write("".join(f"{key}: {value}\\n" for key, value in params.items()))
"""
VARIANTS = """
resamples: 100
variants:
  seed0: {group: seeds, overrides: [seed=0]}
  seed1: {extends: seed0, overrides: [seed=1], until: first}
  wrong: {group: control, from: seed0, overrides: [mode=wrong]}
  after: {group: control, from: wrong, overrides: [mode=after]}
  impossible: {group: control, overrides: [mode=impossible]}
  other: {group: labels, from: seed0, overrides: [mode=other]}
  slow: {group: slow, overrides: [mode=slow]}
"""
ABLATION = """
resamples: 100
variants:
  seed0: {group: base, overrides: [seed=0]}
  other: {group: setting, extends: seed0, from: seed0, overrides: [mode=other]}
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A git repository of two stages, the second of which does what its mode says."""
    for name, text in {
        "dvc.yaml": PIPELINE,
        "step.py": STEP,
        "tasks/__init__.py": "",
        "tasks/settings/__init__.py": "",
        "tasks/settings/compose.py": COMPOSE,
        "conf/study.yaml": VARIANTS,
        "conf/ablation.yaml": ABLATION,
        ".gitignore": "/.study/\n/ran.txt\n/pid\n/quick\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    # The command under test is the real one; the stages and tasks.settings.compose are the toy's, in its copies.
    (tmp_path / ".study").mkdir()
    (tmp_path / ".study" / "run.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tasks.cli import study\nsys.exit(study.main())\n"
    )
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def started(toy: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, ".study/run.py", *arguments]
    return subprocess.Popen(command, cwd=toy, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ran(toy: Path) -> list[str]:
    """What the stages of all variants did since the last look."""
    path = toy / "ran.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_what_variants_share_runs_once_and_a_failure_stops_nobody_else(toy: Path) -> None:
    process = started(toy, "--only", "seeds", "control", "labels")
    printed, failed = process.communicate(timeout=240)
    assert process.returncode == 1
    assert ran(toy) == ["first 0 plain", "second 0 plain", "first 1 plain", "second 0 wrong", "second 0 other"]
    assert failed.splitlines() == [
        "impossible: failed: conf: mode: is 'impossible'; correct the override (tasks.settings.compose)",
        "wrong: failed: second: mode: is 'wrong'; change it (see .study/study/wrong.log)",
        "after: failed: it comes from wrong, which failed",
    ]
    lines = printed.splitlines()
    assert lines[0].startswith("seed0: first ") and lines[0].endswith(" s")
    assert "(1 ran, 1 restored, 0 unchanged)" in next(line for line in lines if line.startswith("other: complete"))
    assert (toy / ".study/study/other/reports/first.json").read_text() == "{}", (
        "a metric outside the cache is restored too"
    )
    assert not (toy / ".study/study/seed1/data/second.txt").exists(), "until"
    page = (toy / "docs/STUDY.md").read_text()
    assert "| `wrong` | control | not finished" in page and "| `slow` | slow | not run |" in page

    process = started(toy, "--only", "other")
    assert "seed0: complete" in process.communicate(timeout=240)[0]
    assert (process.returncode, ran(toy)) == (0, [])
    check_the_other_plan(toy)


def check_the_other_plan(toy: Path) -> None:
    """Its variants of the same names have own folders, share what was run, and leave the study's page alone."""
    before = (toy / "docs/STUDY.md").read_bytes()
    process = started(toy, "--plan", "ablation")
    printed = process.communicate(timeout=240)[0].splitlines()
    assert (process.returncode, ran(toy)) == (0, [])
    assert printed[-1] == "docs/ABLATION.md: written" and printed[-2].startswith(
        "not run: `setting` (`mode=other`): other"
    )
    assert "mode: other" in (toy / ".study/ablation/other/params.yaml").read_text()
    assert (toy / "docs/STUDY.md").read_bytes() == before
    assert "| `other` | setting | " in (toy / "docs/ABLATION.md").read_text()


def test_a_terminated_study_takes_its_stage_along_and_goes_on_from_there(toy: Path) -> None:
    process = started(toy, "--only", "slow")
    deadline = time.monotonic() + 120
    while not (toy / "pid").exists() or not (toy / "pid").read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    busy = started(toy, "--only", "slow")
    assert "slow: failed: .study/study/slow: study variant slow (process " in busy.communicate(timeout=120)[1]
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=120)[0].endswith("slow: second stopped\n") and process.returncode == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((toy / "pid").read_text()), 0)
    assert ran(toy) == ["first 0 slow", "second 0 slow"]
    (toy / "quick").touch()
    assert started(toy, "--only", "slow").wait(240) == 0
    assert ran(toy) == ["second 0 slow"]


@cache
def settings(overrides: tuple[str, ...]) -> dict:
    """What overrides compose to but for the seed, once for all seeds."""
    return yaml.safe_load(composed(list(overrides)))


def without_seed(spec: plans.VariantSpec) -> tuple[str, ...]:
    return tuple(override for override in spec.overrides if not override.startswith("seed="))


def seed_of(spec: plans.VariantSpec) -> str:
    return [override for override in spec.overrides if override.startswith("seed=")][-1]


def test_the_repositorys_variants_are_well_formed_and_compose() -> None:
    specs, resamples = plans.load_specs(ROOT / "conf/study.yaml")
    assert resamples > 0 and {spec.group for spec in specs} >= {SEEDS, LOOKED_AT, CONTROL, LABELS, "reward"}
    assert {settings(without_seed(spec))["evaluate"]["split"] for spec in specs} == {"test"}
    seen = {group: {seed_of(spec) for spec in specs if spec.group == group} for group in (SEEDS, LOOKED_AT)}
    assert len(seen[SEEDS]) == 3 and seen[SEEDS].isdisjoint(seen[LOOKED_AT])


def test_the_seeds_on_a_pretrained_model_share_their_sae_and_have_features_enough() -> None:
    specs, _ = plans.load_specs(ROOT / "conf/real.yaml")
    seeds = [spec for spec in specs if spec.group == SEEDS]
    found = [settings(tuple(spec.overrides)) for spec in seeds]
    assert sorted(one["seed"] for one in found) == [0, 1, 2]
    assert {one["prepare_sae"]["seed"] for one in found} == {0}
    assert all(one["extract_activations"]["test_features"] >= 150 for one in found)


@pytest.mark.parametrize("plan", ablation.TITLES)
def test_such_a_plan_measures_valid_and_changes_a_base_of_the_same_seed(plan: str) -> None:
    specs, resamples = plans.load_specs(ROOT / f"conf/{plan}.yaml")
    assert resamples > 0
    by_name = {spec.name: spec for spec in specs}
    for spec in specs:
        assert settings(without_seed(spec))["evaluate"]["split"] == "valid"
        if spec.group == BASE:
            assert spec.source is None and plans.changes(spec, specs) == []
        else:
            base = by_name[spec.source]
            assert (base.group, seed_of(base)) == (BASE, seed_of(spec)) and plans.changes(spec, specs)
            assert settings(without_seed(spec)) != settings(without_seed(base))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{group: g, from: later}", "must be a variant above"),
        ("{extends: nobody}", "must be a variant above"),
        ("{overrides: []}", "group: missing"),
        ("{group: g, overrides: {a: 1}}", "must be a list of texts"),
        ("{group: g, overides: []}", "must be a mapping of"),
    ],
)
def test_a_wrong_entry_is_named(entry: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"resamples: 10\nvariants:\n  one: {entry}\n  later: {{group: g}}\n")
    with pytest.raises(UserError, match=said):
        plans.load_specs(path)


def test_extends_puts_the_others_overrides_first_and_only_brings_sources_along(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(VARIANTS)
    specs, _ = plans.load_specs(tmp_path / "study.yaml")
    assert specs[1] == plans.VariantSpec("study", "seed1", "seeds", ["seed=0", "seed=1"], None, "first")
    assert plans.changes(specs[2], specs) == ["mode=wrong"] and plans.changes(specs[1], specs) == []
    assert [spec.name for spec in plans.chosen(specs, ["after"])] == ["seed0", "wrong", "after"]
    with pytest.raises(UserError, match="--only nope"):
        plans.chosen(specs, ["nope"])


def variant(name: str, group: str, accuracies: dict[str, list[float]], contexts: int = 4, **changes) -> Variant:
    """Four features an evaluation, truth unknown."""
    fields = {
        "name": name, "group": group, "source": None, "changes": [], "status": COMPLETE, "seed": 0, "split": "test",
        "contexts": contexts,
        "subject": {"loss": 2.5, "entropy_floor": 2.25}, "sae": {"l0": 15.5}, "seconds": 100.0, "own_seconds": 60.0,
        "outdated": [], "evaluations": {key: evaluated(values) for key, values in accuracies.items()},
    }  # fmt: skip
    return Variant(**(fields | changes))


BETTER = {
    "open_loop": [0.25, 0.5, 0.0, 0.25],
    "sft": [0.25, 0.5, 0.0, 0.0],
    "r1": [0.5, 0.75, 0.25, 0.25],
    "r2": [0.5, 0.75, 0.5, 0.25],
    "warmup": [0.0, 0.0, 0.0, 0.0],
    "best_of_6": [1.0, 1.0, 1.0, 1.0],
    "oracle": [1.0, 0.75, 1.0, 1.0],
}
SAME = BETTER | {"r1": BETTER["sft"], "r2": BETTER["sft"]}


def test_figures_are_those_of_the_rows() -> None:
    found = summarise([variant("seed0", SEEDS, BETTER), variant("seed1", SEEDS, SAME)], 200)
    evaluations = found["variants"]["seed0"]["evaluations"]
    means = {name: metrics["generative_accuracy"]["value"] for name, metrics in evaluations.items()}
    assert list(means) == ["open_loop", "warmup", "sft", "r1", "r2", "best_of_6", "oracle"]
    assert (means["sft"], means["r2"]) == (0.1875, 0.5)
    gain = found["differences"][SEEDS]["r2-sft"]["generative_accuracy"]
    assert [gain[name]["value"] for name in ("seed0", "seed1", "pooled")] == [0.3125, 0.0, 0.15625]
    assert (gain["seed0"]["low"], gain["pooled"]["n"]) == (0.25, 8), "no feature gained less than a quarter"
    assert found["differences"][SEEDS]["r2-sft"]["truth_f1"]["pooled"] is None
    assert {"r1-sft", "r2-r1", "r2-open_loop", "r2-warmup", "r2-best_of_6"} <= found["differences"][SEEDS].keys()


def test_a_missing_seed_stays_in_every_list_and_leaves_the_pool_to_the_others() -> None:
    found = summarise([variant("seed0", SEEDS, BETTER), absent("seed1", SEEDS, None, [], "not run")], 200)
    assert found["pooled"]["r2"]["generative_accuracy"]["value"] == 0.5
    assert "### seed1\n\nNo figures: not run." in study_page.page(found)


def test_the_pool_is_of_all_seeds_that_were_not_looked_at() -> None:
    """A feature of which the writer failed for every text is in no mean; one seed knows it of one feature only."""
    partly = variant("seed1", SEEDS, SAME)
    partly.evaluations["r2"][:] = [
        replace(row, generative_accuracy=math.nan) if at else row for at, row in enumerate(partly.evaluations["r2"])
    ]
    seen = variant("seed2", LOOKED_AT, SAME)
    costly = variant("seed0", SEEDS, BETTER)
    costly.evaluations["r2"][:] = [replace(row, calls=4) for row in costly.evaluations["r2"]]
    found = summarise([costly, partly, seen], 200)
    known = {name: metrics["generative_accuracy"] for name, metrics in found["pooled"].items()}
    gains = found["gains"]["r1"]["generative_accuracy"]
    assert (found["calls"]["sft"], found["calls"]["r2"]) == (1.0, 2.5), "of one seed 4, of the other 1"
    assert (gains["value"], gains["n"]) == (0.125, 8), "a quarter in one seed, nothing in the other"
    assert (known["sft"]["value"], known["sft"]["n"]) == (0.1875, 8)
    assert (known["r2"]["value"], known["r2"]["n"]) == (0.5, 4), "a seed with one known feature says nothing"


def test_the_last_round_is_compared_with_everything_that_is_no_round() -> None:
    found = summarise([variant("seed0", SEEDS, BETTER), variant("seed1", SEEDS, SAME)], 200)
    leads = {name: metrics["generative_accuracy"] for name, metrics in found["leads"].items()}
    assert list(leads) == ["open_loop", "warmup", "best_of_6", "oracle"]
    assert (leads["oracle"]["value"], leads["oracle"]["n"]) == ((0.5 + 0.1875) / 2 - 0.9375, 8)
    assert "| `oracle` | **-59.4 (" in study_page.page(found)


def test_another_group_is_compared_with_the_runs_that_it_comes_from() -> None:
    """Half of `odd` can be paired; what it changed is told once, and why the other half is missing."""
    change = {"changes": ["train_sft.epochs=9"]}
    given = [
        variant("seed0", SEEDS, BETTER),
        variant("odd0", "odd", SAME, source="seed0", **change),
        absent("odd1", "odd", "seed1", ["train_sft.epochs=9"], "not run"),
    ]
    found = summarise(given, 200)
    odd = found["others"]["odd"]
    assert odd["changes"] == change["changes"] and odd["unpaired"] == {"odd1": "not run"}
    expected = 0.1875 - 0.5  # the last round of SAME is its SFT
    assert odd["by_run"]["odd0"]["generative_accuracy"]["value"] == expected
    assert odd["differences"]["generative_accuracy"]["value"] == expected
    section = study_page.page(found).split("## odd\n")[1]
    assert "`train_sft.epochs=9`" in section and "| `odd0` | **-31.2 (" in section and "- `odd1`: not run" in section


def test_means_are_subtracted_where_the_features_are_others() -> None:
    """Another SAE has other features: nothing is paired, and the difference of the levels is told all the same."""
    source, other = variant("seed0", SEEDS, BETTER), variant("odd0", "odd", SAME, source="seed0")
    other.evaluations["r2"][:] = [replace(row, feature_id=f"{row.feature_id}0") for row in other.evaluations["r2"]]
    odd = summarise([source, other], 200)["others"]["odd"]
    assert (
        odd["paired"] == [] and list(odd["unpaired"]) == ["odd0"] and odd["differences"]["generative_accuracy"] is None
    )
    found = odd["apart_by_run"]["odd0"]["generative_accuracy"]
    assert found["value"] == 0.1875 - 0.5 and found["n"] == 8 and found == odd["apart"]["generative_accuracy"]
    section = study_page.page(summarise([source, other], 200)).split("## odd\n")[1]
    assert (
        "means are subtracted" in section
        and "- `odd0`" not in section
        and "| `odd0` | -31.2 (" in section.replace("*", "")
    )


def test_seeds_that_were_looked_at_have_tables_of_their_own() -> None:
    found = summarise([variant("seed3", SEEDS, BETTER), variant("seed0", LOOKED_AT, SAME)], 200)
    gains = {group: found["differences"][group]["r2-sft"]["generative_accuracy"] for group in (SEEDS, LOOKED_AT)}
    assert {group: gain["pooled"]["value"] for group, gain in gains.items()} == {SEEDS: 0.3125, LOOKED_AT: 0.0}
    before, after = study_page.page(found).split("## Seeds that were looked at before")
    assert "### seed3" in before and "### seed0" not in before and "### seed0" in after and "### seed3" not in after
    assert "to choose any setting: `seed3`." in before


def test_without_fresh_seeds_those_that_were_looked_at_name_the_last_round() -> None:
    found = summarise([absent("seed3", SEEDS, None, [], "not run"), variant("seed0", LOOKED_AT, BETTER)], 200)
    assert found["last"] == "r2" and found["differences"][LOOKED_AT]["r2-oracle"]["generative_accuracy"]["pooled"]


def test_label_quality_takes_the_source_in_and_goes_from_poor_to_clean() -> None:
    poor, clean = {"open_loop": [0.0, 0.0, 0.0, 0.25]}, {"open_loop": [0.75, 0.5, 0.5, 0.5]}
    found = summarise(
        [
            variant("seed0", SEEDS, BETTER, contexts=4),
            variant("labels20", LABELS, SAME | clean, contexts=20, source="seed0"),
            variant("labels1", LABELS, BETTER | poor, contexts=1, source="seed0"),
            absent("labels6", LABELS, "seed0", [], "not run"),
        ],
        100,
    )
    assert [row["variant"] for row in found["labels"]] == ["labels1", "seed0", "labels20", "labels6"]
    assert [row["gain"] and row["gain"]["value"] for row in found["labels"]] == [0.3125, 0.3125, 0.0, None]


def test_page_and_pictures_need_only_the_json_and_are_the_same_each_time(tmp_path: Path) -> None:
    found = summarise([variant("seed0", SEEDS, BETTER), variant("l1", LABELS, SAME, source="seed0")], 100)
    again = json.loads(as_json(found))
    assert study_page.page(again) == study_page.page(found)
    rows = [line for line in study_page.page(found).splitlines() if line.startswith("| `seed0`")]
    assert "| 2.500 | 2.250 | – | 15.5 | – | – | 100 | 60 |" in rows[0]
    for plot in (pictures.plot_seeds, pictures.plot_labels):
        plot(found, tmp_path / "a.png")
        plot(again, tmp_path / "b.png")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_plan_without_controls_and_labels_has_no_sections_about_them() -> None:
    text = study_page.page(summarise([variant("seed0", SEEDS, BETTER)], 100), "real")
    assert text.splitlines()[2] == "# The study on a pretrained model"
    assert "conf/real.yaml" in text and "(real_seeds.png)" in text
    assert "## Control" not in text and "quality of the labels" not in text and "looked at" not in text


def test_nothing_measured_is_a_page_too(tmp_path: Path) -> None:
    found = summarise(
        [absent("seed0", SEEDS, None, [], "not run"), absent("labels1", LABELS, "seed0", [], "not run")], 100
    )
    assert "NaN" not in as_json(found) and "not run" in study_page.page(found)
    assert not study_page.has_labels(found) and "study_labels.png" not in study_page.page(found)
    pictures.plot_seeds(found, tmp_path / "a.png")
    pictures.plot_labels(found, tmp_path / "b.png")


def test_figures_whose_runs_are_gone_are_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"study": VARIANTS, "ablation": ABLATION}.items():
        (tmp_path / "conf").mkdir(exist_ok=True)
        (tmp_path / f"conf/{name}.yaml").write_text(text)
    kept = {"variants": {"seed0": {"status": "not run"}, "other": {"status": COMPLETE}}}
    write_json(tmp_path / "docs/ablation.json", kept)
    assert study.main(["--plan", "ablation", "--report-only"]) == 2
    assert "docs/ablation.json: has figures of other" in capsys.readouterr().err
    assert json.loads((tmp_path / "docs/ablation.json").read_text()) == kept
    assert study.main(["--plan", "ablation", "--report-only", "--forget"]) == 0
    assert "one run only" not in (tmp_path / "docs/ABLATION.md").read_text()


def test_a_run_outlives_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    entries = "".join(f"  seed{seed}: {{group: seeds, overrides: [seed={seed}]}}\n" for seed in (3, 4))
    (tmp_path / "conf/study.yaml").write_text(f"resamples: 100\nvariants:\n{entries}")
    specs, _ = plans.load_specs(Path("conf/study.yaml"))
    spec = specs[0]
    for name, accuracies in {"open_loop": [0.1, 0.2], "sft": [0.5, 0.25], "r1": [1.0, 0.25]}.items():
        rows = evaluated(accuracies, truth=math.nan)
        write_rows(spec.folder / f"data/evaluations/{name}.parquet", rows, EvaluationRow)
    (spec.folder / "params.yaml").write_text(composed(spec.overrides))
    (spec.folder / "dvc.lock").write_text("stages: {train_sft: {deps: [{path: gone.py, md5: ab}]}}")
    timed.keep(spec.folder, {"train_sft": 12.5})
    write_json(spec.folder / "reports/sae.json", {"main": {"l0": 16.0}})
    write_json(spec.folder / study.DONE, spec.wish | {"params": composed(spec.overrides)})
    assert study.main(["--report-only"]) == 0
    page, before = (tmp_path / "docs/STUDY.md").read_bytes(), study.collect(spec, specs)
    shutil.rmtree(spec.folder)
    assert study.main(["--report-only"]) == 0, "its figures are not lost"
    assert (tmp_path / "docs/STUDY.md").read_bytes() == page
    after = study.collect(spec, specs)
    for name, rows in before.evaluations.items():
        for row, short in zip(rows, after.evaluations[name], strict=True):
            assert row.texts and not short.texts and not short.token_activations
            assert (row.feature_id, row.explanation, row.calls) == (short.feature_id, short.explanation, short.calls)
    assert replace(after, evaluations={}) == replace(before, evaluations={}) and after.outdated == ["gone.py"]
    assert [one.name for one in study.to_run(specs, [], again=False)] == ["seed4"]
    assert [one.name for one in study.to_run(specs, ["seed3"], again=False)] == ["seed3"]
    assert len(study.to_run(specs, [], again=True)) == 2
    otherwise = plans.VariantSpec("study", "seed3", SEEDS, ["seed=3", "rounds=two"], None, None)
    assert study.collect(otherwise, [otherwise]).status == "not run", "the plan changed since"


def test_a_folder_is_read_only_if_it_came_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = plans.VariantSpec("study", "seed0", SEEDS, ["seed=3"], None, None)
    assert study.collect(spec, [spec]).status == "not run"
    params = composed(spec.overrides)
    for name in ("open_loop", "sft", "r1", "r2"):
        rows = evaluated([0.5, 0.25], truth=math.nan)
        write_rows(spec.folder / f"data/evaluations/{name}.parquet", rows, EvaluationRow)
    (spec.folder / "params.yaml").write_text(params)
    (spec.folder / "dvc.lock").write_text(
        "stages: {train_sft: {deps: [{path: here.py, md5: 0}, {path: gone.py, md5: 0}]}, evaluate@r1: {}}"
    )
    timed.keep(spec.folder, {"train_sft": 12.5, "evaluate@r1": 2.5})
    write_json(spec.folder / "reports/sae.json", {"main": {"l0": 16.0}, "lender1": {"l0": 1.0}})
    assert study.collect(spec, [spec]).status.startswith("not finished")
    write_json(spec.folder / study.DONE, spec.wish | {"params": params})
    read = study.collect(spec, [spec])
    assert (read.status, read.seed, read.seconds, read.sae, read.subject) == (COMPLETE, 3, 15.0, {"l0": 16.0}, None)
    assert (read.split, read.changes) == ("test", [])
    assert list(read.evaluations) == ["open_loop", "sft", "r1", "r2"] and read.outdated == ["gone.py", "here.py"]
    other = plans.VariantSpec("study", "seed0", SEEDS, ["seed=4"], None, None)
    assert study.collect(other, [other]).status.startswith("not finished"), "the plan changed since"
    child = plans.VariantSpec("study", "child", CONTROL, ["seed=3"], "seed0", None)
    shutil.copytree(spec.folder, child.folder, ignore=shutil.ignore_patterns(".cache"))
    assert (lambda read: (read.seconds, read.own_seconds))(study.collect(child, [spec, child])) == (15.0, 0)


def test_overrides_of_the_plan_come_before_those_of_every_variant(tmp_path):
    plan = tmp_path / "some.yaml"
    plan.write_text("overrides: [sae=topk]\n" + VARIANTS)
    specs = {spec.name: spec.overrides for spec in plans.load_specs(plan)[0]}
    assert specs["seed0"] == ["sae=topk", "seed=0"] and specs["seed1"] == ["sae=topk", "seed=0", "seed=1"]
    plan.write_text("overrides: sae=topk\n" + VARIANTS)
    with pytest.raises(UserError, match=r"some.yaml: overrides: is 'sae=topk'; must be a list"):
        plans.load_specs(plan)
