"""Loaders of the local files: what the task YAMLs name as ``custom_dataset``.

lm-eval calls a loader with the task's metadata, to which the task manager adds ``data``, the data folder.
Each returns ``{"test": Dataset}`` held in memory.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets

from .catalogue import DATA_VARIABLE, data_folder

Row = dict[str, Any]
Splits = dict[str, datasets.Dataset]

_FOUNDRY = "llm-foundry/"


def local_file(relative: str, data: str | None) -> Path:
    """The path of the file ``relative`` in the data folder.

    Raises:
        ValueError: no data folder is given, or the file is not in it.
    """
    folder = data_folder(data)
    if folder is None:
        raise ValueError(
            f"data={data!r}: this task reads {relative!r} from a data folder; name it with --data FOLDER "
            f"or in {DATA_VARIABLE}"
        )
    path = folder / relative
    if not path.is_file():
        raise ValueError(
            f"data={str(folder)!r}: the file {relative!r} is missing in it; put it there, or name another "
            f"folder with --data FOLDER or in {DATA_VARIABLE}"
        )
    return path


def in_memory(rows: Sequence[Row], source: str) -> Splits:
    """The rows as a test split that touches no cache file.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError(f"{source} holds no rows, so there is nothing to evaluate; replace the file")
    return {"test": datasets.Dataset.from_list(list(rows))}


def json_lines(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a ``.jsonl`` or ``.jsonl.gz`` file, cut down to ``columns``.

    Raises:
        ValueError: a line is not a JSON object or lacks one of the columns.
    """
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    rows: list[Row] = []
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                rows.append({column: row[column] for column in columns})
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path.name}, line {number}: expected a JSON object with {', '.join(columns)} "
                    f"({type(error).__name__}: {error}); replace the file"
                ) from error
    return rows


def _read(relative: str, data: str | None, columns: Sequence[str]) -> list[Row]:
    return json_lines(local_file(relative, data), columns)


def lambada_openai(data: str | None = None, **_: Any) -> Splits:
    """The 5153 passages of the OpenAI version of LAMBADA."""
    relative = "lambada/lambada_test.jsonl"
    return in_memory(_read(relative, data, ["text"]), relative)


def lambada_mini(**_: Any) -> Splits:
    """The passages of LAMBADA that ship with the package."""
    path = Path(__file__).parent / "data" / "lambada_mini.jsonl"
    return in_memory(json_lines(path, ["text"]), path.name)


def _choices(file: str, data: str | None) -> list[Row]:
    rows = _read(_FOUNDRY + file, data, ["query", "choices", "gold"])
    for row in rows:
        # PIQA's queries end in a newline, ARC's do not; the template adds the one it needs.
        row["query"] = row["query"].rstrip()
    return rows


def arc_easy(data: str | None = None, **_: Any) -> Splits:
    """ARC, the easy test set."""
    file = "world_knowledge__arc_easy.jsonl"
    return in_memory(_choices(file, data), file)


def arc_challenge(data: str | None = None, **_: Any) -> Splits:
    """ARC, the challenge test set."""
    file = "world_knowledge__arc_challenge.jsonl"
    return in_memory(_choices(file, data), file)


def piqa(data: str | None = None, **_: Any) -> Splits:
    """PIQA, the validation set."""
    file = "commonsense_reasoning__piqa.jsonl"
    return in_memory(_choices(file, data), file)


def boolq(data: str | None = None, **_: Any) -> Splits:
    """BoolQ, the validation set."""
    file = "reading_comprehension__boolq.jsonl"
    rows = _choices(file, data)
    for row in rows:
        # lm-eval's prompt begins with the passage itself.
        row["query"] = row["query"].removeprefix("Passage: ")
    return in_memory(rows, file)


def winogrande(data: str | None = None, **_: Any) -> Splits:
    """WinoGrande XL, the validation set, already split at the blank."""
    file = "language_understanding__winogrande.jsonl"
    return in_memory(_read(_FOUNDRY + file, data, ["context_options", "continuation", "gold"]), file)


def triviaqa(data: str | None = None, **_: Any) -> Splits:
    """A subset of 3000 questions of TriviaQA's validation set."""
    file = "world_knowledge__triviaqa_sm_sub.jsonl"
    rows = [
        {
            "question": row["context"].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "aliases": row["aliases"] or [row["answer"]],
        }
        for row in _read(_FOUNDRY + file, data, ["context", "answer", "aliases"])
    ]
    return in_memory(rows, file)


def gsm8k(data: str | None = None, **_: Any) -> Splits:
    """The 1319 test problems of GSM8K."""
    relative = "gsm8k/test.jsonl"
    return in_memory(_read(relative, data, ["question", "answer"]), relative)


def humaneval(data: str | None = None, **_: Any) -> Splits:
    """HumanEval's 164 problems: from the data folder, or from the hub where there is none."""
    if data_folder(data) is None:
        return {"test": datasets.load_dataset("openai/openai_humaneval", split="test")}
    relative = "humaneval/HumanEval.jsonl.gz"
    columns = ["task_id", "prompt", "canonical_solution", "test", "entry_point"]
    return in_memory(_read(relative, data, columns), relative)
