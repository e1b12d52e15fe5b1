"""The widget: one module without other files, checked values, and what a notebook's page shows of it."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shutil
from typing import Any

import pytest

from textguide import CFG, explain
from textguide.support.errors import MissingExtraError
from textguide.support.viewer import notebook

from ..architectures import Tokenizer, build

CHROMIUM = os.environ.get("TEXTGUIDE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
HAS = importlib.util.find_spec("anywidget") is not None
NEEDS_ANYWIDGET = pytest.mark.skipif(not HAS, reason="anywidget is in the extra notebook")


@pytest.fixture(scope="module")
def explanation() -> Any:
    return explain(build("llama"), Tokenizer(), "the dragon", CFG(2.0, "a dog"), max_new_tokens=4)


def test_modules_come_after_those_that_they_import() -> None:
    modules = json.loads(re.search(r"const MODULES = (.*);\n", notebook.module())[1])  # type: ignore[index]
    seen, names = set[str](), {name for name, _ in modules}
    for name, source in modules:
        assert names & set(re.findall(r'(?:from|import)\s*"([^"]+)"', source)) <= seen, name
        seen.add(name)
    assert {"preact", "htm", "textguide/standalone"} <= seen
    style = json.loads(re.search(r"const STYLE = (.*);\n", notebook.module())[1])  # type: ignore[index]
    assert ":root" not in style
    assert "\nbody" not in style


@NEEDS_ANYWIDGET
def test_values_are_those_of_the_page(explanation: Any) -> None:
    shown = explanation.widget()
    assert shown.values["kind"] == "text"
    assert [step["chosen"]["text"] for step in shown.values["steps"]] == [s.chosen.text for s in explanation.steps]
    with pytest.raises(ValueError, match="kind='nothing' cannot be shown"):
        shown.values = {"kind": "nothing"}


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "anywidget", None)
    notebook._viewer.cache_clear()
    with pytest.raises(MissingExtraError, match="notebook"):
        notebook.widget({"kind": "text"})


@pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed")
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium, or set TEXTGUIDE_CHROMIUM")
def test_a_browser_shows_it_and_follows_new_values(explanation: Any) -> None:
    from playwright.sync_api import sync_playwright

    module = base64.b64encode(notebook.module().encode()).decode()
    values = json.dumps(explanation._values())
    script = f"""async () => {{
      const widget = (await import("data:text/javascript;base64,{module}")).default;
      let values = {values}, heard;
      const model = {{ get: () => values, on: (_, call) => {{ heard = call; }}, off: () => {{ heard = null; }} }};
      const el = document.body.appendChild(document.createElement("div"));
      const stop = await widget.render({{ model, el }});
      const text = () => el.shadowRoot.querySelector(".text").textContent;
      const first = [text(), el.shadowRoot.querySelectorAll("button.token").length];
      values = {{ ...values, steps: values.steps.slice(0, 1) }};
      heard();
      await new Promise((done) => setTimeout(done, 300));
      const second = el.shadowRoot.querySelectorAll("button.token").length;
      stop();
      return [first[0], first[1], second, heard, getComputedStyle(document.body).margin];
    }}"""
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto("about:blank")
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        text, tokens, fewer, heard, margin = page.evaluate(script)
        browser.close()
    assert problems == []
    assert "the dragon" in text
    assert (tokens, fewer) == (4, 1)
    assert heard is None
    assert margin == "8px", "the style sheet stays inside the widget"
