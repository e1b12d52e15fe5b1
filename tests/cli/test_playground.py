"""``textguide playground``: what is wrong is said before anything is loaded, and the page is up when it says so."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from .conftest import Run

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")), reason="the extra is not installed"
)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--port", "99999"), "--port 99999"),
        (("--runs", "0"), "--runs 0"),
        (("--host", "203.0.113.7"), "--host 203.0.113.7"),
        (("--extra-model", "amateur"), "NAME=MODEL"),
    ],
)
def test_wrong_arguments(run: Run, arguments: tuple[str, ...], said: str) -> None:
    outcome = run("playground", "--port", "0", *arguments)
    assert outcome.code == 2
    assert said in outcome.err


def test_an_unknown_model(run: Run) -> None:
    outcome = run("playground", "--port", "0", model="smolm2")
    assert outcome.code == 2
    assert "did you mean 'smollm2'?" in outcome.err


def test_the_page_is_served(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from textguide.playground import launch

    served: list[Any] = []
    monkeypatch.setattr(launch, "serve", lambda *given: served.append((*given, given[-1].getsockname()[1])))
    outcome = run("playground", "--port", "0", "--allow", "folder", "--runs", "3")
    assert outcome.code == 0, outcome.err
    models, rules, host, _, port = served[0]
    assert f"the playground is at http://127.0.0.1:{port}/" in outcome.out
    assert (host, rules.named, rules.limits.runs) == ("127.0.0.1", ("folder",), 3)
    assert models.sources == {}
