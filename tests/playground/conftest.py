"""A page around the small bundled model, asked as a browser asks it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from typing import Any

import pytest

from ..marks import NEEDS_SMOLLM2

HAS_SERVER = all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "httpx"))
NEEDS = [
    *NEEDS_SMOLLM2,
    pytest.mark.skipif(not HAS_SERVER, reason="the extra playground, or httpx, is not installed"),
    pytest.mark.filterwarnings("ignore:.*changed nothing.*"),
    pytest.mark.filterwarnings("ignore::textguide.support.errors.NoParticleLeftWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette"),
]
PROMPT = "The dragon flew over Paris,"
CFG = {"method": "cfg", "scale": 2.0}


@pytest.fixture(scope="session")
def models() -> Any:
    import textguide
    from textguide.playground import launch

    return launch.load_models("smollm2-small", textguide.load("smollm2-small", device="cpu"))


@pytest.fixture(scope="session")
def client(models: Any) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    from textguide.playground.server import application

    with TestClient(application(models), base_url="http://127.0.0.1:7860") as made:
        yield made


class Visitor:
    """What a page does with a client."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def run(self, name: str, **values: Any) -> list[tuple[str, Any]]:
        """The events of a run."""
        response = self.client.post(f"/api/{name}", json=values)
        assert response.status_code == 200, response.text
        return events(response.text)

    def end(self, name: str, **values: Any) -> dict[str, Any]:
        """The last event of a run that goes well."""
        kind, data = self.run(name, **values)[-1]
        assert kind == "end", data
        return dict(data)

    def refusal(self, name: str, **values: Any) -> str:
        """What is said of a request that is refused, before or while it runs."""
        response = self.client.post(f"/api/{name}", json=values)
        if response.status_code == 200 and name not in ("score", "take-away"):
            kind, data = events(response.text)[-1]
            assert kind == "error", kind
            return str(data["error"])
        assert response.status_code == 400, response.text
        return str(response.json()["error"])


def events(text: str) -> list[tuple[str, Any]]:
    """Server-sent events with their JSON."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            assert [line.split(":")[0] for line in lines] == ["event", "data"]
            found.append((lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))))
    return found


@pytest.fixture(scope="session")
def visitor(client: Any) -> Visitor:
    return Visitor(client)
