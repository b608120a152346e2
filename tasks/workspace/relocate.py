"""Have the commands of a virtual environment start its Python: `.venv/bin/python -m tasks.workspace.relocate`.

pip writes the full path of Python into every command that it installs. In a folder that was moved, such a command
starts nothing; in one that was copied, it starts the Python of the original. `make setup` runs this where `.venv` came
along from another folder, so that nothing has to be installed again.
"""

import re
import sys
from pathlib import Path

# Both heads that pip writes: the second where the path holds a space or is long.
HEADS = re.compile(rb"""#!(?:/bin/sh\n'''exec' )?"?/[^\n"]*/bin/python[\d.]*"?(?: "\$0" "\$@"\n' ''')?\n""")


def relocate(folder: Path, python: Path) -> int:
    """Rewrite the commands of a folder to start `python`; how many there are."""
    head = f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n".encode()  # Python reads two strings, sh a command
    commands = [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
    found = {path: path.read_bytes() for path in commands}
    found = {path: content for path, content in found.items() if HEADS.match(content)}
    for path, content in found.items():
        path.write_bytes(HEADS.sub(lambda _: head, content, count=1))
    return len(found)


if __name__ == "__main__":
    relocate(Path(sys.prefix, "bin"), Path(sys.prefix, "bin/python"))
