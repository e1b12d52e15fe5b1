"""``textguide explain``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from . import options


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "explain", help="show which tokens guidance raised and lowered at each step", description=__doc__
    )
    parser.add_argument("prompt", nargs="?", help="text to continue [--file, or standard input]")
    parser.add_argument("--file", help="a file with one prompt: text, or JSON with a chat; - reads standard input")
    parser.add_argument("--system", help="system prompt; makes the prompt a chat")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument("--top", type=int, default=5, help="tokens shown at each end [%(default)s]")
    parser.add_argument(
        "--min-prob",
        type=float,
        default=1e-3,
        help="leave out tokens less likely in every branch; 0 shows all [%(default)s]",
    )
    parser.add_argument("--html", metavar="FILE", help="write one self-contained page with a heat map")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options.add_model(parser)
    options.add_guidance(parser)
    options.add_decoding(parser, 24)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Decode one prompt and show every step."""
    from ..explanation.explaining import explain

    guidance = options.guidance(arguments)
    arguments.prompt = [] if arguments.prompt is None else [arguments.prompt]
    prompts = options.read_prompts(arguments)
    if len(prompts) > 1:
        raise ValueError(f"explain takes one prompt and got {len(prompts)}; run it once for each")
    prompt = prompts[0]
    if arguments.chat and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    decoding = options.decoding(arguments)
    model, tokenizer = options.load(arguments)
    explanation = explain(
        model,
        tokenizer,
        prompt,
        guidance,
        top=arguments.top,
        min_prob=arguments.min_prob,
        system=arguments.system,
        models=options.extra_models(arguments),
        **decoding,
    )
    if arguments.html:
        explanation.save_html(Path(arguments.html))
    if arguments.json:
        print(json.dumps(explanation.to_dict(), ensure_ascii=False))
    else:
        show(explanation)
        if arguments.html:
            print(f"wrote {arguments.html}")
    return 0


def show(explanation: Any, top: int | None = None) -> None:
    """Print an explanation as a table in the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich would exit with 1; the command line treats a reader that goes away as no error

    console = Terminal()
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("#", "written", "without", "KL"):
        table.add_column(column, justify="right" if column in "#KL" else "left", no_wrap=True)
    branched = any(step.branched for step in explanation.steps)
    table.add_column(
        f"raised ({'prompt → other branch' if branched else 'without → with the classifier'})",
        style="blue",
        overflow="fold",
    )
    table.add_column("lowered", style="red", overflow="fold")
    for step in explanation.steps:
        table.add_row(
            str(step.index + 1),
            Text(repr(step.chosen.text)[1:-1]),
            Text("" if step.plain.token == step.chosen.token else repr(step.plain.text)[1:-1]),
            f"{step.kl:.3f}",
            Text(_moves(step.raised[:top], step.branched)),
            Text(_moves(step.lowered[:top], step.branched)),
        )
    console.print(table)
    console.print(Text(f"\n{explanation.text.strip()}\n"))
    console.print(Text(str(explanation.effect)), style="dim")


def _moves(moves: Any, branched: bool) -> str:
    return "  ".join(
        f"{repr(move.text)[1:-1]} {_percent(move.cond)}→{_percent(move.uncond if branched else move.guided)}"
        for move in moves
    )


def _percent(probability: float) -> str:
    if probability >= 0.095:
        return f"{probability:.0%}"
    return f"{probability:.1%}" if probability >= 0.00095 else f"{probability:.2%}"
