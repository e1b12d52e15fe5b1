"""Who may use a server: API keys, host names and origins."""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def has_key(headers: Mapping[str, str], api_key: str | None) -> bool:
    """Whether a request has the API key as its bearer token; always, if there is no key."""
    if api_key is None:
        return True
    token = headers.get("authorization", "").removeprefix("Bearer ")
    return hmac.compare_digest(token.encode(), api_key.encode())


def allowed_names(host: str) -> frozenset[str] | None:
    """The host names that requests may use; None: any address of this machine.

    Args:
        host: the address that the server listens on.
    """
    if host in ("0.0.0.0", "::", ""):
        return None
    return frozenset({*LOOPBACK, f"[{host}]" if ":" in host else host.lower()})


def refusal(headers: Mapping[str, str], method: str, names: frozenset[str] | None) -> str | None:
    """Why a request is refused because of its origin; None if it is not.

    The host name must be one of this server: a page elsewhere could otherwise reach it through a name of its own that
    resolves to this machine (DNS rebinding). A request that changes or starts something must come from this server's
    page, or from no page at all, and must be JSON, which forms of other pages cannot send.

    Args:
        names: as :func:`allowed_names` returned them.
    """
    host = headers.get("host", "").lower()
    name = re.sub(r":\d+$", "", host)
    if names is None:
        own = _is_address(name) or name in (*LOOPBACK, socket.gethostname().lower())
    else:
        own = name in names
    if not own:
        return f"the host {host[:80]!r} is not this server's; open it under the address that it printed"
    if method in ("GET", "HEAD"):
        return None
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host:
        return f"a page of {origin[:80]!r} may not use this server"
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        return "requests are JSON; send them with Content-Type: application/json"
    return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
