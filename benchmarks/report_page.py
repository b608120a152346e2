"""The report page with 30,000 features in headless chromium: `python benchmarks/report_page.py [features]`.

Writes tables of the shape and size that a run leaves (8 contexts a feature; four evaluations of 10 texts of a fifth of
the features; two rounds of 8 candidates of 6 texts of two fifths), builds the page, opens it from the disk and types
into the search box. Prints one JSON object. Needs chromium, chromedriver and selenium.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

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
from saeexplainer.reports.page import page as page_page
from saeexplainer.runs.storage import write_rows

CONTEXTS, TEXTS, CANDIDATES, CANDIDATE_TEXTS = 8, 10, 8, 6
EVALUATIONS, ROUNDS = ("open_loop", "sft", "r1", "r2"), ("r1", "r2")
PART = 1000  # features whose rows are held at once


def words(rng: random.Random, count: int) -> list[str]:
    """Tokens of a text, from a vocabulary of 20,000."""
    return [f"w{int(20_000 * rng.random() ** 3)} " for _ in range(count)]


def values(rng: random.Random, count: int) -> list[float]:
    """Activations of a text: two tokens fire."""
    found = [0.0] * count
    for at in rng.sample(range(count), 2):
        found[at] = round(rng.random(), 4)
    return found


def contexts(rng: random.Random, features: list[FeatureRow]) -> Iterator[ContextRow]:
    for feature in features:
        for rank in range(CONTEXTS):
            tokens, found = words(rng, 25), values(rng, 25)
            yield ContextRow(
                feature.feature_id, rank, "".join(tokens).strip(), [token.strip() for token in tokens], found,
                found.index(max(found)), [],
            )  # fmt: skip


def evaluated(rng: random.Random, features: list[FeatureRow]) -> Iterator[EvaluationRow]:
    for feature in features:
        if feature.split != "test":
            continue
        tokens = [words(rng, 14) for _ in range(TEXTS)]
        found = [values(rng, 14) for _ in range(TEXTS)]
        strongest = [max(each) for each in found]
        accuracy = sum(value >= 0.5 for value in strongest) / TEXTS
        yield EvaluationRow(
            feature.feature_id, "the word " + " with ".join(words(rng, 2)), -0.4, ["".join(each) for each in tokens],
            strongest, [0.0] * TEXTS, tokens, found, 1, 12, accuracy, float(accuracy == 0), float(rng.random() < 0.5),
            sum(strongest) / TEXTS, *(rng.random() for _ in range(5)), float(rng.random() < 0.5), rng.random(),
        )  # fmt: skip


def scored(rng: random.Random, features: list[FeatureRow]) -> Iterator[ScoreRow]:
    for feature in features:
        for rank in range(CANDIDATES if feature.split == "dpo" else 0):
            texts = ["".join(words(rng, 12)) for _ in range(CANDIDATE_TEXTS)]
            found = [rng.random() for _ in texts]
            said = "any " + " in ".join(words(rng, 2))
            yield ScoreRow(
                feature.feature_id, "dpo", rank, said, texts, found, [0.0] * len(found), sum(found) / len(found)
            )


def write_table(path: Path, rows, record: type, features: list[FeatureRow]) -> None:
    """Write a table part by part, so that making it takes less memory than showing it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(path.as_posix()[-20:])
    parts = []
    for first in range(0, len(features), PART):
        write_rows(path, list(rows(rng, features[first : first + PART])), record)
        parts.append(pq.read_table(path))
    pq.write_table(pa.concat_tables(parts), path)


def write_tables(folder: Path, count: int) -> None:
    """Everything that the page reads."""
    splits = ("test", "dpo", "sft", "dpo", "sft")
    features = [FeatureRow(f"subject/main/{at}", "main", at, splits[at % 5], 20.0, 0.01) for at in range(count)]
    write_rows(folder / "features.parquet", features, FeatureRow)
    labels = [ExplanationRow(row.feature_id, row.split, f"label {row.index}") for row in features]
    write_rows(folder / "labels.parquet", labels, ExplanationRow)
    write_table(folder / "contexts.parquet", contexts, ContextRow, features)
    for name in EVALUATIONS:
        write_table(folder / f"{name}.parquet", evaluated, EvaluationRow, features)
    for name in ROUNDS:
        write_table(folder / name / "scores.parquet", scored, ScoreRow, features)
        write_rows(folder / name / "pairs.parquet", [], PreferencePair)
        write_rows(folder / name / "quarantine.parquet", [], QuarantinedPair)
        dropped = [DroppedFeature(row.feature_id, "dpo", "no gap") for row in features if row.split == "dpo"]
        write_rows(folder / name / "dropped.parquet", dropped, DroppedFeature)


