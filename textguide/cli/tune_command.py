"""``textguide tune``."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from ..support import files
from . import options

UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "tune",
        help="choose scale, schedule and window on one half of a task's items, and report on the other",
        description="Successive halving over scales, schedules and windows of a guidance, within a budget of time.",
    )
    parser.add_argument(
        "--guidance",
        action="append",
        help="what is tuned, with its other fields; may be repeated to choose among several, such as "
        "token-prior:prior=smollm2 [cfg]",
    )
    parser.add_argument("--task", required=True, help="a task, as for textguide eval")
    parser.add_argument("--metric", help="as lm-eval names it, such as acc,none [the task's first]")
    parser.add_argument("--budget", default="30m", help="time, such as 90s, 30m or 2h [%(default)s]")
    parser.add_argument("--scales", help="what is tried, separated by commas")
    parser.add_argument("--schedules", help="what is tried, separated by commas")
    parser.add_argument("--windows", help="what is tried: START-STOP, separated by commas, such as 0-1,0-0.5")
    parser.add_argument("--output", type=Path, required=True, help="folder; a killed run goes on where it was")
    parser.add_argument("--data", help="folder with local data files [$TEXTGUIDE_DATA]")
    parser.add_argument("--limit", type=int, help="most items, choice and report together")
    parser.add_argument("--batch-size", type=int, default=16, help="rows read at once [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options.add_model(parser)
    options.add_extra_model(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Tune, and report the chosen setting."""
    from ..guidance.spec import parse

    sweep_options = options.evaluation("textguide tune").SweepOptions
    from textguide.eval.sweeps import tuning

    files.folder(arguments.output, "--output")
    tried: dict[str, Any] = {}
    if arguments.scales:
        tried["scales"] = [_number("--scales", text) for text in arguments.scales.split(",")]
    if arguments.schedules:
        tried["schedules"] = arguments.schedules.split(",")
    if arguments.windows:
        tried["windows"] = [_window(text) for text in arguments.windows.split(",")]
    model_args: dict[str, Any] = {
        "pretrained": arguments.model,
        "batch_size": arguments.batch_size,
        "trust_remote_code": arguments.trust_remote_code,
    }
    for name in ("device", "dtype"):
        if getattr(arguments, name):
            model_args[name] = getattr(arguments, name)
    if models := options.extra_model_names(arguments):
        model_args["models"] = models
    found = tuning.tune(
        [parse(text, imports=True) for text in arguments.guidance or ["cfg"]],
        arguments.task,
        budget=seconds(arguments.budget),
        output=arguments.output,
        metric=arguments.metric,
        limit=arguments.limit,
        options=sweep_options(data=arguments.data, seed=arguments.seed),
        model_args=model_args,
        progress=lambda line: None if arguments.json else print(line, flush=True),
        **tried,
    )
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _show(found, arguments.output)
    return 0


def seconds(text: str) -> float:
    """``30m`` in seconds.

    Raises:
        ValueError: it is no time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError(f"--budget {text} is no time; write 90s, 30m or 2h")
    return float(match[1]) * UNITS[match[2]]


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{option}: {text!r} is no number; separate numbers by commas") from error


def _window(text: str) -> tuple[float, float]:
    start, dash, stop = text.partition("-")
    if not dash:
        raise ValueError(f"--windows: {text!r} is no window; write START-STOP, such as 0-0.5")
    return _number("--windows", start), _number("--windows", stop)


def _show(found: dict[str, Any], output: Path) -> None:
    reported, difference = found["reported"], found["difference"]
    print(f"chosen among {found['candidates']} on {found['items']['chose']} items: {found['chosen']}")
    print(
        f"  there {found['selected']:.4f}, which the choice flatters (it wins in {found['stability']:.0%} of resamples)"
    )
    print(
        f"  on {found['items']['report']} other items {reported['mean']:.4f} "
        f"[{reported['low']:.4f}, {reported['high']:.4f}], plain {found['plain']['mean']:.4f}; "
        f"difference {difference['difference']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"
    )
    print(f"wrote {output / 'tuning.json'}")
