"""The unconditional context of a request: the prompt without the task's instruction or examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNCONDITIONAL = ("last-token", "no-instruction", "question-only")


def unconditional_context(tasks: Mapping[str, Any], request: Any, mode: str) -> str:
    """The input of the unconditional branch for ``request``.

    Args:
        tasks: lm-eval tasks by name.
        request: an lm-eval instance; its first argument is the context.
        mode: ``no-instruction`` leaves out the task's instruction (its ``description``) but not the few-shot examples;
            ``question-only`` leaves out both.

    Raises:
        ValueError: the task is unknown, there is nothing to leave out, or the question is not found in the context.
    """
    context = str(request.args[0])
    task = tasks.get(str(request.task_name))
    if task is None:
        raise ValueError(
            f"uncond={mode!r} needs the task {request.task_name!r} itself; run it through textguide eval, "
            "or set the model's tasks"
        )
    instruction = str(task.get_config("description") or "")
    rest = context.replace(instruction, "", 1) if instruction else context
    if mode == "question-only":
        rest = _question(task, request, rest)
    if rest == context:
        parts = "instruction or example" if mode == "question-only" else "instruction"
        raise ValueError(
            f"uncond={mode!r}: the task {request.task_name!r} has no {parts} to leave out; use uncond='last-token' or "
            "a negative prompt"
        )
    return rest


def _question(task: Any, request: Any, context: str) -> str:
    """The end of ``context`` that belongs to this document only."""
    if task.multiple_input:
        candidates = [str(choice) for choice in task.doc_to_choice(request.doc)]
    else:
        candidates = [str(task.doc_to_text(request.doc))]
    for text in sorted(candidates, key=len, reverse=True):
        if text and context.rstrip().endswith(text.rstrip()):
            return context[len(context.rstrip()) - len(text.rstrip()) :]
    raise ValueError(
        f"uncond='question-only': the question of task {request.task_name!r} is not the end of its context "
        "(a chat template may add text after it); use uncond='no-instruction'"
    )
