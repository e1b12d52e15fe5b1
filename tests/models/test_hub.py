"""A hub that cannot be reached is reported within seconds."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from textguide.models import hub
from textguide.models.loading import load
from textguide.support.errors import ModelUnavailableError

CLOSED = "http://127.0.0.1:9"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A hub that is asked, on a port where nothing listens."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    return monkeypatch


def test_a_block_is_offline_only_if_the_hub_does_not_answer(online: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with hub.offline_if_unreachable():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    with hub.offline_if_unreachable(tmp_path):
        assert not constants.HF_HUB_OFFLINE
    with socket.create_server(("127.0.0.1", 0)) as server:
        online.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with hub.offline_if_unreachable():
            assert not constants.HF_HUB_OFFLINE


def test_a_proxy_is_asked_instead_of_the_hub(online: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        online.setattr(constants, "ENDPOINT", "https://hub.invalid")
        online.setenv("https_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        with hub.offline_if_unreachable():
            assert not constants.HF_HUB_OFFLINE


def test_a_name_that_is_never_resolved_takes_no_longer_than_the_limit(online: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    online.setattr(hub, "SECONDS", 0.05)
    online.setattr(hub, "_connects", lambda host, port: done.wait(60))
    with hub.offline_if_unreachable():
        assert constants.HF_HUB_OFFLINE
    done.set()


def test_an_unknown_name_is_not_asked_for_again_and_again(online: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    online.setattr(time, "sleep", waited.append)  # the hub's library waits between its tries
    with pytest.raises(ModelUnavailableError, match="the hub cannot be reached"):
        load("nobody/no-such-model")
    assert waited == []
