"""Prefect flows: when the stages run, and in what order. They know stages by name and import no library module.

Prefect reads its settings when it is imported, which only happens after this file; what the user has set already wins.
It makes its first HTTP client then, too: proxies and certificates that no client can use end here, in one line.
"""

import os
import sys
from pathlib import Path

from tasks.workspace import network

for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_HOME": str(Path.cwd() / ".prefect"),  # the runs of a workspace stay with it
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # 20 are too few on a busy machine
}.items():
    os.environ.setdefault(_name, _value)

if (_said := network.prepared()) is not None:
    print(f"error: {_said}", file=sys.stderr)
    sys.exit(2)
