"""The Prefect server that flows and deployments talk to: is it there, and can it read its database."""

import re
import sqlite3
from pathlib import Path

from tasks.workspace import prefect_api


class ServerError(Exception):
    """No server, or none that can work; the message is one line that says what to do."""


def address() -> str | None:
    """PREFECT_API_URL as Prefect's settings have it; None lets Prefect start a server for the run alone."""
    from prefect.settings import PREFECT_API_URL

    return PREFECT_API_URL.value()


def check_server(needed: bool = False) -> None:
    """Raises ServerError if the server at the address does not answer, or if one is needed and no address is set."""
    url = address()
    if url is None:
        if needed:
            raise ServerError("PREFECT_API_URL: is not set; start `make ui`, or give a server's address with /api")
    elif not prefect_api.answers(url):
        raise ServerError(
            f"PREFECT_API_URL: no Prefect server answers at {url}; start one (`make ui`) or correct the address"
        )


def check_database(home: Path) -> None:
    """Raises ServerError if the database under `home` is of a Prefect that this one cannot follow; changes nothing."""
    import prefect.server.database

    path = home / "prefect.db"
    if not path.is_file():
        return
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            found = [row[0] for row in connection.execute("select version_num from alembic_version")]
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        if "no such table" in str(error):
            return  # empty; Prefect fills it
        raise ServerError(f"{path}: cannot be read ({error}); move it away, and Prefect starts a new one") from None
    folder = Path(str(prefect.server.database.__file__)).parent / "_migrations/versions/sqlite"
    known = {
        hit[1]
        for file in folder.glob("*.py")
        if (hit := re.search(r"^revision\b.*?=\s*[\"'](\w+)[\"']", file.read_text(encoding="utf-8"), re.MULTILINE))
    }
    for revision in found:
        if revision not in known:
            raise ServerError(
                f"{path}: is of another version of Prefect (its revision {revision} is unknown to "
                f"{prefect.__version__}); install the version that wrote it, or move the file away to start with an "
                "empty one"
            )
