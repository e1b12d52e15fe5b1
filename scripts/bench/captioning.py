"""Seconds a batch of captions, plain and guided, with the vision encoder, in one run.

Alternates the contestants within every repetition, reports medians, prints a table and writes JSON::

    python scripts/bench/captioning.py --json docs/results/captioning/speed.json
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from timing import machine, seconds

from textguide import CFG, captioning, guided_decoding
from textguide.captioning import Captioning
from textguide.support.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="drawn-scenes")
    parser.add_argument("--device")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new", type=int, default=16, help="tokens of every caption")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    transformers.utils.logging.set_verbosity_error()
    model, _ = captioning.load(arguments.model, device=arguments.device)
    rows = [measure(model, batch, arguments) for batch in arguments.batches]
    table = Table(title=f"{arguments.model}: ms a batch of {arguments.new} tokens, encoder included (× plain)")
    names = list(rows[0]["ms"])
    for heading in ("batch", *names):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [f"{row['ms'][name]:.1f} ({row['ms'][name] / row['ms']['plain']:.2f})" for name in names]
        table.add_row(str(row["batch"]), *cells)
    Console().print(table)
    if arguments.json:
        settings = {"model": arguments.model, "new": arguments.new, "repeats": arguments.repeats}
        write_json(arguments.json, {"machine": machine(model), "settings": settings, "rows": rows})


def measure(model: Any, batch: int, arguments: Any) -> dict[str, Any]:
    """Medians for one batch size."""
    size = model.config.encoder.image_size
    pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(model.device)
    double = torch.cat([pixels, pixels])

    def run(pixels: torch.Tensor, **options: Any) -> None:
        new = arguments.new
        model.generate(pixels, do_sample=False, max_new_tokens=new, min_new_tokens=new, **options)

    def guided(kind: str) -> None:
        how = Captioning(kind, inputs={"pixel_values": pixels})
        run(pixels, custom_generate=guided_decoding(CFG(2.0), captioning=how))

    contestants: dict[str, Callable[[], None]] = {
        "plain": lambda: run(pixels),
        "plain, twice the rows": lambda: run(double),
        "guided, blank": lambda: guided("blank"),
        "guided, noise": lambda: guided("noise"),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(arguments.repeats + 2):
        for name, call in contestants.items():
            taken = seconds(call, model.device)
            if repeat >= 2:  # the first ones warm up
                times[name].append(taken)
    return {"batch": batch, "ms": {name: 1000 * statistics.median(values) for name, values in times.items()}}


if __name__ == "__main__":
    main()
