"""``textguide generate``."""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

from ..support.checks import whole_number
from . import constraint_options, options
from .parser import add_command
from .progress import PromptProgress, progress_bar


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "generate",
        description="Continue prompts with a language model under guidance, a classifier or a constraint. A summary of "
        "what guidance changed is printed to standard error.",
        examples=(
            'generate "The dragon flew over Paris, France," --scale 1.5',
            'generate "The film was" --classifier sentiment --target positive',
            'generate "Date: " --regex "[0-9]{4}-[0-9]{2}-[0-9]{2}" --max-new-tokens 14',
            "generate --file prompts.txt --guidance apg:scale=2 --json",
        ),
    )
    parser.add_argument("prompt", nargs="*", help="texts to continue [--file, or standard input]")
    parser.add_argument("--file", help="one prompt per line: text, or JSON with a chat; - reads standard input")
    parser.add_argument("--system", help="system prompt; makes every prompt a chat")
    parser.add_argument("--chat", action="store_true", help="put each prompt into the model's chat template")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts per batch [%(default)s]")
    parser.add_argument("--num-return-sequences", type=int, default=1, help="continuations per prompt [%(default)s]")
    parser.add_argument("--stream", action="store_true", help="print text while it is generated (one prompt)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per continuation")
    options.add_model(parser)
    options.add_guidance(parser)
    constraint_options.add_sampling(parser)
    options.add_decoding(parser, 128)
    options.add_speculation(parser)
    parser.add_argument(
        "--prefill-chunk-size",
        type=int,
        metavar="N",
        help="read prompts N tokens at a time [all at once; as many as fit into 1 GiB with guidance]",
    )
    parser.add_argument(
        "--verify",
        type=int,
        default=0,
        metavar="N",
        help="read N random steps of every batch again by full forward passes without cache, padding or batching, and "
        "report the largest differences",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Generate in batches; each batch is printed when it is finished, so an interrupt loses one batch at most."""
    guidance = constraint_options.constrained(arguments, options.guidance(arguments))
    prompts = options.read_prompts(arguments)
    options.refuse_empty(prompts, guidance)
    _check(arguments, prompts)
    decoding = options.decoding(arguments)
    if arguments.speculation:
        decoding["speculation"] = arguments.speculation
    if arguments.prefill_chunk_size is not None:
        decoding["prefill_chunk_size"] = arguments.prefill_chunk_size
    if arguments.verify:
        decoding["verify"] = arguments.verify
    if arguments.num_return_sequences > 1:
        decoding["num_return_sequences"] = arguments.num_return_sequences
        decoding["do_sample"] = True
    if arguments.chat:
        prompts = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    model, tokenizer = options.load(arguments)
    decoding["models"] = options.extra_models(arguments, model)
    if arguments.stream:
        return _stream(model, tokenizer, prompts[0], guidance, arguments, decoding)
    return _batches(model, tokenizer, prompts, guidance, arguments, decoding)


def _check(arguments: argparse.Namespace, prompts: list[Any]) -> None:
    whole_number("batch_size", arguments.batch_size, 1)
    whole_number("num_return_sequences", arguments.num_return_sequences, 1)
    if not arguments.stream:
        return
    if len(prompts) > 1:
        raise ValueError(f"--stream accepts one prompt and got {len(prompts)}; run it once for each")
    if (arguments.particles or 1) > 1:
        raise ValueError("--stream excludes --particles, of which some may be dropped; leave one of them out")
    if arguments.json or arguments.num_return_sequences > 1:
        raise ValueError("--stream excludes --json and --num-return-sequences; leave it out")


def _stream(
    model: Any,
    tokenizer: Any,
    prompt: Any,
    guidance: Any,
    arguments: argparse.Namespace,
    decoding: dict[str, Any],
) -> int:
    from ..generation import stream

    if isinstance(prompt, str) and arguments.system is None:
        print(prompt, end="", flush=True)
    pieces = stream(
        model,
        tokenizer,
        prompt,
        guidance,
        system=arguments.system,
        prefill_progress=PromptProgress(),
        **decoding,
    )
    for chunk in pieces:
        print(chunk.text, end="", flush=True)
    print()
    return 0


def _batches(
    model: Any,
    tokenizer: Any,
    prompts: list[Any],
    guidance: Any,
    arguments: argparse.Namespace,
    decoding: dict[str, Any],
) -> int:
    from ..generation import generate

    seed = decoding.pop("seed")
    with progress_bar() as bar:
        task = bar.add_task("decoding", total=len(prompts), visible=len(prompts) > arguments.batch_size)
        for start in range(0, len(prompts), arguments.batch_size):
            batch = prompts[start : start + arguments.batch_size]
            # Each batch has its own seed, so that equal batches do not repeat each other's text.
            out = generate(
                model,
                tokenizer,
                batch,
                guidance,
                system=arguments.system,
                seed=None if seed is None else seed + start,
                prefill_progress=PromptProgress(bar),
                **decoding,
            )
            if arguments.json:
                _print_json(out, batch, start, guidance)
            else:
                _print(out, batch, start, arguments)
            bar.advance(task, len(batch))
    return 0


def _print_json(out: Any, batch: list[Any], start: int, guidance: Any) -> None:
    per_prompt = len(out.texts) // len(batch)
    for row, text in enumerate(out.texts):
        if _is_unused(out, row):
            continue
        record = {
            "index": start + row // per_prompt,
            "prompt": batch[row // per_prompt],
            "text": text,
            "tokens": len(out.new_tokens[row]),
            "finish_reason": out.finish_reasons[row],
            "log_likelihood": float(out.log_likelihood[row]),
            "guidance": guidance.to_dict(),
            "fingerprint": guidance.fingerprint,
            "effect": out.effect.to_dict(),
            **_weights(out, row),
        }
        if out.origins is not None and out.origins[row] is not None:
            record["forked_from"] = out.origins[row]
        if out.speculation is not None:
            record["speculation"] = out.speculation.to_dict()
        print(json.dumps(record, ensure_ascii=False), flush=True)


def _print(out: Any, batch: list[Any], start: int, arguments: argparse.Namespace) -> None:
    per_prompt = len(out.texts) // len(batch)
    drawn = None
    per_text = 1
    if out.particles > 1 and not arguments.all_particles:
        drawn = _drawn(out)
        per_text = out.particles
    is_numbered = len(batch) > 1 or start > 0 or per_prompt > per_text
    for row, text in enumerate(out.texts):
        if _is_unused(out, row) or (drawn is not None and row not in drawn):
            continue
        if is_numbered:
            number = (start * per_prompt + row) // per_text + 1
            print(f"[{number}]" + (_mark(out, row) if arguments.all_particles else ""))
        prompt = batch[row // per_prompt]
        is_text = isinstance(prompt, str) and arguments.system is None
        print(f"{prompt}{text}" if is_text else text, flush=True)
    print(f"({out.effect})" if out.finished is None else f"({_summary(out)})", file=sys.stderr)
    if out.speculation is not None:
        print(f"({out.speculation})", file=sys.stderr)


def _is_unused(out: Any, row: int) -> bool:
    """Whether the row was reserved for a fork and no text forked into it."""
    return out.origins is not None and not out.finished[row]


def _drawn(out: Any) -> set[int]:
    """One row of every population, drawn by weight; none of a population without a finished text."""
    rows = set()
    for start in range(0, len(out.texts), out.particles):
        population = slice(start, start + out.particles)
        if bool(out.finished[population].any()):
            rows.add(start + _draw(out.log_weights[population]))
    return rows


def _draw(log_weights: Any) -> int:
    """An index in proportion to the weights, the same for the same weights."""
    import torch

    from ..smc.particles import weighted_sample

    return int(weighted_sample(log_weights, range(len(log_weights)), torch.Generator().manual_seed(0)))


def _mark(out: Any, row: int) -> str:
    mark = ""
    if out.log_weights is not None:
        mark += f" log weight {float(out.log_weights[row]):.2f}"
    if out.deaths[row] is not None:
        mark += f" unfinished: {out.deaths[row]}"
    return mark


def _weights(out: Any, row: int) -> dict[str, Any]:
    """What a constraint adds to the record of a row."""
    if out.finished is None:
        return {}
    values = {"finished": bool(out.finished[row]), "unfinished_because": out.deaths[row]}
    if out.log_weights is not None:
        population = row // out.particles
        values["log_weight"] = _finite(out.log_weights[row])
        values["log_evidence"] = _finite(out.log_evidence[population])
        if out.particles > 1:
            values["ess"] = float(out.ess[population])
            values["distinct_texts"] = int(out.distinct_texts[population])
            values["ancestors"] = int(out.ancestors[population])
        values["population"] = population
    return values


def _finite(value: Any) -> float | None:
    """``value``, or None for −inf, which JSON does not have."""
    return float(value) if float(value) > -math.inf else None


def _summary(out: Any) -> str:
    text = f"{int(out.finished.sum())} of {len(out.texts)} texts finished, {out.constraint_calls} constraint calls"
    if out.log_weights is not None:
        text += f"; log evidence {', '.join(f'{float(value):.2f}' for value in out.log_evidence)}"
    if out.particles > 1:
        text += f"; of {out.particles} particles"
        text += f", effective sample size {', '.join(f'{float(value):.2f}' for value in out.ess)}"
        text += f", distinct texts {', '.join(map(str, out.distinct_texts.tolist()))}"
        text += f", ancestors {', '.join(map(str, out.ancestors.tolist()))}"
    if out.effect.changes_distributions:
        return f"{text}; {out.effect}"
    return text if out.effect.verification is None else f"{text}; {out.effect.verification}"
