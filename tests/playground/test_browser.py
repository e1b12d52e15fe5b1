"""The page in a real browser: what a visitor does, wide and narrow, light and dark, by keyboard alone."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .conftest import NEEDS

CHROMIUM = os.environ.get("TEXTGUIDE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    *NEEDS,
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium, or set TEXTGUIDE_CHROMIUM"),
]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SLOW = 60_000
OPEN = "[role=tabpanel]:not([hidden])"


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of an application that is served in a thread."""
    import uvicorn

    from textguide.serving.sockets import address as address_of
    from textguide.serving.sockets import listen

    sock = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    yield address_of("127.0.0.1", sock)
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def address(models: Any) -> Iterator[str]:
    from textguide.playground.server import application

    with serving(application(models)) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Seen:
    """A page of the browser, and what went wrong on it."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": WIDE, "accept_downloads": True, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(SLOW)
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._hear)
        self.page.on("request", self._ask)
        self.own = "/".join(address.split("/")[:3])
        if address:
            self.page.goto(address)
            self.page.wait_for_selector("text=Press Write")

    def _hear(self, message: Any) -> None:
        if message.type == "error" and not re.search("status of 4(00|24|29)", message.text):
            self.problems.append(message.text)

    def _ask(self, request: Any) -> None:
        own = (self.own,) if self.own else ()
        if not request.url.startswith((*own, "data:", "blob:", "file:")):
            self.problems.append(f"loads {request.url}")

    def tab(self, name: str) -> Any:
        self.page.get_by_role("tab", name=name).click()
        return self.page.locator(OPEN)

    def go(self, shorter: int | None = None) -> Any:
        """Press the button, and wait for the end."""
        panel = self.page.locator(OPEN)
        if shorter is not None:
            panel.get_by_label("max_new_tokens", exact=True).fill(str(shorter))
        panel.locator("button.primary").click()
        panel.get_by_text("done in").wait_for()
        return panel


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Any]:
    opened: list[Seen] = []

    def make(at: str | None = None, **options: Any) -> Seen:
        opened.append(Seen(browser, address if at is None else at, **options))
        return opened[-1]

    yield make
    for seen in opened:
        seen.context.close()
    assert [problem for seen in opened for problem in seen.problems] == []


def serious(page: Any) -> list[str]:
    """What axe finds that keeps people out."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['target']} {node['failureSummary']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def too_wide(page: Any) -> int:
    """Pixels by which the page is wider than the screen."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def test_write_and_see(open_page: Any) -> None:
    seen = open_page()
    panel = seen.go(shorter=6)
    page = seen.page
    guided = panel.get_by_role("group", name="the text under guidance")
    assert guided.locator("button.token").count() == 6
    assert panel.get_by_role("group", name="the text of plain decoding").inner_text().startswith("The dragon")
    assert "KL" in panel.locator(".explained > .quiet").first.inner_text()
    # Hover a token: its step is shown, with a column for every branch.
    guided.locator("button.token").nth(3).hover()
    step = panel.locator("section.step")
    assert step.get_attribute("aria-label") == "token 4"
    assert step.locator("thead th").all_inner_texts()[1:] == ["plain", "last token", "guided ▾"]
    step.get_by_role("button", name="plain", exact=True).click()
    shares = step.locator("td[data-name=plain] .value").all_inner_texts()
    numbers = [float(text.rstrip("%")) / (100 if text.endswith("%") else 1) for text in shares]
    assert numbers == sorted(numbers, reverse=True)
    # The curves.
    labels = [svg.get_attribute("aria-label") for svg in panel.locator(".curve svg").all()]
    assert [label.split(" along")[0] for label in labels] == ["KL", "γ"]
    # Colours by the token's own probability.
    panel.get_by_label("the token's own probability").check()
    assert {"up", "down"} & set(" ".join(guided.locator("button").first.get_attribute("class").split()).split())
    # The slider for γ scores the text anew without writing it.
    slider = panel.get_by_label("This text under other γ")
    before = guided.inner_text()
    line = panel.locator(".scale p")
    first = line.inner_text()
    slider.fill("0")
    assert panel.locator(".scale output").inner_text() == "0"
    assert line.inner_text() != first
    assert "most likely at γ" in line.inner_text()
    assert guided.inner_text() == before
    # Everything that is shown belongs to the other γ; what is only known of the first one is hidden.
    assert (
        panel.locator(".explained > .quiet").first.inner_text() == "the same text at γ 0; it was generated with γ 1.5"
    )
    labels = [svg.get_attribute("aria-label") for svg in panel.locator(".curve svg").all()]
    assert [label.split(" along")[0] for label in labels] == ["probability at γ 0", "probability in plain decoding"]
    assert panel.locator("section.step table").count() == 0
    assert panel.locator("details.steps").count() == 0
    assert guided.locator(".changed").count() == 0
    shown = panel.locator("section.step h3 .numbers").inner_text()
    number = int(panel.locator("section.step").get_attribute("aria-label").split()[1]) - 1
    assert shown in guided.locator("button.token").nth(number).get_attribute("aria-label")
    panel.get_by_role("button", name="back to γ 1.5").click()
    assert page.locator(".scale output").first.inner_text() == "1.5"
    assert panel.locator("section.step table").count() == 1


def test_compose_and_forms(open_page: Any) -> None:
    seen = open_page()
    panel = seen.page.locator(OPEN)
    panel.get_by_label("Compose with").select_option("caif")
    panel.get_by_role("button", name="Add", exact=True).click()
    part = panel.locator("fieldset.part").nth(1)
    assert part.get_by_label("classifier *").input_value() == "sentiment"
    part.get_by_label("weight", exact=True).fill("3")
    part.get_by_label("top_k", exact=True).fill("5")
    seen.go(shorter=3)
    text = panel.locator(".scale, .explained > .quiet").all_inner_texts()
    assert any("classified" in one for one in text)
    assert "other parts" in panel.locator(".explained").inner_text()
    panel.get_by_role("button", name="remove caif").click()
    assert panel.locator("fieldset.part").count() == 1


def test_fork(open_page: Any) -> None:
    seen = open_page()
    panel = seen.go(shorter=5)
    guided = panel.get_by_role("group", name="the text under guidance")
    first = guided.locator("button.token").all_inner_texts()
    guided.locator("button.token").nth(2).focus()
    other = panel.locator("section.step tbody tr:not(.written) .fork").first
    token = other.evaluate("(node) => node.firstChild.textContent.trim()")
    other.click()
    panel.get_by_role("heading", name="Forks").wait_for()
    panel.locator(".actions .primary:not([disabled])").wait_for()
    forked = guided.locator("button.token").all_inner_texts()
    assert forked[:2] == first[:2]
    assert forked[2] != first[2]
    assert forked[2].replace(" ", "␣").replace("\n", "↵") == token
    tree = panel.locator(".tree")
    assert tree.locator("button").count() == 2
    assert tree.locator("button[aria-current=true]").inner_text().startswith("from token 3")
    tree.locator("button").first.click()
    assert guided.locator("button.token").all_inner_texts() == first


def test_constrain(open_page: Any) -> None:
    seen = open_page()
    panel = seen.tab("Constrain")
    written = panel.get_by_label("constraint", exact=True)
    for title, kind, part in (
        ("A person, constrained by a JSON schema", "json-schema", '"maxLength": 20'),
        ("A sum, constrained by a grammar", "grammar", "start: NUMBER"),
        ("A date, constrained by a regular expression", "regex", "(19|20)[0-9]{2}"),
    ):
        panel.get_by_label("Start from an example").select_option(label=title)
        assert panel.get_by_label("kind of constraint").input_value() == kind
        assert part in written.input_value()
    panel.get_by_label("kind of constraint").select_option("json-schema")
    written.fill('{"type": "integer", "maximum":')
    assert written.get_attribute("aria-invalid") == "true"
    panel.locator("button.primary").click()
    panel.locator(".go [role=alert]").filter(has_text="must be a JSON object").wait_for()
    panel.get_by_label("Start from an example").select_option(label="A date, constrained by a regular expression")
    seen.go()
    texts = panel.locator(".rows > li")
    assert texts.count() == 5
    assert re.search(r"\d of 5 texts have a weight above 0; .* They descend from \d of the 5 texts", panel.inner_text())
    finished = [row for row in texts.all() if "finished" in row.inner_text()]
    assert finished
    assert re.search(r"(19|20)\d\d-\d\d-\d\d", finished[0].locator(".text").inner_text())
    assert "Effective sample size" in panel.inner_text()
    scrubber = panel.locator(".player input")
    scrubber.fill("0")
    assert panel.locator(".player label").inner_text().startswith("token 1 of")
    assert all(len(row.locator(".text").inner_text()) <= 4 for row in texts.all())
    panel.get_by_role("button", name="Play").click()
    panel.get_by_role("button", name="Play").wait_for()  # it has played to the end
    assert panel.locator(".drawn").count() == 1


def test_diffuse(open_page: Any) -> None:
    seen = open_page()
    panel = seen.tab("Diffuse")
    seen.go()
    assert panel.locator(".cell").count() == 32
    assert panel.locator(".cell.masked").count() == 0
    assert panel.locator(".verdict").inner_text() == "✓ a solution"
    assert "16 extra passes" in panel.locator(".canvas > .quiet").first.inner_text()
    assert "32 forward passes" in panel.locator(".canvas > .quiet").first.inner_text()
    panel.locator(".player input").fill("3")
    again = panel.locator(".cell.again").first
    again.focus()
    assert "masked again for the second pass" in panel.locator(".why").inner_text()
    assert panel.locator(".cell.masked").count() == 12
    assert panel.locator(".cell.fresh").count() == 1
    assert panel.locator(".cells .group").count() == 2  # the prompt, and the canvas after it
    assert panel.locator(".cells .name").all_inner_texts() == ["prompt", "answer"]
    panel.get_by_label("model", exact=True).select_option("sudoku9")
    seen.go()
    panel.locator(".cell").nth(80).wait_for()
    assert panel.locator(".cell").count() == 81
    assert panel.locator(".cells .group").count() == 1  # masks stand between what is given


def test_caption(open_page: Any, tmp_path: Path) -> None:
    from PIL import Image

    seen = open_page()
    panel = seen.tab("Caption")
    seen.go(shorter=8)
    assert panel.get_by_role("group", name="the caption").locator("button.token").count() > 1
    assert panel.locator(".text.small").inner_text()
    path = tmp_path / "own.png"
    Image.new("RGB", (80, 60), (250, 20, 20)).save(path)
    panel.get_by_label("or a file of yours").set_input_files(path)
    panel.locator("img.shown[alt='own.png']").wait_for()
    seen.go()
    path.write_bytes(b"no image at all")
    panel.get_by_label("or a file of yours").set_input_files([])
    panel.get_by_label("or a file of yours").set_input_files(path)
    panel.locator("button.primary").click()
    alert = panel.locator(".go [role=alert]")
    alert.filter(has_text="image").wait_for()
    assert "cannot be read as an image" in alert.inner_text() or "must be a file of an image" in alert.inner_text()


def test_take_away(open_page: Any, tmp_path: Path, address: str) -> None:
    seen = open_page()
    seen.context.grant_permissions(["clipboard-read", "clipboard-write"])
    panel = seen.go(shorter=4)
    panel.locator(".away summary").click()
    panel.locator("pre").first.wait_for()
    assert "CFG(" in panel.get_by_label("Python").inner_text()
    assert panel.get_by_label("Terminal").inner_text().startswith("textguide generate --model smollm2-small")
    assert f"{address}api/write" in panel.get_by_label("curl").inner_text()
    with seen.page.expect_download() as got:
        panel.get_by_role("button", name="JSON of the trace").click()
    trace = json.loads(Path(got.value.path()).read_text(encoding="utf-8"))
    assert len(trace["steps"]) == 4
    with seen.page.expect_download() as got:
        panel.get_by_role("button", name="One HTML file").click()
    kept = tmp_path / "kept.html"
    got.value.save_as(kept)
    panel.get_by_role("button", name="Copy a link").click()
    panel.get_by_text("a link with these settings was copied").wait_for()
    link = seen.page.evaluate("navigator.clipboard.readText()")
    other = open_page(at=link)
    assert other.page.locator(OPEN).get_by_label("max_new_tokens", exact=True).input_value() == "4"
    alone = open_page(at="")
    alone.page.goto(kept.as_uri())
    alone.page.locator("button.token").first.wait_for()
    assert alone.page.locator("button.token").count() == 4
    assert serious(alone.page) == []


def test_what_goes_wrong_is_said(open_page: Any) -> None:
    seen = open_page()
    panel = seen.page.locator(OPEN)
    alert = panel.locator(".go [role=alert]")
    panel.get_by_label("text to continue", exact=True).last.fill("word " * 1500)
    panel.locator("button.primary").click()
    alert.filter(has_text="tokens, and this server takes 1,024").wait_for()
    panel.get_by_label("text to continue", exact=True).last.fill("The dragon")
    more = panel.locator("fieldset.part details")
    more.locator("summary").click()
    panel.get_by_label("schedule", exact=True).fill("sideways")
    panel.locator("button.primary").click()
    alert.filter(has_text="sideways").wait_for()
    panel.get_by_label("schedule", exact=True).fill("linear")
    seen.go(shorter=3)
    assert alert.inner_text() == ""


def test_stop_and_a_closed_page(open_page: Any, address: str) -> None:
    import urllib.request

    seen = open_page()
    panel = seen.page.locator(OPEN)
    panel.get_by_label("max_new_tokens", exact=True).fill("200")
    panel.locator("button.primary").click()
    panel.locator(".explained .token").nth(1).wait_for()
    other = open_page()
    assert other.go(shorter=3).locator(".explained .token").count() == 3  # two visitors at once
    panel.get_by_role("button", name="Stop").click()
    panel.get_by_text("stopped").wait_for()
    assert 1 < panel.locator(".explained .token").count() < 200
    panel.locator("button.primary").click()
    panel.locator(".explained .token").nth(1).wait_for()
    seen.page.close()
    assert other.go(shorter=4).locator(".explained .token").count() == 4
    assert urllib.request.urlopen(address, timeout=20).status == 200


def test_by_keyboard_alone(open_page: Any) -> None:
    seen = open_page()
    page = seen.page
    page.locator(OPEN).get_by_label("max_new_tokens", exact=True).fill("4")
    press = page.keyboard.press

    def tab_to(selector: str) -> None:
        for _ in range(80):
            press("Tab")
            if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", selector
                return
        raise AssertionError(f"{selector} is not reached by Tab")

    page.locator("h1").first.click()
    tab_to("[role=tab]")
    press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-constrain"
    press("ArrowLeft")
    assert page.evaluate("document.activeElement.id") == "tab-write"
    tab_to("button.primary")
    press("Enter")
    page.locator(OPEN).get_by_text("done in").wait_for()
    tab_to(".explained .token")
    press("ArrowRight")
    press("ArrowRight")
    assert page.locator("section.step").first.get_attribute("aria-label") == "token 3"
    press("End")
    assert page.locator("section.step").first.get_attribute("aria-label") == "token 4"
    tab_to("section.step tbody .fork")
    press("Enter")
    page.get_by_role("heading", name="Forks").wait_for()
    page.locator(OPEN).get_by_text("done in").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_every_tab_can_be_used_by_all(open_page: Any, size: dict[str, int], scheme: str) -> None:
    seen = open_page(viewport=size, color_scheme=scheme)
    for name, shorter in (("Write", 5), ("Constrain", 12), ("Diffuse", None), ("Caption", 6)):
        panel = seen.tab(name)
        assert serious(seen.page) == [], (name, "before")
        seen.go(shorter)
        panel.locator(".away summary").click()
        panel.locator("pre").first.wait_for()
        assert too_wide(seen.page) <= 0, name
        assert serious(seen.page) == [], (name, "after")


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_that_travel_as_a_file(
    open_page: Any, models: Any, tmp_path: Path, size: dict[str, int], scheme: str
) -> None:
    import textguide

    explanation = textguide.explain(
        models.model, models.tokenizer, "The dragon\nflew", textguide.guidance.DoLa(exits=(1, 2)), max_new_tokens=6
    )
    seen = open_page(at="", viewport=size, color_scheme=scheme)
    seen.page.goto(explanation.save_html(tmp_path / "page.html").as_uri())
    seen.page.locator("button.token").first.wait_for()
    assert too_wide(seen.page) <= 0
    # All columns can be seen, also on a narrow screen.
    cells = seen.page.locator("section.step tbody tr").first.locator("td").all()
    assert len(cells) == 2 + len(explanation.branches)
    assert all(
        box["x"] >= 0 and box["x"] + box["width"] <= size["width"] for cell in cells if (box := cell.bounding_box())
    )
    assert serious(seen.page) == []


TABS = {
    "Write": ("max_new_tokens", ".explained .token"),
    "Constrain": ("max_new_tokens", ".rows > li"),
    "Diffuse": ("steps", ".cell.fresh"),
    "Caption": ("max_new_tokens", ".explained .token"),
}
"""The field that sets the length of each tab's run, and what the run shows from its first step on."""


