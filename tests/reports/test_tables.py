"""The table, the picture, the plot rows and the README's blocks, on a comparison small enough to check by eye."""

import csv
import html
import json
import math
import re
from dataclasses import replace

import pytest
import tiny
from markdown_it import MarkdownIt
from rows import evaluated

from saeexplainer.errors import UserError
from saeexplainer.figures.comparison import summarise
from saeexplainer.figures.notation import literal
from saeexplainer.records import ContextRow, EvaluationRow, FeatureRow, PreferencePair, ScoreRow
from saeexplainer.reports.tables import (
    RewardRow,
    means,
    plot_rounds,
    results_table,
    reward_hallucination_rows,
    reward_rows,
    rounds_rows,
)
from saeexplainer.runs.storage import write_rows
from saeexplainer.study import page as study_page
from saeexplainer.study.figures import SEEDS, absent
from tasks import compare_rounds
from tasks.cli import readme
from tasks.settings import params
from tasks.tracking import rebuild


@pytest.fixture(scope="module")
def comparison():
    return summarise(
        {
            "open_loop": evaluated([0.5] * 4, truth=1.0),
            "sft": evaluated([0.25] * 4, truth=0.0),
            "r1": evaluated([0.5] * 4, truth=1.0),
        },
        resamples=100,
        seed=0,
    )


def test_table_shows_percent_points_and_what_leaves_zero_out(comparison):
    lines = results_table(comparison).splitlines()
    assert lines[0] == "| metric | `open_loop` | `sft` | `r1` |"
    assert lines[2] == "| generative accuracy ↑ | 50.0 (50.0 to 50.0) | 25.0 (25.0 to 25.0) | 50.0 (50.0 to 50.0) |"
    assert lines[3].startswith("| hallucination rate ↓ | 0.0 (0.0 to 0.0) |")
    assert lines[lines.index("") + 1] == (
        "Subject sandbox, SAE main, 4 held-out features. "
        "Percent; in brackets the 95 % bootstrap interval; ↑ higher is better, ↓ lower."
    )
    gains = lines[lines.index("| difference | `r1` − `sft` | `r1` − `open_loop` |") :]
    assert gains[2] == "| generative accuracy ↑ | **+25.0 (+25.0 to +25.0)** | +0.0 (+0.0 to +0.0) |"
    assert [line.count("|") for line in gains if line.startswith("|")] == [4] * 14, "every row has every column"


def shown(markdown: str) -> str:
    """The text that a page made of markdown shows; HTML in it is passed on, as most renderers do."""
    page = MarkdownIt("commonmark").enable("table").render(markdown)
    assert not re.search(r"<(?!/?(?:h[123]|p|ul|li|table|thead|tbody|tr|th|td|code|strong)\b)", page), page
    return html.unescape(re.sub("<[^>]*>", "", page))


def test_names_and_messages_are_text_in_markdown(comparison):
    """In the results, on the page of the study, and in what Prefect shows."""
    hostile = """<img/src=x/onerror=alert(1)>|`b`**c**_d_$e$[f](javascript:g)&amp;\\"""
    assert shown(literal(hostile)).strip() == hostile
    table = results_table(comparison | {"subject": hostile})
    assert f"Subject {hostile}, SAE main, 4 held-out features." in shown(table)
    page = study_page.page(study_page.summarise([absent("seed0", SEEDS, None, [], f"failed: {hostile}")], 20))
    (row,) = (line for line in page.splitlines() if line.startswith("| `seed0`"))
    assert f"failed: {hostile}" in shown(row)
    assert len(re.findall(r"(?<!\\)\|", row)) == 14, "no column more than the head has"


def test_a_picture_takes_a_name_for_a_name(comparison, tmp_path):
    plot_rounds(comparison | {"subject": "a$x_{$b"}, tmp_path / "rounds.png")
    assert (tmp_path / "rounds.png").stat().st_size > 10_000


def test_a_metric_that_one_evaluation_lacks_is_a_dash():
    unknown = evaluated([0.5, 0.25])
    table = results_table(summarise({"sft": unknown, "r1": evaluated([0.5, 0.5], truth=1.0)}, 100, 0))
    assert "| truth f1 ↑ | – | 100.0 (100.0 to 100.0) |" in table.splitlines()


