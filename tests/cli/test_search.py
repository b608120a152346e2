"""`sae-explainer search`: real samplers of Optuna and their real store, over a function in place of runs of minutes."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from saeexplainer.errors import UserError
from saeexplainer.study.plans import VariantSpec
from tasks.cli import search
from tasks.cli.study import VariantFailed
from tasks.settings import compose

ROOT = Path(__file__).resolve().parents[2]
PLAN = search.load_plan(ROOT / "conf/search.yaml")


def asked(spec: VariantSpec) -> dict[str, float]:
    drawn = spec.overrides[len(PLAN.overrides) :]
    return {name: float(value) for name, _, value in (one.partition("=") for one in drawn)}


def best_at_six(spec: VariantSpec) -> list[float]:
    value = 1 - abs(asked(spec)["prepare_sae.architecture.coefficient"] - 6) / 9
    return [value - 0.05, value + 0.05]


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'trials.db'}"


def test_the_first_trial_is_the_default_and_all_lie_in_the_space(storage: str) -> None:
    specs: list[VariantSpec] = []
    plan = replace(PLAN, trials=6)
    for sampler in search.SAMPLERS:
        search.sampled(plan, sampler, lambda spec: specs.append(spec) or best_at_six(spec), storage)
    assert [spec.name for spec in specs] == [*(f"random{at}" for at in range(6)), *(f"tpe{at}" for at in range(6))]
    assert asked(specs[0]) == asked(specs[6]) == {name: limits[0] for name, limits in plan.space.items()}
    for spec in specs:
        for name, value in asked(spec).items():
            _, low, high = plan.space[name]
            assert low <= value <= high and (not name.endswith("steps") or value == int(value))
    assert len({tuple(spec.overrides) for spec in specs[:6]}) == 6


def test_a_search_that_was_stopped_goes_on_with_the_trial_it_was_stopped_in(storage: str) -> None:
    plan, specs = replace(PLAN, trials=4), []

    def stopped(spec: VariantSpec) -> list[float]:
        specs.append(spec)
        if len(specs) == 3:
            raise KeyboardInterrupt
        return best_at_six(spec)

    with pytest.raises(KeyboardInterrupt):
        search.sampled(plan, "random", stopped, storage)
    search.sampled(plan, "random", stopped, storage)
    assert [spec.name for spec in specs] == ["random0", "random1", "random2", "random2", "random3"]
    assert specs[2] == specs[3] and len({tuple(spec.overrides) for spec in specs}) == 4
    search.sampled(plan, "random", stopped, storage)
    assert len(specs) == 5, "all of them are there"


def test_the_page_has_the_best_and_what_it_is_above_the_default(storage: str) -> None:
    def failing(spec: VariantSpec) -> list[float]:
        if spec.name == "random1":
            raise VariantFailed("prepare_sae: no room")
        return best_at_six(spec)

    search.sampled(replace(PLAN, trials=8), "random", failing, storage)
    found = search.search.summarise(search.trials_of(storage, PLAN), PLAN.metric, 200)
    random = found["samplers"]["random"]
    assert len(random["trials"]) == 8 and random["trials"][1]["value"] is None
    best = max((one for one in random["trials"] if one["value"]), key=lambda one: one["value"]["value"])
    assert random["best"] == best["number"]
    default = random["trials"][0]["value"]["value"]
    assert default == pytest.approx(1 - 2.9 / 9)
    assert random["above_default"]["value"] == pytest.approx(best["value"]["value"] - default)
    page = search.search.page(found)
    assert "| random | 8 | `prepare_sae.architecture.coefficient=" in page and "| failed |" in page


def test_a_kill_before_the_last_write_loses_no_trial(storage: str) -> None:
    specs: list[VariantSpec] = []
    study = search._study("random", storage, PLAN)
    trial = study.ask({name: search._distribution(limits) for name, limits in PLAN.space.items()})
    trial.set_user_attr(search.VALUES, [0.25, 0.75])
    search.sampled(replace(PLAN, trials=2), "random", lambda spec: specs.append(spec) or [0.5], storage)
    assert [spec.name for spec in specs] == ["random1"]
    assert [trial.values for trial in search.trials_of(storage, PLAN)] == [[0.25, 0.75], [0.5]]


BAD = {
    "a metric that is none": {"metric": "beauty"},
    "a metric of which less is better": {"metric": "hallucination"},
    "a key too many": {"more": 1},
    "no trials": {"trials": 0},
    "a space that is none": {"space": {"prepare_sae.steps": [450, 900, 150]}},
    "a text for a number": {"space": {"prepare_sae.steps": ["many", 1, 2]}},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_a_plan_that_is_none_is_one_line(change: dict, tmp_path: Path) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(vars(PLAN) | change))
    with pytest.raises(UserError, match=f"^{path}: "):
        search.load_plan(path)
    with pytest.raises(UserError, match="cannot be read"):
        search.load_plan(tmp_path / "none.yaml")


def test_every_edge_of_the_space_composes() -> None:
    for at in range(3):
        drawn = [f"{name}={limits[at]}" for name, limits in PLAN.space.items()]
        found = OmegaConf.create(compose.composed([*PLAN.overrides, *drawn]))
        assert all(OmegaConf.select(found, name) == limits[at] for name, limits in PLAN.space.items())
