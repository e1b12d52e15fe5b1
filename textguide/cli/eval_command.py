"""``textguide eval`` and ``textguide eval compare``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from ..models import small
from ..support import files
from ..support.options import add_options, from_arguments, named_values
from . import captioning_options, options


def add(commands: Any) -> None:
    """Add the command to the parser."""
    from textguide.eval.sweeps.options import SweepOptions

    parser = commands.add_parser(
        "eval",
        help="score guided models on tasks, many scales from one pass; `eval compare` compares runs",
        description="Score a model under guidance on lm-eval's tasks.",
        epilog="textguide eval compare RUN RUN… [--json] compares finished runs.",
    )
    parser.add_argument("--tasks", help="names of tasks, separated by commas; --list shows them")
    parser.add_argument(
        "--suite",
        choices=("methods",),
        help="methods: every guidance method on six measures, in one table; --limit is the number of items per task "
        "[200]",
    )
    parser.add_argument("--list", action="store_true", help="list textguide's own tasks and the guidances, and exit")
    group = parser.add_argument_group("guidance")
    group.add_argument("--scales", help="γ values of classifier-free guidance, separated by commas: 1,1.25,1.5")
    group.add_argument(
        "--guidance",
        action="append",
        default=[],
        help="a guidance with its fields, such as cfg:scale=1.5,schedule=linear, or a JSON file; may be repeated; "
        "--scales varies its scale",
    )
    group.add_argument(
        "--uncond",
        default="last-token",
        help="input of the unconditional branch: last-token, no-instruction or question-only [%(default)s]",
    )
    group.add_argument("--negative-prompt", help="text to move away from")
    group.add_argument("--paper", action="store_true", help="sum γ·lc + (1−γ)·lu without renormalising, as published")
    group = parser.add_argument_group("run")
    group.add_argument("--output", type=Path, help="results folder; an unfinished run in it is resumed")
    group.add_argument("--batch-size", default="16", help="rows that are read together, or auto [%(default)s]")
    add_options(group, SweepOptions)
    group.add_argument(
        "--backend",
        choices=("causal", "diffusion", "vllm"),
        default="causal",
        help="diffusion: --model is a masked diffusion model, such as sudoku4; vllm: an engine, for generation tasks "
        "[%(default)s]",
    )
    group.add_argument(
        "--backend-args",
        default="",
        metavar="NAME=VALUE,…",
        help="options of a diffusion model (steps, block_length, draws, order, threshold, temperature…) or of "
        "vLLM's LLM",
    )
    group.add_argument(
        "--plan",
        action="store_true",
        help="print an estimate of passes, tokens and hours, measured with one batch of each task, and write nothing",
    )
    group.add_argument("--json", action="store_true", help="print results as JSON")
    captioning_options.add(parser)
    options.add_model(parser)
    options.add_extra_model(parser)
    # The positional form `compare RUN RUN…`.
    parser.add_argument("compare", nargs="*", metavar="compare RUN", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the sweep, print its plan, or do one of the two things that do not need a model."""
    if arguments.compare:
        return _compare(arguments)
    if arguments.list:
        return _list()
    is_captioning = captioning_options.TASK in (arguments.tasks or "").split(",")
    if arguments.plan and (arguments.suite or is_captioning):
        raise ValueError("--plan works only with lm-eval's tasks; try a few items of the others with --limit")
    if arguments.suite:
        return _suite(arguments)
    if not arguments.tasks:
        raise ValueError("--tasks is missing; name some, such as --tasks lambada_mini, or see --list")
    settings = _settings(arguments)
    if arguments.output is not None and not arguments.plan:
        files.folder(arguments.output, "--output")
    if is_captioning:
        return _report(captioning_options.run(arguments, settings), arguments)
    room = options.evaluation("textguide eval")
    tasks = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
    sweep: dict[str, Any] = {
        "output": arguments.output,
        "options": from_arguments(room.SweepOptions, arguments),
        "model_args": _model_args(arguments),
    }
    if arguments.plan:
        plan = room.plan_sweep(tasks, settings, **sweep, progress=lambda line: print(line, file=sys.stderr))
        return _plan(plan, arguments)
    return _report(room.run_sweep(tasks, settings, **sweep, command=_command_line()), arguments)


def _command_line() -> str:
    return shlex.join(["textguide", *sys.argv[1:]])


def _plan(plan: Any, arguments: argparse.Namespace) -> int:
    if arguments.json:
        print(json.dumps({"work": [vars(work) for work in plan], "hours": sum(work.hours for work in plan)}))
        return 0
    from rich.console import Console

    from ..support.tables import of_plan

    rows = []
    for work in plan:
        names = [work.task, work.label, f"{work.requests:,}", f"{work.kept:,}"]
        rows.append((names, (work.passes, work.tokens, work.hours)))
    header = ["task", "guidance", "to do", "done"]
    Console().print(of_plan("estimate for this machine, with texts of the largest length", header, rows, "all"))
    return 0


def _report(result: Any, arguments: argparse.Namespace) -> int:
    if result is None:
        return 0
    if arguments.json:
        from textguide.eval import run_to_dict

        print(json.dumps(run_to_dict(result), ensure_ascii=False))
    else:
        _show(result, arguments.output)
    return 0


