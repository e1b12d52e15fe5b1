"""``textguide distill``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..support import files
from ..support.options import add_options
from . import options
from .parser import add_command
from .progress import progress_bar
from .signatures import names_in, settings_of, values_of

SOURCE = "distillation/settings.py"
TEXTS = settings_of(
    SOURCE,
    "DistillSettings",
    "source texts tokens",
    source={
        "default": None,
        "help": "plain, guided, given, or shares such as plain=0.5,given=0.5 [given with --given, otherwise plain]",
    },
    texts={"help": "number of texts that are generated"},
    tokens={"help": "longest text, with its prompt"},
)
TRAINING = settings_of(
    SOURCE,
    "DistillSettings",
    "objective positions scales steps batch_size learning_rate rank seed targets mixed_precision",
    objective={"help": "forward-kl, reverse-kl, likelihood, cca, gft or model-guidance"},
    positions={
        "choices": names_in(SOURCE, "POSITIONS"),
        "help": "the tokens of a text that guidance acts on [all, if the guidance allows it]",
    },
    scales={"default": None, "metavar": "γ,γ…", "help": "train one adapter for several γ, such as 1,1.5,2"},
    steps={"help": "steps of the optimiser"},
    batch_size={"help": "texts per step"},
    learning_rate={"help": "highest learning rate of AdamW"},
    rank={"help": "rank of the LoRA"},
    seed={"help": "seed of the texts and of the training"},
    targets={"help": "modules to adapt, separated by commas"},
    mixed_precision={"choices": names_in(SOURCE, "PRECISIONS"), "help": "mixed precision of accelerate"},
)


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "distill",
        description="Train an adapter with which a model follows guidance without the cost of a second branch.",
        examples=(
            "distill smollm2 --guidance cfg:scale=1.5 --out ADAPTER",
            "distill smollm2 --scales 1,1.5,2 --out ADAPTER --evaluate",
            'generate "The dragon flew" --adapter ADAPTER --scale 1',
        ),
    )
    parser.add_argument("model", nargs="?", default="smollm2", help="as for --model of other commands [%(default)s]")
    parser.add_argument(
        "--guidance", default="cfg", metavar="METHOD", help="the guidance to learn, as for textguide generate [cfg]"
    )
    options.add_extra_model(parser)
    parser.add_argument("--out", required=True, metavar="ADAPTER", help="folder of the adapter")
    parser.add_argument("--overwrite", action="store_true", help="remove the adapter that is in --out first")
    add_options(parser, options.DEVICE)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    group = parser.add_argument_group("texts")
    group.add_argument(
        "--prompts", metavar="FILE", help="beginnings of texts: .txt, .jsonl, .csv, .parquet [single words]"
    )
    group.add_argument(
        "--given", metavar="FILE", help="texts for --source given, with columns prompt and completion, or text"
    )
    add_options(group, TEXTS)
    add_options(parser.add_argument_group("training"), TRAINING)
    group = parser.add_argument_group("evaluation")
    group.add_argument("--evaluate", action="store_true", help="compare plain, guided and distilled after training")
    group.add_argument("--held-out", metavar="FILE", help="prompts to evaluate on [--prompts, or single words]")
    group.add_argument("--tasks", metavar="TASKS", help="tasks to evaluate on, separated by commas")
    group.add_argument("--limit", type=int, default=200, help="items per task, and texts [%(default)s]")
    group.add_argument("--data", metavar="FOLDER", help="folder with the data of the tasks, as for textguide eval")
    parser.set_defaults(run=run_distill)


def run_distill(arguments: argparse.Namespace) -> int:
    """Train, save, evaluate, and report."""
    from ..distillation import distill, texts
    from ..forward.low_rank import peft
    from ..guidance import as_guidance
    from ..guidance.spec import parse
    from ..models.adapters import load_further
    from ..models.loading import load

    peft("textguide distill", "distill")
    if arguments.evaluate:
        options.evaluation("textguide distill --evaluate")
    guidance = as_guidance(parse(arguments.guidance))
    settings = _settings(arguments)
    if guidance is not None:
        settings.check(guidance)
    files.folder(arguments.out)
    prompts = _prompts(arguments.prompts)
    given = [] if arguments.given is None else texts.read(arguments.given)
    loading = values_of(options.DEVICE, arguments)
    model, tokenizer = load(arguments.model, **loading)
    models = load_further(model, options.extra_model_names(arguments), **loading)
    with progress_bar() as bar:
        tasks: dict[str, Any] = {}

        def progress(name: str, done: int, total: int, loss: float | None) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            description = name if loss is None else f"{name}, loss {loss:.4f}"
            bar.update(tasks[name], completed=done, description=description)

        try:
            result = distill(
                model,
                tokenizer,
                guidance,
                arguments.out,
                prompts=prompts,
                given=given,
                settings=settings,
                models=models,
                name=arguments.model,
                overwrite=arguments.overwrite,
                progress=progress,
            )
        except KeyboardInterrupt:
            print("stopped; the same command resumes", file=sys.stderr)
            raise
    report: dict[str, Any] = {
        "out": str(result.folder),
        "steps": len(result.losses),
        "resumed": result.resumed,
        "seconds": result.seconds,
        "loss": {"first": result.losses[0], "last tenth": result.last_loss},
    }
    if not arguments.json:
        print(result)
    if arguments.evaluate:
        report["verdict"] = _evaluate(arguments, model, tokenizer, guidance, models)
    if arguments.json:
        print(json.dumps(files.plain(report)))
    return 0


def _settings(arguments: argparse.Namespace) -> Any:
    from ..distillation import DistillSettings

    values = {**values_of(TEXTS, arguments), **values_of(TRAINING, arguments)}
    if values["source"] is None:
        values["source"] = "plain" if arguments.given is None else "given"
    values["scales"] = () if values["scales"] is None else _numbers(values["scales"])
    return DistillSettings(**values)


def _prompts(path: str | None) -> list[Any] | None:
    from ..distillation import texts

    if path is None:
        return None
    return [row.get("messages") or row.get("prompt") or row["text"] for row in texts.read(path)]


def _evaluate(arguments: argparse.Namespace, model: Any, tokenizer: Any, guidance: Any, models: Any) -> dict[str, Any]:
    """Compare plain, guided and distilled generation; print the comparison unless the output is JSON."""
    from textguide.eval.sweeps import verdict

    comparison: dict[str, Any] = verdict.judge(
        model,
        tokenizer,
        guidance,
        arguments.out,
        prompts=_prompts(arguments.held_out or arguments.prompts),
        tasks=[name for name in (arguments.tasks or "").split(",") if name],
        limit=arguments.limit,
        models=models,
        data=arguments.data,
    )
    if not arguments.json:
        verdict.show(comparison)
    return comparison


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--scales {text!r} must be numbers with commas between them, such as 1,1.5,2") from None
