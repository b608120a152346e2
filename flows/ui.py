"""The control room on this machine: `make ui`, or `python -m flows.ui [--prefect-port N] [--mlflow-port N] ...`.

Starts Prefect's server (its files under .prefect/), the deployments of conf/control.yaml, MLflow's pages on the
workspace's store and a server of the files under reports/, and prints where they are. Ctrl-c or SIGTERM ends them all;
so does the end of any one of them. Everything listens on this machine only, and nothing is sent elsewhere.
"""

import argparse
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from flows import control
from flows.control import ControlError, Ports
from flows.server import ServerError, check_database
from tasks.places import REPORTS
from tasks.tracking import store as mlflow_store
from tasks.workspace import network, prefect_api, repro, surroundings
from tasks.workspace.printable import failed

HOST = "127.0.0.1"
PATIENCE_SECONDS = 300  # that a program may take until it answers; the first start makes databases
CANCEL_SECONDS = 40  # that the deployments may take to cancel their runs; Prefect kills those after 30
LOOK_SECONDS = 300  # between two looks at the schedules; the first comes as soon as each should have its next run


class UiFailed(Exception):
    """The control room cannot start or go on; the message is one line."""


@dataclass
class Program:
    """One of the programs that run together."""

    name: str  # as a person knows it
    process: subprocess.Popen[str]
    log: Path  # what it prints

    def check(self) -> None:
        """Raises UiFailed if it has ended."""
        if self.process.poll() is not None:
            lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()]
            last = next((line for line in reversed(lines) if line), "it said nothing")
            raise UiFailed(f"{self.name} ended with status {self.process.returncode}: {last} (see {self.log})")


@dataclass
class Watch:
    """Tells when the server's scheduler does not do its work, which nothing else on the pages shows."""

    api: str  # the server's address
    log: Path  # what the server prints
    tell: Callable[[str], None]
    due: float  # when to look next, by the monotonic clock
    told: str | None = None  # the problem that was told last, until it is gone

    def look(self) -> None:
        """Ask the server, if it is time, and tell a problem once."""
        if time.monotonic() < self.due:
            return
        self.due = time.monotonic() + LOOK_SECONDS
        with suppress(prefect_api.NoAnswer):  # too busy to answer now; if it ends, its process says so
            found = prefect_api.schedules(self.api)
            if found.problem not in (None, self.told):
                self.tell(f"warning: {found.problem}; {found.cure} ({self.log})")
            self.told = found.problem


