"""The texts that an adapter is trained on: written by the model, plain or under guidance, or given by the user."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine import branch_inputs
from ..engine.given_texts import Item, as_items
from ..engine.results import GenerateResult
from ..forward.model_adapter import adapter
from ..generation import generate
from ..guidance import BranchGuidance, Guidance
from ..guidance.prompts import Prompt, to_json
from ..support.columns import names_columns
from ..support.errors import MissingExtraError
from ..support.files import write_json
from .settings import DistillSettings

CHUNK = 32
"""Texts that are written together. An interrupted run is resumed after the last complete chunk."""


@dataclass(frozen=True)
class Text:
    """A prompt and its continuation.

    Args:
        prompt: token ids.
        continuation: token ids, at least one.
        weight: the weight of the text relative to others.
        prompt_given: the prompt as the user passed it, which may be a chat; branches derive their prompts from it.
    """

    prompt: list[int]
    continuation: list[int]
    weight: float = 1.0
    prompt_given: Prompt | None = None


def openings(tokenizer: Any) -> list[list[int]]:
    """Prompts of one word: every token that is a capitalised word, in the order of the vocabulary.

    Byte-pair encoding merges frequent words first, so the most frequent words have the smallest ids.

    Raises:
        ValueError: there is none.
    """
    words = []
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        if text.isalpha() and text.isascii() and text.istitle() and len(text) > 1:
            words.append(token)
    if not words:
        raise ValueError("no token of the tokenizer is a capitalised word to start a text with; pass prompts=")
    begin = tokenizer.bos_token_id
    adds_begin = begin is not None and tokenizer("a").input_ids[:1] == [begin]
    return [[begin, token] if adds_begin else [token] for token in words]


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a file of prompts or texts.

    Args:
        path: a ``.txt`` file with one prompt per line, or a ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file with
            columns ``prompt`` (a text or a chat), ``completion`` and ``weight``, or ``text``.

    Raises:
        MissingExtraError: the package ``datasets`` is not installed.
        ValueError: the file cannot be read, or has none of the columns.
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
    except Exception as error:  # its readers raise all kinds of errors
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error
    if kind == "text":
        lines = [row["text"] for row in rows if row["text"].strip()]
        rows = [{"prompt": line} for line in lines[names_columns(lines[:1]) :]]
    for number, row in enumerate(rows, 1):
        if not (row.get("prompt") or row.get("messages") or row.get("text")):
            raise ValueError(f"{path}: row {number} has no 'prompt', 'messages' or 'text'; rename the columns")
    if not rows:
        raise ValueError(f"{path} is empty; write one prompt per line")
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
    """All texts of a run. Texts that an earlier process wrote are read from ``folder``.

    Raises:
        ValueError: the settings use given texts and there are none, or a text is too short to learn from.
    """
    texts: list[Text] = []
    for source, count in settings.texts_by_source.items():
        if source == "given":
            texts += _given(tokenizer, given, count, settings)
            if progress is not None:
                progress(count)
            continue
        pool: Sequence[Any] = openings(tokenizer) if prompts is None else prompts
        for start in range(0, count, CHUNK):
            stop = min(start + CHUNK, count)
            file = folder / f"texts-{source}-{start:06d}.json"
            if not file.is_file():
                chunk = [pool[number % len(pool)] for number in range(start, stop)]
                rows = _write(model, tokenizer, guidance, chunk, source, start, settings, models)
                write_json(file, rows, indent=None)
            texts += [Text(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
            if progress is not None:
                progress(stop - start)
    mean = sum(text.weight for text in texts) / len(texts)
    if not mean > 0:
        raise ValueError("all texts have a weight of 0; under a constraint, none may have ended in time: raise tokens=")
    weighted = []
    for text in texts:
        if text.weight > 0:
            weighted.append(Text(text.prompt, text.continuation, text.weight / mean, text.prompt_given))
    branch_inputs.check_rows(model, [[*text.prompt, *text.continuation] for text in weighted], "texts", written=True)
    return weighted


def _given(tokenizer: Any, rows: Sequence[Mapping[str, Any]], count: int, settings: DistillSettings) -> list[Text]:
    """The first ``count`` of the user's texts, from the beginning again if there are fewer."""
    if not rows:
        raise ValueError("source='given' has no texts; pass them, or a file of them, with given=")
    texts = []
    for number in range(count):
        row = rows[number % len(rows)]
        ids, length, prompt = _encode(tokenizer, row)
        ids = [int(token) for token in ids[: settings.tokens]]
        if len(ids) <= length:
            raise ValueError(
                f"given[{number % len(rows)}] has no token after its prompt within tokens={settings.tokens}; raise that"
            )
        weight = row.get("weight")
        texts.append(Text(ids[:length], ids[length:], 1.0 if weight is None else float(weight), prompt))
    return texts


def _encode(tokenizer: Any, row: Mapping[str, Any]) -> tuple[list[int], int, Any]:
    """A text of the user: its token ids, the length of its prompt, and the prompt as :attr:`Text.prompt_given`."""
    if row.get("text"):
        return tokenizer(row["text"]).input_ids, 1, None
    prompt = row.get("messages") or row["prompt"]
    (canonical,) = branch_inputs.canonical_prompts([prompt], None, tokenizer)
    ids = branch_inputs.encode(canonical, tokenizer, "given")
    completion = row.get("completion") or ""
    if isinstance(completion, str):
        completion = tokenizer(completion, add_special_tokens=False).input_ids
    if not completion:  # a text without a prompt, in the column of prompts
        return list(ids), 1, None
    are_ids = not isinstance(prompt, (str, list)) or isinstance(prompt[0], int)
    return [*ids, *completion], len(ids), None if are_ids else prompt


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
    """Continue ``prompts``, and return the texts as JSON rows."""
    canonical = branch_inputs.canonical_prompts(list(prompts), None, tokenizer)
    encoded = [branch_inputs.encode(prompt, tokenizer, f"prompts[{n}]") for n, prompt in enumerate(canonical)]
    longest = max(map(len, encoded))
    if longest >= settings.tokens:
        raise ValueError(f"prompts has one of {longest} tokens, and texts end at tokens={settings.tokens}; raise that")
    guided = source == "guided"
    out = generate(
        model,
        tokenizer,
        list(canonical),
        guidance if guided else None,
        max_new_tokens=settings.tokens - longest,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        seed=settings.seed * 1_000_003 + start,
        models=models if guided else None,
    )
    rows = []
    for row, tokens in enumerate(out.new_tokens):
        number = row // out.particles
        prompt = canonical[number]
        are_ids = isinstance(prompt, tuple) and isinstance(prompt[0], int)
        rows.append(
            {
                "prompt": encoded[number],
                "continuation": tokens,
                "weight": _weight(out, row),
                "prompt_given": None if are_ids else to_json(prompt),
            }
        )
    return rows


def _weight(out: GenerateResult, row: int) -> float:
    """The weight of a row among the particles of its prompt; they sum to 1, or all are 0."""
    if out.log_weights is None:
        return 1.0
    first = row - row % out.particles
    log_weights = out.log_weights[first : first + out.particles]
    if not bool(log_weights.isfinite().any()):
        return 0.0
    return float(log_weights.softmax(0)[row - first])


def items(model: Any, tokenizer: Any, texts: Sequence[Text], lead: BranchGuidance | None) -> list[Item]:
    """What every branch of ``lead`` reads for each text."""
    prompts = [text.prompt if text.prompt_given is None else text.prompt_given for text in texts]
    return as_items(adapter(model).base, tokenizer, prompts, [text.continuation for text in texts], None, lead)
