"""Generate from a file of prompts, with resuming: ``python examples/batch_file.py in.jsonl out.jsonl``.

``datasets`` reads the prompts (JSON lines, CSV or plain text; the column ``prompt`` or ``text``). Every batch is
written as soon as it is finished, with its row numbers, so the same command resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from datasets import load_dataset

import textguide
from textguide.guidance import as_guidance

KINDS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".txt": "text"}


def main(argv: Sequence[str] | None = None) -> int:
    """Generate the missing rows; returns their number."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--guidance", default="cfg:scale=1.5", help="a method of `textguide methods`, with its fields")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=40)
    arguments = parser.parse_args(argv)
    kind = KINDS[arguments.prompts.suffix]
    rows = load_dataset(kind, data_files=str(arguments.prompts), split="train")
    column = "prompt" if "prompt" in rows.column_names else "text"
    guidance = as_guidance(arguments.guidance)
    fingerprint = "plain" if guidance is None else guidance.fingerprint
    missing = [row for row in range(len(rows)) if row not in finished(arguments.out, fingerprint)]
    if not missing:
        return 0
    model, tokenizer = textguide.load(arguments.model)
    with arguments.out.open("a", encoding="utf-8") as file:
        for start in range(0, len(missing), arguments.batch_size):
            batch = missing[start : start + arguments.batch_size]
            prompts = [rows[row][column] for row in batch]
            out = textguide.generate(model, tokenizer, prompts, guidance, max_new_tokens=arguments.max_new_tokens)
            for row, prompt, text in zip(batch, prompts, out.texts, strict=True):
                record = {"row": row, "guidance": fingerprint, "prompt": prompt, "text": text}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
    return len(missing)


def finished(path: Path, fingerprint: str) -> set[int]:
    """The rows that the file already contains; an incomplete last line is removed."""
    if not path.exists():
        return set()
    whole, newline, _ = path.read_bytes().rpartition(b"\n")
    path.write_bytes(whole + newline)
    records = [json.loads(line) for line in whole.splitlines()]
    others = {record["guidance"] for record in records} - {fingerprint}
    if others:
        raise ValueError(f"{path} contains texts with another guidance; choose another file")
    return {record["row"] for record in records}


if __name__ == "__main__":
    main()
