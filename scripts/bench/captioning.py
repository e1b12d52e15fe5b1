"""Milliseconds per batch of captions, plain and guided, with the vision encoder, in one run::

python scripts/bench/captioning.py --json docs/results/captioning/speed.json
"""

from __future__ import annotations

from functools import partial
from typing import Any

import timing
import torch

from textguide import CFG, captioning, guided_decoding
from textguide.captioning import Captioning


def main() -> None:
    parser = timing.parser(__doc__, model="drawn-scenes", repeats=25)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new", type=int, default=16, help="tokens of every caption")
    arguments = parser.parse_args()
    timing.quiet(arguments)
    model, _ = captioning.load(arguments.model, device=arguments.device)
    rows = [measure(model, batch, arguments.new, arguments.repeats) for batch in arguments.batches]
    columns = {"batch": "{batch}"}
    for name in rows[0]["ms"]:
        columns[name] = f"{{ms[{name}]:.1f}}"
    timing.show(rows, columns, f"{arguments.model}: ms per batch of {arguments.new} tokens, encoder included")
    timing.finish(arguments, model, rows=rows)


def measure(model: Any, batch: int, new: int, repeats: int) -> dict[str, Any]:
    """Medians for one batch size."""
    size = model.config.encoder.image_size
    pixels = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(model.device)

    def write(images: torch.Tensor, **options: Any) -> None:
        model.generate(images, do_sample=False, max_new_tokens=new, min_new_tokens=new, **options)

    def guided(kind: str) -> None:
        how = Captioning(kind, inputs={"pixel_values": pixels})
        write(pixels, custom_generate=guided_decoding(CFG(2.0), captioning=how))

    contestants = {
        "plain": partial(write, pixels),
        "plain, twice the rows": partial(write, torch.cat([pixels, pixels])),
        "guided, blank": partial(guided, "blank"),
        "guided, noise": partial(guided, "noise"),
    }
    times = timing.compare(contestants, repeats, model.device, warmup=2, title=f"batch {batch}")
    return {"batch": batch, "ms": {name: one.milliseconds for name, one in times.items()}}


if __name__ == "__main__":
    main()
