"""What the report page says, by small cases worked out by hand, and what its file may and may not hold."""

import base64
import json
import math
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_rows import FEATURE, NASTY, context, evaluated, pair, scored

from saeexplainer.domains.sandbox.world import World
from saeexplainer.errors import UserError
from saeexplainer.features import truth
from saeexplainer.figures.comparison import summarise
from saeexplainer.records import (
    CandidateRow,
    ContextRow,
    DroppedFeature,
    DropReason,
    EvaluationRow,
    ExplanationRow,
    FeatureRow,
    PreferencePair,
    QuarantinedPair,
    ScoreRow,
)
from saeexplainer.reports.page import glance, page as page_page, payload
from saeexplainer.reports.page.payload import FeatureRecords, RoundRecords
from saeexplainer.runs.storage import write_rows


def test_a_text_is_cut_at_the_tokens_that_fire_and_nowhere_else():
    assert payload.segments(["a ", "dog ", "bark"], [0.0, 0.9, 0.0041], "s") == ["a ", "dog ", 0.9, "barks"]
    assert payload.segments(["dog", "s"], [1.0, 0.251]) == ["dog", 1.0, "s", 0.25]
    assert payload.segments([], []) == []


def test_bare_tokens_get_the_text_between_them_back():
    text = "the dogs bark ."
    assert payload.spaced(text, ["the", "dog", "s", "bark", "."]) == ["the ", "dog", "s ", "bark ", "."]
    assert payload.spaced("  x", ["x"]) == ["  x"]
    assert payload.spaced("other words", ["the", "dog"]) == ["the ", "dog "]
    assert payload.spaced("anything", []) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "fires"),
        ({"collision": 1.0}, "fires, collides"),
        ({"hallucination": 1.0, "collision": 1.0}, "hallucinated"),
        ({"explanation": " ", "hallucination": 1.0, "collision": 1.0}, "missing"),
    ],
)
def test_the_verdict_is_the_first_thing_that_went_wrong(changes, expected):
    assert payload.verdict(evaluated(**changes)) == expected


@pytest.mark.parametrize(
    ("named", "own", "best", "expected"),
    [
        (0.0, 0.11, 0.11, "unclear"),  # the least bad concept is not what the feature encodes
        (1.0, 0.3, 0.3, "unclear"),
        (0.0, 0.0, 0.0, "unclear"),
        (1.0, 0.9, 0.9, "right"),
        (0.0, 0.8, 0.7, "right"),  # two concepts together may fit better than the best single one
        (0.0, 0.6, 0.9, "partly right"),
        (0.0, 0.1, 0.9, "wrong"),
        (math.nan, math.nan, 0.9, None),
    ],
)
def test_an_explanation_is_wrong_only_where_it_is_clear_what_is_right(named, own, best, expected):
    row = evaluated(truth_agreement=named, truth_f1=own)
    assert payload.truth_verdict(row, [("the word dog", best)] if best else []) == expected


def test_a_feature_in_full():
    best, worst, middle = scored(2, 0.9, "the word dog"), scored(0, 0.1, "any tool"), scored(1, 0.4, "an animal")
    twice = scored(3, 0.9, "the word dog")
    found = RoundRecords([worst, middle, best, twice], [pair(best, worst)])
    records = FeatureRecords(
        FEATURE.feature_id, FEATURE, [context()], "a dog", {"sft": evaluated()}, {"r1": found, "r2": RoundRecords()},
        [("the word dog", 0.83333)],
    )  # fmt: skip
    detail = payload.detail(records)
    assert detail["contexts"] == [{"activation": 20.0, "text": ["the ", "dog", 1.0, "s ", 0.25, "bark ."]}]
    assert detail["truth"] == [["the word dog", 0.833]]
    evaluation = detail["evaluations"]["sft"]
    assert evaluation["texts"] == [[0.9, ["a ", "dog ", 0.9, "barks"]], [0.0, ["a cat"]]]
    assert (evaluation["sure"], evaluation["truth"], evaluation["f1"]) == (0.5, None, None), "NaN is not JSON"
    assert list(detail["rounds"]) == ["r1"], "a round that never saw the feature says nothing"
    candidates = [(row["explanation"], row["reward"], row["role"]) for row in detail["rounds"]["r1"]["candidates"]]
    assert candidates == [
        ("the word dog", 0.9, "chosen"), ("the word dog", 0.9, ""), ("an animal", 0.4, ""),
        ("any tool", 0.1, "rejected"),
    ]  # fmt: skip
    summary = payload.summary(records)
    assert summary["rounds"] == {"r1": [0.9, "the word dog", "1 pair"]}
    assert summary["evaluations"] == {"sft": ["the word dog", 0.5, "fires", None, None]}
    assert (summary["tokens"], summary["truth"], summary["split"]) == (["dog"], "the word dog", "test")
    json.dumps([detail, summary], allow_nan=False)


