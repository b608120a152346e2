"""MLflow's store, written anew from the reports."""

import argparse
import sys

from saeexplainer.errors import UserError
from saeexplainer.runs.storage import read_json
from tasks.places import REPORTS
from tasks.settings import params as settings_params
from tasks.tracking import registry, store
from tasks.tracking.runs import log
from tasks.workspace import surroundings
from tasks.workspace.printable import failed


def main(arguments: list[str] | None = None) -> int:
    """`rebuild`: log and register what lies in reports/ and data/. `relocate`: correct a store that was moved. The exit
    status."""
    surroundings.settle()
    parser = argparse.ArgumentParser(prog="sae-explainer tracking", description="Fill MLflow from reports/.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("rebuild", help="log reports/comparison.json unless it is logged")
    commands.add_parser("relocate", help="after the workspace was copied or moved: name its artifacts where they are")
    given = parser.parse_args(arguments)
    try:
        print(*(_rebuild() if given.command == "rebuild" else _relocate()), sep="\n")
    except UserError as error:
        return failed(store.one_line(error))
    except Exception as error:  # whatever a server, a driver or a network can raise
        return failed(f"MLflow at {store.shown_uri()} did not take the result ({store.one_line(error)})")
    return 0


def _rebuild() -> list[str]:
    params, comparison = settings_params.load(), read_json(REPORTS / "comparison.json")
    return [*log(params, comparison).lines, *registry.register(params, comparison)]


def _relocate() -> list[str]:
    if not store.is_own():
        raise UserError(f"{store.shown_uri()}: not this workspace's own store; unset MLFLOW_TRACKING_URI")
    store.check_version(store.address())
    former = store.relocate()
    said = f"named the artifacts of {former[0]}; it names this workspace's now" if former else "names this workspace's"
    return [f"MLflow: {store.STORE} {said}"]


if __name__ == "__main__":
    sys.exit(main())
