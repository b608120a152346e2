"""The flow and DVC tell one story: the order, what is unchanged, why a stage failed, what dies with a cancelled run."""

import html
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest
import toy as toys
import yaml
from dvc.repo import Repo
from markdown_it import MarkdownIt
from prefect import get_client
from prefect.client.schemas.filters import FlowFilter
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.testing.utilities import prefect_test_harness
from rows import evaluated
from toy import ENDLESS, FAILING, ROOT, is_gone, pids

from flows import artifacts, pipeline
from flows.check import check
from flows.plan import StageFailed, Step, is_unchanged, plan
from saeexplainer.figures.comparison import summarise
from saeexplainer.runs.storage import write_json
from tasks.settings import params
from tasks.tracking import runs, store
from tasks.validation import data_docs
from tasks.workspace import repro
from tasks.workspace.repro import WorkspaceBusy


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC workspace of three stages, the second once for each round."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    return toys.make(tmp_path)


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


def latest(key: str) -> Artifact | None:
    """The newest artifact of a key on the server; `Artifact.get` of Prefect 3.8 sends what its own server refuses."""
    wish = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": 1}
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/filter", json=wish).json()
    return Artifact.model_validate(found[0]) if found else None


def last_run(flow: str) -> FlowRun:
    """The newest run of a flow."""
    with get_client(sync_client=True) as client:
        wanted = FlowFilter(name={"any_": [flow]})
        return client.read_flow_runs(flow_filter=wanted, sort=FlowRunSort.START_TIME_DESC, limit=1)[0]


def states_of(caplog: pytest.LogCaptureFixture) -> dict[str, str]:
    """The state in which each task run of the last flow run ended, by the runs' names, in order."""
    ended = [
        record
        for record in caplog.records
        if record.name == "prefect.task_runs" and "Finished in state" in record.message
    ]
    caplog.clear()
    return {record.task_run_name: record.message.split()[3].partition("(")[0] for record in ended}


def test_the_plan_is_a_topological_order_of_dvcs_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    order = [step.stage for step in plan()]
    with Repo() as repo:
        graph = networkx.relabel_nodes(repo.index.graph, lambda stage: stage.addressing)
    assert sorted(order) == sorted(graph.nodes)
    assert all(order.index(needed) < order.index(stage) for stage, needed in graph.edges)


def test_rounds_are_sub_flows_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    steps = plan()
    assert [step.round for step in steps if step.round] == ["r1"] * 5 + ["r2"] * 5
    assert Step("train_dpo@r1", "r1").label == "train_dpo[r1]"
    assert Step("evaluate@r1", None) in steps


def test_until_keeps_what_a_stage_needs(toy: Path) -> None:
    assert [step.stage for step in plan("again@r1")] == ["first", "again@r1"]
    assert [step.stage for step in plan("again")] == ["first", "again@r1"]
    with pytest.raises(StageFailed, match="--until agian: no such stage; choose from first, again@r1, last"):
        plan("agian")


def test_a_folder_without_a_pipeline_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageFailed) as caught:
        plan()
    assert "\n" not in str(caught.value)


def test_runs_then_is_unchanged_then_fails_with_the_stages_reason(
    toy: Path, prefect: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="prefect.task_runs")
    pipeline.pipeline()
    assert (toy / "last.txt").read_text() == "round"
    assert states_of(caplog) == {"first": "Completed", "again[r1]": "Completed", "last": "Completed"}
    assert last_run("preference_round").state.message == "1 stage: 1 completed", "its own, not the whole run's"
    (toy / "r1.txt").unlink()
    pipeline.pipeline()
    assert states_of(caplog) == {"first": "Unchanged", "again[r1]": "Restored", "last": "Unchanged"}
    (toy / "step.py").write_text(FAILING)
    with pytest.raises(StageFailed, match="^again@r1: params.yaml: rounds.r1: is wrong; change it$"):
        pipeline.pipeline()
    assert states_of(caplog) == {"first": "Unchanged", "again[r1]": "Failed"}


def test_rounds_leave_later_ones_and_what_needs_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    kept, everything = {step.stage for step in plan(rounds=1)}, {step.stage for step in plan()}
    later = {stage for stage in everything if stage.endswith("@r2")}
    assert everything - kept == later | {"compare_rounds"}
    with pytest.raises(StageFailed, match=re.escape("rounds: is 4; params.yaml has 2 (r1, r2)")):
        plan(rounds=4)


