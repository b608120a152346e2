"""Text that would do harm where it is shown: it comes back from every table as it was, and acts nowhere."""

import base64
import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from report_rows import FEATURE, NASTY, context, evaluated

from saeexplainer.errors import UserError
from saeexplainer.exchange.files import read_records, write_records
from saeexplainer.exchange.records import from_dict
from saeexplainer.figures.comparison import summarise
from saeexplainer.records import ContextRow, EvaluationRow, ExplanationRow, FeatureRecord, FeatureRow
from saeexplainer.reports.page import page
from saeexplainer.runs.storage import read_rows, write_rows
from tasks.cli import explain, features, main
from tasks.settings import compose

TEXTS = {
    "HTML": NASTY,
    "an end of every element": "</bdi></td></table></script></style></title>-->]]>",
    "a style": "<style>*{display:none}</style><link rel=stylesheet href=//evil>",
    "an attribute": "\" onmouseover='alert(1)' x=`${alert(1)}`",
    "terminal escapes": "\x1b[2J\x1b[31mred\x1b]0;title\x07\x9b31m\x1b]8;;http://evil\x07link",
    "controls": "\0\x01\x08\x7f\x85\r\n\t\v\f",
    "right to left": "\u202e\u2066\u200f\u061cשלום gnp.exe",
    "what is not seen": "\u200b\ufeff\u2028\u2029\U000e0041\ufffd\uffff",
    "marks upon marks": "Z" + "\u0301" * 5000,
    "a megabyte": "<b>word</b> " * 87_382,
    "a template": "{{ 7 * 7 }}{% raw %}{# #}${jndi:ldap://x}%s%n{0.__class__}",
    "markdown": "| a | b |\n---\n[x](javascript:alert(1)) ![](http://evil)",
}
HALF = "half a \ud800 character"


@pytest.fixture(scope="module")
def nano() -> str:
    return compose.composed(["experiment=nano"])