def test_why_a_feature_trained_nothing():
    rows = [scored(0, 0.2, "x")]
    assert payload.outcome(RoundRecords(rows, [], [DroppedFeature("f", "dpo", "below floor")])) == "below floor"
    made = pair(scored(0, 0.9, "x"), scored(1, 0.1, "y"))
    held = QuarantinedPair(**vars(made), reason="chosen_is_not_a_prompt")
    records = RoundRecords(rows, [made, made], (), [held])
    assert payload.outcome(records) == "1 pair, 1 in quarantine"
    detail = payload.detail(FeatureRecords("f", rounds={"r1": records}))
    assert detail["rounds"]["r1"]["quarantined"] == [["x", "y", "chosen_is_not_a_prompt"]]


def test_what_failed_calls_left_unknown_is_a_dash_and_stands_last():
    rows = [scored(0, None, "x"), scored(1, 0.0, "y")]
    empty = {name: [] for name in ("texts", "activations", "tokens", "token_activations")}
    lost = evaluated(accuracy=math.nan, hallucination=math.nan, **empty)
    records = FeatureRecords("f", evaluations={"sft": lost}, rounds={"r1": RoundRecords(rows)})
    detail, summary = payload.detail(records), payload.summary(records)
    candidates = [(row["explanation"], row["reward"]) for row in detail["rounds"]["r1"]["candidates"]]
    assert candidates == [("y", 0.0), ("x", None)]
    assert summary["rounds"] == {"r1": [0.0, "y", "0 pairs"]}
    assert summary["evaluations"] == {"sft": ["the word dog", None, None, None, None]}
    dropped = RoundRecords(rows[:1], (), [DroppedFeature("f", "dpo", "calls failed")])
    assert payload.summary(FeatureRecords("f", rounds={"r1": dropped}))["rounds"] == {"r1": [None, "x", "calls failed"]}
    json.dumps([detail, summary], allow_nan=False)


def test_an_unknown_feature_has_dashes_and_not_numbers():
    summary = payload.summary(FeatureRecords("sandbox/main/9", contexts=[replace(context(), activations=[0.0] * 5)]))
    assert (summary["split"], summary["maximum"], summary["density"]) == ("unknown", None, None)


def comparison() -> dict:
    rows = {"open_loop": [0.5, 0.5], "sft": [0.0, 0.25], "r1": [0.5, 1.0]}
    return summarise(
        {
            name: [evaluated(f"sandbox/main/{at}", value) for at, value in enumerate(values)]
            for name, values in rows.items()
        },
        100, 0,
    )  # fmt: skip


def test_differences_are_bold_only_where_the_interval_leaves_zero_out():
    lines = {line.name: line.cells[0] for line in glance.differences(comparison())}
    sure, unsure = lines["r1 − sft"], lines["r1 − open_loop"]
    assert (sure.value, sure.interval, sure.sure, sure.good) == ("+62.5", "+50.0 to +75.0", True, True)
    assert (unsure.value, unsure.interval, unsure.sure) == ("+25.0", "+0.0 to +50.0", False)
    fewer = {"value": -0.2, "low": -0.3, "high": -0.1}
    assert glance._points(fewer, "hallucination_rate").good and not glance._points(fewer, "truth_f1").good
    assert glance._points(None, "truth_f1") == glance.Cell("–", "")


def test_the_headline_is_the_last_round_against_its_start():
    assert glance.headline(comparison()) == (
        "Texts written from r1's explanations make the feature fire 75.0 % of the time, from sft's 12.5 %: "
        "+62.5 points (+50.0 to +75.0)."
    )
    assert glance.headline(summarise({"labels": [evaluated()]}, 10, 0)) == ""


# ---- The file


def sources(folder: Path, **changes) -> page_page.Sources:
    found = page_page.Sources(
        folder / "features.parquet", folder / "contexts.parquet", folder / "labels.parquet",
        {name: folder / f"{name}.parquet" for name in ("open_loop", "sft", "r1")}, {"r1": folder / "rounds/r1"}, 2,
        folder / "rounds.png",
    )  # fmt: skip
    return replace(found, **changes)


