"""Take the pictures of docs/TOUR.md from the result that lies here: `python docs/screenshots.py`, after `dvc repro`.

Starts the control room on free ports, runs the nightly deployment once, and photographs what a user sees of it in
Debian's chromium (packages chromium and chromium-driver). Writes docs/tour/*.png.
"""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from PIL import Image
from prefect.client.orchestration import SyncPrefectClient
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

TOUR = Path("docs/tour")
SIZE = (1440, 1000)
SETTLE_SECONDS = 6  # for a page that draws itself after it has loaded
FEATURE = "sandbox-llama/main/7"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def control_room() -> Iterator[dict[str, str]]:
    """`make ui` on free ports; its addresses by name."""
    ports = {name: free_port() for name in ("prefect", "mlflow", "reports")}
    options = [word for name, port in ports.items() for word in (f"--{name}-port", str(port))]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.ui", *options], stdout=subprocess.PIPE, text=True, env=os.environ.copy()
    )
    try:
        for line in process.stdout or ():
            print(line, end="")
            if line.startswith("deployments are served"):
                break
        yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def nightly_run(prefect: str) -> tuple[str, str]:
    """(flow run, deployment with the form): the nightly pipeline, run once to its end."""
    client = SyncPrefectClient(f"{prefect}/api")
    deployment = client.read_deployment_by_name("pipeline/nightly")
    run = client.create_flow_run_from_deployment(deployment.id)
    while not client.read_flow_run(run.id).state.is_final():
        time.sleep(1)
    time.sleep(5)  # the server takes in the last task runs after the flow run's end
    return str(run.id), str(client.read_deployment_by_name("pipeline/on-demand").id)


def rounds_in_mlflow() -> tuple[str, list[str]]:
    """(experiment, runs of the last result in order) of the default store."""
    client = MlflowClient("sqlite:///mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("sandbox").experiment_id
    parent = client.search_runs([experiment], "tags.level = 'pipeline'", max_results=1)[0].info.run_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent}'", order_by=["start_time ASC"])
    return experiment, [child.info.run_id for child in children]


def photograph(browser: Chrome, name: str, url: str) -> None:
    """One picture, in 256 colours."""
    browser.get("about:blank")
    browser.get(url)
    time.sleep(SETTLE_SECONDS)
    image = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    image.quantize(256, dither=Image.Dither.NONE).save(TOUR / f"{name}.png", optimize=True)
    print(f"{name}: {url}")


def main() -> None:
    """All pictures."""
    TOUR.mkdir(exist_ok=True)
    options = ChromeOptions()
    with tempfile.TemporaryDirectory() as profile, control_room() as urls:
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={SIZE[0]},{SIZE[1]}"):
            options.add_argument(flag)
        browser = Chrome(options, Service("/usr/bin/chromedriver"))
        try:
            run, form = nightly_run(urls["prefect"])
            experiment, children = rounds_in_mlflow()
            runs, experiments = json.dumps(children), json.dumps([experiment])
            page = Path("reports/report.html").resolve().as_uri()
            photograph(browser, "prefect_run", f"{urls['prefect']}/runs/flow-run/{run}")
            photograph(browser, "prefect_form", f"{urls['prefect']}/deployments/deployment/{form}/run")
            photograph(
                browser, "mlflow_compare", f"{urls['mlflow']}/#/compare-runs?runs={runs}&experiments={experiments}"
            )
            photograph(browser, "mlflow_model", f"{urls['mlflow']}/#/models/sae-explainer-sandbox")
            photograph(browser, "data_docs", Path("reports/data_docs/index.html").resolve().as_uri())
            photograph(browser, "report", page)
            photograph(browser, "report_feature", f"{page}#{FEATURE}")
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