def test_plot_rows_are_long_form_in_order(comparison):
    rows = rounds_rows(comparison)
    assert [row.round for row in rows] == ["open_loop"] * 12 + ["sft"] * 12 + ["r1"] * 12
    assert (rows[12].metric, rows[12].value, rows[12].low, rows[12].high) == ("generative_accuracy", 0.25, 0.25, 0.25)


def scored(feature_id: str, reward: float | None) -> ScoreRow:
    return ScoreRow(feature_id, "dpo", 0, "the word dog", [], [], [], reward)


def test_rewards_are_spread_over_bars_of_a_tenth():
    rows = [scored("a", 0.0), scored("a", 0.7 + 0.2 + 0.1), scored("b", 0.0), scored("b", 0.04)]
    rows += [scored("b", None), scored("c", None)]  # nobody knows these
    assert reward_rows({"r2": rows, "r1": []}) == [
        RewardRow("r2", "all", 0.0, 0.1, 0.75), RewardRow("r2", "all", 1.0, 1.1, 0.25),
        RewardRow("r2", "best", 0.0, 0.1, 0.5), RewardRow("r2", "best", 1.0, 1.1, 0.5),
    ]  # fmt: skip


def test_reward_of_an_evaluation_is_that_of_the_rounds(comparison):
    evaluations = {
        name: [replace(row, activations=activations) for row in evaluated([0.5] * 4)]
        for name, activations in (("open_loop", [1.0]), ("sft", []), ("r1", [1.0, 0.0]))
    }
    config = replace(tiny.settings().score_explanations.reward, weight_mean=0.0, weight_words=0.0)  # share + 0.2 * any
    rows = reward_hallucination_rows(comparison, evaluations, config, 10)
    assert [(row.round, round(row.reward, 9)) for row in rows] == [("open_loop", 1.2), ("sft", 0.0), ("r1", 0.7)]
    assert rows[1].hallucination == comparison["rounds"]["sft"]["hallucination_rate"]["value"]


def test_features_whose_texts_failed_are_in_no_reward(comparison):
    rows = evaluated([0.5, 0.5, math.nan])
    evaluations = dict.fromkeys(comparison["rounds"], [replace(row, activations=[1.0]) for row in rows[:2]] + rows[2:])
    config = replace(tiny.settings().score_explanations.reward, weight_mean=0.0, weight_words=0.0)  # share + 0.2 * any
    assert [row.reward for row in reward_hallucination_rows(comparison, evaluations, config, 10)] == [1.2] * 3


def test_metrics_hold_means_alone(comparison):
    assert means(comparison)["r1"]["generative_accuracy"] == 0.5
    assert list(means(comparison)) == ["open_loop", "sft", "r1"]


