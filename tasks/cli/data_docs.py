"""`sae-explainer data-docs`: the pages about the preference sets."""

import argparse
import os
import sys
import webbrowser

from saeexplainer.errors import UserError
from tasks.places import DATA_DOCS, ROUNDS
from tasks.settings import params as settings_params
from tasks.validation.data_docs import VERDICT, is_up_to_date, write_index
from tasks.workspace import surroundings
from tasks.workspace.printable import failed


def main(arguments: list[str] | None = None) -> int:
    """Make what is missing, open the index or print where it is; the exit status."""
    parser = argparse.ArgumentParser(prog="sae-explainer data-docs", description="Open the Data Docs of all rounds.")
    parser.add_argument("--no-open", action="store_true", help="write what is missing and print where it is")
    options = parser.parse_args(arguments)
    from tasks import validate_preferences  # it imports this module

    surroundings.settle()
    try:
        params = settings_params.load()
        for name in params.rounds:
            if (ROUNDS / name / "pairs.parquet").is_file() and not is_up_to_date(name):
                print(f"{name}: writing its Data Docs again", flush=True)
                validate_preferences.examined(params, name)
        if not any((DATA_DOCS / name / VERDICT).is_file() for name in params.rounds):
            raise UserError(f"{DATA_DOCS}: there is no preference set yet; `dvc repro` makes them")
        index = write_index(list(params.rounds)).resolve()
    except UserError as error:
        return failed(error)
    if options.no_open or not (_has_display() and webbrowser.open(index.as_uri())):
        print(index)
    return 0


def _has_display() -> bool:
    """Whether a window can be shown; without one `webbrowser` would start a text browser in the terminal."""
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


if __name__ == "__main__":
    sys.exit(main())