def test_what_dvc_would_skip_is_unchanged(toy: Path) -> None:
    assert not is_unchanged("first")
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], check=True)
    assert is_unchanged("first") and is_unchanged("again@r1")
    (toy / "source.txt").write_text("2")
    assert not is_unchanged("first") and is_unchanged("again@r1")
    (toy / "last.txt").unlink()
    assert not is_unchanged("last")


def test_parameters_are_composed_first_and_a_wrong_override_is_one_line(
    toy: Path, prefect: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="prefect.task_runs")
    pipeline.pipeline(overrides=["seed=1"], until="first")
    assert states_of(caplog) == {"compose_params": "Completed", "first": "Completed"}
    assert (toy / "params.yaml").read_text().startswith("seed: 1\n")
    message = pipeline.pipeline(overrides=["seed=1"], until="first", return_state=True).message
    assert states_of(caplog) == {"compose_params": "Unchanged", "first": "Unchanged"}
    assert message == "1 stage: 1 unchanged"
    with pytest.raises(StageFailed, match="^conf: rounds: is 'wrong'; correct the override; params.yaml is untouched$"):
        pipeline.pipeline(overrides=["rounds=wrong"])
    with pytest.raises(StageFailed, match="^overrides: '--output=x' is no Hydra override"):
        pipeline.pipeline(overrides=["--output=x"])
    assert (toy / "params.yaml").read_text().startswith("seed: 1\n")


def test_a_stage_over_its_limit_is_ended_with_all_it_started(
    toy: Path, prefect: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="prefect.task_runs")
    (toy / "step.py").write_text(ENDLESS)
    control = (toy / "conf/control.yaml").read_text()
    (toy / "conf/control.yaml").write_text(control.replace("{default: 30}", "{default: 30, again: 0.15}"))
    with pytest.raises(
        StageFailed, match="^again@r1: stopped at its limit of 0.15 minutes; raise limits.again in conf"
    ):
        pipeline.pipeline()
    assert states_of(caplog) == {"first": "Completed", "again[r1]": "TimedOut"}
    assert all(is_gone(pid) for pid in pids(toy))