@pytest.fixture
def tables(tmp_path):
    """Three features of the main SAE, two of them measured, and one of a lender that a round has seen."""
    ids = [f"sandbox/main/{at}" for at in range(3)]
    lent = "sandbox/lender/4"
    rows = [FeatureRow(lent, "lender", 4, "dpo", 10.0, 0.02)]
    rows += [FeatureRow(name, "main", at, "test" if at < 2 else "sft", 20.0, 0.01) for at, name in enumerate(ids)]
    write_rows(tmp_path / "features.parquet", rows, FeatureRow)
    contexts = [context(rank, name) for name in (lent, *ids) for rank in range(3)]
    write_rows(tmp_path / "contexts.parquet", contexts, ContextRow)
    labels = [ExplanationRow(ids[2], "sft", "a label"), ExplanationRow(ids[0], "test", NASTY)]
    write_rows(tmp_path / "labels.parquet", labels, ExplanationRow)
    for name, value in (("open_loop", 0.5), ("sft", 0.25), ("r1", 1.0)):
        measured = [evaluated(ids[0], value, explanation=NASTY, texts=[NASTY], activations=[value], tokens=[[NASTY]],
                              token_activations=[[value]]), evaluated(ids[1], value)]  # fmt: skip
        write_rows(tmp_path / f"{name}.parquet", measured, EvaluationRow)
    best, worst = scored(0, 0.9, "good", lent), scored(1, 0.3, "bad", lent)
    folder = tmp_path / "rounds/r1"
    write_rows(folder / "scores.parquet", [worst, best], ScoreRow)
    write_rows(folder / "pairs.parquet", [pair(best, worst)], PreferencePair)
    write_rows(folder / "dropped.parquet", [], DroppedFeature)
    write_rows(folder / "quarantine.parquet", [], QuarantinedPair)
    return tmp_path


def written(folder: Path, starts=None, paid=None, **changes) -> str:
    path = folder / "report.html"
    given = sources(folder, **changes)
    found = comparison()
    page_page.write(
        path, found, given, {"sandbox/main/0": [("the word dog", 0.5)]}, starts or {"r1": "sft"}, paid or {}
    )
    return path.read_text(encoding="utf-8")


def packed(page: str, name: str):
    text = re.search(rf'<script type="text/plain" id="{name}">(.*?)</script>', page, re.DOTALL)[1]
    return json.loads(zlib.decompress(base64.b64decode(text)))


def test_every_feature_is_in_the_index_and_its_details_where_the_index_says(tables):
    page = written(tables)
    index, details = packed(page, "index"), packed(page, "block-0")
    ids = index["features"]["id"]
    assert ids == ["sandbox/main/0", "sandbox/main/1", "sandbox/lender/4", "sandbox/main/2"], "measured ones come first"
    assert len(details) == len(ids) and all(len(each["contexts"]) == 2 for each in details), "two contexts are shown"
    assert (index["shown"], index["start"], index["rounds"]) == ("r1", "sft", ["r1"])
    assert index["measured"]["r1"][1][:3] == ["the word dog", 1.0, "fires"] and index["measured"]["r1"][2] is None
    assert index["outcomes"]["r1"] == [None, None, [0.9, "good", "1 pair"], None]
    assert [row["role"] for row in details[2]["rounds"]["r1"]["candidates"]] == ["chosen", "rejected"]
    assert index["features"]["label"] == [NASTY, None, None, "a label"]
    assert details[0]["truth"] == [["the word dog", 0.5]]


def test_features_past_a_block_are_in_the_next(tables, monkeypatch):
    monkeypatch.setattr(page_page, "BLOCK", 3)
    page = written(tables)
    assert packed(page, "index")["block"] == 3
    assert [len(packed(page, f"block-{at}")) for at in range(2)] == [3, 1] and 'id="block-2"' not in page
    assert packed(page, "block-1")[0]["contexts"][0]["text"][1] == "dog"


def test_equal_inputs_give_equal_bytes(tables):
    assert written(tables) == written(tables)


def test_the_page_loads_nothing_and_lets_nothing_in(tables):
    page = written(tables)
    assert "alert(1)" not in page, "what a model wrote never reaches the markup"
    markup = re.sub(r'<script type="text/plain".*?</script>', "", page, flags=re.DOTALL)
    assert not re.search(r"https?://|//[a-z]|@import|url\(", re.sub(r"^\s*//.*$", "", markup, flags=re.MULTILINE))
    assert re.findall(r'(?:src|href)="(?!data_docs/|#|data:,|rounds\.png|comparison\.json)[^"]*"', markup) == []
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    assert page_page._content_hash(script) in policy.replace("&#39;", "'")


def test_the_page_says_what_its_words_mean(tables):
    page = written(tables)
    for word in (*payload.VERDICTS, *payload.TRUTHS, "twin", "lender", "floor"):
        assert f"{word}</dt>" in page, word


def test_names_of_evaluations_and_rounds_are_escaped(tables):
    found = comparison() | {"subject": "<img src=x onerror=alert(2)>"}
    page_page.write(tables / "report.html", found, sources(tables), {}, {"r1": "<b>sft</b>"}, {})
    page = (tables / "report.html").read_text()
    assert "<img" not in page and "&lt;img src=x" in page and "<b>sft</b>" not in page


