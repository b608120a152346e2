"""The command `sae-explainer`: it belongs to the pipeline, which lies beside the library in a clone of the repository.

An installed wheel holds the library alone, so that the pipeline's packages (`tasks`, `flows`) get into no environment
but the repository's own. There the command says where to find it.
"""

import sys
from importlib import import_module
from pathlib import Path

PIPELINE = "tasks.cli.main"
REPOSITORY = Path(__file__).resolve().parents[2]
ABSENT = (
    "error: the pipeline behind this command is not part of the installed library; clone the repository, run "
    "`make setup` in it, and use its .venv/bin/sae-explainer"
)


def main() -> int:
    """Run the pipeline's command line; the exit status, 2 where there is no pipeline."""
    if not (REPOSITORY / f"{PIPELINE.replace('.', '/')}.py").is_file():
        print(ABSENT, file=sys.stderr)
        return 2
    if str(REPOSITORY) not in sys.path:
        sys.path.insert(0, str(REPOSITORY))
    return import_module(PIPELINE).main()
