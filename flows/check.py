"""Is anything stale? The flow that a schedule asks every hour: it fails, loudly, when a stage should run again."""

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.plan import StageFailed, stale
from tasks.workspace import repro
from tasks.workspace.markdown import literal


@flow(name="check")
def check() -> State:
    """What `dvc status` asks; nothing runs and nothing changes. While another run works here there is no answer."""
    if (who := repro.holder()) is not None:
        return Completed(name="Skipped", message=f"{who} is at work here", data=[])
    try:
        found = stale()
    except StageFailed as error:
        return Failed(message=str(error), data=error)
    if not found:
        return Completed(message="nothing is stale", data=[])
    table = [{"stage": stage, "changed": literal(what)} for stage, what in found.items()]
    create_table_artifact(table, key="stale", description="Stages that should run again")
    message = f"stale: {', '.join(found)}; run the pipeline, or `dvc repro`"
    return Failed(message=message, data=StageFailed(message))
