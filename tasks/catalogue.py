"""Which tasks there are, which of them are protected, and where the local files lie. Imports no lm-eval."""

from __future__ import annotations

import os
from pathlib import Path

DATA_VARIABLE = "TEXTGUIDE_DATA"

# Two folders, because lm-eval overrides by name whatever an included folder holds. `always` replaces
# lm-eval's tasks everywhere; `local` only where a data folder is given.
ALWAYS_FOLDER = Path(__file__).parent / "always"
LOCAL_FOLDER = Path(__file__).parent / "local"

# Tasks that draw several answers to a question: the ones that `repeats=` is for.
REPEATED_TASKS = ("continuations_consistent", "gsm8k_cot_self_consistency", "humaneval")


def _names_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_"))


def names() -> list[str]:
    """The names of this project's tasks, sorted."""
    return sorted({*_names_in(ALWAYS_FOLDER), *_names_in(LOCAL_FOLDER)})


DATA = {
    "arc_challenge": "llm-foundry/world_knowledge__arc_challenge.jsonl",
    "arc_easy": "llm-foundry/world_knowledge__arc_easy.jsonl",
    "boolq": "llm-foundry/reading_comprehension__boolq.jsonl",
    "continuations": "prompts/unique_prompts.json",
    "continuations_consistent": "prompts/unique_prompts.json",
    "continuations_positive": "prompts/unique_prompts.json",
    "gsm8k_cot": "gsm8k/test.jsonl",
    "gsm8k_cot_self_consistency": "gsm8k/test.jsonl",
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "lambada_openai": "lambada/lambada_test.jsonl",
    "piqa": "llm-foundry/commonsense_reasoning__piqa.jsonl",
    "triviaqa": "llm-foundry/world_knowledge__triviaqa_sm_sub.jsonl",
    "winogrande": "llm-foundry/language_understanding__winogrande.jsonl",
    **{name: "gpqa/gpqa_diamond_protected.zip" for name in _names_in(ALWAYS_FOLDER) if name.startswith("gpqa")},
}
"""The file under the data folder that each task reads; the others come with the package."""


def needed(name: str) -> str:
    """What data a task of ours needs, and whether it is there, in a few words."""
    file = DATA.get(name)
    if file is None:
        return "comes with textguide"
    folder = data_folder()
    if folder is not None and (folder / file).is_file():
        return f"{file} (here)"
    own = "" if name.startswith(("gpqa", "humaneval", "continuations")) else ", or the hub"
    return f"{file}{own}"


def is_protected(name: str) -> bool:
    """Whether the authors of the task's data ask that its questions are not shown or stored in plain text.

    True for every GPQA task, lm-eval's own and its groups included (``leaderboard_gpqa``).
    """
    return "gpqa" in str(name).lower()


PROTECTED_TASKS: tuple[str, ...] = tuple(name for name in names() if is_protected(name))


def data_folder(data: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder of the local files: ``data``, else the one that TEXTGUIDE_DATA names, else None.

    Args:
        data: a folder laid out as ``textguide.tasks`` documents it, or None.

    Raises:
        ValueError: there is no such folder.
    """
    if data is not None:
        folder, said_by = str(data), f"data={str(data)!r}"
    else:
        folder = os.environ.get(DATA_VARIABLE, "")
        said_by = f"{DATA_VARIABLE}={folder!r}"
        if not folder:
            return None
    if not folder or not Path(folder).is_dir():
        raise ValueError(
            f"{said_by} is not a folder; name the folder of the task files with --data FOLDER "
            f"(data= in Python) or in {DATA_VARIABLE}"
        )
    return Path(folder).resolve()


def check_run_options(
    tasks: list[str],
    *,
    write_out: bool = False,
    cache_requests: bool = False,
    use_cache: str | None = None,
) -> None:
    """Refuse the options of lm-eval that would print or store the questions of a protected task.

    Sample logs need no refusal: a protected task withholds its questions from them by itself.

    Args:
        tasks: the names that will be run.
        write_out: lm-eval's option that logs the first prompt.
        cache_requests: lm-eval's option that writes the prompts to a cache file.
        use_cache: lm-eval's database of model answers, which may quote the question.

    Raises:
        ValueError: one of the options is set and one of the tasks is protected.
    """
    protected = [name for name in tasks if is_protected(name)]
    options = {"write_out": write_out, "cache_requests": cache_requests, "use_cache": use_cache}
    for option, value in options.items():
        if value and protected:
            raise ValueError(
                f"{option}={value!r} would show or store questions of {', '.join(protected)}, which its "
                f"authors ask to keep out of plain text; leave {option} unset or run the task apart"
            )
