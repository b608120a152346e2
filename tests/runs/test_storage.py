"""A file that exists is whole; what was written reads back as it was."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from rows import evaluation

from saeexplainer import records
from saeexplainer.errors import UserError
from saeexplainer.runs.storage import (
    read_json,
    read_notes,
    read_rows,
    read_tensors,
    replacing,
    write_json,
    write_rows,
    write_tensors,
)

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = {str: "a „dog“\n", int: 7, float: 0.1, float | None: 0.2, list[str]: ["a", ""], list[float]: [0.1, -2.0],
    list[int]: [2**40, 0], list[list[str]]: [["a ", "dog"], []], list[list[float]]: [[0.5], []]}  # fmt: skip
RECORDS = [kind for kind in vars(records).values() if is_dataclass(kind) and kind.__module__ == records.__name__]


def filled(kind: type) -> object:
    return kind(**{field.name: SAMPLES[field.type] for field in fields(kind)})


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_record_reads_back(kind, tmp_path):
    rows = [filled(kind)] * 2
    write_rows(tmp_path / "rows.parquet", rows, kind)
    assert read_rows(tmp_path / "rows.parquet", kind) == rows
    write_rows(tmp_path / "none.parquet", [], kind)
    assert read_rows(tmp_path / "none.parquet", kind) == []


def test_the_same_rows_are_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_rows(tmp_path / name, [filled(records.ScoreRow)], records.ScoreRow)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_filters_leave_rows_out(tmp_path):
    rows = [records.ContextRow("f", rank, "a b", ["a", " b"], [0.0, float(rank)], 1, []) for rank in range(5)]
    write_rows(tmp_path / "contexts.parquet", rows, records.ContextRow)
    assert read_rows(tmp_path / "contexts.parquet", records.ContextRow, filters=[("rank", "<", 2)]) == rows[:2]


def test_a_number_that_nobody_knows_reads_back_as_none(tmp_path):
    rows = [replace(filled(records.ScoreRow), reward=reward) for reward in (None, 0.0)]
    write_rows(tmp_path / "rows", rows, records.ScoreRow)
    assert read_rows(tmp_path / "rows", records.ScoreRow) == rows


def test_notes_of_a_table_lie_beside_its_rows(tmp_path):
    rows, usage = [filled(records.ScoreRow)], records.Usage(2, 30, 4)
    for name, notes in (("noted", {"usage": usage}), ("plain", None), ("empty", {})):
        write_rows(tmp_path / name, rows, records.ScoreRow, notes)
        assert read_rows(tmp_path / name, records.ScoreRow) == rows
    assert records.Usage(**read_notes(tmp_path / "noted")["usage"]) == usage
    assert read_notes(tmp_path / "plain") == read_notes(tmp_path / "empty") == {}
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "empty").read_bytes()
    with pytest.raises(UserError, match="no such table"):
        read_notes(tmp_path / "nothing")


def test_a_table_that_was_imported_is_no_stages_to_make(tmp_path):
    for folder, command in (("imported", "sae-explainer import FILE"), ("rounds", "dvc repro")):
        with pytest.raises(UserError, match=f"no such table; run `{command}` to make it"):
            read_rows(tmp_path / folder / "labels.parquet", records.ExplanationRow)


def test_a_value_that_is_unknown_reads_back(tmp_path):
    rows = [evaluation(feature_id="s/m/1", log_probability=math.nan, truth_f1=math.nan)]
    write_rows(tmp_path / "rows.parquet", rows, records.EvaluationRow)
    (row,) = read_rows(tmp_path / "rows.parquet", records.EvaluationRow)
    assert math.isnan(row.truth_f1) and row.texts == []


def test_another_tables_rows_are_refused(tmp_path):
    write_rows(tmp_path / "rows.parquet", [filled(records.CandidateRow)], records.CandidateRow)
    with pytest.raises(UserError, match="columns are .*expected .*dvc repro") as caught:
        read_rows(tmp_path / "rows.parquet", records.ScoreRow)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such table"):
        read_rows(tmp_path / "absent.parquet", records.ScoreRow)


@dataclass(frozen=True)
class Inner:
    value: float


def test_json_and_tensors_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"b": Inner(0.5), "a": [1, "ü"]})
    assert read_json(tmp_path / "a.json") == {"a": [1, "ü"], "b": {"value": 0.5}}
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["a", "b"]
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": math.nan})  # not JSON
    assert read_json(tmp_path / "a.json")["a"] == [1, "ü"]
    tensors = {"x": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor([3])}
    write_tensors(tmp_path / "t.safetensors", tensors)
    loaded = read_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items()) and set(loaded) == set(tensors)


def test_what_is_absent_or_broken_says_how_to_make_it(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    for read, name in ((read_json, "broken.json"), (read_json, "absent.json"), (read_tensors, "absent.safetensors")):
        with pytest.raises(UserError, match="dvc repro") as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", [False, True])
def test_a_failure_leaves_what_was_there(tmp_path, folder):
    def fill(path: Path, text: str) -> None:
        if folder:
            path.mkdir()
            path = path / "inner"
        path.write_text(text)

    target = tmp_path / "made" / "artifact"
    with pytest.raises(KeyboardInterrupt), replacing(target) as temporary:
        fill(temporary, "half")
        raise KeyboardInterrupt
    assert list((tmp_path / "made").iterdir()) == []
    with replacing(target) as temporary:
        fill(temporary, "whole")
    with pytest.raises(ValueError), replacing(target) as temporary:
        fill(temporary, "half")
        raise ValueError
    assert (target / "inner" if folder else target).read_text() == "whole"
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["artifact"]


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from saeexplainer.runs.storage import replacing
    with replacing(Path(sys.argv[1])) as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    """
)


def test_a_killed_process_leaves_nothing_that_looks_whole(tmp_path):
    target = tmp_path / "artifact"
    process = subprocess.run([sys.executable, "-c", KILLED, target], env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.returncode == -signal.SIGKILL
    assert not target.exists()
    with replacing(target) as temporary:  # the next run clears what was left
        assert not temporary.exists()
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


WRITING = """
import sys
from pathlib import Path
from saeexplainer.runs.storage import replacing

with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("first ha")
    print("writing", flush=True)
    sys.stdin.readline()
    with temporary.open("a") as file:
        file.write("lf")
"""


def writing(path: Path) -> subprocess.Popen[str]:
    """Another process in the middle of writing a path."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITING, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    return process


def test_two_that_write_the_same_path_leave_each_other_alone(tmp_path):
    path = tmp_path / "[odd] name.json"
    other = writing(path)
    write_json(path, 1)
    assert path.read_text() == "1\n"
    other.communicate("\n")
    assert other.returncode == 0 and path.read_text() == "first half"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_goes_when_its_path_is_written_again(tmp_path):
    path = tmp_path / "found.json"
    other = writing(path)
    other.kill()
    other.communicate()
    assert not path.exists() and len(list(tmp_path.iterdir())) == 1
    write_json(path, 1)
    assert list(tmp_path.iterdir()) == [path]