def press(panel: Any, *names: str) -> None:
    """Press buttons one after the other, faster than a visitor can; a disabled one does nothing."""
    for name in names:
        panel.get_by_role("button", name=name, exact=True).evaluate("(button) => button.click()")


@pytest.mark.parametrize("stage", ["at once", "at the first step", "before the end", "twice"])
@pytest.mark.parametrize("name", TABS)
def test_stop_at_every_stage(open_page: Any, name: str, stage: str) -> None:
    seen = open_page()
    panel = seen.tab(name)
    field, first = TABS[name]
    panel.get_by_label(field, exact=True).fill("14")
    go = {"Diffuse": "Fill", "Caption": "Caption"}.get(name, "Write")
    panel.locator("button.primary").click()
    if stage == "at the first step":
        panel.locator(first).first.wait_for()
    elif stage == "before the end":
        count = {"Write": 12, "Caption": 2}.get(name)
        if count is None:
            # A fast machine may be done before it is seen.
            panel.get_by_text(re.compile("1[0-3] of 1[0-3]|done in")).first.wait_for()
        else:
            panel.locator(first).nth(count).wait_for()
    press(panel, *["Stop"] * (3 if stage == "twice" else 1))
    status = panel.locator(".go [role=status]")
    status.filter(has_text=re.compile("stopped|done in")).wait_for()
    assert panel.locator("[role=alert]:not(:empty)").count() == 0
    # Stop and start at once, several times; the last run then goes to its end.
    for _ in range(3):
        press(panel, go, "Stop", go)
        status.filter(has_text=re.compile("stopped|done in|writing")).wait_for()
    panel.locator("button.primary:not([disabled])").wait_for()
    seen.go()
    panel.locator(first.replace(".fresh", "")).first.wait_for()
    assert panel.locator("[role=alert]:not(:empty)").count() == 0
    if name == "Constrain":
        assert "Effective sample size" in panel.inner_text()