@pytest.fixture
def here(nano: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(nano, encoding="utf-8")
    return tmp_path


def record(text: str) -> FeatureRecord:
    """One that says a text wherever it may say one."""
    shown = {"text": text, "max_activation": 1.0, "max_activation_token": text, "max_activation_token_index": 0}
    return from_dict({
        "feature_id": "sandbox/main/1", "explanation": text, "top_activating_texts": [text], text: text,
        "top_activating_contexts": [shown | {text: text}], "metadata": {text: [text]},
    })  # fmt: skip


def comes_back(folder: Path, text: str) -> None:
    """From records as JSON lines and as parquet, and from there again."""
    told = [record(text)]
    write_records(folder / "out.jsonl", told)
    assert read_records(folder / "out.jsonl") == told
    write_rows(folder / "rows.parquet", told, FeatureRecord)
    stored = read_rows(folder / "rows.parquet", FeatureRecord)
    assert stored == told
    before = (folder / "out.jsonl").read_bytes()
    write_records(folder / "again.jsonl", stored)
    assert (folder / "again.jsonl").read_bytes() == before and before.count(b"\n") == 1


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_comes_back_as_it_was(tmp_path: Path, kind: str) -> None:
    comes_back(tmp_path, TEXTS[kind])


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_comes_back_as_it_was(tmp_path: Path, text: str) -> None:
    comes_back(tmp_path, f"x_{text}")  # as a field of a record it must be no known one


def test_half_a_character_is_refused_and_what_was_there_stays(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    file.write_text(json.dumps({"feature_id": "a/b/1", "explanation": HALF}))
    with pytest.raises(UserError, match=r"f\.jsonl:line 1: not JSON in UTF-8 \(.*surrogates not allowed\)"):
        read_records(file)
    for kept in ("kept.parquet", "kept.jsonl"):
        (tmp_path / kept).write_text("kept")
    with pytest.raises(UnicodeEncodeError):  # no reader lets one in: it would be a defect here
        write_rows(tmp_path / "kept.parquet", [ExplanationRow("a/b/1", "test", HALF)], ExplanationRow)
    assert (tmp_path / "kept.parquet").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.jsonl", "kept.jsonl", "kept.parquet"]


def lay_out(folder: Path, text: str) -> None:
    """The tables of a feature of which everything says the text."""
    row = evaluated(explanation=text, texts=[text], activations=[1.0], tokens=[[text]], token_activations=[[1.0]])
    shown = ContextRow(FEATURE.feature_id, 0, text, [text, "dog"], [9.0, 0.0], 0, [])
    write_rows(folder / "features.parquet", [FEATURE], FeatureRow)
    write_rows(folder / "contexts.parquet", [shown, context(1)], ContextRow)
    write_rows(folder / "r1.parquet", [row], EvaluationRow)
    write_rows(folder / "labels.parquet", [ExplanationRow(FEATURE.feature_id, "test", text)], ExplanationRow)


def packed(written: str, name: str) -> Any:
    text = re.search(rf'<script type="text/plain" id="{name}">(.*?)</script>', written, re.DOTALL)[1]
    return json.loads(zlib.decompress(base64.b64decode(text)))


@pytest.mark.parametrize("kind", TEXTS)
def test_the_report_page_holds_it_and_its_markup_does_not(tmp_path: Path, kind: str) -> None:
    text = TEXTS[kind]
    lay_out(tmp_path, text)
    sources = page.Sources(
        tmp_path / "features.parquet", tmp_path / "contexts.parquet", tmp_path / "labels.parquet",
        {"r1": tmp_path / "r1.parquet"}, {}, 2, tmp_path / "rounds.png",
    )  # fmt: skip
    comparison = summarise({"r1": [evaluated()]}, 10, 0) | {"subject": text}
    page.write(tmp_path / "report.html", comparison, sources, {FEATURE.feature_id: [(text, 0.5)]}, {}, {})
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    index, (detail,) = packed(written, "index"), packed(written, "block-0")
    assert index["features"]["label"] == [text] and index["measured"]["r1"][0][0] == text
    assert detail["contexts"][0]["text"][0].startswith(text) and detail["truth"] == [[text, 0.5]]
    markup = re.sub(r'<script type="text/plain".*?</script>', "", written, flags=re.DOTALL)
    harms = ("<img", "<b>word", "<style>*", "alert(1)</script", "onmouseover='", "<link rel=style", "</bdi></td>")
    assert [harm for harm in harms if harm in markup] == []


@pytest.mark.parametrize("kind", [*TEXTS, "half a character"])
def test_no_control_code_reaches_the_terminal(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    text = TEXTS.get(kind, HALF)
    answers = [explain.Explained(FEATURE.feature_id, text, 0.5)]
    monkeypatch.setattr(explain, "explain", lambda *_: answers)
    lay_out(features.ACTIVATIONS, TEXTS.get(kind, "a dog"))
    features.EVALUATIONS.mkdir()
    shutil.copy(features.ACTIVATIONS / "r1.parquet", features.EVALUATIONS)
    assert main.main(["features"]) == 0
    assert main.main(["explain", "--feature", FEATURE.feature_id, "--explainer", "r1"]) == 0
    assert main.main(["import", f"{kind} {text[:40]}.jsonl".replace("\0", "").replace("/", "")]) == 2
    out, err = capsys.readouterr()
    assert len(out.split("\n")) == 7 and err.count("\n") == 1  # each text stays on its line
    assert all(line.isprintable() for line in (out + err).split("\n"))
    asked = ["explain", "--feature", FEATURE.feature_id, "--explainer", "r1", "--json"]
    assert main.main(["features", "--json"]) == main.main(asked) == 0
    assert capsys.readouterr().out.isascii()


QUERIES = [
    "(",
    ")",
    "[",
    "]",
    "[a-",
    "\\",
    "\\u{110000}",
    "(?<x>",
    "a|b",
    "^$",
    "*",
    "+",
    "?",
    "{1,2}",
    "{",
    "}",
    "-",
    "/",
    ".",
    "(?=)",
    "$&",
    "</script>",
    "İ",
    "ß",
    "\ud800",
    "\u202e",
    "\0",
    "🦊",
    "a" * 10_000,
    " ".join("abcdefgh" * 100),
    "__proto__",
    "constructor",
]
SEARCH = """
const view = { terms: [] };
const make = (tag, attributes, text) => ({ text });
%s
for (const [query, text] of JSON.parse(require("fs").readFileSync(0, "utf8"))) {
  view.terms = query.toLowerCase().split(/\\s+/).filter(Boolean);
  const joined = marked(text).map((part) => part.text ?? part).join("");
  if (joined !== text) throw new Error(JSON.stringify([query, text.slice(0, 50)]));
}
"""


@pytest.mark.skipif(not shutil.which("node"), reason="no node on this machine")
def test_whatever_is_searched_for_marks_a_text_and_changes_none() -> None:
    found = re.search(r"^function marked\(text\) \{.*?^\}", page._asset("page.js"), re.MULTILINE | re.DOTALL)
    # A browser makes no regular expression of ten thousand letters.
    longest = int(re.search(r'id="search" maxlength="(\d+)"', page._asset("page.html"))[1])
    asked = [[query[:longest], text] for query in QUERIES for text in (*TEXTS.values(), query, f"x{query}y")]
    subprocess.run(["node", "-e", SEARCH % found[0]], input=json.dumps(asked), text=True, check=True)
