"""Who may use a server: API keys, host names and origins."""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Collection, Mapping
from typing import Any
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


def host_names(host: str, allowed: Collection[str] = ()) -> frozenset[str] | None:
    """The host names that requests to a server of an API may use; None: any.

    A server on the loopback is only meant for this machine, and a page elsewhere could reach it through a name of its
    own that resolves to this machine (DNS rebinding). A server on another address has names that it does not know.

    Args:
        host: the address that the server listens on; empty: all addresses.
        allowed: further names, as ``--allowed-host`` has them; ``*``: any.
    """
    if "*" in allowed:
        return None
    given = frozenset(name.lower() for name in allowed)
    if not given and not _is_loopback(host):
        return None
    return given | (allowed_names(host) or frozenset(LOOPBACK))


def _is_loopback(host: str) -> bool:
    name = host.strip("[]").lower()
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


class HostGuard:
    """Refuses requests with a foreign host name.

    Args:
        app: an ASGI application.
        names: as :func:`host_names` returned them.
    """

    def __init__(self, app: Any, names: frozenset[str] | None) -> None:
        self.app = app
        self.names = names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, as ASGI defines it."""
        if self.names is None or scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        if name_of(host) in self.names:
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        message = f"the host {host[:80]!r} is not this server's; start it with --allowed-host NAME to accept another"
        error = {"message": message, "type": "PermissionDeniedError", "param": "Host", "code": 403}
        body = json.dumps({"error": error}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def name_of(host: str) -> str:
    """The name in a header ``Host``, without the port."""
    return re.sub(r":\d+$", "", host.lower())


def refusal(headers: Mapping[str, str], method: str, names: frozenset[str] | None) -> str | None:
    """Why a request is refused because of its origin; None if it is not.

    The host name must be one of this server: a page elsewhere could otherwise reach it through a name of its own that
    resolves to this machine (DNS rebinding). A request that changes or starts something must come from this server's
    page, or from no page at all, and must be JSON, which forms of other pages cannot send.

    Args:
        names: as :func:`allowed_names` returned them.
    """
    host = headers.get("host", "").lower()
    name = name_of(host)
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
