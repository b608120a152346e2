"""conf/ and params.yaml agree, and every experiment composes."""

import shutil
from pathlib import Path

import pytest
import yaml

from saeexplainer.errors import UserError
from tasks.settings import compose, params

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


def test_params_yaml_is_the_composed_default() -> None:
    assert (ROOT / "params.yaml").read_text(encoding="utf-8") == compose.composed([])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_names_itself(experiment: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    assert compose.main([f"experiment={experiment}", "--output", str(path)]) == 0
    loaded = params.load(path)
    assert loaded.compare_rounds.experiment == {"default": "sandbox"}.get(experiment, experiment)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_opens_with_what_it_asks_and_its_command(experiment: str) -> None:
    lines = (ROOT / "conf" / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    named = "" if experiment == "default" else f" experiment={experiment}"
    assert f"# command: sae-explainer compose{named} && dvc repro" in lines


@pytest.mark.parametrize("subject", ["sandbox", "pydoc"])
def test_nano_shrinks_every_subject(subject: str) -> None:
    text = yaml.safe_load(compose.composed([f"subject={subject}", "size=nano"]))
    assert text["prepare_subject"]["d_model"] == 32 and text["prepare_subject"]["domain"] == subject


def test_a_corpus_composes_by_itself() -> None:
    subject = yaml.safe_load(compose.composed(["subject=corpus"]))["prepare_subject"]
    assert subject["domain"] == "corpus" and subject["pretrained"] and subject["corpus"]


CHOICES = [
    f"{path.parent.name}={path.stem}"
    for group in ("pairing", "reward", "rounds", "sae", "size")
    for path in sorted((ROOT / "conf" / group).glob("*.yaml"))
    if path.stem != "real"  # needs text from outside, as the experiments that take it do
]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes(choice: str) -> None:
    subject = ["subject=pydoc"] * (choice == "size=pydoc")  # which has no sample of the truth to shrink
    composed = yaml.safe_load(compose.composed([choice, *subject]))
    assert list(composed) == list(yaml.safe_load(compose.composed([])))


def test_a_file_of_conf_that_is_no_yaml_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    broken = tmp_path / "conf/stages/train_sft.yaml"
    broken.write_text(broken.read_text(encoding="utf-8") + "  more: {a: ???}\n", encoding="utf-8")
    monkeypatch.setattr(compose, "CONF", tmp_path / "conf")
    monkeypatch.setattr(compose, "CONFIG", tmp_path / "conf/config.yaml")
    lines = len(broken.read_text(encoding="utf-8").splitlines())
    with pytest.raises(UserError, match=rf"^conf/stages/train_sft\.yaml: line {lines}: not YAML \(.*\); correct it$"):
        compose.composed([])


def test_the_judges_endpoint_begins_as_those_of_writers_and_labellers() -> None:
    """Hydra places a file in no list, so conf/judge/endpoint.yaml repeats what conf/endpoint.yaml says."""
    judge, own = (
        yaml.safe_load((ROOT / "conf" / name).read_text(encoding="utf-8"))
        for name in ("judge/endpoint.yaml", "endpoint.yaml")
    )
    (found,) = [one["endpoint"] for one in judge["evaluate"]["judges"] if "endpoint" in one]
    differ = {"model", "request", "cache"}  # each says its own
    assert {key: found[key] for key in found.keys() - differ} == {key: own[key] for key in own.keys() - differ}


OF_OTHERS = ["explainer=lora", "explainer.pretrained.source=folder"]  # what the choices named explainer need


@pytest.mark.parametrize("judge", sorted(path.stem for path in (ROOT / "conf" / "judge").glob("*.yaml")))
def test_every_judge_composes_and_is_the_first(judge: str) -> None:
    given = [f"judge={judge}", "evaluate.judges.0.batch_size=7", *OF_OTHERS * (judge == "explainer")]
    found = yaml.safe_load(compose.composed(given))["evaluate"]["judges"]
    kind = {"explainer": "chat"}.get(judge, judge)
    assert (found[0]["kind"], found[0]["batch_size"], found[-1]["kind"]) == (kind, 7, "likelihood")


@pytest.mark.parametrize("writer", sorted(path.stem for path in (ROOT / "conf" / "writer").glob("*.yaml")))
def test_every_writer_composes_and_asks_another_way_in_the_evaluation(writer: str) -> None:
    given = [f"writer={writer}", "evaluate.writer.texts=7", *OF_OTHERS * (writer == "explainer")]
    found = yaml.safe_load(compose.composed(given))
    training, measuring = found["score_explanations"]["writer"], found["evaluate"]["writer"]
    kind = {"explainer": "chat"}.get(writer, writer)
    assert training["kind"] == measuring["kind"] == kind and measuring["texts"] == 7
    assert training["prompt"] != measuring["prompt"]


@pytest.mark.parametrize("labeller", sorted(path.stem for path in (ROOT / "conf" / "labeller").glob("*.yaml")))
def test_every_labeller_composes_and_labels_a_corpus_too(labeller: str) -> None:
    found = yaml.safe_load(compose.composed([f"labeller={labeller}", "subject=corpus"]))["label_features"]["labeller"]
    assert (found or {"kind": "none"})["kind"] == labeller


@pytest.mark.parametrize("agent", sorted(path.stem for path in (ROOT / "conf" / "agent").glob("*.yaml")))
def test_every_agent_composes_and_is_evaluated_on_a_corpus_too(agent: str) -> None:
    on_a_corpus = ["subject=corpus", "labeller=chat", "warm_up.examples=0", "train_sft.replay_share=0"]
    found = yaml.safe_load(compose.composed([f"agent={agent}", *on_a_corpus]))
    assert (found["evaluate"]["agent"] or {"kind": "none"})["kind"] == agent
    assert ("agent" in found["evaluations"]) is (agent != "none")
    own = yaml.safe_load(compose.composed(["+evaluations.agent={kind: agent, source: data/activations}", *on_a_corpus]))
    assert own["evaluate"]["agent"] is None, "its own lexical concepts are what it tests"


def test_an_explainer_of_others_composes_once_its_model_is_named() -> None:
    with pytest.raises(UserError, match="explainer.pretrained.source: missing"):
        compose.composed(["explainer=lora"])
    found = yaml.safe_load(compose.composed(["explainer=lora", "explainer.pretrained.source=folder"]))["explainer"]
    assert found["pretrained"]["source"] == "folder" and found["adapter"]["rank"] == 32


WRONG = {
    "experiment": ("experiment=nope", "choose from decoder_row"),
    "group choice": ("size=tiny", "choose from full, laptop, nano"),
    "group choice that is a number": ("size=3", "conf/size: '3' is unknown; choose from full, laptop, nano"),
    "no key": ("=3", "correct the override"),
    "group": ("sise=nano", "did you mean size?"),
    "key": ("train_sft.epoch=3", "did you mean train_sft.epochs?"),
    "key of another choice": ("prepare_sae.architecture.k=8", "it comes with sae=batchtopk, "),
    "other keys": (
        "explainer.prompt={instruction: x}",
        "replace it whole: ~explainer.prompt '+explainer.prompt={instruction: x}'",
    ),
    "added key": ("+train_sft.foo=3", "train_sft.foo: unknown key"),
    "type": ("train_sft.epochs=two", "train_sft.epochs"),
    "value": ("prepare_sae.hook_block=7", "prepare_sae.hook_block: is 7"),
    "grammar": ("train_sft.epochs", "train_sft.epochs"),
    "a round without a plus": ("rounds.r9={start: r3}", "to add it write +rounds.r9=..."),
}


@pytest.mark.parametrize(("override", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_override_is_one_line_and_leaves_the_file(
    override: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("kept", encoding="utf-8")
    assert compose.main([override, "--output", str(path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: conf") and said in message and message.count("\n") == 1
    assert path.read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize("name", ["gpt2_small", "gemma2_2b", "llama31_8b_l15", "qwen3"])
def test_a_real_experiment_takes_another_writer_and_judge(name: str) -> None:
    served = yaml.safe_load(compose.composed([f"experiment={name}", "writer=endpoint", "judge=endpoint"]))
    for stage in ("score_explanations", "evaluate"):
        assert served[stage]["writer"]["kind"] == "endpoint" and "model" not in served[stage]["writer"]
    assert [judge["kind"] for judge in served["evaluate"]["judges"]] == ["endpoint", "likelihood"]
    own = yaml.safe_load(compose.composed([f"experiment={name}"]))
    asked = [own["score_explanations"]["writer"], own["evaluate"]["writer"], own["evaluate"]["judges"][0]]
    assert [one["model"] for one in asked] == [own["explainer"]["pretrained"]] * 3


@pytest.mark.parametrize(
    ("override", "said"),
    [("request={seed: 1}", "to add an entry write +{key}.NAME=..."), ("request.seed=1", "to add it write +{key}=...")],
)
def test_a_field_that_requests_do_not_have_yet_is_added_with_a_plus(override: str, said: str) -> None:
    place = "evaluate.writer.endpoint."
    with pytest.raises(UserError) as caught:
        compose.composed(["writer=endpoint", place + override])
    assert said.format(key=(place + override).partition("=")[0]) in str(caught.value)
    more = [f"+{place}request.seed=1", f"+{place}request.reasoning_effort=low",
            f"+{place}request.chat_template_kwargs={{enable_thinking: false}}"]  # fmt: skip
    found = yaml.safe_load(compose.composed(["writer=endpoint", *more]))
    assert found["evaluate"]["writer"]["endpoint"]["request"] == {
        "max_tokens": 1200, "seed": 1, "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip


def test_overrides_change_only_what_they_name() -> None:
    before, after = (yaml.safe_load(compose.composed(overrides)) for overrides in ([], ["train_sft.epochs=3"]))
    assert after["train_sft"].pop("epochs") == 3.0 and before["train_sft"].pop("epochs") == 2.0
    assert after == before


def test_an_override_that_cannot_run_raises() -> None:
    with pytest.raises(UserError, match="evaluations.r3: missing"):
        compose.composed(["+rounds.r3={start: r2, beta: 0.1, learning_rate: 1e-4}"])


def test_kept_settings_change_only_where_they_are_named(tmp_path: Path) -> None:
    path, given = tmp_path / "params.yaml", ["experiment=nano", "seed=3", "train_sft.epochs=3"]
    path.write_text(compose.composed(given), encoding="utf-8")
    assert compose.main(["--keep", "train_sft.batch_size=7", "--output", str(path)]) == 0
    assert path.read_text(encoding="utf-8") == compose.composed([*given, "train_sft.batch_size=7"])
    assert compose.main(["--keep", "--output", str(path)]) == 0
    assert path.read_text(encoding="utf-8") == compose.composed([*given, "train_sft.batch_size=7"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("experiment=pydoc", "--keep: experiment picks a file of conf/experiment, from which "),
        ("train_sft.epoch=3", "params.yaml: train_sft.epoch: unknown key; did you mean train_sft.epochs?"),
        ("prepare_sae.hook_block=7", "params.yaml: prepare_sae.hook_block: is 7"),
        ("=3", "params.yaml: "),
    ],
)
def test_a_wrong_change_of_kept_settings_is_one_line_and_leaves_them(
    override: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(compose.composed(["experiment=nano"]), encoding="utf-8")
    before = path.read_bytes()
    assert compose.main(["--keep", override, "--output", str(path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and said in message and message.count("\n") == 1
    assert path.read_bytes() == before


def test_there_is_nothing_to_keep_where_nothing_was_composed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compose.main(["--keep", "seed=3", "--output", str(tmp_path / "params.yaml")]) == 2
    assert "params.yaml: No such file or directory; write it with" in capsys.readouterr().err


def test_what_has_other_keys_is_replaced_whole() -> None:
    given = ["experiment=smollm2", "explainer.adapter={length: 1.0}"]
    with pytest.raises(
        UserError, match=r"^conf: explainer\.adapter: has other keys than {length: 1\.0}; replace it whole: "
    ):
        compose.composed(given)
    cured = compose.composed([given[0], "~explainer.adapter", f"+{given[1]}"])
    assert yaml.safe_load(cured)["explainer"]["adapter"] == {"length": 1.0}
