"""``textguide distill``: train an adapter with which a model follows guidance by itself."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from typing import Any

from ..support import files
from . import options


def add(commands: Any) -> None:
    """Add the command to the parser."""
    from ..distillation.objectives import OBJECTIVES
    from ..distillation.settings import POSITIONS, PRECISIONS, DistillSettings

    parser = commands.add_parser("distill", help="train an adapter that stands for a guidance", description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2", help="as for --model elsewhere [%(default)s]")
    parser.add_argument(
        "--guidance", default="cfg", metavar="METHOD", help="what to learn: as for `textguide generate`, or JSON [cfg]"
    )
    options.add_extra_model(parser)
    parser.add_argument("--out", required=True, metavar="ADAPTER", help="folder of the adapter")
    parser.add_argument("--overwrite", action="store_true", help="remove the adapter that is in --out first")
    parser.add_argument("--device", help="cpu, cuda, cuda:1… [a GPU if there is one]")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16 [float32 on a CPU, else the checkpoint's]")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the checkpoint")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")
    group = parser.add_argument_group("texts")
    group.add_argument(
        "--prompts", metavar="FILE", help="what texts begin with: .txt, .jsonl, .csv, .parquet [openings of one word]"
    )
    group.add_argument(
        "--given", metavar="FILE", help="texts for --source given, with columns prompt and completion, or text"
    )
    group.add_argument("--source", help="plain, guided, given, or shares such as plain=0.5,given=0.5 [plain]")
    group.add_argument("--texts", type=int, help="how many are written [960]")
    group.add_argument("--tokens", type=int, help="longest text [70]")
    group = parser.add_argument_group("training")
    group.add_argument("--objective", choices=OBJECTIVES, help="[forward-kl]")
    group.add_argument(
        "--positions", choices=POSITIONS, help="where guidance acts in a text [what the guidance allows]"
    )
    group.add_argument("--scales", metavar="γ,γ…", help="train one adapter for several γ, such as 1,1.5,2")
    for name, kind in (("steps", int), ("batch-size", int), ("learning-rate", float), ("rank", int), ("seed", int)):
        default = getattr(DistillSettings, name.replace("-", "_"))
        group.add_argument(f"--{name}", type=kind, help=f"[{default:g}]")
    group.add_argument("--targets", help="modules to adapt, with commas between them [all-linear]")
    group.add_argument("--mixed-precision", choices=PRECISIONS, help="[no]")
    group = parser.add_argument_group("verdict")
    group.add_argument("--evaluate", action="store_true", help="compare plain, guided and distilled when it is done")
    group.add_argument("--held-out", metavar="FILE", help="prompts for the verdict [those of --prompts, or openings]")
    group.add_argument("--tasks", metavar="TASKS", help="tasks for the verdict, with commas between them")
    group.add_argument("--limit", type=int, default=200, help="items a task, and texts [%(default)s]")
    group.add_argument("--data", metavar="FOLDER", help="folder of the tasks' data, as for `textguide eval`")
    parser.set_defaults(run=run_distill)


def run_distill(arguments: argparse.Namespace) -> int:
    """Train, save, and say what came of it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..distillation import DistillSettings, distill, texts
    from ..guidance import as_guidance
    from ..guidance.spec import parse
    from ..models.adapters import load_further
    from ..models.loading import load

    guidance = as_guidance(parse(arguments.guidance))
    chosen: dict[str, Any] = {
        field.name: getattr(arguments, field.name)
        for field in fields(DistillSettings)
        if getattr(arguments, field.name, None) is not None
    }
    if "scales" in chosen:
        chosen["scales"] = _numbers(chosen["scales"])
    if arguments.given and "source" not in chosen:
        chosen["source"] = "given"
    settings = DistillSettings(**chosen)
    if guidance is not None:
        settings.check(guidance)
    files.folder(arguments.out)
    rows = None if arguments.prompts is None else texts.read(arguments.prompts)
    prompts = None if rows is None else [row.get("messages") or row.get("prompt") or row["text"] for row in rows]
    others = [] if arguments.given is None else texts.read(arguments.given)
    loading = {"device": arguments.device, "dtype": arguments.dtype, "trust_remote_code": arguments.trust_remote_code}
    model, tokenizer = load(arguments.model, **loading)
    models = load_further(model, options.extra_model_names(arguments), **loading)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bars: dict[str, Any] = {}

        def progress(what: str, done: int, of: int, loss: float | None) -> None:
            if what not in bars:
                bars[what] = bar.add_task(what, total=of)
            told = what if loss is None else f"{what}, loss {loss:.4f}"
            bar.update(bars[what], completed=done, description=told)

        try:
            result = distill(
                model, tokenizer, guidance, arguments.out, prompts=prompts, given=others, settings=settings,
                models=models, name=arguments.model, overwrite=arguments.overwrite, progress=progress,
            )  # fmt: skip
        except KeyboardInterrupt:
            print("stopped; the same command goes on where it was", file=sys.stderr)
            raise
    found: dict[str, Any] = {
        "out": str(result.folder), "steps": len(result.losses), "resumed": result.resumed, "seconds": result.seconds,
        "loss": {"first": result.losses[0], "last tenth": result.last_loss},
    }  # fmt: skip
    if not arguments.json:
        print(result)
    if arguments.evaluate:
        from textguide.eval.sweeps import verdict

        held = arguments.held_out or arguments.prompts
        shown = (
            None
            if held is None
            else [row.get("messages") or row.get("prompt") or row["text"] for row in texts.read(held)]
        )
        tasks = [one for one in (arguments.tasks or "").split(",") if one]
        judged = verdict.judge(
            model, tokenizer, guidance, arguments.out, prompts=shown, tasks=tasks, limit=arguments.limit,
            models=models, data=arguments.data,
        )  # fmt: skip
        found["verdict"] = judged
        if not arguments.json:
            verdict.show(judged)
    if arguments.json:
        print(json.dumps(files.plain(found)))
    return 0


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--scales {text!r} must be numbers with commas between them, such as 1,1.5,2") from None
