"""docs/SAES.md: means over seeds, levels pooled, and which figure of an SAE ranks as accuracy does."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rows import evaluated

from saeexplainer.study import pictures, plans, saes
from saeexplainer.study.figures import COMPLETE, Variant, absent, as_json
from tasks.settings import compose

ROOT = Path(__file__).resolve().parents[2]


def variant(name: str, group: str, seed: int, accuracies: list[float], **sae: float) -> Variant:
    evaluations = {"sft": evaluated([0.0] * len(accuracies)), "r1": evaluated(accuracies)}
    return Variant(
        name, group, None, [], status=COMPLETE, seed=seed, split="test", contexts=4, subject={"loss": 2.5},
        sae={"l0": 8.0, "c_dec": 0.1, **sae}, seconds=10.0, own_seconds=6.0, outdated=[], evaluations=evaluations,
    )  # fmt: skip


RUNS = [
    variant("topk0", "topk", 0, [0.25, 0.75], coverage=0.2, c_dec=0.3),
    variant("topk1", "topk", 1, [0.5, 0.5], coverage=0.4, c_dec=0.1),
    variant("gated0", "gated", 0, [0.0, 0.25], coverage=0.1, c_dec=0.4, stability=None),
    variant("gated1", "gated", 1, [1.0, 1.0], coverage=0.9, c_dec=0.05),
    absent("meta0", "meta", None, [], "not run"),
]


def test_figures_are_means_over_seeds_and_levels_pool_their_features():
    found = saes.summarise(RUNS, 200)["groups"]
    assert found["topk"]["sae"]["coverage"] == pytest.approx(0.3) and found["topk"]["runs"] == 2
    accuracy = found["topk"]["explained"]["last"]["generative_accuracy"]
    assert (accuracy["value"], accuracy["n"]) == (0.5, 4)
    assert found["topk"]["explained"]["open_loop"]["generative_accuracy"] is None
    assert found["meta"]["runs"] == 0 and found["meta"]["sae"]["coverage"] is None
    assert found["gated"]["sae"]["stability"] is None, "what no seed knows"


def test_runs_of_one_seed_are_held_against_each_other():
    found = saes.summarise(RUNS, 200)
    assert found["less_topk"]["gated"] == {"open_loop": {}, "sft": {0: 0.0, 1: 0.0}, "last": {0: -0.375, 1: 0.5}}
    assert found["less_topk"]["meta"]["last"] == {} and "topk" not in found["less_topk"]
    page = saes.page(found, "saes")
    assert "| gated | – | +0.0 (+0.0, +0.0) | +6.2 (-37.5, +50.0) |" in page and "| meta | – |" not in page


def test_a_figure_that_ranks_as_accuracy_does_predicts_it():
    # Mean accuracy of the runs: 0.5, 0.5, 0.125, 1.0. Coverage ranks alike but for the tie, c_dec the other way.
    found = saes.summarise(RUNS, 500)["predictors"]
    assert found["coverage"]["value"] == pytest.approx(0.9486833) and found["coverage"]["n"] == 4
    assert found["c_dec"]["value"] == pytest.approx(-0.9486833)
    assert found["l0"] is None, "it is the same in every run"
    assert found["stability"] is None and saes.summarise(RUNS[:3], 200)["predictors"]["coverage"] is None


def test_the_elbow_of_a_sweep_over_k():
    sweep = [
        replace(
            variant(f"k{k}", group, 0, [], l0=float(k), c_dec=c_dec, coverage=0.3),
            evaluations={"open_loop": evaluated([0.5, 0.75 if k == 4 else 0.5])},
        )
        for k, group, c_dec in ((2, "k2", 1.0), (4, "k4", 0.5), (8, "topk", 0.2), (16, "k16", 0.15), (32, "k32", 0.1))
    ]
    sweep[3].sae["coverage"] = 0.5
    found = saes.summarise(sweep, 200)
    assert found["predicted"] == "open_loop"
    elbow = found["elbow"]
    assert elbow["l0"] == 8.0 and [one["l0"] for one in elbow["points"]] == [2.0, 4.0, 8.0, 16.0, 32.0]
    assert elbow["best"] == {"coverage": 16.0, "accuracy": 4.0}
    text = saes.page(found, "saes")
    assert "The elbow of c_dec is at an L0 of 8.0; coverage is best at 16.0; the labels' " in text
    assert "generative accuracy is best at 4.0." in text
    assert "| k4 | 4.0 | 0.5000 | 0.300 | 62.5 (" in text
    assert saes.summarise(RUNS, 200)["elbow"] is None


def test_without_rounds_the_labels_are_what_a_figure_may_predict():
    labelled = [
        replace(variant(name, name, 0, [], coverage=coverage), evaluations={"open_loop": evaluated([accuracy])})
        for name, coverage, accuracy in (("a", 0.1, 0.25), ("b", 0.2, 0.5), ("c", 0.3, 0.75), ("d", 0.4, 1.0))
    ]
    assert saes.summarise(labelled, 200)["predictors"]["coverage"]["value"] == pytest.approx(1)


def test_the_page_shows_every_group_and_run_from_the_json_alone():
    found = saes.summarise(RUNS, 200)
    text = saes.page(found, "saes")
    assert "| topk | last | 50.0 (" in text and "| meta0 | meta | not run | – | – |" in text
    assert "| coverage | +0.95 (" in text and "No sweep over L0 has been run." in text
    assert as_json(found)  # no NaN


def test_the_picture_is_there_where_a_round_is(tmp_path: Path):
    labelled = [replace(one, evaluations={"open_loop": evaluated([0.5])}) for one in RUNS[:1]]
    assert ".png" not in saes.page(saes.summarise(labelled, 200), "saes")
    everything = [replace(one, evaluations=one.evaluations | {"open_loop": evaluated([0.5, 0.5])}) for one in RUNS[:4]]
    swept = [
        replace(everything[0], name=f"k{k}", group=f"k{k}", sae={"l0": float(k), "c_dec": 1 / k}) for k in (2, 4, 16)
    ]
    sizes = []
    for runs in (everything, everything + swept):
        found = saes.summarise(runs, 200)
        assert "](saes.png)" in saes.page(found, "saes")
        pictures.plot_saes(found, tmp_path / "saes.png")
        made = (tmp_path / "saes.png").read_bytes()
        pictures.plot_saes(found, tmp_path / "again.png")
        assert made.startswith(b"\x89PNG") and made == (tmp_path / "again.png").read_bytes()
        sizes.append(len(made))
    assert sizes[1] != sizes[0]  # the sweep is drawn


def test_the_plan_has_every_architecture_and_composes():
    specs, resamples = plans.load_specs(ROOT / "conf/saes.yaml")
    architectures = {path.stem for path in (ROOT / "conf/sae").glob("*.yaml")} - {"topk32", "topk_real_text"}
    assert architectures <= {spec.group for spec in specs} and resamples >= 1000
    for group in {spec.group for spec in specs}:
        seeds = [
            override for spec in specs if spec.group == group for override in spec.overrides if "seed=" in override
        ]
        assert {"seed=0", "seed=1", "seed=2"} == set(seeds)
    for overrides in {tuple(spec.overrides) for spec in specs if spec.name.endswith("0")}:
        compose.composed(list(overrides))


def test_the_plan_on_a_pretrained_model_composes():
    specs, _ = plans.load_specs(ROOT / "conf/real_saes.yaml")
    assert {spec.until for spec in specs} == {"evaluate@open_loop"} and "topk" in {spec.group for spec in specs}
    shapes = []
    for spec in specs:
        settings = yaml.safe_load(compose.composed(spec.overrides))["prepare_sae"]
        shapes.append((settings["saes"][0]["d_sae"], settings["architecture"]["k"]))
    assert len(set(shapes)) == len(specs), shapes
    page = saes.page(saes.summarise([], 10), "real_saes")
    assert "conf/real_saes.yaml; the same figures are in real_saes.json" in page