def run(ports: Ports, tell: Callable[[str], None]) -> None:
    """Start everything and watch it until something ends. Raises UiFailed, ServerError."""
    home = Path(os.environ["PREFECT_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    for field in fields(ports):
        _check_port(field.name, getattr(ports, field.name))
    check_database(home)
    urls = {field.name: f"http://{HOST}:{getattr(ports, field.name)}" for field in fields(ports)}
    store = os.environ.get("MLFLOW_TRACKING_URI", "")
    if store.startswith("http"):
        urls["mlflow"] = store
    environment = _environment(urls)
    with ExitStack() as stack:
        stack.enter_context(_reports(ports.reports))
        server = stack.enter_context(_program("Prefect's server", _server(ports.prefect), home, environment))
        programs = [server]
        if not store.startswith("http"):
            command = _mlflow(ports.mlflow, store)
            programs.append(stack.enter_context(_program("MLflow", command, home, environment)))
        api = environment["PREFECT_API_URL"]
        _wait(programs, lambda: prefect_api.answers(api, 1.0))
        deployments = ("flows.deployments",)
        programs.append(stack.enter_context(_program("the deployments", deployments, home, environment)))
        _wait(programs, lambda: _is_serving(programs[-1]) and network.answers(urls["mlflow"]))
        runs = mlflow_store.runs_page(urls["mlflow"])
        tell(f"Prefect    {urls['prefect']}\nMLflow     {runs}\nreports    {urls['reports']}/reports/")
        tell(f"in another terminal, for Prefect's own commands:\n    export PREFECT_API_URL={api}")
        tell(f"deployments are served: {urls['prefect']}/deployments    ctrl-c stops everything")
        first = time.monotonic() + prefect_api.PATIENCE_SECONDS + 5
        watch = Watch(api, server.log, tell, due=first)
        _wait(programs, lambda: False, seconds=float("inf"), meanwhile=watch.look)


def _server(port: int) -> tuple[str, ...]:
    return ("prefect", "server", "start", "--host", HOST, "--port", str(port))


def _mlflow(port: int, store: str) -> tuple[str, ...]:
    _relocate()
    if not store:
        Path("mlruns").mkdir(exist_ok=True)
        store = "sqlite:///mlruns/mlflow.db"
    return ("mlflow", "ui", "--backend-store-uri", store, "--host", HOST, "--port", str(port), "--workers", "1")


def _relocate() -> None:
    """Of a workspace that was copied or moved MLflow's pages would show artifacts of the place where it was before."""
    try:
        mlflow_store.relocate()
    except mlflow_store.UserError as error:
        raise UiFailed(str(error)) from None


def _environment(urls: dict[str, str]) -> dict[str, str]:
    """What the programs, and the runs that they start, must know."""
    return repro.environment() | {
        "PREFECT_API_URL": f"{urls['prefect']}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "SAE_EXPLAINER_MLFLOW_URL": urls["mlflow"],
        "SAE_EXPLAINER_REPORTS_URL": urls["reports"],
    }


def _check_port(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            option = f'--{name}-port N (make ui WITH="--{name}-port N") or ui.{name} in {control.CONTROL}'
            raise UiFailed(f"port {port} is taken ({error.strerror}); choose another with {option}") from None


@contextmanager
def _program(name: str, command: tuple[str, ...], home: Path, environment: dict[str, str]) -> Iterator[Program]:
    """A program in a session of its own, so that ctrl-c reaches it through this one; it does not outlive the block."""
    log = home / f"{name.split()[-1].lower()}.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, text=True, start_new_session=True,
        )  # fmt: skip
    try:
        yield Program(name, process, log)
    finally:
        process.terminate()  # it alone at first: the deployments tell their runs that they are cancelled
        with suppress(subprocess.TimeoutExpired):
            process.wait(CANCEL_SECONDS)
        repro.stop(process)


def _wait(
    programs: list[Program],
    ready: Callable[[], bool],
    seconds: float = PATIENCE_SECONDS,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    deadline = time.monotonic() + seconds
    while True:
        for program in programs:
            program.check()
        if ready():
            return
        meanwhile()
        if time.monotonic() > deadline:
            raise UiFailed(f"no answer within {seconds:g} s; see {', '.join(str(program.log) for program in programs)}")
        time.sleep(0.3)


def _is_serving(program: Program) -> bool:
    """Whether the deployments are registered."""
    return "being served" in program.log.read_text(encoding="utf-8", errors="replace")


class _ReportsHandler(SimpleHTTPRequestHandler):
    """The files under reports/, nothing else of the workspace."""

    def send_head(self):
        path = unquote(urlsplit(self.path).path)
        served = Path(self.translate_path(self.path)).resolve()
        if path in ("", "/") or not served.is_relative_to(REPORTS.resolve()):
            self.send_error(404, "only reports/ is served")
            return None
        return super().send_head()

    def log_message(self, format: str, *args: object) -> None:
        pass


class _ReportsServer(ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        """A browser that goes away in the middle of a page is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def _reports(port: int) -> Iterator[None]:
    server = _ReportsServer((HOST, port), partial(_ReportsHandler, directory=str(Path.cwd())))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _options(arguments: list[str] | None, ports: Ports) -> Ports:
    parser = argparse.ArgumentParser(prog="python -m flows.ui", description="Prefect, MLflow and the reports as pages.")
    for field in fields(Ports):
        default = getattr(ports, field.name)
        parser.add_argument(f"--{field.name}-port", default=default, metavar="N", help=f"port, {default} if left out")
    given = vars(parser.parse_args(arguments))
    found = {name.removesuffix("_port"): control.port(f"--{name.replace('_', '-')}", given[name]) for name in given}
    for index, (name, number) in enumerate(found.items()):
        if number in list(found.values())[:index]:
            raise ControlError(f"--{name}-port: is {number}, which another one has; choose another")
    return Ports(**found)


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit status."""
    surroundings.settle()
    surroundings.unwind_on_sigterm()
    try:
        settings = control.load()
        ports = _options(arguments, settings.ports)
        settings.webhook()  # or the deployments would find out later, after the servers have started
        print("starting Prefect, MLflow and the deployments; the first time takes a minute", flush=True)
        run(ports, partial(print, flush=True))
    except (ControlError, ServerError, UiFailed) as error:
        return failed(error)
    except (KeyboardInterrupt, surroundings.Terminated):
        print("\nstopped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