def test_picture_is_the_same_bytes_each_time(comparison, tmp_path):
    plot_rounds(comparison, tmp_path / "a.png")
    plot_rounds(json.loads(json.dumps(comparison)), tmp_path / "b.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes()
    assert data.startswith(b"\x89PNG") and b"Software" not in data


def test_picture_needs_neither_truth_nor_rounds(tmp_path):
    plot_rounds(summarise({"labels": evaluated([0.5, 0.25])}, 100, 0), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_stage_writes_its_files_and_outlives_a_dead_tracking_server(tmp_path, monkeypatch):
    settings = params.load()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    for name in settings.evaluations:
        rows = evaluated([0.25, 0.5, math.pi / 4])
        if name != "open_loop":
            rows = [replace(row, log_probability=-float(at)) for at, row in enumerate(rows)]
        write_rows(tmp_path / f"data/evaluations/{name}.parquet", rows, EvaluationRow)
    for name in settings.rounds:
        write_rows(tmp_path / f"data/rounds/{name}/scores.parquet", [scored("a", 1.0)], ScoreRow)
        write_rows(tmp_path / f"data/rounds/{name}/validated.parquet", [], PreferencePair)
    for folder in ("data/subject", *(f"data/explainers/{one.start}" for one in settings.rounds.values())):
        tiny.tiny_tokenizer().save_pretrained(tmp_path / folder)
    write_rows(
        tmp_path / "data/activations/features.parquet", [FeatureRow("a", "main", 0, "dpo", 1.0, 0.1)], FeatureRow
    )
    context = ContextRow("a", 0, "the dog", ["the", " dog"], [0.0, 1.0], 1, [])
    write_rows(tmp_path / "data/activations/contexts.parquet", [context], ContextRow)
    report = compare_rounds.run(settings)
    assert sorted(path.name for path in (tmp_path / "reports").iterdir()) == [
        "attribution.json", "comparison.json", "confidence.csv", "confidence.json", "costs.json",
        "generative_accuracy.json", "metrics.json", "report.html", "results.md", "reward_hallucination.csv",
        "rewards.csv", "rounds.csv", "rounds.png",
    ]  # fmt: skip
    written = json.loads((tmp_path / "reports/comparison.json").read_text())
    assert list(written["rounds"]) == list(settings.evaluations), "the order of the evaluations survives the file"
    with (tmp_path / "reports/rounds.csv").open() as file:
        assert next(csv.reader(file)) == ["round", "metric", "value", "low", "high"]
    sure = json.loads((tmp_path / "reports/confidence.json").read_text())
    assert set(sure) == set(settings.evaluations) - {"open_loop"}, "nobody said how sure the labels are"
    # Successes are the two less sure ones: both below the failure.
    assert sure["r1"]["auroc"]["value"] == 0.0 and len(sure["r1"]["coverage"]) == 4
    spent = json.loads((tmp_path / "reports/costs.json").read_text())
    assert spent["rounds"]["r1"]["sampling"] == {
        # bos <explain> feature <text> the dog <about>
        "calls": 1, "prompt_tokens": 7, "written_tokens": 4, "read_tokens": 0,
    }  # fmt: skip
    assert spent["evaluations"]["sft"]["calls"] == 3 and spent["evaluations"]["sft"]["measuring"]["calls"] == 1
    assert report.lines[-1].startswith("warning: MLflow at http://127.0.0.1:9 did not take the result")
    assert "sae-explainer tracking rebuild" in report.lines[-1]
    assert "\n" not in report.lines[-1] and "secret" not in "".join(report.lines)
    assert report.metrics["sft_generative_accuracy"] == written["rounds"]["sft"]["generative_accuracy"]["value"]
    assert rebuild.main(["rebuild"]) == 2


def test_readme_block_is_replaced_and_the_rest_is_kept():
    other = "b <!-- results:y:start --><!-- results:y:end -->\n"
    text = f"a\n<!-- results:x:start -->\nold\n<!-- results:x:end -->\n{other}"
    filled = readme.fill(text, {"results:x": "| new |\n"})
    assert filled == text.replace("old", "| new |")
    assert readme.fill(filled, {"results:x": "| new |\n"}) == filled


@pytest.mark.parametrize(
    "text",
    ["<!-- results:x:start -->", "<!-- results:x:start --><!-- results:y:end -->", "<!-- results:x:end -->"],
)
def test_readme_markers_must_pair(text):
    with pytest.raises(UserError, match="pairs"):
        readme.fill(text, {"results:x": "table"})


def test_readme_command_takes_kept_results(comparison, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs/results").mkdir(parents=True)
    (tmp_path / "docs/results/kept.json").write_text(json.dumps(comparison))
    block = "<!-- results:{0}:start -->\n<!-- results:{0}:end -->\n"
    (tmp_path / "README.md").write_text(block.format("kept") + block.format("never"))
    assert readme.main() == 0
    assert "| generative accuracy ↑ | 50.0" in (tmp_path / "README.md").read_text()
    assert "never: not measured" in capsys.readouterr().out


def test_readme_examples_are_mended_features_first_then_those_that_gained_most(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {"sft": evaluated([0.0, 0.5, 0.0, 0.2, 1.0, 0.0]), "r1": evaluated([0.5, 0.7, 1.0, 0.9, 0.0, 0.0])}
    for name, rows in found.items():
        write_rows(readme.EVALUATIONS / f"{name}.parquet", rows, EvaluationRow)
    contexts = [ContextRow(row.feature_id, 0, "a dog", ["a ", "dog"], [0.0, 1.0], 1, []) for row in found["sft"]]
    write_rows(readme.CONTEXTS, contexts, ContextRow)
    text = readme.examples(summarise(found, resamples=100, seed=0), 3)
    assert re.findall(r"`sandbox/main/(\d)`", text) == ["2", "3", "0"]
    assert text.count("    - a <<dog>>") == 3
    assert text.endswith(
        "1 of 6 features went from at most 10% of their texts to at least 90%, 1 the other way. The others above "
        "gained most of the rest."
    )
    assert re.findall(r"`sandbox/main/(\d)`", readme.examples(summarise(found, 100, 0), 1)) == ["2"]
