"""What a token, an explanation or a file of others says never moves the cursor of a terminal."""

import json
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from rows import evaluation

from saeexplainer.errors import UserError
from saeexplainer.records import ContextRow, EvaluationRow, FeatureRow
from saeexplainer.runs.storage import write_rows
from tasks import stage
from tasks.cli import features, main
from tasks.settings import compose
from tasks.workspace import progress
from tasks.workspace.printable import one_line, printable

HOSTILE = "a\nb\r\x1b[31mred\x9b2J\x07\u202egnp\u2028 é 犬"
SHOWN = r"a\nb\r\x1b[31mred\x9b2J\x07\u202egnp\u2028 é 犬"


def test_control_codes_are_written_out_and_letters_stay() -> None:
    assert printable(HOSTILE) == SHOWN
    assert one_line(UserError(f"x:\n {HOSTILE}")) == r"x: a b \x1b[31mred\x9b2J\x07\u202egnp é 犬"


@given(st.text())
def test_whatever_a_text_holds_it_stays_on_its_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and printable(shown) == shown and len(f"{shown}x".splitlines()) == 1


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with two live features of long ids, of which one fires on a hostile token and is said to do so."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(compose.composed(["experiment=nano"]), encoding="utf-8")
    ids = [f"a-model-with-a-long-name/main/{index}" for index in (3, 12)]
    rows = [FeatureRow(feature_id, "main", at, "test", 9.0, 0.01) for at, feature_id in enumerate(ids)]
    write_rows(features.ACTIVATIONS / "features.parquet", rows, FeatureRow)
    contexts = [ContextRow(ids[0], 0, HOSTILE, [HOSTILE, "\n"], [9.0, 1.0], 0, [])]
    write_rows(features.ACTIVATIONS / "contexts.parquet", contexts, ContextRow)
    said = [evaluation(feature_id=ids[0], explanation=HOSTILE)]
    write_rows(features.EVALUATIONS / "r1.parquet", said, EvaluationRow)
    return tmp_path


def test_features_are_a_line_each_in_columns(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["features"]) == 0
    shown = capsys.readouterr().out
    head, first, explanation, second, count = shown.splitlines()
    assert SHOWN in first and explanation == f"    r1         {SHOWN}" and count == "2 of 2 features"
    assert len({line.index(word) for line, word in ((head, "split"), (first, "test"), (second, "test"))}) == 1
    assert all(line.isprintable() for line in shown.split("\n"))
    assert main.main(["features", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["explanations"] == {"r1": HOSTILE}  # for programs nothing is replaced


def test_a_message_about_a_hostile_file_is_one_plain_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "x.jsonl").write_text(json.dumps({"feature_id": "a\x9b2J/b"}, ensure_ascii=False), encoding="utf-8")
    assert main.main(["import", "x.jsonl"]) == 2
    assert compose.main(["--keep", "seed=\x1b[31m"]) == 2

    monkeypatch.setattr(progress, "install", lambda _: None)  # it would change the bars of the tests that follow

    def failing(params: object) -> stage.Report:
        raise UserError(f"explanation {HOSTILE}: is odd")

    for run in (failing, lambda params: stage.Report({}, [f"explanation {HOSTILE}"])):
        with pytest.raises(SystemExit):
            stage.main(run, [])
    out, err = capsys.readouterr()
    assert all(line.isprintable() for line in (out + err).split("\n")) and err.count("\n") == 3
    assert r"\x9b2J" in err and rf"explanation {SHOWN}" in out
