"""The texts that an adapter is trained on: written by the model, plain or under guidance, or given."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine import branch_inputs
from ..engine.given_texts import Item, as_items
from ..forward.model_adapter import adapter
from ..generation import generate
from ..guidance import BranchGuidance, Guidance
from ..guidance.prompts import Prompt, to_json
from ..support.errors import MissingExtraError
from ..support.files import write_json
from .settings import DistillSettings

CHUNK = 32
"""Texts that are written at once; a run that was killed goes on behind the last whole chunk."""


@dataclass(frozen=True)
class Text:
    """A prompt and what stands behind it.

    Args:
        prompt: token ids.
        continuation: token ids, at least one.
        weight: what it counts, next to others.
        prompt_given: the prompt as the user gave it, a chat perhaps, from which branches derive theirs.
    """

    prompt: list[int]
    continuation: list[int]
    weight: float = 1.0
    prompt_given: Prompt | None = None


def openings(tokenizer: Any) -> list[list[int]]:
    """Beginnings of one word: every token that is a capitalised word, in the order of the vocabulary (the most frequent
    ones first, where byte-pair merges made it).

    Raises:
        ValueError: there is none.
    """
    words = []
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        if text.isalpha() and text.isascii() and text.istitle() and len(text) > 1:
            words.append(token)
    if not words:
        raise ValueError("no token of the tokenizer is a capitalised word to begin a text with; give prompts")
    begin = [] if tokenizer.bos_token_id is None or not _adds_begin(tokenizer) else [tokenizer.bos_token_id]
    return [[*begin, token] for token in words]


def _adds_begin(tokenizer: Any) -> bool:
    return tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Rows of a file of prompts or texts: ``.txt`` (one a line), ``.jsonl``, ``.json``, ``.csv`` or ``.parquet``, with
    columns ``prompt`` (a text or a chat), ``completion`` and ``weight``, or ``text``.

    Raises:
        MissingExtraError: the package ``datasets`` is not installed.
        ValueError: it cannot be read, or has none of the columns.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "distill", "reading texts") from error
    file = Path(path).expanduser()
    kinds = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
    kind = kinds.get(file.suffix.lower())
    if kind is None or not file.is_file():
        raise ValueError(f"{path} must be a file that ends in {', '.join(kinds)}; check the path")
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(kind, data_files=str(file), split="train").to_list()
    except Exception as error:  # what its many readers raise
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error
    if kind == "text":
        rows = [{"prompt": row["text"]} for row in rows if row["text"].strip()]
    for number, row in enumerate(rows, 1):
        if not (row.get("prompt") or row.get("messages") or row.get("text")):
            raise ValueError(f"{path}: row {number} has no 'prompt', 'messages' or 'text'; name the columns so")
    if not rows:
        raise ValueError(f"{path} holds no row; write a prompt on each line")
    return rows


def gather(
    model: Any,
    tokenizer: Any,
    guidance: Guidance,
    prompts: Sequence[Any] | None,
    given: Sequence[Mapping[str, Any]],
    settings: DistillSettings,
    folder: Path,
    models: Mapping[str, Any] | None,
    progress: Callable[[int], Any] | None,
) -> list[Text]:
    """All texts of a run; what was written before is read from ``folder``.

    Raises:
        ValueError: there are no given texts where some are asked for, or a text is too short to learn from.
    """
    found: list[Text] = []
    for source, count in settings.shares.items():
        if source == "given":
            found += _given(tokenizer, given, count, settings)
            if progress is not None:
                progress(count)
            continue
        chosen: Sequence[Any] = openings(tokenizer) if prompts is None else prompts
        for start in range(0, count, CHUNK):
            file = folder / f"texts-{source}-{start:06d}.json"
            if not file.is_file():
                many = range(start, min(start + CHUNK, count))
                own = [chosen[number % len(chosen)] for number in many]
                write_json(file, _write(model, tokenizer, guidance, own, source, start, settings, models), indent=None)
            rows = json.loads(file.read_text(encoding="utf-8"))
            found += [Text(**row) for row in rows]
            if progress is not None:
                progress(min(CHUNK, count - start))
    mean = sum(text.weight for text in found) / len(found)
    if not mean > 0:
        raise ValueError("no text has a weight; under a constraint none may have ended in time: use more tokens")
    kept = [Text(t.prompt, t.continuation, t.weight / mean, t.prompt_given) for t in found if t.weight > 0]
    branch_inputs.check_rows(model, [[*text.prompt, *text.continuation] for text in kept], "texts", written=True)
    return kept


def _given(tokenizer: Any, rows: Sequence[Mapping[str, Any]], count: int, settings: DistillSettings) -> list[Text]:
    if not rows:
        raise ValueError("source='given' has no texts; name a file of them with given=")
    found = []
    for number in range(count):
        row = rows[number % len(rows)]
        if row.get("text"):
            prompt: Any = None
            ids = tokenizer(row["text"]).input_ids
            split = 1
        else:
            prompt = row.get("messages") or row["prompt"]
            first = branch_inputs.encode(
                branch_inputs.canonical_prompts([prompt], None, tokenizer)[0], tokenizer, "given"
            )
            completion = row.get("completion") or ""
            if isinstance(completion, str):
                completion = tokenizer(completion, add_special_tokens=False).input_ids
            ids = [*first, *completion]
            split = len(first)
            if len(ids) == split:  # a text without a prompt, in the column of prompts
                prompt, split = None, 1
            elif not isinstance(prompt, (str, list)) or isinstance(prompt[0], int):
                prompt = None  # token ids, which need no encoding
        ids = [int(token) for token in ids[: settings.tokens]]
        if len(ids) <= split:
            raise ValueError(f"given[{number % len(rows)}] has no token behind its prompt within {settings.tokens}")
        weight = row.get("weight")
        found.append(Text(ids[:split], ids[split:], 1.0 if weight is None else float(weight), prompt))
    return found


def _write(
    model: Any,
    tokenizer: Any,
    guidance: Guidance,
    prompts: Sequence[Any],
    source: str,
    start: int,
    settings: DistillSettings,
    models: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """Continuations of ``prompts`` as JSON rows."""
    canonical = branch_inputs.canonical_prompts(list(prompts), None, tokenizer)
    encoded = [branch_inputs.encode(prompt, tokenizer, f"prompts[{n}]") for n, prompt in enumerate(canonical)]
    longest = max(map(len, encoded))
    if longest >= settings.tokens:
        raise ValueError(f"prompts has one of {longest} tokens, and texts end at tokens={settings.tokens}; raise that")
    guided = source == "guided"
    out = generate(
        model, tokenizer, list(canonical), guidance if guided else None, max_new_tokens=settings.tokens - longest,
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
        seed=settings.seed * 1_000_003 + start, models=models if guided else None,
    )  # fmt: skip
    given = [
        None if isinstance(prompt, tuple) and isinstance(prompt[0], int) else to_json(prompt) for prompt in canonical
    ]
    rows = []
    for row, tokens in enumerate(out.new_tokens):
        prompt = row // out.particles
        weight = 1.0
        if out.log_weights is not None:
            group = out.log_weights[prompt * out.particles : (prompt + 1) * out.particles]
            weight = float(group.softmax(0)[row % out.particles]) if bool(group.isfinite().any()) else 0.0
        rows.append(
            {"prompt": encoded[prompt], "continuation": tokens, "weight": weight, "prompt_given": given[prompt]}
        )
    return rows


def items(model: Any, tokenizer: Any, texts: Sequence[Text], lead: BranchGuidance | None) -> list[Item]:
    """What every branch of ``lead`` reads for each text."""
    prompts = [text.prompt if text.prompt_given is None else text.prompt_given for text in texts]
    return as_items(adapter(model).base, tokenizer, prompts, [text.continuation for text in texts], None, lead)
