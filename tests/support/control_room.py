"""Real programs of the control room on loopback, their API as a user's script would call it, and who hears of it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.client.schemas.sorting import FlowRunSort, TaskRunSort
from toy import environment, wait_for

PATIENCE = 300  # seconds that a program or a run may take on a busy machine


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def program(folder: Path, *command: str, says: str, **more: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`python -m <command>` in a folder once it has said something, and the file of what it says; SIGTERM ends it."""
    log = folder / f"{command[0]}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=folder, stdout=file, stderr=file, start_new_session=True,
            env=environment(PREFECT_HOME=str(folder / ".prefect"), **more),
        )  # fmt: skip
    try:
        wait_for(lambda: says in log.read_text() or process.poll() is not None, PATIENCE)
        assert process.poll() is None, log.read_text()
        yield process, log
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


@contextmanager
def webhook() -> Iterator[tuple[str, list[dict]]]:
    """The address of a chat's webhook, and the messages that have been posted there."""
    heard: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hooks/a-secret-token", heard
    finally:
        server.shutdown()
        server.server_close()


class Api:
    """Prefect's, for tests."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = SyncPrefectClient(url)

    def trigger(self, deployment: str, **parameters: object) -> UUID:
        """Start a run of pipeline/nightly or the like."""
        found = self.client.read_deployment_by_name(deployment)
        return self.client.create_flow_run_from_deployment(found.id, parameters=parameters).id

    def run(self, identity: UUID) -> FlowRun:
        """A flow run as it is now."""
        return self.client.read_flow_run(identity)

    def ended(self, identity: UUID) -> FlowRun:
        """A flow run once it is over."""
        wait_for(lambda: self.run(identity).state.is_final(), PATIENCE)
        return self.run(identity)

    def tasks(self, identity: UUID) -> dict[str, TaskRun]:
        """The task runs of a flow run and of its sub-flows by name, in order, once their ends have arrived."""
        wait_for(lambda: all(run.state.is_final() for run in self._tasks(identity)))
        return {run.name: run for run in self._tasks(identity)}

    def _tasks(self, identity: UUID) -> list[TaskRun]:
        children = FlowRunFilter(parent_flow_run_id={"any_": [identity]})
        below = self.client.read_flow_runs(flow_run_filter=children, sort=FlowRunSort.ID_DESC, limit=50)
        runs = [identity, *(run.id for run in below)]
        wanted = TaskRunFilter(flow_run_id={"any_": runs})
        found = self.client.read_task_runs(task_run_filter=wanted, sort=TaskRunSort.ID_DESC, limit=200)
        stages = [run for run in found if not run.state.state_details.child_flow_run_id]
        return sorted(stages, key=lambda run: run.start_time or run.created)
