"""The network as the environment has it, for Prefect and MLflow, which talk to servers of this machine."""

from saeexplainer.endpoints import web


def prepared() -> str | None:
    """Keep what is sent to this machine from proxies, here and in every process that is started from now on; then what
    no client can use of the environment, in one line with its cure."""
    web.keep_loopback_direct()
    return web.complaint()
