"""How long a visitor of the playground waits for the first guided token, and pictures of its tabs::

    python scripts/bench/playground.py --model smollm2 --times 5 --json playground.json --pictures docs/playground

starts the page on a free port, opens it in a browser (playwright with Debian's chromium) and presses the buttons. The
time runs from the press to the first token that stands on the page; the model is loaded before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

import textguide
from textguide.playground import launch
from textguide.playground.server import HOME, application
from textguide.serving.sockets import address as address_of
from textguide.serving.sockets import listen
from textguide.support.viewer import page as viewer_page

OPEN = "[role=tabpanel]:not([hidden])"
CHROMIUM = os.environ.get("TEXTGUIDE_CHROMIUM") or shutil.which("chromium")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    models = launch.load_models(arguments.model, textguide.load(arguments.model, device="cpu"))
    sock = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(application(models), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    address = address_of("127.0.0.1", sock)
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        waits = [first_token(browser, address) for _ in range(arguments.times)]
        if arguments.pictures:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
            pictures(browser, address, arguments.pictures)
        browser.close()
    server.should_exit = True
    thread.join(10)
    homes = (HOME, Path(viewer_page.__globals__["HOME"]))
    size = sum(path.stat().st_size for home in homes for path in home.rglob("*") if path.is_file())
    found = {
        "model": arguments.model, "seconds": waits, "median": statistics.median(waits), "largest": max(waits),
        "asset_bytes": size,
    }  # fmt: skip
    print(f"| model | first guided token, median of {len(waits)} | largest | assets |\n|---|---|---|---|")
    print(f"| {arguments.model} | {found['median']:.2f} s | {found['largest']:.2f} s | {size / 1000:.0f} kB |")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def opened(browser: Any, address: str, width: int, height: int, scheme: str) -> Any:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(180_000)
    page.goto(address)
    page.wait_for_selector("text=Press Write")
    return page


def first_token(browser: Any, address: str) -> float:
    """Seconds from the press to the first token under guidance; plain decoding runs beside it."""
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
    """Each tab behind a run of its example."""
    page = opened(browser, address, 1280, 860, "light")
    panel = page.locator(OPEN)
    run(panel)
    panel.locator("#gamma").wait_for()
    keep(page, home / "write.png")
    panel.locator("button.token").nth(8).hover()
    panel.locator("section.step tbody tr:not(.written) .fork").first.click()
    page.get_by_role("heading", name="Forks").wait_for()
    panel.get_by_text("done in").wait_for()
    panel.locator(".tree").evaluate("(node) => node.scrollIntoView({ block: 'end' })")
    keep(page, home / "fork.png")
    for name in ("Constrain", "Diffuse", "Caption"):
        page.get_by_role("tab", name=name).click()
        run(page.locator(OPEN))
        if name == "Diffuse":
            page.locator(f"{OPEN} .player input").fill("7")
            page.locator(f"{OPEN} .cell.again").first.focus()
        page.evaluate("window.scrollTo(0, 0)")
        keep(page, home / f"{name.lower()}.png")
    narrow = opened(browser, address, 390, 844, "dark")
    run(narrow.locator(OPEN), "16")
    narrow.locator(".explained").scroll_into_view_if_needed()
    narrow.locator(".explained .text").first.evaluate("(node) => node.scrollIntoView({ block: 'start' })")
    keep(narrow, home / "narrow.png")


def run(panel: Any, tokens: str | None = None) -> None:
    if tokens is not None:
        panel.get_by_label("max_new_tokens", exact=True).fill(tokens)
    panel.locator("button.primary").click()
    panel.get_by_text("done in").wait_for()


def keep(page: Any, path: Path) -> None:
    """The screen as a small PNG file."""
    page.locator(".settings").first.evaluate(
        "() => document.querySelectorAll('.settings').forEach((s) => s.scrollTop = 0)"
    )
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(96).save(path, optimize=True)


if __name__ == "__main__":
    main()