def test_texts_that_are_cut_off_do_not_count_as_finished(open_page: Any) -> None:
    seen = open_page()
    panel = seen.tab("Constrain")
    for title in ("Samples of the guided product", "Forks where the model is uncertain"):
        panel.get_by_label("Start from an example").select_option(label=title)
        seen.go(shorter=6)
        ends = panel.locator(".rows .end").all_inner_texts()
        assert set(ends) <= {"✂ cut off at the token limit", "✓ finished", "· not started"}
        assert "✂ cut off at the token limit" in ends


def test_a_wrong_sudoku_is_refused_and_a_wrong_answer_is_flagged(open_page: Any) -> None:
    seen = open_page()
    panel = seen.tab("Diffuse")
    prompt = panel.get_by_label("prompt", exact=True)
    alert = panel.locator(".go [role=alert]")
    for text, message in (
        ("123", "has 3 cells and 16 masks"),
        ("abcd", "does not know 'a b c d'"),
        ("1111222233334444", "row 1 has 1 more than once"),
    ):
        prompt.fill(text)
        panel.locator("button.primary").click()
        alert.filter(has_text=message).wait_for()
    prompt.fill("0300124300000431")
    panel.get_by_label("steps", exact=True).fill("1")
    panel.get_by_role("button", name="remove acfg").click()
    seen.go()
    assert panel.locator(".verdict").inner_text() == "✗ not a solution: row 1 has 4 more than once"


