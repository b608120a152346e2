"""Settings of the whole test run: two processes (pyproject.toml), each with one thread, for a machine of two cores."""

import os
import tempfile
from pathlib import Path

import pytest

# Before anything imports them. Prefect's files go to a folder of this run, not to the workspace or the user's home.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prefect-")
os.environ.setdefault("OMP_NUM_THREADS", "1")

NANO = ("test_pipeline", "test_sharing")  # in this order: the second takes from the cache what the first trained


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays in one process, because its fixtures are made once; the longest ones start first."""
    items.sort(key=lambda item: (item.path.stem not in NANO, item.path.stem))
    for item in items:
        name = "nano" if item.path.stem in NANO else item.path.stem
        item.add_marker(pytest.mark.xdist_group(name))


@pytest.fixture(scope="session")
def nano_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DVC's cache of the workspaces that run the nano pipeline."""
    return tmp_path_factory.mktemp("cache")
