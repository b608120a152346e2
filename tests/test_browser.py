"""The report page in a real browser: Debian's chromium, headless, on a file, with no network to go to.

Skipped where chromium, its driver or selenium is missing (.ci/run installs them).
"""

import json
import math
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pairs_by_hand import HOSTILE, hostile_set, settings
from report_rows import NASTY, evaluated, pair, scored

from saeexplainer.figures.comparison import summarise
from saeexplainer.records import (
    ContextRow,
    DroppedFeature,
    EvaluationRow,
    ExplanationRow,
    FeatureRow,
    PreferencePair,
    QuarantinedPair,
    ScoreRow,
)
from saeexplainer.reports.page import page
from saeexplainer.reports.tables import plot_rounds
from saeexplainer.runs.storage import write_rows
from tasks import validate_preferences

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MANY = 30_000
PATIENCE = 60  # seconds that a busy machine may take to show something

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on this machine")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all tests, on a profile of its own; the logs of console and network are kept."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1400,1000",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # A service with a path: without one, selenium's manager would look for a driver on the network.
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def written(folder: Path, features: list[FeatureRow], nasty: bool = False) -> str:
    """The address of a page on these features: the test ones are measured, the dpo ones seen by round r1."""
    rng = random.Random(0)
    words = [f"word{at}" for at in range(500)]
    contexts, labels, scores, pairs, dropped = [], [], [], [], []
    measured: dict[str, list[EvaluationRow]] = {"sft": [], "r1": []}
    truth: dict[str, list[tuple[str, float]]] = {}
    for at, feature in enumerate(features):
        word = words[at % len(words)]
        values = [0.0, 0.2 * feature.maximum, feature.maximum, 0.0]
        tokens = ["see", "the", word, "here"]
        contexts.append(ContextRow(feature.feature_id, 0, " ".join(tokens), tokens, values, 2, []))
        labels.append(ExplanationRow(feature.feature_id, feature.split, f"label {word}"))
        if feature.split == "test":
            for name, found in measured.items():
                value = rng.choice([0.0, 0.5, 1.0]) if name == "r1" else 0.5
                said = NASTY if nasty and at == 0 else f"the {word} of {name}"
                score = 0.9 if at == 3 and name == "r1" else value / 2
                row = evaluated(feature.feature_id, value, explanation=said)
                truth[feature.feature_id] = [("the truth", 0.2 if at % 5 == 4 else 0.9)]
                found.append(replace(row, truth_agreement=float(value > 0), truth_f1=score / 2))
        elif feature.split == "dpo" and at % 2:
            best, worst = scored(0, 0.9, f"good {word}", feature.feature_id), scored(1, 0.2, "bad", feature.feature_id)
            scores += [worst, best]
            pairs.append(pair(best, worst))
        elif feature.split == "dpo":
            scores.append(scored(0, 0.1, f"weak {word}", feature.feature_id))
            dropped.append(DroppedFeature(feature.feature_id, "dpo", "below floor"))
    for name, rows, record in (
        ("features", features, FeatureRow), ("contexts", contexts, ContextRow), ("labels", labels, ExplanationRow),
        *((name, rows, EvaluationRow) for name, rows in measured.items()),
        ("rounds/r1/scores", scores, ScoreRow), ("rounds/r1/pairs", pairs, PreferencePair),
        ("rounds/r1/dropped", dropped, DroppedFeature), ("rounds/r1/quarantine", [], QuarantinedPair),
    ):  # fmt: skip
        write_rows(folder / f"{name}.parquet", rows, record)
    sources = page.Sources(
        folder / "features.parquet", folder / "contexts.parquet", folder / "labels.parquet",
        {name: folder / f"{name}.parquet" for name in measured}, {"r1": folder / "rounds/r1"}, 5,
        folder / "rounds.png",
    )  # fmt: skip
    comparison = summarise({name: rows[:50] for name, rows in measured.items()}, 20, 0)
    plot_rounds(comparison, sources.picture)
    page.write(folder / "report.html", comparison, sources, truth, {"r1": "sft"}, {})
    return (folder / "report.html").as_uri()


def feature(at: int, split: str) -> FeatureRow:
    return FeatureRow(f"sandbox/main/{at}", "main", at, split, 10.0 + at % 7, 0.001 * (1 + at % 9))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    splits = ["test"] * 60 + ["dpo"] * 30 + ["sft"] * 9
    rows = [feature(at, split) for at, split in enumerate(splits)]
    rows.append(FeatureRow("sandbox/lender12/10240", "lender12", 10240, "sft", 10.0, 0.001))
    return written(tmp_path_factory.mktemp("few"), rows, nasty=True)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    rows = [feature(at, ("test", "dpo", "sft", "sft", "sft")[at % 5]) for at in range(MANY)]
    return written(tmp_path_factory.mktemp("many"), rows)


