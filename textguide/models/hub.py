"""Whether the model hub can be reached. Without a network, its library and ``datasets`` try for up to a minute."""

from __future__ import annotations

import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SECONDS = 5.0
"""How long the hub has to accept a connection."""


@contextmanager
def offline_if_unreachable(source: Any = None) -> Iterator[None]:
    """Use only the local cache inside the block if the hub cannot be reached, as with ``HF_HUB_OFFLINE=1``.

    Args:
        source: what is loaded; if it is a local file or folder, the hub is not needed. None: something on the hub.
    """
    from huggingface_hub import constants

    is_local = source is not None and Path(source).exists()
    if is_local or constants.HF_HUB_OFFLINE or _is_reachable(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    datasets: Any = sys.modules.get("datasets.config")
    if datasets is not None:  # it has a copy of the switch
        datasets.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False
        datasets = sys.modules.get("datasets.config")
        if datasets is not None:
            datasets.HF_HUB_OFFLINE = False


def _is_reachable(endpoint: str) -> bool:
    """Whether the host of a URL, or the proxy of this machine, accepts a connection within :data:`SECONDS`."""
    url = urlsplit(endpoint)
    host = url.hostname or ""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy and not urllib.request.proxy_bypass(host):
        url = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = url.port or (80 if url.scheme == "http" else 443)
    answers: list[bool] = []
    # In a thread, because looking up a name has no timeout of its own.
    thread = threading.Thread(target=lambda: answers.append(_connects(url.hostname or "", port)), daemon=True)
    thread.start()
    thread.join(SECONDS)
    return answers == [True]


def _connects(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except OSError:
        return False
    return True