def build(folder: Path) -> None:
    """The page of the tables in a folder."""
    sources = page_page.Sources(
        folder / "features.parquet", folder / "contexts.parquet", folder / "labels.parquet",
        {name: folder / f"{name}.parquet" for name in EVALUATIONS}, {name: folder / name for name in ROUNDS}, CONTEXTS,
        folder / "rounds.png",
    )  # fmt: skip
    page_page.write(folder / "report.html", comparison(), sources, {}, {"r1": "sft", "r2": "r1"}, {})


def comparison() -> dict:
    """Figures for the overview, which costs the same however many features there are."""
    interval = {"value": 0.4, "low": 0.35, "high": 0.45, "n": 1000}
    difference = {"generative_accuracy": {"value": 0.1, "low": 0.05, "high": 0.15}}
    return {
        "rounds": {name: {"generative_accuracy": interval} for name in EVALUATIONS},
        "differences": {"r1-sft": difference, "r2-r1": difference, "r2-sft": difference},
        "seed": 0, "subject": "subject", "sae": "main",
    }  # fmt: skip


def built(folder: Path, count: int) -> dict[str, float]:
    """Build the page in a process of its own, so that its peak memory is its own."""
    write_tables(folder, count)
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, __file__, "--build", str(folder)])
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"error: the page was not built (status {status})")
    size = (folder / "report.html").stat().st_size
    return {
        "build_seconds": round(time.perf_counter() - start, 1),
        "build_cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "build_peak_mib": round(usage.ru_maxrss / 1024),
        "file_mib": round(size / 2**20, 1),
    }


def driver(profile: str):
    """Headless chromium that goes to no network."""
    from selenium import webdriver

    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        sys.exit("error: no chromium and chromedriver; install them (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
                 "--enable-precise-memory-info", "--window-size=1400,1000", f"--user-data-dir={profile}"):  # fmt: skip
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))


# Milliseconds of the script's part of one keystroke, and until the frame after it is drawn.
KEYSTROKES = """
const done = arguments[arguments.length - 1], box = document.getElementById('search'), found = [];
const frame = () => new Promise((go) => requestAnimationFrame(() => setTimeout(go)));
(async () => {
  for (const text of ['w', 'w1', 'w12', 'w123', 'w12', '', 'any w5', 'main/29']) {
    const start = performance.now();
    box.value = text; box.dispatchEvent(new Event('input', {bubbles: true}));
    const script = performance.now() - start;
    await frame();
    found.push([script, performance.now() - start]);
  }
  done(found);
})();"""
# Milliseconds between frames while the list is scrolled through.
SCROLL = """
const done = arguments[arguments.length - 1], list = document.getElementById('list'), found = [];
let last = performance.now(), step = 0;
const next = () => {
  const now = performance.now(); found.push(now - last); last = now;
  list.scrollTop += 2500;
  if (++step < 60) requestAnimationFrame(next); else done(found.slice(2));
};
requestAnimationFrame(next);"""
OPEN = """
const done = arguments[arguments.length - 1], start = performance.now();
location.hash = arguments[0];
const wait = () => document.querySelector('#pane h3 bdi')?.textContent === arguments[0]
  ? done(performance.now() - start) : setTimeout(wait, 1);
wait();"""


def browsed(page: Path, count: int) -> dict[str, float]:
    """What a reader waits for, in milliseconds."""
    with tempfile.TemporaryDirectory() as profile:
        browser = driver(profile)
        try:
            browser.set_script_timeout(300)
            start = time.perf_counter()
            browser.get(page.as_uri())
            while browser.execute_script("return document.documentElement.dataset.ready") != "yes":
                time.sleep(0.01)
            ready = time.perf_counter() - start
            strokes = browser.execute_async_script(KEYSTROKES)
            browser.execute_script("document.getElementById('search').value = ''; refresh()")
            frames = browser.execute_async_script(SCROLL)
            opening = [browser.execute_async_script(OPEN, f"subject/main/{at}") for at in (count - 1, 7, count // 2)]
            heap = browser.execute_script("return performance.memory.usedJSHeapSize")
        finally:
            browser.quit()
    return {
        "interactive_ms": round(1000 * ready),
        "keystroke_script_ms_median": round(statistics.median(script for script, _ in strokes), 1),
        "keystroke_script_ms_worst": round(max(script for script, _ in strokes), 1),
        "keystroke_to_frame_ms_median": round(statistics.median(frame for _, frame in strokes), 1),
        "scroll_frame_ms_median": round(statistics.median(frames), 1),
        "scroll_frame_ms_worst": round(max(frames), 1),
        "open_feature_ms_worst": round(max(opening), 1),
        "js_heap_mib": round(heap / 2**20),
    }


def main() -> None:
    """Build, browse, print; with --build only the page, in a process whose peak memory is its own."""
    if sys.argv[1:2] == ["--build"]:
        return build(Path(sys.argv[2]))
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured = {"features": count, **built(folder, count), **browsed(folder / "report.html", count)}
    print(json.dumps(measured | {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}, indent=2))


if __name__ == "__main__":
    main()
