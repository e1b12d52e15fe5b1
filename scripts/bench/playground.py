"""How long a visitor of the playground waits for the first guided token, and pictures of its tabs::

    python scripts/bench/playground.py --model smollm2 --times 5 --json playground.json --pictures docs/playground

It starts the page on a free port, opens it in a browser (playwright with Debian's chromium) and presses the buttons.
The time runs from the press to the first token on the page; the model is loaded before.
"""

from __future__ import annotations

import os
import shutil
import statistics
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import timing
import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

import textguide
from textguide.playground import launch
from textguide.playground.server import HOME, application
from textguide.serving.sockets import address as address_of
from textguide.serving.sockets import listen
from textguide.support.viewer.page import HOME as VIEWER_HOME

OPEN = "[role=tabpanel]:not([hidden])"
CHROMIUM = os.environ.get("TEXTGUIDE_CHROMIUM") or shutil.which("chromium")


def main() -> None:
    parser = timing.parser(__doc__, model=None)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    models = launch.load_models(arguments.model, textguide.load(arguments.model, device="cpu"))
    sock = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(application(models), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    address = address_of("127.0.0.1", sock)
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        visits = {"first token": partial(first_token, browser, address)}
        waits = timing.compare(visits, arguments.times, warmup=0)["first token"].results
        if arguments.pictures:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
            pictures(browser, address, arguments.pictures)
        browser.close()
    server.should_exit = True
    thread.join(10)
    files = [path for home in (HOME, VIEWER_HOME) for path in home.rglob("*") if path.is_file()]
    report = {
        "model": arguments.model,
        "seconds": waits,
        "median": statistics.median(waits),
        "largest": max(waits),
        "asset_bytes": sum(path.stat().st_size for path in files),
    }
    columns = {
        "model": "{model}",
        "first guided token, median": "{median:.2f} s",
        "largest": "{largest:.2f} s",
        "bytes of assets": "{asset_bytes:,}",
    }
    timing.show([report], columns)
    timing.write(arguments.json, report)


def opened(browser: Any, address: str, width: int, height: int, scheme: str) -> Any:
    """The page in a new window."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(180_000)
    page.goto(address)
    page.wait_for_selector("text=Press Write")
    return page


def first_token(browser: Any, address: str) -> float:
    """Seconds from the press to the first token under guidance; plain decoding runs at the same time."""
    page = opened(browser, address, 1280, 900, "light")
    page.locator(OPEN).get_by_label("max_new_tokens", exact=True).fill("4")
    start = time.perf_counter()
    page.locator(f"{OPEN} button.primary").click()
    page.locator(".explained button.token").first.wait_for()
    waited = time.perf_counter() - start
    page.locator(OPEN).get_by_text("done in").wait_for()
    page.close()
    return waited


def pictures(browser: Any, address: str, home: Path) -> None:
    """Each tab after a run of its example."""
    page = opened(browser, address, 1280, 860, "light")
    panel = page.locator(OPEN)
    run(panel)
    panel.locator("#gamma").wait_for()
    save(page, home / "write.png")
    panel.locator("button.token").nth(8).hover()
    panel.locator("section.step tbody tr:not(.written) .fork").first.click()
    page.get_by_role("heading", name="Forks").wait_for()
    panel.get_by_text("done in").wait_for()
    panel.locator(".tree").evaluate("(node) => node.scrollIntoView({ block: 'end' })")
    save(page, home / "fork.png")
    for name in ("Constrain", "Diffuse", "Caption"):
        page.get_by_role("tab", name=name).click()
        run(page.locator(OPEN))
        if name == "Diffuse":
            page.locator(f"{OPEN} .player input").fill("7")
            page.locator(f"{OPEN} .cell.again").first.focus()
        page.evaluate("window.scrollTo(0, 0)")
        save(page, home / f"{name.lower()}.png")
    narrow = opened(browser, address, 390, 844, "dark")
    run(narrow.locator(OPEN), "16")
    narrow.locator(".explained").scroll_into_view_if_needed()
    narrow.locator(".explained .text").first.evaluate("(node) => node.scrollIntoView({ block: 'start' })")
    save(narrow, home / "narrow.png")


def run(panel: Any, tokens: str | None = None) -> None:
    """Press the button of a tab, and wait for the end."""
    if tokens is not None:
        panel.get_by_label("max_new_tokens", exact=True).fill(tokens)
    panel.locator("button.primary").click()
    panel.get_by_text("done in").wait_for()


def save(page: Any, path: Path) -> None:
    """The screen as a small PNG file."""
    page.locator(".settings").first.evaluate(
        "() => document.querySelectorAll('.settings').forEach((s) => s.scrollTop = 0)"
    )
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)


if __name__ == "__main__":
    main()
