"""Serve the deployments of conf/control.yaml until told to stop: `python -m flows.deployments`.

A Prefect server must run (PREFECT_API_URL; `make ui` starts one and this). A run is a process of its own in this
folder, started by the schedule, the page or the API; what is cancelled there ends with everything that it started.
"""

import asyncio
import signal
import sys
from typing import Any

from flows import control, notifications
from flows.control import ControlError, Deployed
from flows.server import ServerError, check_server
from tasks.workspace import surroundings
from tasks.workspace.printable import failed

POLL_SECONDS = 2  # between two questions to the server about what to run


def main() -> int:
    """The command line; the exit status."""
    surroundings.settle()
    try:
        settings = control.load()
        webhook = settings.webhook()
        check_server(needed=True)
    except (ControlError, ServerError) as error:
        return failed(error)
    return _serve(settings.deployments, webhook)


def _serve(deployed: list[Deployed], webhook: str | None) -> int:
    try:
        found = [_deployment(entry) for entry in deployed]
    except ControlError as error:
        return failed(error)
    asyncio.run(_run(found, webhook))
    return 0


async def _run(found: list[Any], webhook: str | None) -> None:
    from prefect.runner import Runner

    class Server(Runner):
        """Cancels its runs when it is told to stop; that of Prefect 3.8 never awaits this and leaves them behind."""

        stop_task: asyncio.Task[None] | None = None

        def handle_sigterm(self, *_: object) -> None:
            if self.stop_task is None:
                self.stop_task = loop.create_task(self.astop())
                loop.call_soon_threadsafe(lambda: None)  # wakes the loop up

    loop = asyncio.get_running_loop()
    server = Server(pause_on_shutdown=True, query_seconds=POLL_SECONDS)
    ids = [await server.aadd_deployment(deployment) for deployment in found]
    scheduled = [one for one, deployment in zip(ids, found, strict=True) if deployment.schedules]
    await notifications.arrange(webhook, scheduled)
    signal.signal(signal.SIGINT, server.handle_sigterm)
    names = ", ".join(f"{deployment.flow_name}/{deployment.name}" for deployment in found)
    print(f"deployments are being served: {names}", flush=True)
    await server.start()
    if server.stop_task is not None:
        await server.stop_task


def _deployment(entry: Deployed) -> Any:
    """Prefect's deployment of an entry. Raises ControlError on parameters that the flow does not take."""
    from prefect.deployments.runner import EntrypointType
    from prefect.exceptions import ParameterTypeError

    flow = _flows()[entry.flow]
    place = f"{control.CONTROL}: deployments.{entry.name}.parameters"
    known = list(flow.parameters.properties)
    for key in entry.parameters:
        if key not in known:
            raise ControlError(f"{place}.{key}: unknown; {entry.flow} takes {', '.join(known) or 'none'}")
    try:
        flow.validate_parameters(entry.parameters)
    except ParameterTypeError as error:
        raise ControlError(f"{place}: {' '.join(str(error).split())}") from None
    return flow.to_deployment(
        entry.name,
        schedule=_schedule(entry),
        parameters=entry.parameters,
        paused=False,  # serving pauses it when it stops, so that missed runs do not pile up
        description=flow.description,
        tags=entry.tags,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def _schedule(entry: Deployed) -> Any:
    from prefect.schedules import Cron

    return Cron(entry.cron, timezone=entry.timezone) if entry.cron is not None else None


def _flows() -> dict[str, Any]:
    from flows.check import check
    from flows.pipeline import evaluation, pipeline

    return {"pipeline": pipeline, "check": check, "evaluation": evaluation}


if __name__ == "__main__":
    sys.exit(main())
