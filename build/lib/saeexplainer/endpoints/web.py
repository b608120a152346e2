"""How this project reaches a server over HTTP: by the proxies and certificates of the environment, loopback directly.

httpx reads HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY (small letters win), SSL_CERT_FILE and SSL_CERT_DIR, and ends
in errors that name none of them. It asks a proxy for addresses of this machine too, unless NO_PROXY lists them.
"""

import os
import ssl
import urllib.request
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from saeexplainer.errors import UserError, first_line

if TYPE_CHECKING:
    import httpx

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def client(url: str, timeout_seconds: float, headers: Mapping[str, str]) -> "httpx.Client":
    """A client for one server; nothing of the environment can keep it from one on this machine. Raises UserError on a
    proxy or certificates that cannot be used."""
    import httpx

    address = urlsplit(url)
    local = is_loopback(address.hostname or "")
    if local and address.scheme == "http":
        # No TLS is spoken there, so that certificates need not even be read.
        return httpx.Client(timeout=timeout_seconds, headers=headers, trust_env=False, verify=False)
    if (said := complaint()) is not None:
        raise UserError(said)
    directly = dict.fromkeys(("http://", "https://", "all://")) if local else None
    return httpx.Client(timeout=timeout_seconds, headers=headers, mounts=directly)


def complaint() -> str | None:
    """What no HTTP client can use of the environment's proxies and certificates, in one line with its cure.

    No value of a proxy is repeated: it may hold a password."""
    import httpx

    for scheme, address in _proxies().items():
        try:
            usable = bool(httpx.Proxy(address if "://" in address else f"http://{address}").url.host)
        except (ValueError, httpx.InvalidURL):
            usable = False
        if not usable:
            return (
                f"{_variable(scheme)}: holds no proxy's address; give one like http://host:3128 or socks5://host:1080, "
                "or unset it"
            )
    return _certificates() or _rest()


def proxy_for(url: str) -> str:
    """The environment's variable that names a proxy for this address, with the proxy; "" where none does."""
    import httpx

    address = urlsplit(url)
    if is_loopback(address.hostname or "") or urllib.request.proxy_bypass_environment(  # ty: ignore[missing-attribute]
        address.netloc.rpartition("@")[2]
    ):
        return ""
    found = _proxies()
    for scheme in (address.scheme, "all"):
        if scheme in found:
            proxy = found[scheme] if "://" in found[scheme] else f"http://{found[scheme]}"
            return f"{_variable(scheme)} ({httpx.URL(proxy).copy_with(userinfo=b'')})"
    return ""


def failure(error: Exception, url: str) -> str:
    """What a connection to an address came to, with the proxy that it went through, if any."""
    said = f"{type(error).__name__} ({error})" if str(error) else type(error).__name__
    proxy = proxy_for(url)
    return f"{said} by the proxy of {proxy}" if proxy else said


def is_loopback(host: str) -> bool:
    """Whether a host, without brackets, is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def keep_loopback_direct() -> None:
    """Put this machine into NO_PROXY if there is a proxy, for clients that others wrote: Prefect's, MLflow's."""
    entries = urllib.request.getproxies_environment().get("no", "").split(",")
    given = [
        host.strip().strip("[]") for host in entries if host.strip()
    ]  # httpx cannot read the [::1] that curl writes
    more = LOOPBACK if _proxies() and "*" not in given else ()
    if direct := ",".join(dict.fromkeys([*given, *more])):
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = direct


def _proxies() -> dict[str, str]:
    """The address of the proxy for http, https and all, where the environment names one."""
    found = urllib.request.getproxies_environment()
    return {scheme: found[scheme] for scheme in ("http", "https", "all") if found.get(scheme)}


def _variable(scheme: str) -> str:
    """The name that the environment has for it."""
    small = f"{scheme}_proxy"
    return next((name for name in (small, small.upper()) if os.environ.get(name)), small)


def _certificates() -> str | None:
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
        except OSError as error:
            why = error.strerror or error
            return f"SSL_CERT_FILE: {file} holds no certificates ({why}); name a PEM file that does, or unset it"
    elif folder and not Path(folder).is_dir():
        return f"SSL_CERT_DIR: {folder} is no folder; name one with certificates, or unset it"
    return None


def _rest() -> str | None:
    """What is left to stumble over: entries of NO_PROXY, and the file for a log of TLS keys."""
    import httpx

    try:
        httpx.Client().close()
    except OSError as error:
        return f"SSLKEYLOGFILE: cannot be written ({error.strerror or error}); name another file, or unset it"
    except (ValueError, httpx.InvalidURL) as error:
        why = first_line(error)
        return f"{_variable('no')}: has an entry that is no host ({why}); give hosts like host.org,10.0.0.1,::1"
    return None
