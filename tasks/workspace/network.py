"""The network as the environment has it, for Prefect and MLflow, which talk to servers of this machine."""

from saeexplainer.endpoints import web

MOMENT_SECONDS = 2.0  # that a server may take to say anything at all


def prepared() -> str | None:
    """Keep what is sent to this machine from proxies, here and in every process that is started from now on; then what
    no client can use of the environment, in one line with its cure."""
    web.keep_loopback_direct()
    return web.complaint()


def answers(url: str) -> bool:
    """Whether a server is at an address; what it says does not matter."""
    import httpx

    try:
        with web.client(url, MOMENT_SECONDS, {}) as client:
            client.get(url)
    except httpx.HTTPError:
        return False
    return True
