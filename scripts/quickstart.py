"""What ``scripts/quickstart.sh`` shows: one prompt, plain, guided and steered by a classifier; what guidance did."""

from __future__ import annotations

import argparse
import time

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

import textguide
from textguide import CAIF, CFG
from textguide.cli import quiet
from textguide.explanation.terminal import show

PROMPT = "The dragon flew over Paris, France,"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompt", nargs="?", default=PROMPT)
    parser.add_argument("--scale", type=float, default=1.5)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--device")
    arguments = parser.parse_args()
    quiet()
    console = Console()
    start = time.perf_counter()
    with console.status("reading SmolLM2-135M-Instruct (about half a minute the first time)"):
        model, tokenizer = textguide.load("smollm2", device=arguments.device)
        textguide.generate(model, tokenizer, arguments.prompt, CFG(arguments.scale), max_new_tokens=2)  # warm
    console.print(f"model on {model.device}, ready after {time.perf_counter() - start:.0f} s\n", style="dim")

    panels, effects = [], []
    shown = {
        "plain (γ = 1)": CFG(1.0),
        f"guided (γ = {arguments.scale:g})": CFG(arguments.scale),
        "made positive by a classifier": CAIF("sentiment", "positive", 20.0),
    }
    for title, guidance in shown.items():
        start = time.perf_counter()
        out = textguide.generate(
            model,
            tokenizer,
            arguments.prompt,
            guidance,
            max_new_tokens=arguments.max_new_tokens,
            repetition_penalty=1.2,
        )
        seconds = (time.perf_counter() - start) / len(out.new_tokens[0])
        text = Text(arguments.prompt, style="dim") + Text(out.texts[0], style="default")
        footer = f"{1e3 * seconds:.0f} ms per token"
        panels.append(Panel(text, title=title, subtitle=footer, width=max(34, (console.width - 4) // 3)))
        effects.append(f"{title}: {out.effect}")
    console.print(Columns(panels))
    console.print("\n".join(effects[1:]) + "\n", style="dim")

    console.print("How guidance moved the first tokens, plain → guided:\n")
    explanation = textguide.explain(
        model, tokenizer, arguments.prompt, CFG(arguments.scale), max_new_tokens=8, repetition_penalty=1.2
    )
    show(explanation, top=3, console=console)
    console.print("\nNext: textguide playground --open, textguide generate --help, textguide explain --html page.html")


if __name__ == "__main__":
    main()
