"""What the tests of the tracked runs and of the registry share."""

import pytest

from tasks.tracking import store


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A store as `tracking` makes it on first use; MLflow takes a second or more for its migrations, so only once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("store"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store.open_client().search_experiments()
        return store.STORE.resolve()
