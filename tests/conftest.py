"""Settings of the whole test run."""

import os
import tempfile

# Before anything imports Prefect: its files go to a folder of this run, not to the workspace or the user's home.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prefect-")