def test_what_the_pairs_pay_for_whatever_the_feature(tables):
    share = {"value": 0.625, "low": 0.5, "high": 0.75, "n": 9}
    found = {
        "pairs": 20, "held_out_pairs": 11, "ranked_right": share, "explainer_ranks_right": None,
        "candidates": {name: {"value": value} for name, value in (("ranked_first", 0.31), ("any", 0.3), ("best", 0.6))},
        "terms": [{"latent": 7, "label": NASTY, "adds": -0.456}] + 9 * [{"latent": 8, "label": None, "adds": 0.125}],
    }  # fmt: skip
    page = written(tables, paid={"r1": found, "r2": None})
    assert "<td>62.5<small>50.0 to 75.0</small></td>" in page and "<td>0.31</td>" in page and "<td>0.60</td>" in page
    row = re.search(r"−0.46 7 <bdi>.*", page)[0]
    assert row.count("+0.12 8 <bdi>–</bdi>") == 5, "the six largest are shown"
    assert "&lt;script&gt;" in page and "<script>alert" not in page
    assert "What the pairs pay for" not in written(tables, paid={"r1": None})


def test_what_is_not_there_leaves_its_part_empty(tables):
    gone = tables / "nowhere.parquet"
    page = written(tables, features=gone, contexts=gone, labels=gone, rounds={"r1": tables / "nowhere"})
    index = packed(page, "index")
    assert index["features"]["id"] == ["sandbox/main/0", "sandbox/main/1"]
    assert index["features"]["split"] == ["unknown"] * 2 and index["outcomes"]["r1"] == [None, None]
    assert packed(page, "block-0")[0]["contexts"] == []


def test_a_third_round_shows_up_by_itself(tables):
    rounds = dict.fromkeys(("r1", "r2", "r3"), tables / "rounds/r1")
    page = written(tables, {"r1": "sft", "r2": "r1", "r3": "r2"}, rounds=rounds)
    assert list(packed(page, "block-0")[2]["rounds"]) == ["r1", "r2", "r3"]
    assert '<th scope="row">r3</th><td>r2</td><td>2</td><td>0.60</td><td>0.90</td>' in page


def test_a_round_in_figures(tables):
    write_rows(tables / "rounds/r1/dropped.parquet", [DroppedFeature(f"f{at}", "dpo", "no gap") for at in range(2)],
               DroppedFeature)  # fmt: skip
    loaded = page_page.Tables(sources(tables))
    facts = page_page.round_facts("r1", "sft", loaded.rounds["r1"])
    assert facts == page_page.RoundFacts("r1", "sft", 2, 0.6, 0.9, 1, 1, [("no gap", 2)], 0)


def test_the_figures_of_a_round_leave_out_what_nobody_knows(tables):
    known = [scored(0, 0.2, "x"), scored(1, 0.6, "y"), scored(2, None, "z"), scored(0, None, "x", "f2")]
    for rows, expected in ((known, (4, 0.4, 0.6)), (known[2:], (2, None, None))):
        write_rows(tables / "rounds/r1/scores.parquet", rows, ScoreRow)
        facts = page_page.round_facts("r1", "sft", page_page.Tables(sources(tables)).rounds["r1"])
        assert (facts.candidates, facts.mean_reward, facts.mean_best_reward) == expected


def test_data_docs_are_linked_whether_they_are_there_yet_or_not(tables):
    """A page that looked would be other bytes after a pull, where Data Docs are not."""
    assert 'href="data_docs/r1/index.html"' in written(tables)


def test_a_table_of_another_shape_is_one_line(tables):
    write_rows(tables / "labels.parquet", [CandidateRow("f", "dpo", 0, "x")], CandidateRow)
    with pytest.raises(UserError, match=r"labels\.parquet: columns are .*; run `dvc repro` to remake it"):
        written(tables)


def test_truth_is_the_concepts_with_the_best_overlap(tmp_path):
    """One feature fires on the token next to a dog, the other on both dogs and not on the third animal."""
    holds = [["word:dog", "category:animal"], ["word:dog", "category:animal"], ["category:animal"], ["near:dog"]]
    world = World(0)
    table = truth.build(world.concepts(), holds, [np.array([3]), np.array([0, 1])])
    truth.save(tmp_path / "truth.safetensors", table)
    rows = [FeatureRow(f"s/{sae}/{at}", sae, at, "test", 1.0, 0.1) for at, sae in enumerate(["lender", "main", "main"])]
    write_rows(tmp_path / "features.parquet", rows, FeatureRow)
    found = page_page.true_concepts(tmp_path / "truth.safetensors", tmp_path / "features.parquet", "main", world)
    assert found == {
        "s/main/1": [("near:dog", 1.0)],  # no description can be built on it
        "s/main/2": [("the word dog", 1.0), ("any animal", pytest.approx(0.8))],
    }


def test_every_reason_for_dropping_a_feature_is_explained_on_the_page():
    assert payload.constants()["dropReasons"].keys() == set(DropReason)
