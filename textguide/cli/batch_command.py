"""``textguide batch``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..support import files
from ..support.options import add_options, named_values
from . import constraint_options, options
from .parser import add_command
from .progress import progress_bar
from .signatures import names_in, settings_of, values_of

COLUMNS = settings_of(
    "batch/settings.py",
    "Columns",
    "prompt continuation negative_prompt guidance",
    prompt={"name": "prompt_column", "metavar": "NAME", "help": "prompts"},
    continuation={"name": "continuation_column", "metavar": "NAME", "help": "continuations, for --task score"},
    negative_prompt={"name": "negative_prompt_column", "metavar": "NAME", "help": "a negative prompt per row"},
    guidance={"name": "guidance_column", "metavar": "NAME", "help": "a guidance per row, as a line or JSON"},
)
RUN = settings_of(
    "batch/__init__.py",
    "generate",
    "replicas rows_per_shard batch_size cpus gpus address",
    replicas={"help": "copies of the model"},
    rows_per_shard={"help": "rows per file of the results"},
    batch_size={"help": "rows per batch of a transformers model"},
    cpus={"help": "cores per replica"},
    gpus={"help": "GPUs per replica [1 if there is a GPU]"},
    address={"help": "address of a Ray cluster; auto: the one that this machine belongs to"},
)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "batch",
        description="Continue or score the rows of files under guidance, with many replicas of a model. If a run is "
        "killed, the same command resumes it. pandas.read_parquet(FOLDER) reads the results; their column row is the "
        "number of the row, counted over all files from 0.",
        examples=(
            "batch prompts.jsonl --out FOLDER --scale 1.5 --replicas 4",
            "batch prompts.jsonl --out FOLDER --dry-run",
            "batch pairs.csv --out FOLDER --task score --guidance cfg:scale=2",
        ),
    )
    parser.add_argument("source", nargs="+", help="files that end in .jsonl, .csv or .parquet, or folders of these")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the results, in Parquet")
    parser.add_argument(
        "--task",
        choices=names_in("batch/settings.py", "TASKS"),
        default="generate",
        help="generate continues prompts; score computes the likelihood of continuations [%(default)s]",
    )
    parser.add_argument(
        "--backend",
        choices=names_in("batch/settings.py", "BACKENDS"),
        help="what runs the model [vllm if it is installed and supports the task]",
    )
    parser.add_argument(
        "--engine-args", default="", metavar="NAME=VALUE,…", help="options of vLLM's LLM, such as max_model_len=2048"
    )
    parser.add_argument("--system", help="system prompt; makes every prompt a chat")
    group = parser.add_argument_group("columns")
    add_options(group, COLUMNS)
    group.add_argument(
        "--keep", action="append", default=[], metavar="NAME", help="also write this column; may be repeated"
    )
    group = parser.add_argument_group("run")
    add_options(group, RUN)
    group.add_argument("--dry-run", action="store_true", help="print how much work there is, and stop")
    group.add_argument(
        "--plain",
        action="append",
        default=[],
        metavar="N=RATE",
        help="with --dry-run: tokens per second of one replica without guidance, with N requests at a time; if it is "
        "given twice or more, the time of the run is estimated",
    )
    group.add_argument("--json", action="store_true", help="print the outcome as JSON")
    options.add_model(parser)
    options.add_guidance(parser)
    constraint_options.add_sampling(parser, every_text=False)
    options.add_decoding(parser, 128)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Do the missing rows, or estimate the work."""
    from textguide.logits_processors.vllm_plugin.constraints import ENGINE

    from .. import batch
    from ..guidance import as_guidance

    backend = arguments.backend or batch.default_backend(arguments.task)
    engine = None if backend == "transformers" else ENGINE
    guidance = as_guidance(constraint_options.constrained(arguments, options.guidance(arguments), engine))
    if guidance is not None and guidance.is_neutral:
        guidance = None
    decoding = options.decoding(arguments)
    seed = decoding.pop("seed") or 0
    settings = batch.Settings(
        task=arguments.task,
        model=arguments.model,
        guidance=guidance,
        backend=backend,
        columns=batch.Columns(**values_of(COLUMNS, arguments), keep=tuple(arguments.keep)),
        options={} if arguments.task == "score" else decoding,
        system=arguments.system,
        seed=seed,
        models=options.extra_model_names(arguments),
        load=_load(arguments, backend),
        rows_per_shard=arguments.rows_per_shard,
    )
    if arguments.dry_run:
        estimate = batch.estimate(
            settings,
            arguments.source,
            arguments.out,
            plain=_plain(arguments.plain),
            replicas=arguments.replicas,
            places=None if backend == "vllm" else arguments.batch_size,
        )
        print(json.dumps(estimate.__dict__) if arguments.json else _estimate(estimate))
        return 0
    if arguments.plain:
        raise ValueError("--plain needs --dry-run; add it")
    files.folder(arguments.out)
    summary = _run(batch, settings, arguments)
    print(json.dumps(summary.__dict__) if arguments.json else _outcome(summary))
    return 0