def _suite(arguments: argparse.Namespace) -> int:
    """Every method on the same tasks."""
    for name in ("tasks", "scales", "negative_prompt"):
        if getattr(arguments, name):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} excludes --suite, which has its own tasks and settings; leave one out")
    if arguments.output is None:
        raise ValueError("--suite needs --output FOLDER for its table")
    room = options.evaluation("textguide eval")
    from textguide.eval.sweeps.method_comparison import compare_methods

    arguments.limit = 200 if arguments.limit is None else arguments.limit
    comparison = compare_methods(
        output=arguments.output,
        options=from_arguments(room.SweepOptions, arguments),
        model_args=_model_args(arguments),
        methods=arguments.guidance or None,
        command=_command_line(),
    )
    if arguments.json:
        print(json.dumps(comparison, ensure_ascii=False))
    else:
        print((arguments.output / "methods.md").read_text(encoding="utf-8"))
    return 0


def _settings(arguments: argparse.Namespace) -> list[Any]:
    from ..guidance import CFG, Guidance, with_scale
    from ..guidance.spec import parse

    guidances: list[Guidance] = [parse(text, imports=True) for text in arguments.guidance]
    fields: dict[str, Any] = {}
    if arguments.negative_prompt is not None:
        fields["negative_prompt"] = arguments.negative_prompt
    if arguments.paper:
        fields["renormalize"] = False
    if guidances and fields:
        raise ValueError("--negative-prompt and --paper describe the default guidance; put them into --guidance")
    if arguments.scales is None:
        return list(guidances) if guidances else [None, CFG(**fields)]
    scales = _numbers("--scales", arguments.scales)
    settings: list[Any] = []
    for guidance in guidances or [CFG(**fields)]:
        settings += [with_scale(guidance, scale) for scale in scales]
    return settings


def _numbers(flag: str, text: str) -> list[float]:
    values = []
    for part in text.split(","):
        try:
            values.append(float(part))
        except ValueError as error:
            raise ValueError(f"{flag} {text}: {part!r} is not a number; separate numbers by commas") from error
    if len(set(values)) < len(values):
        raise ValueError(f"{flag} {text} has a number twice; leave one out")
    return values


def _model_args(arguments: argparse.Namespace) -> dict[str, Any]:
    batch = arguments.batch_size
    if batch != "auto" and not (batch.isdigit() and int(batch) > 0):
        raise ValueError(f"--batch-size {batch} must be a whole number of 1 or more, or auto")
    if arguments.adapter_scale is not None:
        raise ValueError("--adapter-scale works with --guidance here: write --guidance cfg:scale=γ,distilled=FOLDER")
    values: dict[str, Any] = {
        "pretrained": arguments.model,
        "batch_size": batch if batch == "auto" else int(batch),
        "uncond": arguments.uncond,
        "trust_remote_code": arguments.trust_remote_code,
    }
    models = options.extra_model_names(arguments)
    if models:
        values["models"] = models
    values |= _backend_args(arguments)
    if arguments.adapter:
        if "backend" in values or arguments.model in small.NAMES:
            raise ValueError("--adapter works with a model that transformers loads; leave it or the other out")
        values["peft"] = arguments.adapter
    if arguments.device:
        values["device"] = arguments.device
    if arguments.dtype:
        values["dtype"] = arguments.dtype
    if arguments.device_map:
        values["parallelize"] = True
    return values


def _backend_args(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.backend == "causal":
        if arguments.backend_args:
            raise ValueError(f"--backend-args {arguments.backend_args} needs --backend diffusion or vllm")
        return {}
    if arguments.extra_model and arguments.backend == "vllm":
        raise ValueError("--extra-model does not work with --backend vllm; leave it out")
    return {"backend": arguments.backend, **named_values(arguments.backend_args, "--backend-args")}


def _show(result: Any, output: Path | None) -> None:
    from rich.console import Console

    from ..support.tables import in_blocks

    columns = []
    for task in result.task_names:
        for metric in result.get(task, result.labels[0]).metrics:
            columns.append((task, metric))
    rows = []
    for label in result.labels:
        cells = []
        for task, metric in columns:
            entry = result.get(task, label)
            value = None if entry is None else entry.metrics.get(metric)
            cells.append("–" if value is None or value.value is None else _interval(value))
        rows.append([label, *cells])
    header = ["guidance", *(f"{task}\n{metric.removesuffix(',none')}" for task, metric in columns)]
    console = Console()
    for table in in_blocks("95% intervals", header, rows, 1, console.width):
        console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if output is not None:
        print(f"wrote {output}: report.md, results.json and plots")


def _interval(value: Any) -> str:
    if value.value >= 100:
        return f"{value.value:.0f}"
    if value.low is None or value.high is None:
        return f"{value.value:.3f}"
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _list() -> int:
    from rich.console import Console
    from rich.table import Table

    from textguide.tasks import catalogue

    from ..guidance import Guidance

    console = Console()
    table = Table(box=None, pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("data, under --data or $TEXTGUIDE_DATA", overflow="fold")
    for name in catalogue.names():
        table.add_row(name, catalogue.needed(name))
    table.add_row(captioning_options.TASK, "--data: a folder of images with captions, or COCO's annotations")
    console.print(table)
    console.print("Every other task of lm-eval works under its name, and loads its data from the hub.\n")
    console.print(f"guidances (`textguide methods`): {', '.join(sorted(Guidance.registry))}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    word, *folders = arguments.compare
    if word != "compare":
        raise ValueError(f"{word!r} is not a subcommand of eval; write --tasks {word}, or compare RUN RUN")
    if len(folders) < 2:
        raise ValueError(f"compare needs two results folders or more, and got {len(folders)}")
    from rich.console import Console

    from textguide.eval import compare_folders

    comparison = compare_folders(folders)
    if arguments.json:
        print(json.dumps(comparison.to_dict(), ensure_ascii=False))
    else:
        console = Console()
        for table in comparison.to_rich(console.width):
            console.print(table)
    return 0
