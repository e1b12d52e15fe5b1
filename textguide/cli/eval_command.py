"""``textguide eval`` and ``textguide eval compare``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from ..models import small
from . import captioning_options, options


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "eval",
        help="score guided models on tasks, many scales from one pass; `eval compare` puts runs side by side",
        description="Score a model under guidance on lm-eval's tasks.",
        epilog="textguide eval compare RUN RUN… [--json] puts finished runs side by side.",
    )
    parser.add_argument("--tasks", help="task names, separated by commas; --list shows them")
    parser.add_argument(
        "--suite",
        choices=("methods",),
        help="methods: every guidance method on six measures, in one table; --limit sets the items a task [200]",
    )
    parser.add_argument("--list", action="store_true", help="list textguide's own tasks and the guidances, and stop")
    group = parser.add_argument_group("guidance")
    group.add_argument("--scales", help="γ values of classifier-free guidance, separated by commas: 1,1.25,1.5")
    group.add_argument(
        "--guidance",
        action="append",
        default=[],
        help="a guidance with its fields, such as cfg:scale=1.5,schedule=linear, or a JSON file; may be repeated; "
        "with --scales its scale is varied",
    )
    group.add_argument(
        "--uncond",
        default="last-token",
        help="what the other branch reads: last-token, no-instruction or question-only [%(default)s]",
    )
    group.add_argument("--negative-prompt", help="text to move away from")
    group.add_argument("--paper", action="store_true", help="sum γ·lc + (1−γ)·lu without renormalising, as published")
    group = parser.add_argument_group("run")
    group.add_argument("--data", help="folder with local data files [$TEXTGUIDE_DATA]")
    group.add_argument("--output", type=Path, help="results folder; a killed run goes on where it was")
    group.add_argument("--limit", type=int, help="items a task [all]")
    group.add_argument("--num-fewshot", type=int, help="examples in front of each question [the task's own]")
    group.add_argument("--repeats", type=int, help="samples an item, for self-consistency and pass@k")
    group.add_argument("--gen-kwargs", default="", metavar="NAME=VALUE,…", help="in place of the tasks' own generation "
                       "options, such as max_gen_toks=32,temperature=0.7")  # fmt: skip
    group.add_argument("--batch-size", default="16", help="rows read at once, or auto [%(default)s]")
    group.add_argument("--apply-chat-template", action="store_true", help="put requests into the chat template")
    group.add_argument("--system", help="system prompt")
    group.add_argument("--samples", action="store_true", help="keep every request and answer in samples.jsonl")
    group.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    group.add_argument("--select-on", default="first-half", help="items that choose the best scale: first-half, "
                       "second-half, all or none [%(default)s]")  # fmt: skip
    group.add_argument("--confirm-run-unsafe-code", action="store_true", help="let HumanEval run what the model wrote")
    group.add_argument(
        "--backend",
        choices=("causal", "diffusion", "vllm"),
        default="causal",
        help="diffusion: --model is a masked diffusion model, such as sudoku4; vllm: generation tasks by an engine "
        "[%(default)s]",
    )
    group.add_argument(
        "--backend-args",
        default="",
        metavar="NAME=VALUE,…",
        help="of a diffusion model: steps, block_length, draws, order, threshold, temperature…; of vLLM: its LLM's",
    )
    group.add_argument("--plan", action="store_true", help="print passes, tokens and hours, as one batch of each task "
                       "tells, and write nothing")  # fmt: skip
    group.add_argument("--json", action="store_true", help="print results as JSON")
    captioning_options.add(parser)
    options.add_model(parser)
    options.add_extra_model(parser)
    parser.set_defaults(run=run)
    add_compare(parser)


def add_compare(parser: argparse.ArgumentParser) -> None:
    """The positional form ``compare RUN RUN…``."""
    parser.add_argument("compare", nargs="*", metavar="compare RUN", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    """Run the sweep, or one of the two things that need no model."""
    if arguments.compare:
        return _compare(arguments)
    if arguments.list:
        return _list()
    if arguments.plan and (arguments.suite or captioning_options.TASK in (arguments.tasks or "").split(",")):
        raise ValueError("--plan works with lm-eval's tasks; try a few items of the others with --limit")
    if arguments.suite:
        return _suite(arguments)
    if not arguments.tasks:
        raise ValueError("--tasks is missing; name some, such as --tasks lambada_mini, or see --list")
    settings = _settings(arguments)
    if captioning_options.TASK in arguments.tasks.split(","):
        return _report(captioning_options.run(arguments, settings), arguments)
    try:
        from textguide.eval import SweepOptions, plan_sweep, run_sweep
    except ImportError as error:
        from ..support.errors import MissingExtraError

        raise MissingExtraError(str(error.name), "eval", "textguide eval") from error
    tasks = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
    given: dict[str, Any] = {
        "output": arguments.output,
        "options": SweepOptions(**_sweep_options(arguments)),
        "model_args": _model_args(arguments),
    }
    if arguments.plan:
        return _plan(plan_sweep(tasks, settings, **given, said=lambda line: print(line, file=sys.stderr)), arguments)
    return _report(run_sweep(tasks, settings, **given, command=shlex.join(["textguide", *sys.argv[1:]])), arguments)


def _plan(plan: Any, arguments: argparse.Namespace) -> int:
    if arguments.json:
        print(json.dumps({"work": [vars(one) for one in plan], "hours": sum(one.hours for one in plan)}))
        return 0
    from rich.console import Console

    from ..support.tables import of_plan

    rows = [
        ([one.task, one.label, f"{one.requests:,}", f"{one.kept:,}"], (one.passes, one.tokens, one.hours))
        for one in plan
    ]
    names = ["task", "guidance", "to do", "done"]
    Console().print(of_plan("what it takes here, texts as long as they may be", names, rows, "all"))
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


def _sweep_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "data": arguments.data,
        "limit": _positive("--limit", arguments.limit),
        "num_fewshot": arguments.num_fewshot,
        "repeats": _positive("--repeats", arguments.repeats),
        "apply_chat_template": arguments.apply_chat_template,
        "system_instruction": arguments.system,
        "log_samples": arguments.samples,
        "gen_kwargs": _named_values(arguments.gen_kwargs, "--gen-kwargs") or None,
        "seed": arguments.seed,
        "confirm_run_unsafe_code": arguments.confirm_run_unsafe_code,
        "select_on": None if arguments.select_on == "none" else arguments.select_on,
    }


def _suite(arguments: argparse.Namespace) -> int:
    """Every method on the same tasks."""
    for name in ("tasks", "scales", "negative_prompt"):
        if getattr(arguments, name):
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} excludes --suite, which has its own tasks and settings; leave one out")
    if arguments.output is None:
        raise ValueError("--suite needs --output FOLDER for its table")
    try:
        from textguide.eval import SweepOptions
        from textguide.eval.sweeps.method_comparison import compare_methods
    except ImportError as error:
        from ..support.errors import MissingExtraError

        raise MissingExtraError(str(error.name), "eval", "textguide eval") from error
    arguments.limit = 200 if arguments.limit is None else arguments.limit
    found = compare_methods(
        output=arguments.output,
        options=SweepOptions(**_sweep_options(arguments)),
        model_args=_model_args(arguments),
        methods=arguments.guidance or None,
        command=shlex.join(["textguide", *sys.argv[1:]]),
    )
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print((arguments.output / "methods.md").read_text(encoding="utf-8"))
    return 0


def _settings(arguments: argparse.Namespace) -> list[Any]:
    from ..guidance import CFG, Guidance, with_scale
    from ..guidance.spec import parse

    given: list[Guidance] = [parse(text, imports=True) for text in arguments.guidance]
    common = {"negative_prompt": arguments.negative_prompt, "renormalize": not arguments.paper}
    common = {key: value for key, value in common.items() if value is not None and not (key == "renormalize" and value)}
    if not given:
        given = [CFG(**common)]
    elif common:
        raise ValueError("--negative-prompt and --paper describe the default guidance; put them into --guidance")
    if arguments.scales is None:
        return [None, *given] if not arguments.guidance else list(given)
    scales = _numbers("--scales", arguments.scales)
    settings: list[Any] = []
    for guidance in given:
        settings += [with_scale(guidance, scale) for scale in scales]
    return settings


def _numbers(name: str, text: str) -> list[float]:
    values = []
    for part in text.split(","):
        try:
            values.append(float(part))
        except ValueError as error:
            raise ValueError(f"{name} {text}: {part!r} is no number; separate numbers by commas") from error
    if len(set(values)) < len(values):
        raise ValueError(f"{name} {text} has a number twice; leave one out")
    return values


def _positive(name: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ValueError(f"{name} {value} must be 1 or more")
    return value


def _model_args(arguments: argparse.Namespace) -> dict[str, Any]:
    batch = arguments.batch_size
    if batch != "auto" and not (batch.isdigit() and int(batch) > 0):
        raise ValueError(f"--batch-size {batch} must be a whole number of 1 or more, or auto")
    values: dict[str, Any] = {
        "pretrained": arguments.model,
        "batch_size": batch if batch == "auto" else int(batch),
        "uncond": arguments.uncond,
        "trust_remote_code": arguments.trust_remote_code,
    }
    if models := options.extra_model_names(arguments):
        values["models"] = models
    if arguments.backend in ("diffusion", "vllm"):
        if models and arguments.backend == "vllm":
            raise ValueError("--extra-model does not work with --backend vllm; leave it out")
        values |= {"backend": arguments.backend, **_named_values(arguments.backend_args, "--backend-args")}
    elif arguments.backend_args:
        raise ValueError(f"--backend-args {arguments.backend_args} needs --backend diffusion or vllm")
    if arguments.adapter_scale is not None:
        raise ValueError("--adapter-scale works with --guidance here: write --guidance cfg:scale=γ,distilled=FOLDER")
    if arguments.adapter:
        if arguments.backend in ("diffusion", "vllm") or arguments.model in small.NAMES:
            raise ValueError("--adapter works with a model that transformers loads; leave it or the other out")
        values["peft"] = arguments.adapter
    if arguments.device:
        values["device"] = arguments.device
    if arguments.dtype:
        values["dtype"] = arguments.dtype
    if arguments.device_map:
        values["parallelize"] = True
    return values


def _named_values(text: str, option: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{option} {text}: write NAME=VALUE, separated by commas")
        try:
            values[name.strip()] = json.loads(value)
        except ValueError:
            values[name.strip()] = value
    return values


def _show(result: Any, output: Path | None) -> None:
    from rich.console import Console

    from ..support.tables import in_blocks

    columns = [(task, metric) for task in result.task_names for metric in result.get(task, result.labels[0]).metrics]
    rows = []
    for label in result.labels:
        cells = []
        for task, metric in columns:
            found = result.get(task, label)
            value = found.metrics.get(metric) if found is not None else None
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
    text = f"{value.value:.3f}" if value.value < 100 else f"{value.value:.0f}"
    if value.low is None or value.high is None:
        return text
    return f"{text} [{value.low:.3f}, {value.high:.3f}]" if value.value < 100 else text


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
    console.print("Every other task of lm-eval works by its name, and loads its data from the hub.\n")
    console.print(f"guidances (`textguide methods`): {', '.join(sorted(Guidance.registry))}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    word, *folders = arguments.compare
    if word != "compare":
        raise ValueError(f"{word!r} is no subcommand of eval; write --tasks {word}, or compare RUN RUN")
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