def test_what_may_pass_is_tried_again_and_what_cannot_is_not(toy: Path, prefect: None) -> None:
    (toy / "step.py").write_text(
        "import os, signal\nopen('tries', 'a').write('x')\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with pytest.raises(StageFailed, match="exited with (-9|137)"):  # the shell's own word, where one stays between
        pipeline.pipeline()
    assert (toy / "tries").read_text() == "xx", "killed by the system: once more"
    (toy / "step.py").write_text(FAILING + "\n")
    (toy / "step.py").write_text("open('tries', 'a').write('y')\n" + FAILING)
    with pytest.raises(StageFailed):
        pipeline.pipeline()
    assert (toy / "tries").read_text() == "xxy", "wrong settings stay wrong"


@pytest.fixture
def finished(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy whose last stage stands for compare_rounds; reports/ and MLflow have its result, as after `make run`."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    text = (toy / "dvc.yaml").read_text().replace("  last:", "  compare_rounds:")
    (toy / "dvc.yaml").write_text(text)
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    del settings["rounds"]["r2"], settings["evaluations"]["r2"]
    (toy / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    comparison = summarise({name: evaluated([0.25, 0.5]) for name in ("sft", "r1")}, 20, 0)
    write_json(toy / "reports/comparison.json", comparison)
    (toy / "reports/results.md").write_text("| `r1` | 1 |")
    (toy / "reports/report.html").write_text("")
    runs.log(params.load(), comparison)
    return toy


def test_the_artifacts_tell_stages_rounds_and_results(finished: Path, prefect: None) -> None:
    """Of this experiment: one before had a round r9, whose pages are still there."""
    for name in ("r1", "r9"):
        for path in (data_docs.ROUNDS / name / "pairs.parquet", data_docs.DATA_DOCS / name / "index.html"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        verdict = {"pairs": data_docs.fingerprint(data_docs.ROUNDS / name / "pairs.parquet")}
        (data_docs.DATA_DOCS / name / "verdict.json").write_text(json.dumps(verdict))
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], check=True)
    pipeline.pipeline()
    rows = json.loads(str(latest("stages").data))
    assert [(row["stage"], row["state"]) for row in rows] == [
        ("first", "Unchanged"), ("again[r1]", "Unchanged"), ("compare_rounds", "Unchanged"),
    ]  # fmt: skip
    assert [row["version"] for row in rows] == [
        repro.version(stage) for stage in ("first", "again@r1", "compare_rounds")
    ]
    assert latest("rounds").data == "| `r1` | 1 |"
    assert (finished / "reports/report.html").as_uri() in latest("report").data
    assert (finished / "reports/data_docs/r1/index.html").as_uri() in latest("data-docs-r1").data
    assert latest("data-docs-r9") is None


def test_the_mlflow_run_is_found_by_the_result_whoever_made_it(
    finished: Path, prefect: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAE_EXPLAINER_MLFLOW_URL", "http://127.0.0.1:5999")
    first = runs.run_of_the_result()
    linked = f"http://127.0.0.1:5999/#/experiments/{first[0]}/runs/{first[1]}"
    pipeline.pipeline()
    assert linked in latest("mlflow-run").data, "computed here"
    pipeline.pipeline()
    assert linked in latest("mlflow-run").data and latest("mlflow-run").flow_run_id == last_run("pipeline").id, (
        "unchanged"
    )
    (finished / "last.txt").unlink()
    other = summarise({name: evaluated([0.75, 0.5]) for name in ("sft", "r1")}, 20, 0)
    write_json(finished / "reports/comparison.json", other)  # what DVC brings back with the stage
    runs.log(params.load(), other)
    pipeline.pipeline()
    assert f"runs/{runs.run_of_the_result()[1]}" in latest("mlflow-run").data, "restored: that of the result it is of"
    assert runs.run_of_the_result()[1] != first[1]
    before = latest("mlflow-run").id
    pipeline.pipeline(until="first")
    assert latest("mlflow-run").id == before, "a run that did not come to the result does not show it"


def test_what_prefect_takes_for_markdown_holds_no_markup_of_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[dict] = []
    folder = tmp_path / "<b>a</b>*b*"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(artifacts, "create_link_artifact", lambda link, **given: left.append(given | {"link": link}))
    monkeypatch.setattr(runs, "run_of_the_result", lambda: ("7", "0123456789abcdef" * 2))
    artifacts._link_mlflow_run()
    page = MarkdownIt("js-default").render(f"[{left[0]['link_text']}]({left[0]['link']})")
    address = html.escape(store.page("http://127.0.0.1:5000", "7", "0123456789abcdef" * 2))
    assert re.findall("<(?!/?p>)[^>]*>", page) == [f'<a href="{address}">', "</a>"]
    described = MarkdownIt("commonmark").render(left[0]["description"])
    assert html.unescape(re.sub("</?p>", "", described)).strip() == f"Results of {Path.cwd()}"


def test_a_second_writer_is_told_who_the_first_is_or_waits(toy: Path, prefect: None) -> None:
    code = "from tasks.workspace import repro\nwith repro.holding('somebody'):\n    print(flush=True)\n    input()\n"
    with subprocess.Popen(
        [sys.executable, "-c", code], env=toys.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        other.stdout.readline()
        said = re.escape(f"{toy}: somebody (process {other.pid} on ")
        with pytest.raises(WorkspaceBusy, match=f"^{said}.* is at work here; let it finish or stop it"):
            pipeline.pipeline(wait_minutes=0)
        assert check(return_state=True).name == "Skipped"
        assert not (toy / "first.txt").exists()
        other.stdin.close()
        pipeline.pipeline(wait_minutes=1)
    assert (toy / "last.txt").exists()


def test_the_check_fails_when_something_is_stale(toy: Path, prefect: None) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], check=True)
    assert check(return_state=True).message == "nothing is stale"
    (toy / "source.txt").write_text("2")
    with pytest.raises(StageFailed, match="^stale: first; run the pipeline"):
        check()
    assert json.loads(str(latest("stale").data)) == [{"stage": "first", "changed": "source.txt modified"}]


RUN_ONE_STAGE = """
import logging
from flows import pipeline
pipeline.surroundings.unwind_on_sigterm()
pipeline.get_run_logger = logging.getLogger
pipeline.bring_up_to_date.fn("again@r1")
"""


def test_a_terminated_run_takes_its_stage_along(toy: Path) -> None:
    (toy / "first.txt").write_text("one")
    (toy / "step.py").write_text(ENDLESS)
    command = [sys.executable, "-c", RUN_ONE_STAGE]
    process = subprocess.Popen(command, cwd=toy, env=toys.environment(), stderr=subprocess.DEVNULL)
    started = pids(toy)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert all(is_gone(pid) for pid in started)