def test_settings_survive_a_reload_and_the_keyboard_starts_a_run(open_page: Any) -> None:
    seen = open_page()
    panel = seen.page.locator(OPEN)
    prompt = panel.get_by_label("text to continue", exact=True).last
    prompt.fill("A reloaded prompt")
    panel.get_by_label("max_new_tokens", exact=True).fill("3")
    seen.page.reload()
    seen.page.wait_for_selector("text=Press Write")
    assert prompt.input_value() == "A reloaded prompt"
    prompt.press("Control+Enter")
    panel.get_by_text("done in").wait_for()
    assert panel.get_by_role("group", name="the text under guidance").inner_text().startswith("A reloaded prompt")


def test_caption_has_no_fields_that_its_model_refuses(open_page: Any) -> None:
    panel = open_page().tab("Caption")
    names = [name.split()[0] for name in panel.locator("fieldset.part label.name").all_text_contents()]
    assert "scale" in names
    assert not {"negative_prompt", "negative_system"} & set(names)
    offered = panel.get_by_label("Compose with").locator("option").all_inner_texts()
    assert "context-aware" not in offered


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of scripts/quickstart.sh, whose extras are smollm2 and playground."""
    from textguide.constraints.engines import llguidance_engine

    llguidance_engine._build_tokenizer.cache_clear()
    for module in ("llguidance", "PIL", "xgrammar"):
        monkeypatch.setitem(sys.modules, module, None)
    yield
    llguidance_engine._build_tokenizer.cache_clear()


def test_missing_extras_are_named_before_and_after_the_press(bare: None, open_page: Any) -> None:
    seen = open_page()
    for name, extra in (("Constrain", "constraints"), ("Caption", "captioning")):
        panel = seen.tab(name)
        line = f"pip install 'textguide[{extra}]'"
        assert line in panel.locator("form .note").inner_text()
        if name == "Constrain":  # the first example needs no engine; those with a constraint do
            seen.go(shorter=4)
            panel.get_by_label("Start from an example").select_option(
                label="A date, constrained by a regular expression"
            )
        panel.locator("button.primary").click()
        panel.locator(".go [role=alert]").filter(has_text=line).wait_for()
    for name in ("Write", "Diffuse"):
        panel = seen.tab(name)
        assert panel.locator("form .note").count() == 0
        seen.go()


@pytest.mark.parametrize("name", TABS)
def test_stop_without_the_extras(bare: None, open_page: Any, name: str) -> None:
    seen = open_page()
    panel = seen.tab(name)
    for _ in range(3):
        press(panel, {"Diffuse": "Fill", "Caption": "Caption"}.get(name, "Write"), "Stop")
    panel.locator(".go [role=status]").filter(has_text=re.compile("stopped|done in|^$")).wait_for()
    panel = seen.tab("Write")
    assert seen.go(shorter=3).locator(".explained .token").count() == 3


def test_a_server_that_is_killed_is_named(browser: Any, models: Any) -> None:
    from textguide.playground.server import application

    app = application(models)

    async def killed(scope: Any, receive: Any, send: Any) -> None:
        """The same page, whose connections break in the middle of a text."""
        if scope.get("path") != "/api/write":
            await app(scope, receive, send)
            return
        head = [(b"content-type", b"text/event-stream"), (b"content-length", b"100000")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b": still here\n\n", "more_body": True})
        await asyncio.sleep(0.2)
        raise ConnectionError

    with serving(killed) as address:
        seen = Seen(browser, address)
        panel = seen.page.locator(OPEN)
        panel.locator("button.primary").click()
        alert = panel.locator(".go [role=alert]")
        alert.filter(has_text="the connection to the server was lost before the text was complete").wait_for()
        seen.context.close()


def test_a_full_server_says_so(browser: Any, models: Any) -> None:
    from textguide.playground.server import application
    from textguide.serving.limits import Limits
    from textguide.serving.rules import Rules

    with serving(application(models, Rules(Limits(runs=1)))) as address:
        seen = Seen(browser, address)
        panel = seen.page.locator(OPEN)
        panel.locator("button.primary").click()  # plain and guided are two runs
        panel.locator(".go [role=alert]").filter(has_text="1 runs are in progress").wait_for()
        # A run that was stopped gives its place back at once.
        panel.get_by_label("also without guidance").uncheck()
        panel.get_by_label("max_new_tokens", exact=True).fill("100")
        for _ in range(5):
            panel.locator("button.primary").click()
            panel.get_by_text("writing…").wait_for()
            press(panel, "Stop")
            panel.get_by_text("stopped").wait_for()
        assert seen.go(shorter=3).locator(".explained .token").count() == 3
        seen.context.close()
