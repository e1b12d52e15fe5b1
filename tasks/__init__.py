"""Tasks for lm-eval: LAMBADA, ARC, PIQA, BoolQ, WinoGrande, TriviaQA, GSM8K, GPQA and HumanEval.

Example::

    specs, manager = textguide.tasks.resolve(["lambada_mini", "arc_easy"], data="FOLDER")
    results = lm_eval.simple_evaluate(model=lm, tasks=specs, task_manager=manager)

Without a data folder, lm-eval's own task of the same name is used and downloads its data. A data folder
(``data=``, ``--data`` or the variable TEXTGUIDE_DATA) holds:

==========================================================  ============================================
file                                                        tasks
==========================================================  ============================================
``lambada/lambada_test.jsonl``                              ``lambada_openai``
``llm-foundry/world_knowledge__arc_easy.jsonl``             ``arc_easy``
``llm-foundry/world_knowledge__arc_challenge.jsonl``        ``arc_challenge``
``llm-foundry/commonsense_reasoning__piqa.jsonl``           ``piqa``
``llm-foundry/reading_comprehension__boolq.jsonl``          ``boolq``
``llm-foundry/language_understanding__winogrande.jsonl``    ``winogrande``
``llm-foundry/world_knowledge__triviaqa_sm_sub.jsonl``      ``triviaqa``
``prompts/unique_prompts.json``                             ``continuations``, ``continuations_consistent``,
                                                            ``continuations_positive``
``gsm8k/test.jsonl``                                        ``gsm8k_cot``, ``gsm8k_cot_self_consistency``
``humaneval/HumanEval.jsonl.gz``                            ``humaneval``
``gpqa/gpqa_diamond_protected.zip``                         the ``gpqa_diamond_`` tasks
==========================================================  ============================================
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from textguide.support.errors import MissingExtraError

from .catalogue import (
    DATA_VARIABLE,
    PROTECTED_TASKS,
    REPEATED_TASKS,
    check_run_options,
    data_folder,
    is_protected,
    names,
)

if TYPE_CHECKING:
    from types import ModuleType

    from .manager import Resolved, TaskManager

__all__ = [
    "DATA_VARIABLE",
    "PROTECTED_TASKS",
    "REPEATED_TASKS",
    "check_run_options",
    "data_folder",
    "is_protected",
    "names",
    "resolve",
    "task_manager",
]


def resolve(
    tasks: Sequence[str] | str, data: str | os.PathLike[str] | None = None, repeats: int | None = None
) -> Resolved:
    """What to hand to ``lm_eval.simple_evaluate`` for these task names.

    A task of ours reads the local files where there is a data folder; without one, lm-eval's own task of the
    same name is used and downloads its data. ``lambada_mini`` is always local. GPQA and HumanEval are always
    ours, because lm-eval's own store the questions on the disk and run programs without a memory limit. Other
    names go to lm-eval as they are.

    Args:
        tasks: task names, or one string with commas between them.
        data: the folder of the local files; by default the one that TEXTGUIDE_DATA names.
        repeats: how many answers to draw for each question of the tasks that draw several: the votes of
            ``gsm8k_cot_self_consistency`` (64 by default), the samples of ``continuations_consistent`` (8 by
            default), the programs of ``humaneval`` (1 by default).

    Returns:
        A pair ``(tasks, task_manager)``: pass both to ``simple_evaluate``.

    Raises:
        ValueError: no tasks, an unknown task, a protected task that is not ours, no such data folder,
            ``repeats`` below 1 or given for tasks that do not draw several answers.
        MissingExtraError: lm-eval is not installed.
    """
    return _manager().resolve(tasks, data, repeats)


def task_manager(tasks: Sequence[str] | str, data: str | os.PathLike[str] | None = None) -> TaskManager:
    """A task manager that knows ``tasks`` by name.

    Args:
        tasks: task names, or one string with commas between them.
        data: the folder of the local files; by default the one that TEXTGUIDE_DATA names.

    Raises:
        ValueError: as :func:`resolve`.
        MissingExtraError: lm-eval is not installed.
    """
    return _manager().task_manager(tasks, data)


def _manager() -> ModuleType:
    try:
        from . import manager
    except ModuleNotFoundError as error:
        if error.name not in ("lm_eval", "datasets", "yaml"):
            raise
        raise MissingExtraError(error.name, "eval", "running a task") from error
    return manager
