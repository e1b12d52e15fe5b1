"""``textguide batch``: guided generation and scoring over files of many rows."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from . import constraint_options, options

EPILOG = """\
A run that was killed goes on where it was when the same command is given again. `pandas.read_parquet(FOLDER)` reads the
results; their column `row` has the number of the row, counted over all files from 0.
"""


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "batch", help="continue or score the rows of files, with many replicas of a model", description=__doc__,
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("source", nargs="+", help="files that end in .jsonl, .csv or .parquet, or folders of these")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the results, in Parquet")
    parser.add_argument("--task", choices=("generate", "score"), default="generate", help="[%(default)s]")
    parser.add_argument("--backend", choices=("transformers", "vllm"), help="[vllm where it can]")
    parser.add_argument(
        "--engine-args", default="", metavar="NAME=VALUE,…", help="of vLLM's LLM, such as max_model_len=2048"
    )
    parser.add_argument("--system", help="system prompt; makes every prompt a chat")
    group = parser.add_argument_group("columns")
    group.add_argument("--prompt-column", default="prompt", metavar="NAME", help="[%(default)s]")
    group.add_argument("--continuation-column", default="continuation", metavar="NAME", help="to score [%(default)s]")
    group.add_argument("--negative-prompt-column", metavar="NAME", help="each row's own negative prompt")
    group.add_argument("--guidance-column", metavar="NAME", help="each row's own guidance, as a line or JSON")
    group.add_argument("--keep", action="append", default=[], metavar="NAME", help="column to write too, repeatable")
    group = parser.add_argument_group("how")
    group.add_argument("--replicas", type=int, default=1, help="copies of the model [%(default)s]")
    group.add_argument("--rows-per-shard", type=int, default=1000, help="rows written together [%(default)s]")
    group.add_argument("--batch-size", type=int, default=32, help="rows decoded at once by transformers [%(default)s]")
    group.add_argument("--cpus", type=float, default=1.0, help="cores of a replica [%(default)g]")
    group.add_argument("--gpus", type=float, help="GPUs of a replica [1 where there is any]")
    group.add_argument("--address", help="of a Ray cluster; auto for the one that this machine belongs to")
    group.add_argument("--dry-run", action="store_true", help="say how much there is to do, and stop")
    group.add_argument(
        "--plain", action="append", default=[], metavar="N=RATE",
        help="with --dry-run: tokens a second that one replica writes without guidance with N requests at once; given "
        "twice or more, the time of the run is estimated",
    )  # fmt: skip
    group.add_argument("--json", action="store_true", help="print the outcome as JSON")
    options.add_model(parser)
    options.add_guidance(parser)
    constraint_options.add_sampling(parser, every_text=False)
    options.add_decoding(parser, 128)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do the rows that are missing, or say how many these are."""
    from textguide.logits_processors.vllm_plugin.constraints import ENGINE

    from .. import batch
    from ..guidance import as_guidance

    backend = arguments.backend or batch.default_backend(arguments.task)
    engine = None if backend == "transformers" else ENGINE
    guidance = as_guidance(constraint_options.constrained(arguments, options.guidance(arguments), engine))
    decoding = options.decoding(arguments)
    seed = decoding.pop("seed") or 0
    settings = batch.Settings(
        task=arguments.task,
        model=arguments.model,
        guidance=None if guidance is not None and guidance.is_neutral else guidance,
        backend=backend,
        columns=batch.Columns(
            arguments.prompt_column, arguments.continuation_column, arguments.negative_prompt_column,
            arguments.guidance_column, tuple(arguments.keep),
        ),
        options={} if arguments.task == "score" else decoding,
        system=arguments.system,
        seed=seed,
        models=options.extra_model_names(arguments),
        load=_load(arguments, backend),
        rows_per_shard=arguments.rows_per_shard,
    )  # fmt: skip
    if arguments.dry_run:
        found = batch.estimate(
            settings, arguments.source, arguments.out, plain=_plain(arguments.plain), replicas=arguments.replicas,
            places=None if backend == "vllm" else arguments.batch_size,
        )  # fmt: skip
        print(json.dumps(found.__dict__) if arguments.json else _told(found))
        return 0
    if arguments.plain:
        raise ValueError("--plain goes with --dry-run; add it")
    summary = _run(batch, settings, arguments)
    print(json.dumps(summary.__dict__) if arguments.json else _outcome(summary))
    return 0


def _run(batch: Any, settings: Any, arguments: argparse.Namespace) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn(arguments.task), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), disable=not sys.stderr.isatty(),
    )  # fmt: skip
    with bar:
        task = bar.add_task(arguments.task, total=None)

        def progress(done: int, rows: int) -> None:
            bar.update(task, completed=done, total=rows)
            if bar.disable:
                print(f"{done} of {rows} rows", file=sys.stderr, flush=True)

        return batch.run(
            settings, arguments.source, arguments.out, replicas=arguments.replicas, batch_size=arguments.batch_size,
            cpus=arguments.cpus, gpus=arguments.gpus, address=arguments.address, progress=progress,
        )  # fmt: skip


def _load(arguments: argparse.Namespace, backend: str) -> dict[str, Any]:
    """What every replica loads its model with."""
    names = ("device", "dtype", "device_map", "adapter", "adapter_scale")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.trust_remote_code:
        given["trust_remote_code"] = True
    if backend != "vllm":
        if arguments.engine_args:
            raise ValueError(f"--engine-args {arguments.engine_args} goes with --backend vllm; leave it out")
        return given
    for name in ("device", "device_map", "adapter", "adapter_scale"):
        if name in given:
            raise ValueError(f"--{name.replace('_', '-')} does not go with --backend vllm; leave it out")
    for part in filter(None, arguments.engine_args.split(",")):
        name, equals, text = part.partition("=")
        if not equals:
            raise ValueError(f"--engine-args {part!r} must be NAME=VALUE")
        try:
            given[name] = json.loads(text)
        except ValueError:
            given[name] = {"True": True, "False": False}.get(text, text)
    return given


def _plain(given: list[str]) -> dict[int, float]:
    found = {}
    for text in given:
        number, _, rate = text.partition("=")
        try:
            found[int(number)] = float(rate)
        except ValueError as error:
            raise ValueError(f"--plain {text!r} must be N=RATE, such as 8=114") from error
        if found[int(number)] <= 0 or int(number) < 1:
            raise ValueError(f"--plain {text!r} must be above 0")
    return found


def _told(found: Any) -> str:
    lines = [
        f"{found.rows} rows in {found.shards} shards, {found.left} rows left",
        f"a row: {found.prompt:.0f} tokens of prompt, {found.branches:.2g} extra branches that read "
        f"{found.branch_tokens:.0f} tokens, {found.new:.0f} tokens to write or score at most",
        f"rows through the model, one a token and branch: {found.passes:.3g} at most",
    ]
    if found.wrong:
        lines.append(f"{found.wrong:.0%} of the rows that were looked at have an error")
    if found.seconds is not None:
        lines.append(f"about {_time(found.seconds)} at most, by the cost model")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    units = ((86400, "days"), (3600, "hours"), (60, "minutes"))
    return next((f"{seconds / size:.1f} {name}" for size, name in units if seconds >= size), f"{seconds:.0f} seconds")


def _outcome(summary: Any) -> str:
    errors = f", {summary.errors} of them with an error" if summary.errors else ""
    return f"{summary.done} of {summary.rows} rows{errors}, {summary.tokens} tokens, in {summary.folder}"
