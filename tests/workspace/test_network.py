"""The network as the environment has it, before any program of others meets it."""

import subprocess
import sys

import pytest
from toy import ROOT, environment

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def typed(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python program in the repository, with these variables and no other proxies."""
    plain = {name: value for name, value in environment().items() if name.lower() not in PROXIES}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=plain | variables, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize("module", ["flows.pipeline", "flows.ui", "flows.deployments"])
def test_what_prefect_cannot_use_is_one_line_before_it_is_imported(module: str) -> None:
    done = typed("-m", module, SSL_CERT_FILE="/nowhere.pem", HTTP_PROXY="http://127.0.0.1:1")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "error: SSL_CERT_FILE: /nowhere.pem holds no certificates (No such file or directory); name a PEM file that "
        "does, or unset it\n"
    )


def test_programs_that_a_flow_starts_go_past_the_proxy_on_this_machine() -> None:
    code = "import flows, os; print(os.environ.get('NO_PROXY'))"
    assert typed("-c", code, ALL_PROXY="socks5://127.0.0.1:1").stdout == "localhost,127.0.0.1,::1\n"
    assert typed("-c", code).stdout == "None\n"