def _run(batch: Any, settings: Any, arguments: argparse.Namespace) -> Any:
    options = values_of(RUN, arguments)
    del options["rows_per_shard"]  # it is one of the settings
    with progress_bar(transient=False) as bar:
        task = bar.add_task(arguments.task, total=None)

        def progress(done: int, rows: int) -> None:
            bar.update(task, completed=done, total=rows)
            if bar.disable:
                print(f"{done} of {rows} rows", file=sys.stderr, flush=True)

        return batch.run(settings, arguments.source, arguments.out, **options, progress=progress)


def _load(arguments: argparse.Namespace, backend: str) -> dict[str, Any]:
    """The options with which every replica loads its model."""
    names = ("device", "dtype", "device_map", "adapter", "adapter_scale")
    load = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.trust_remote_code:
        load["trust_remote_code"] = True
    if backend != "vllm":
        if arguments.engine_args:
            raise ValueError(f"--engine-args {arguments.engine_args} needs --backend vllm; leave it out")
        return load
    for name in ("device", "device_map", "adapter", "adapter_scale"):
        if name in load:
            raise ValueError(f"--{name.replace('_', '-')} does not work with --backend vllm; leave it out")
    return load | named_values(arguments.engine_args, "--engine-args")


def _plain(texts: list[str]) -> dict[int, float]:
    """Tokens per second by number of requests."""
    rates = {}
    for text in texts:
        left, _, right = text.partition("=")
        try:
            number = int(left)
            rate = float(right)
        except ValueError as error:
            raise ValueError(f"--plain {text!r} must be N=RATE, such as 8=114") from error
        if rate <= 0 or number < 1:
            raise ValueError(f"--plain {text!r} must be above 0")
        rates[number] = rate
    return rates


def _estimate(estimate: Any) -> str:
    lines = [
        f"{estimate.rows} rows in {estimate.shards} shards, {estimate.left} rows left",
        f"per row: a prompt of {estimate.prompt:.0f} tokens, {estimate.branches:.2g} extra branches that read "
        f"{estimate.branch_tokens:.0f} tokens, at most {estimate.new:.0f} tokens to generate or score",
        f"rows that the model reads, one per token and branch: at most {estimate.passes:.3g}",
    ]
    if estimate.wrong:
        lines.append(f"{estimate.wrong:.0%} of the rows in the sample have an error")
    if estimate.seconds is not None:
        lines.append(f"at most about {_time(estimate.seconds)}, according to the cost model")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} seconds"


def _outcome(summary: Any) -> str:
    errors = f", {summary.errors} of them with an error" if summary.errors else ""
    return f"{summary.done} of {summary.rows} rows{errors}, {summary.tokens} tokens, in {summary.folder}"
