"""Settings of the whole test run: three processes (pyproject.toml) of one thread each, for a machine of two cores."""

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

# Before anything imports them. Prefect's files go to a folder of this run, not to the workspace or the user's home.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prefect-")
os.environ.setdefault("OMP_NUM_THREADS", "1")

NANO = (
    "tests/test_pipeline.py",
    "tests/test_sharing.py",
)  # in this order: the second takes from the cache what the first trained
LONG = (  # minutes each
    "tests/flows/test_deployments.py",
    "tests/saes/test_variants_in_the_loop.py",
    "tests/test_matrix.py",
    "tests/flows/test_pipeline.py",
    "tests/study/test_study.py",
    "tests/cli/test_main.py",
)


class _ByFile(LoadFileScheduling):
    """A file stays in one process, because its fixtures are made once; so do the two that train the nano pipeline."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "nano" if file in NANO else file


def pytest_xdist_make_scheduler(config: pytest.Config, log) -> LoadFileScheduling:
    """xdist's hook."""
    return _ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files start first, so that no process is left with one at the end."""
    order = [*NANO, *LONG]

    def place(item: pytest.Item) -> tuple[int, str]:
        file = item.nodeid.partition("::")[0]
        return (order.index(file) if file in order else len(order), file)

    items.sort(key=place)  # stable: a file's own order stays


@pytest.fixture(scope="session")
def nano_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DVC's cache of the workspaces that run the nano pipeline."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def gradients() -> Iterator[None]:
    """A stage that runs in the test's process may leave them switched off, as it does in its own."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_grad_enabled(True)
