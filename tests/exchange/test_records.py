"""Records that come in and go out: nothing lost, half written or overwritten, and mistakes named by line."""

import gzip
import json
import os
import shlex
import subprocess
import sys
from codecs import BOM_UTF8
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings, strategies as st
from rows import evaluation
from tiny import ROOT

from saeexplainer.errors import UserError
from saeexplainer.exchange.records import explanations, from_dict, read, to_dict, to_lines
from saeexplainer.records import ContextRow, EvaluationRow, ExplanationRow, FeatureRecord, FeatureRow, PreferencePair
from saeexplainer.runs.storage import read_rows, write_json, write_rows
from tasks import label_features
from tasks.cli import exchange, main
from tasks.settings import compose, params

FILE = "llama3.1-8b/15-llamascope-res-32k"
GOOD = {
    "feature_id": f"{FILE}/123",
    "explanation": "the word dog",
    "top_activating_texts": ["a dog barks", "dogs"],
    "top_activating_contexts": [
        {"text": "a dog barks", "max_activation": 7.5, "max_activation_token": " dog", "max_activation_token_index": 1}
    ],
    "metadata": {"feature_index": 123, "layer": 15, "d_in": 4096, "saelens_release": None},
}
NEURONPEDIA = {
    "modelId": "gpt2-small",
    "layer": "6-res",
    "index": "650",
    "maxActApprox": 22.5,
    "frac_nonzero": 0.25,
    "pos_str": [" metre"],
    "explanations": [{"description": "measures of length", "typeName": "x"}, {"description": "metres"}],
    "activations": [
        {"tokens": ["▁The", "▁radius"], "values": [0, 3], "maxValue": 3, "maxValueTokenIndex": 1},
        {"tokens": ["ten", "▁metres"], "values": [1, 5], "maxValue": 5, "maxValueTokenIndex": 1},
    ],
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
OTHERS = st.dictionaries(st.text(max_size=8).map("x_{}".format), JSON, max_size=3)  # never the name of a known field
PART = st.text("abc.-_19é", min_size=1, max_size=6)
INDICES = st.integers(0, 10**12)
CONTEXTS = st.tuples(
    st.fixed_dictionaries(
        {
            "text": st.text(max_size=9),
            "max_activation": st.floats(allow_nan=False, allow_infinity=False),
            "max_activation_token": st.text(max_size=4),
            "max_activation_token_index": st.integers(0, 2**63 - 1),
        }
    ),
    OTHERS,
).map(lambda two: {**two[1], **two[0]})


@st.composite
def records(draw: st.DrawFn) -> dict:
    """A line in the paper's shape with fields that it is not known here."""
    index = draw(INDICES)
    return {
        **draw(OTHERS),
        "feature_id": f"{draw(PART)}/{draw(PART)}/{index}",
        "explanation": draw(st.text(max_size=12)),
        "top_activating_texts": draw(st.lists(st.text(max_size=9), max_size=3)),
        "top_activating_contexts": draw(st.lists(CONTEXTS, max_size=2)),
        "metadata": draw(OTHERS) | ({"feature_index": index} if draw(st.booleans()) else {}),
    }


@settings(deadline=None, max_examples=30)
@given(told=st.lists(records(), min_size=1, max_size=4))
def test_in_and_out_and_in_again_changes_nothing(tmp_path_factory: pytest.TempPathFactory, told: list[dict]) -> None:
    found = read([json.dumps(one).encode() for one in told], "f")
    assert [to_dict(one) for one in found] == told
    table = tmp_path_factory.getbasetemp() / "records.parquet"
    write_rows(table, found, FeatureRecord)
    stored = read_rows(table, FeatureRecord)
    assert stored == found
    assert read((line.encode() for line in to_lines(stored)), "g") == found


def test_neuronpedias_own_shape_by_hand() -> None:
    assert to_dict(from_dict(NEURONPEDIA)) == {
        "feature_id": "gpt2-small/6-res/650",
        "explanation": "measures of length",
        "top_activating_texts": ["ten metres", " The radius"],  # strongest first
        "top_activating_contexts": [
            {"text": text, "max_activation": maximum, "max_activation_token": token, "max_activation_token_index": 1}
            for text, maximum, token in (("ten metres", 5, " metres"), (" The radius", 3, " radius"))
        ],
        "metadata": {
            "target_model": "gpt2-small", "sae_id": "6-res", "feature_index": "650",
            "activation_density": 0.25, "max_activation_approx": 22.5,
        },
        "pos_str": [" metre"],
        "explanations": NEURONPEDIA["explanations"],
    }  # fmt: skip
    exported = {"modelId": "gpt2-small", "layer": "6-res", "index": "650", "description": "metres", "authorId": 7}
    assert (from_dict(exported).explanation, json.loads(from_dict(exported).extra)) == ("metres", {"authorId": 7})


def test_the_first_explanation_of_a_feature_counts_and_ids_can_be_renamed() -> None:
    said = [(1, ""), (2, " a cat "), (1, "a dog"), (1, "dogs")]
    rows = [from_dict({"feature_id": f"{FILE}/{index}", "explanation": text}) for index, text in said]
    assert explanations(rows) == [ExplanationRow(f"{FILE}/1", "", "a dog"), ExplanationRow(f"{FILE}/2", "", "a cat")]
    assert [row.feature_id for row in explanations(rows, "llama/main")] == ["llama/main/1", "llama/main/2"]
    with pytest.raises(UserError, match="--as llama/main: the file has features of several SAEs, a/b and llama3"):
        explanations([*rows, from_dict({"feature_id": "a/b/1"})], "llama/main")


def without(name: str) -> dict:
    return {key: value for key, value in GOOD["top_activating_contexts"][0].items() if key != name}


BROKEN = {
    "cut short": (b'{"feature_id": "a/b/1", "expl', "not JSON in UTF-8 (character 25: Unterminated string"),
    "a list": (b"[1]", "the record: is [1]; must be a JSON object"),
    "not a number": (b'{"feature_id": "a/b/1", "metadata": {"d": NaN}}', "not JSON in UTF-8 (Out of range float"),
    "a number of a million digits": (b'{"feature_id": ' + b"1" * 10**6 + b"}", "not JSON in UTF-8 (Exceeds the limit"),
    "half a character": (rb'{"feature_id": "a/b/1", "x": "\ud800"}', "not JSON in UTF-8 ("),
    "not UTF-8": (b'{"feature_id": "\xff"}', "not JSON in UTF-8 ("),
    "too deep": (b"[" * 200_000, "not JSON in UTF-8 ("),
    "no id": ({"explanation": "x"}, "feature_id: missing; must be text like llama3.1-8b/15-llamascope-res-32k/123"),
    "two parts": ({"feature_id": "main/7"}, 'feature_id: is "main/7"; must be text like'),
    "no index": ({"feature_id": "a/b/x"}, 'feature_id: is "a/b/x"'),
    "two forms of one index": ({"feature_id": "a/b/07"}, 'feature_id: is "a/b/07"'),
    "an endless index": ({"feature_id": "a/b/" + "9" * 5000}, "feature_id: is"),
    "another index": (
        GOOD | {"metadata": {"feature_index": 5}},
        f"metadata.feature_index: is 5; must be the index of the feature_id {FILE}/123",
    ),
    "explanation": (GOOD | {"explanation": ["x"]}, 'explanation: is ["x"]; must be text'),
    "texts": (GOOD | {"top_activating_texts": ["x", 7]}, "top_activating_texts[1]: is 7; must be text"),
    "contexts": (GOOD | {"top_activating_contexts": "x"}, 'top_activating_contexts: is "x"; must be a list'),
    "a context without a maximum": (
        GOOD | {"top_activating_contexts": [without("max_activation")]},
        "top_activating_contexts[0].max_activation: missing; must be a finite number",
    ),
    "a negative position": (
        GOOD | {"top_activating_contexts": [without("") | {"max_activation_token_index": -1}]},
        "max_activation_token_index: is -1; must be a whole number",
    ),
    "no source": ({"modelId": "gpt2", "index": 3}, "layer: missing; must be text"),
    "a peak outside": (
        NEURONPEDIA | {"activations": [{"tokens": ["a"], "maxValue": 1, "maxValueTokenIndex": 1}]},
        "activations[0].maxValueTokenIndex: is 1; must be an index of its 1 tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("line", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_line_7_is_one_line_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes | dict, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    good = json.dumps(GOOD).encode()
    seventh = line if isinstance(line, bytes) else json.dumps(line).encode()
    Path("np.jsonl").write_bytes(b"\n".join([good, good, b"", good, good, good, seventh, good]))
    with pytest.raises(UserError) as caught:
        exchange.import_files([Path("np.jsonl")], None, None, force=False)
    message = str(caught.value)
    assert message.startswith("np.jsonl:line 7: ") and said in message and "\n" not in message and len(message) < 300
    assert os.listdir() == ["np.jsonl"]


LATENTS = {3: "sft", 5: "test", 8: "test"}
IDS = {index: f"sandbox-llama/main/{index}" for index in LATENTS}
CONTEXT_ROWS = [
    ContextRow(IDS[index], rank, f"the dog {index}", ["the", "dog", str(index)], [0.0, 9.0 - rank, 0.0], 1, [])
    for index in LATENTS
    for rank in (1, 0)  # not in order of rank
]


def pair(index: int, split: str) -> PreferencePair:
    return PreferencePair(IDS[index], split, "the dog", "a cat", 1.0, 0.25, 0.75, 0.75, 0.8, "a dog", "cats")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace to be in: settings of two rounds, three live features, labels, an evaluation, a validated round."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(compose.composed(["rounds=two"]), encoding="utf-8")
    rows = [FeatureRow(IDS[index], "main", index, split, 9.0, 0.01) for index, split in LATENTS.items()]
    write_rows(exchange.FEATURES, rows, FeatureRow)
    write_rows(exchange.ACTIVATIONS / "contexts.parquet", CONTEXT_ROWS, ContextRow)
    write_rows(exchange.LABELS, [ExplanationRow(IDS[3], "sft", "any animal")], ExplanationRow)
    measured = evaluation(feature_id=IDS[5], explanation="the word dog", generative_accuracy=0.7, truth_f1=float("nan"))
    write_rows(exchange.EVALUATIONS / "r2.parquet", [measured], EvaluationRow)
    stored = {"d_in": 128, "d_sae": 768, "metadata": {"hook_name": "blocks.1.hook_resid_post"}}
    write_json(exchange.SAES / "main/cfg.json", stored)
    write_rows(exchange.ROUNDS / "r2/validated.parquet", [pair(3, "dpo"), pair(5, "valid")], PreferencePair)
    return tmp_path


def lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_what_an_evaluation_says_goes_out_with_its_scores_and_comes_back(here: Path) -> None:
    exchange.export_explanations("r2", Path("out/r2.jsonl"), force=False)
    (record,) = lines("out/r2.jsonl")
    assert (record["feature_id"], record["explanation"]) == (IDS[5], "the word dog")
    assert record["scores"]["generative_accuracy"] == 0.7 and record["scores"]["truth_f1"] is None
    assert [context["max_activation"] for context in record["top_activating_contexts"]] == [9.0, 8.0]
    assert record["top_activating_contexts"][0] == {
        "text": "the dog 5", "max_activation": 9.0, "max_activation_token": "dog", "max_activation_token_index": 1,
    }  # fmt: skip
    assert record["metadata"] == {
        "target_model": "sandbox-llama", "sae_id": "main", "feature_index": 5, "layer": 1, "hook_layer": 1,
        "hook_name": "blocks.1.hook_resid_post", "d_in": 128, "d_sae": 768, "activation_density": 0.01,
        "max_activation_approx": 9.0, "saelens_release": None, "saelens_sae_id": None, "split": "test",
    }  # fmt: skip
    exchange.import_files([Path("out/r2.jsonl")], "mine", None, force=False)
    assert read_rows(exchange.IMPORTED / "mine.parquet", ExplanationRow) == [
        ExplanationRow(IDS[5], "test", "the word dog")
    ]
    exchange.export_imported("mine", Path("again.jsonl"), force=False)
    assert Path("again.jsonl").read_bytes() == Path("out/r2.jsonl").read_bytes()


def test_without_an_evaluation_the_labels_go_out(here: Path) -> None:
    exchange.export_explanations(None, Path("labels.jsonl"), force=False)
    (record,) = lines("labels.jsonl")
    assert record["explanation"] == "any animal" and "scores" not in record


def test_a_preference_set_is_a_folder_that_datasets_reads(here: Path) -> None:
    from datasets import load_dataset

    said = exchange.export_preferences(None, Path("pairs"), force=False)
    assert said == "pairs: 1 train pairs, 1 validation pairs"
    found = load_dataset("pairs", cache_dir=str(here / "cache"))
    assert {split: rows["feature_id"][:] for split, rows in found.items()} == {
        "train": [IDS[3]],
        "validation": [IDS[5]],
    }
    row = found["train"][0]
    assert (row["chosen_score"], row["score_gap"], row["rejected_best_text"]) == (1.0, 0.75, "cats")
    assert (row["metadata"]["feature_index"], row["metadata"]["split"]) == (3, "dpo")
    card = Path("pairs/README.md").read_text()
    assert all(f"`{column}`" in card for column in found["train"].column_names)
    stored = {"d_in": 128, "d_sae": 768, "metadata": {"hook_name": "blocks.1.hook_resid_post"}}
    write_json(exchange.SAES / "main/cfg.json", stored)
    write_rows(exchange.ROUNDS / "r2/validated.parquet", [pair(3, "dpo")], PreferencePair)
    exchange.export_preferences("r2", Path("pairs"), force=True)
    assert sorted(path.name for path in Path("pairs").rglob("*.*")) == ["README.md", "train.parquet"]


def test_a_file_about_other_features_is_refused_unless_it_is_renamed(here: Path) -> None:
    named = [GOOD, GOOD | {"feature_id": f"{FILE}/5", "metadata": {}}]
    Path("np.jsonl").write_text("\n".join(map(json.dumps, named)))
    with pytest.raises(
        UserError, match=rf"np.jsonl: {FILE}/123 is no live feature here .* add --as sandbox-llama/main$"
    ):
        exchange.import_files([Path("np.jsonl")], None, None, force=False)
    assert not exchange.IMPORTED.exists()
    lender = FeatureRow("sandbox-llama/lender1/0", "lender1", 0, "sft", 9.0, 0.01)
    write_rows(exchange.FEATURES, [lender, *read_rows(exchange.FEATURES, FeatureRow)], FeatureRow)
    with pytest.raises(UserError, match="add --as sandbox-llama/main$"):  # the SAE that is explained
        exchange.import_files([Path("np.jsonl")], None, None, force=False)
    write_rows(exchange.FEATURES, read_rows(exchange.FEATURES, FeatureRow)[1:], FeatureRow)
    said = exchange.import_files([Path("np.jsonl")], None, "sandbox-llama/main", force=False)
    assert "1 of the 3 live features here are explained" in said
    table = {row.feature_id: row.explanation for row in read_rows(exchange.IMPORTED / "np.parquet", ExplanationRow)}
    assert table == {"sandbox-llama/main/123": "the word dog", IDS[5]: "the word dog"}


def test_nothing_is_overwritten_unasked(here: Path) -> None:
    Path("np.jsonl").write_text(json.dumps(GOOD | {"feature_id": IDS[3], "metadata": {}}))
    exchange.import_files([Path("np.jsonl")], None, None, force=False)
    exchange.export_preferences("r2", Path("pairs"), force=False)
    Path("mine.jsonl").write_text("mine")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    for refused in (
        lambda: exchange.import_files([Path("np.jsonl")], None, None, force=False),
        lambda: exchange.export_explanations(None, Path("mine.jsonl"), force=False),
        lambda: exchange.export_preferences("r2", Path("pairs"), force=False),
        lambda: exchange.export_preferences("r2", Path("data"), force=True),  # never an export
        lambda: exchange.export_preferences("r2", Path("mine.jsonl"), force=True),
        lambda: exchange.export_explanations(None, Path("data"), force=True),
    ):
        with pytest.raises(UserError):
            refused()
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    exchange.export_explanations(None, Path("mine.jsonl"), force=True)
    exchange.import_files([Path("np.jsonl")], None, None, force=True)
    assert lines("mine.jsonl")[0]["feature_id"] == IDS[3]


def test_a_line_without_end_is_not_read_into_memory(here: Path) -> None:
    """Neither on the disk, which holds nothing of it, nor packed: a gigabyte of zeros is a megabyte."""
    Path("plain.jsonl").write_bytes(b"\n{")
    os.truncate("plain.jsonl", 10 * 2**30)
    with gzip.open("packed.jsonl.gz", "wb", compresslevel=1) as packed:
        packed.write(b"\n")
        for _ in range(5):
            packed.write(bytes(2**26))
    for name in ("plain.jsonl", "packed.jsonl.gz"):
        with pytest.raises(UserError, match=f"^{name}:line 2: longer than 256 MB; break it into lines$"):
            exchange.import_files([Path(name)], None, None, force=False)


def test_gzip_is_read_and_damage_named(here: Path) -> None:
    whole = gzip.compress(json.dumps(GOOD | {"feature_id": IDS[3], "metadata": {}}).encode())
    Path("batch-0.jsonl.gz").write_bytes(whole)
    exchange.import_files([Path("batch-0.jsonl.gz")], None, None, force=False)
    assert (exchange.IMPORTED / "batch_0.parquet").is_file()
    for damaged in (whole[:-12], whole[:12] + b"\xff" * 9 + whole[21:]):
        Path("bad.jsonl.gz").write_bytes(damaged)
        with pytest.raises(UserError, match="bad.jsonl.gz: gzip that is damaged or cut short"):
            exchange.import_files([Path("bad.jsonl.gz")], None, None, force=False)


EXPORTED = [
    {"modelId": "gpt2-small", "layer": "6-res-jb", "index": index, "description": f"about {int(index)}"}
    for index in ("3", 5.0, 8)
]
ALL = [f"gpt2-small/6-res-jb/{index}" for index in (3, 5, 8)]


def each_line(records: list[dict]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in records)


ARRAY = json.dumps(EXPORTED).encode()
SHAPES = {
    "lines": each_line(EXPORTED),
    "lines of Windows": BOM_UTF8 + each_line(EXPORTED).replace(b"\n", b"\r\n"),
    "lines of which one is empty and the last has no end": b"\n" + each_line(EXPORTED)[:-1],
    "an array": ARRAY,
    "an array of Windows": BOM_UTF8 + json.dumps(EXPORTED, indent=1).replace("\n", "\r\n").encode(),
    "an array after an empty line": b"\n " + ARRAY + b"\n",
    "gzip": gzip.compress(each_line(EXPORTED)),
    "an array in gzip": gzip.compress(ARRAY),
}


@pytest.mark.parametrize("content", SHAPES.values(), ids=SHAPES)
def test_what_neuronpedia_exports_is_read_whatever_its_form_and_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.jsonl.gz", "c"):
        Path(name).write_bytes(content)
        exchange.import_files([Path(name)], None, None, force=False)
        rows = read_rows(exchange.IMPORTED / f"{name[0]}.parquet", ExplanationRow)
        assert {row.feature_id: row.explanation for row in rows} == dict(zip(ALL, ["about 3", "about 5", "about 8"]))
    exchange.export_imported("a", Path("again.jsonl"), force=False)
    assert [record["metadata"]["feature_index"] for record in lines("again.jsonl")] == ["3", 5, 8]


def test_one_record_over_several_lines_is_read() -> None:
    (record,) = read(json.dumps(GOOD, indent=2).encode().splitlines(keepends=True), "f")
    assert to_dict(record) == GOOD


def test_whole_numbers_that_became_floats_are_whole() -> None:
    context = GOOD["top_activating_contexts"][0] | {"max_activation_token_index": 1.0}
    asked = GOOD | {"metadata": {"feature_index": 123.0}, "top_activating_contexts": [context]}
    assert from_dict(asked).context_token_indices == [1] and from_dict(asked).feature_id == f"{FILE}/123"
    assert from_dict(GOOD | {"metadata": {"feature_index": None}}).feature_id == f"{FILE}/123"
    for wrong in (3.5, True, -1.0, "3.0"):
        with pytest.raises(UserError, match="feature_id"):
            from_dict(EXPORTED[0] | {"index": wrong})


def test_batches_of_a_folder_are_one_table_named_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("6-res-jb")
    (folder / "more").mkdir(parents=True)
    first = EXPORTED[0] | {"description": "first"}
    (folder / "batch-10.jsonl.gz").write_bytes(gzip.compress(each_line(EXPORTED[:2])))
    (folder / "batch-2.json").write_bytes(json.dumps([first, EXPORTED[2]]).encode())
    for ignored in (".hidden.jsonl", "notes.txt", "more/batch-0.jsonl"):
        (folder / ignored).write_text("nothing of it")
    said = exchange.import_files([folder], None, None, force=False)
    assert said[0].startswith("data/imported/6_res_jb.parquet: explanations of 3 of 3 features")
    table = exchange.IMPORTED / "6_res_jb.parquet"
    rows = {row.feature_id: row.explanation for row in read_rows(table, ExplanationRow)}
    assert rows == {ALL[0]: "first", ALL[1]: "about 5", ALL[2]: "about 8"}  # batch-2 is before batch-10
    before = table.read_bytes()
    exchange.import_files([folder / "batch-2.json", folder / "batch-10.jsonl.gz"], None, None, force=True)
    assert table.read_bytes() == before  # several files are named after their folder
    (folder / "batch-3.jsonl").write_text("")
    with pytest.raises(UserError, match="^6-res-jb/batch-3.jsonl: holds no record; give a file with one JSON object"):
        exchange.import_files([folder], "x", None, force=False)
    with pytest.raises(UserError, match=r"^data: holds no .jsonl, .json, .jsonl.gz, .json.gz file itself; name the "):
        exchange.import_files([Path("data")], None, None, force=False)


ODD = {
    "nothing": (b"", "odd.json: holds no record;"),
    "an empty array": (b"[]", "odd.json: holds no record;"),
    "half an array": (ARRAY[:-9], "odd.json: not JSON in UTF-8 (character "),
    "half an array over several lines": (
        json.dumps(EXPORTED, indent=1)[:60].encode(), "odd.json: not JSON in UTF-8 (line 5, character 3: "
    ),
    "NaN": (b'[{"feature_id": "a/b/1", "x": NaN}]', "odd.json: not JSON in UTF-8 (Out of range float"),
    "no number that is finite": (b'[{"feature_id": "a/b/1", "x": 1e999}]', "odd.json: not JSON in UTF-8 (Out of range"),
    "numbers": (b"[1, 2]", "odd.json:record 1: the record: is 1; must be a JSON object"),
    "a broken record": (
        json.dumps([*EXPORTED, {"modelId": "gpt2", "index": 3}]).encode(),
        "odd.json:record 4: layer: missing; must be text",
    ),
    "a text": (b'"x"', 'odd.json:line 1: the record: is "x"; must be a JSON object'),
    "another encoding": (json.dumps(EXPORTED).encode("utf-16"), "odd.json:line 1: not JSON in UTF-8 ("),
    "an archive": (b"PK\x03\x04 zip", "odd.json:line 1: not JSON in UTF-8 ("),
}  # fmt: skip


@pytest.mark.parametrize(("content", "said"), ODD.values(), ids=ODD)
def test_an_odd_file_is_one_line_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for stored in (content, gzip.compress(content)):
        Path("odd.json").write_bytes(stored)
        with pytest.raises(UserError) as caught:
            exchange.import_files([Path("odd.json")], None, None, force=False)
        assert str(caught.value).startswith(said) and "\n" not in str(caught.value) and len(str(caught.value)) < 200
    assert os.listdir() == ["odd.json"]


def shown_command(said: list[str], use: str, folder: Path) -> None:
    """Run the command that `import` showed for a use, through a shell as a user who pastes it."""
    (command,) = (line.partition(": ")[2] for line in said if line.startswith(use))
    assert command.startswith("sae-explainer ")
    own = f"{shlex.quote(sys.executable)} -m tasks.cli.main"
    run = command.replace("sae-explainer", own, 1)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", ["6-res-jb.jsonl", "it's 1.5 mine.jsonl"])
def test_the_commands_that_import_shows_run_and_keep_the_experiment(here: Path, file: str) -> None:
    overrides = ["experiment=nano", "rounds=two", "train_sft.epochs=3"]
    Path("params.yaml").write_text(compose.composed(overrides), encoding="utf-8")
    Path(file).write_text(json.dumps(GOOD | {"feature_id": IDS[3], "metadata": {}}))
    said = exchange.import_files([Path(file)], None, None, force=False)
    (table,) = (path for path in exchange.IMPORTED.glob("*.parquet") if ".records" not in path.name)
    shown_command(said, "as a baseline", here)
    shown_command(said, "as labels", here)
    expected = yaml.safe_load(compose.composed(overrides))
    expected["evaluations"][table.stem] = {"kind": "table", "source": str(table)}
    expected["label_features"]["source"] = str(table)
    assert yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8")) == expected


@pytest.mark.parametrize("name", ["123", "1e5", "1_000", "null", "true", "nan"])
def test_a_name_that_settings_would_not_read_as_one_is_refused_and_another_is_taken(here: Path, name: str) -> None:
    Path(f"{name}.jsonl").write_text(json.dumps(GOOD | {"feature_id": IDS[3], "metadata": {}}))
    with pytest.raises(UserError, match=f"^--name: '{name}' is a number or a keyword .* give another with --name$"):
        exchange.import_files([Path(f"{name}.jsonl")], None, None, force=False)
    assert not exchange.IMPORTED.exists()
    assert exchange.import_files([Path(f"{name}.jsonl")], "mine", None, force=False)


def test_a_name_that_an_evaluation_has_is_refused(here: Path) -> None:
    Path("r2.jsonl").write_text(json.dumps(GOOD | {"feature_id": IDS[3], "metadata": {}}))
    with pytest.raises(UserError, match="^--name: 'r2' is an evaluation in params.yaml already; give another with"):
        exchange.import_files([Path("r2.jsonl")], None, None, force=False)
    said = exchange.import_files([Path("r2.jsonl")], "theirs", None, force=False)
    Path("params.yaml").write_text(
        compose.changed(Path("params.yaml"), shlex.split(next(line for line in said if "baseline" in line))[-1:])
    )
    exchange.import_files([Path("r2.jsonl")], "theirs", None, force=True)  # its own evaluation is no obstacle


def test_labels_come_from_a_table(here: Path) -> None:
    rows = read_rows(exchange.FEATURES, FeatureRow)
    write_rows(
        Path("t.parquet"), [ExplanationRow(IDS[3], "", "a dog"), ExplanationRow("x/y/1", "", "z")], ExplanationRow
    )
    assert label_features.by_table(rows, Path("t.parquet")) == ["a dog", "", ""]
    write_rows(Path("t.parquet"), [ExplanationRow(IDS[5], "sft", "a dog")], ExplanationRow)
    with pytest.raises(UserError, match=f"t.parquet explains no feature of the sft split, such as {IDS[3]}"):
        label_features.by_table(rows, Path("t.parquet"))
    settings_ = yaml.safe_load(Path("params.yaml").read_text())
    write_rows(exchange.IMPORTED / "np.parquet", [ExplanationRow(IDS[3], "", "a dog")], ExplanationRow)
    settings_["label_features"]["source"] = "data/imported/np.parquet"
    Path("params.yaml").write_text(yaml.safe_dump(settings_))
    label_features.run(params.load())
    expected = [ExplanationRow(IDS[index], split, "a dog" if index == 3 else "") for index, split in LATENTS.items()]
    assert read_rows(exchange.LABELS, ExplanationRow) == expected
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["label_features"]
    assert "${label_features.source}" in stage["deps"]  # another table, other labels


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("import no.jsonl", "no.jsonl: No such file or directory; give a file of JSON or JSON lines"),
        ("import params.yaml", "params.yaml:line 1: not JSON"),
        ("import params.yaml --name A-b", "--name: is 'A-b'; use small letters"),
        ("import params.yaml --as main", "--as: is 'main'; give subject/sae"),
        ("export --what all --to x", "--what all: unknown; choose from explanations, preferences"),
        ("export --what explanations --evaluation r9 --to x", "--evaluation r9: unknown; choose from open_loop, sft"),
        ("export --what explanations --round r1 --to x", "--round: does not go with the other options"),
        ("export --what explanations --imported np --to x", "--imported np: unknown; choose from nothing"),
        ("export --what preferences --round r9 --to x", "--round r9: unknown; choose from r1, r2"),
        ("export --what preferences --round r1 --to x", "data/rounds/r1/validated.parquet: no such table"),
        ("export --what explanations --to params.yaml/x", "params.yaml/x: cannot be written (Not a directory)"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, said: str
) -> None:
    assert main.main(command.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {said}") and err.count("\n") == 1
    assert not (here / "x").exists() and not exchange.IMPORTED.exists()


def test_the_commands_do_what_the_functions_do(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["export", "--what", "explanations", "--evaluation", "r2", "--to", "r2.jsonl"]) == 0
    assert capsys.readouterr().out == "r2.jsonl: 1 records\n"
    assert main.main(["import", "r2.jsonl", "--name", "theirs"]) == 0
    assert "label_features.source=data/imported/theirs.parquet" in capsys.readouterr().out
    assert main.main(["export", "--what", "explanations", "--imported", "theirs", "--to", "again.jsonl"]) == 0
    assert main.main(["export", "--what", "preferences", "--to", "pairs"]) == 0
    assert Path("again.jsonl").read_bytes() == Path("r2.jsonl").read_bytes() and Path("pairs/README.md").is_file()