def opened(browser, address: str) -> None:
    """Load the page afresh and wait until its features are there."""
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(address)
    until(browser, "document.documentElement.dataset.ready === 'yes'")


def until(browser, condition: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not browser.execute_script(f"return {condition}"):
        assert time.monotonic() < deadline, (condition, browser.get_log("browser"))
        time.sleep(0.05)


def element(browser, selector: str):
    return browser.find_element("css selector", selector)


def texts(browser, selector: str) -> list[str]:
    """What elements say, whether in view or not."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)", selector
    )


def rows(browser) -> list[str]:
    """Ids of the rows that are drawn, in order."""
    return texts(browser, "#rows tr:not(.spacer) a")


def choose(browser, name: str, value: str) -> None:
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('change', {bubbles: true}))", name, value,
    )  # fmt: skip


def search(browser, words: str) -> None:
    box = element(browser, "#search")
    box.clear()
    box.send_keys(words)


def press(browser, key: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(key).perform()


def shown(browser) -> str:
    """The feature whose details are open; empty where none is."""
    return "".join(texts(browser, "#pane:not([hidden]) header h3 bdi"))


def until_shown(browser, name: str) -> None:
    until(browser, f"(document.querySelector('#pane:not([hidden]) header h3 bdi')?.textContent ?? '') === {name!r}")


def count(browser) -> str:
    return element(browser, "#count").text


def test_the_page_is_quiet_and_asks_nobody(browser, few):
    opened(browser, few)
    element(browser, "#rows tr:nth-child(3) a").click()
    until_shown(browser, "sandbox/main/1")
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url.partition("#")[0] for url in asked if not url.startswith("data:")} == {few}, (
        "the page itself and nothing else"
    )
    assert few in asked


def test_the_policy_stops_a_script_and_a_request(browser, few):
    opened(browser, few)
    ran = browser.execute_async_script("""
        const done = arguments[arguments.length - 1];
        document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}));
        fetch('http://127.0.0.1:9/').then(() => done('loaded'), () => done(window.ran === 1 ? 'ran' : 'stopped'))""")
    assert ran == "stopped"
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


def test_the_picture_of_the_rounds_is_part_of_the_page(browser, few):
    opened(browser, few)
    assert browser.execute_script("return document.querySelector('img.rounds').naturalWidth") > 400


def test_search_looks_into_explanations_tokens_and_ids(browser, few):
    opened(browser, few)
    assert count(browser) == "100 features"
    search(browser, "word17")
    assert rows(browser) == ["main/17"] and count(browser) == "1 of 100 features"
    search(browser, "main/4 OF r1")
    assert rows(browser) == ["main/4", *(f"main/{at}" for at in range(40, 50))], "every term has to be there"
    search(browser, "good word61")
    assert rows(browser) == ["main/61"], "a candidate that a round preferred"
    search(browser, "nothing like this")
    assert rows(browser) == [] and element(browser, "#empty").is_displayed()
    element(browser, "#tools button[type=reset]").click()
    until(browser, "document.getElementById('count').textContent === '100 features'")


def test_what_a_search_found_is_marked_in_the_row(browser, few):
    opened(browser, few)
    search(browser, "word17 R1")
    assert texts(browser, "#rows mark.hit") == ["word17", "r1", "word17"], "in the explanation and in the tokens"
    search(browser, "main/4 of sft")
    assert rows(browser)[0] == "main/4" and texts(browser, "#rows tr:nth-child(2) mark.hit") == [
        "main/4",
        "of",
        "of",
        "sft",
    ]
    assert texts(browser, "#rows tr:nth-child(2) .elsewhere") == ["sft: the word4 of sft"], "what no cell shows"
    search(browser, "(")
    assert rows(browser) == ["main/0"], "a search is text, no pattern"
    search(browser, "word")
    element(browser, "#tools button[type=reset]").click()
    until(browser, "!document.querySelector('mark.hit')")


def test_ids_and_splits_are_seen_whole(browser, few):
    for width in (1400, 1100, 700):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
        )
        opened(browser, few)
        for words, expected in (("", "main/0"), ("10240", "lender12/10240")):
            search(browser, words)
            assert rows(browser)[0] == expected
            cut = browser.execute_script(
                "return [...document.querySelectorAll('#rows .c-id')]"
                ".filter((e) => e.scrollWidth > e.clientWidth).length"
            )
            assert cut == 0, (width, words)
        assert element(browser, "#rows .c-id .tag").is_displayed() == (width > 760), (
            "a tag that has no room is not shown"
        )
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_words_of_the_page_are_explained_on_it(browser, few):
    opened(browser, few)
    element(browser, "#words summary").click()
    assert element(browser, "#words dl").is_displayed()
    explained = {text.split(" ", 1)[-1] for text in texts(browser, "#words dt")}
    used = {text for cell in (".c-verdict .word", "#split option") for text in texts(browser, cell)} & set(
        browser.execute_script("return data.verdicts")
    )
    assert used and used | {"twin", "lender", "floor", "unclear"} <= explained


def test_filters_keep_what_they_name_and_add_up(browser, few):
    opened(browser, few)
    index = browser.execute_script("return {rows: data.measured.r1, before: data.measured.sft, ids: data.features.id}")

    def expected(keep) -> list[str]:
        found = zip(index["ids"], index["rows"], index["before"], strict=True)
        return [name.removeprefix("sandbox/") for name, now, before in found if now and keep(now, before)]

    def all_rows() -> list[str]:
        return [name.removeprefix("sandbox/") for name in browser.execute_script(
            "return view.rows.map((at) => data.features.id[at])")]  # fmt: skip

    choose(browser, "verdict", "hallucinated")
    assert all_rows() == expected(lambda now, _: now[2] == "hallucinated") != []
    choose(browser, "truth", "right")
    assert all_rows() == [], "what makes nothing fire names nothing here"
    choose(browser, "verdict", "")
    assert all_rows() == expected(lambda now, _: now[3] == "right") != []
    choose(browser, "truth", "unclear")
    assert all_rows() == [f"main/{at}" for at in range(4, 60, 5)]
    choose(browser, "truth", "")
    choose(browser, "change", "better")
    assert all_rows() == expected(lambda now, before: now[1] > before[1]) != []
    choose(browser, "against", "r1")
    assert all_rows() == []
    choose(browser, "change", "")
    choose(browser, "split", "dpo")
    assert len(all_rows()) == 30
    choose(browser, "outcome", "below floor")
    assert all_rows() == [f"main/{at}" for at in range(60, 90, 2)]
    choose(browser, "outcome", "pairs")
    assert all_rows() == [f"main/{at}" for at in range(61, 90, 2)]


def test_sorting_is_by_number_and_what_is_unknown_comes_last(browser, few):
    opened(browser, few)

    def heads() -> list[str]:
        return texts(browser, "#head th[aria-sort]")

    element(browser, "#head .c-f1 button").click()
    assert rows(browser)[0] == "main/3" and heads() == ["Truth F1 ↓"]
    element(browser, "#head .c-f1 button").click()
    values = texts(browser, "#rows .c-f1")
    assert heads() == ["Truth F1 ↑"] and values[0].endswith("0.00") and values[0] != "–"
    last = browser.execute_script("return data.features.split[view.rows[view.rows.length - 1]]")
    assert last == "sft", "nobody measured it"
    element(browser, "#head .c-f1 button").click()
    assert heads() == [] and rows(browser)[0] == "main/0"
    element(browser, "#head .c-reward button").click()
    assert texts(browser, "#rows .c-reward")[0] == "0.90"


def test_a_feature_shows_where_it_fires(browser, few):
    opened(browser, few)
    search(browser, "word5 of r1")
    element(browser, "#rows tr:nth-child(2) a").click()
    until_shown(browser, "sandbox/main/5")
    assert texts(browser, ".contexts mark") == ["the", "word5"]
    assert texts(browser, ".contexts mark.firing") == ["word5"]
    assert texts(browser, ".contexts p") == ["see the word5 here"]
    assert texts(browser, ".evaluation .who") == ["sft", "r1"]
    assert texts(browser, ".evaluation[open] mark") == ["dog"] and texts(browser, ".evaluation[open] .who") == ["r1"]
    weak, strong = (
        browser.execute_script("return getComputedStyle(arguments[0]).backgroundColor", mark)
        for mark in browser.find_elements("css selector", ".contexts mark")
    )
    assert weak != strong, "a token is as bright as it fires"


def test_what_a_round_made_of_a_feature(browser, few):
    opened(browser, few + "#sandbox/main/61")
    until_shown(browser, "sandbox/main/61")
    opened(browser, few + "#main/61")  # as the table and the command line name it
    until_shown(browser, "sandbox/main/61")
    assert texts(browser, ".candidate .said") == ["good word61", "bad"]
    assert texts(browser, ".candidate .role") == ["chosen", "rejected"]
    opened(browser, few + "#sandbox/main/60")
    until_shown(browser, "sandbox/main/60")
    assert any("dropped, below floor" in text for text in texts(browser, "#pane .legend"))


def test_what_a_model_wrote_is_shown_as_text(browser, few):
    opened(browser, few + "#sandbox/main/0")
    until_shown(browser, "sandbox/main/0")
    assert texts(browser, ".evaluation .said") == [NASTY, NASTY]
    assert texts(browser, "#rows tr:nth-child(2) .c-explanation bdi") == [NASTY]
    assert browser.execute_script("return document.scripts.length") == len(texts(browser, "script")), "none was added"


def test_what_is_right_where_nothing_fits_is_unclear(browser, few):
    opened(browser, few + "#main/4")
    until_shown(browser, "sandbox/main/4")
    assert "unclear; least bad concepts (F1): the truth 0.20" in "".join(texts(browser, "#pane dl"))
    assert all("truth unclear" in text and "wrong" not in text for text in texts(browser, ".evaluation .result"))


def test_data_docs_are_read_without_a_network_and_run_nothing(browser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile_set(tmp_path)
    validate_preferences.run(settings(), "r1")
    index = tmp_path / "reports/data_docs/index.html"
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(index.as_uri())
    for link in ("r1", "pairs", "this round", "Preference sets", "single pairs"):
        element_of = f"return [...document.querySelectorAll('a')].find((e) => e.textContent === {link!r})"
        browser.execute_script(element_of).click()
    values = texts(browser, "td td")
    assert HOSTILE in values and f"{HOSTILE}\\x00\\x1b" in values
    assert browser.execute_script("return document.querySelectorAll('script, img').length") == 0
    assert element(browser, "td.bad, td .bad").is_displayed() and browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert all(url.startswith((index.parent.as_uri(), "data:,")) for url in asked), "no other host"


def test_addresses_the_back_button_and_keys(browser, few):
    from selenium.webdriver.common.keys import Keys

    opened(browser, few + "#sandbox/main/7")
    until_shown(browser, "sandbox/main/7")
    press(browser, Keys.ARROW_DOWN)
    until_shown(browser, "sandbox/main/8")
    assert browser.current_url.endswith("#sandbox/main/8")
    press(browser, Keys.ARROW_UP)
    press(browser, Keys.ARROW_UP)
    until_shown(browser, "sandbox/main/6")
    assert texts(browser, "#rows tr[aria-selected=true] a") == ["main/6"]
    press(browser, Keys.ESCAPE)
    until_shown(browser, "")
    element(browser, "#rows tr:nth-child(4) a").click()
    until_shown(browser, "sandbox/main/2")
    browser.back()
    until_shown(browser, "")
    browser.forward()
    until_shown(browser, "sandbox/main/2")
    assert browser.get_log("browser") == []


def test_an_address_of_another_run_is_told_so(browser, few):
    opened(browser, few + "#other/main/3")
    until_shown(browser, "other/main/3")
    assert "holds no such feature" in "".join(texts(browser, "#pane"))


def test_no_sideways_scrolling_at_any_width(browser, few):
    for width in (390, 800, 1400):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
        )
        opened(browser, few + "#sandbox/main/3")
        until_shown(browser, "sandbox/main/3")
        wide = browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_thirty_thousand_features_respond(browser, many):
    opened(browser, many)
    assert count(browser) == "30,000 features"
    assert len(rows(browser)) < 100, "only what is seen is drawn"
    search(browser, "main/29999")
    assert rows(browser) == ["main/29999"]
    element(browser, "#rows tr:nth-child(2) a").click()
    until_shown(browser, "sandbox/main/29999")
    assert texts(browser, ".contexts mark") == ["the", "word499"]
    search(browser, "word499")
    assert count(browser) == f"{math.ceil(MANY / 500)} of 30,000 features"
    element(browser, "#tools button[type=reset]").click()
    until(browser, "document.getElementById('count').textContent === '30,000 features'")
    browser.execute_script("document.getElementById('list').scrollTop = 1e9")
    until(browser, "[...document.querySelectorAll('#rows a')].at(-1)?.textContent === 'main/29999'")
    assert browser.execute_script("return document.querySelectorAll('#rows tr').length") < 100
