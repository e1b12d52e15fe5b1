"""Short descriptions of the extra branches of a guidance."""

from __future__ import annotations

from typing import Any

from ..guidance.base import SELF, Branch, BranchGuidance
from ..guidance.edits import Edit, NoisedImage, Prefixed, Shuffled, Unrelated, Without
from ..guidance.prompts import is_chat, per_row
from ..guidance.views import EarlyExit, MaskedHeads, View, WithoutBlocks

LONGEST = 60


def branch_names(
    guidance: BranchGuidance | None, tokenizer: Any, empty: str = "last token", row: int = 0
) -> tuple[str, ...]:
    """A name for every extra branch, in the order of ``guidance.branches``.

    Args:
        guidance: the guidance; None has no branches.
        tokenizer: decodes prompts that are token ids.
        empty: the name of what a branch without a prompt reads: the last token of the prompt in a decoder, no source in
            an encoder-decoder, another image or none in a captioner.
        row: the row whose prompts are described, if each row has its own.
    """
    branches = () if guidance is None else guidance.branches
    same = "same prompt" if guidance is None or guidance.view is None else "the unchanged model"
    return tuple(_name(branch, tokenizer, empty, row, same) for branch in branches)


def _name(branch: Branch, tokenizer: Any, empty: str, row: int, same: str) -> str:
    parts = []
    if branch.model != SELF:
        parts.append(branch.model)
    if branch.view is not None:
        parts.append(_view(branch.view))
    if branch.system is not None:
        parts.append(f"system {_quoted(branch.system)}")
    elif branch.edit is not None:
        edit = branch.edit[row % len(branch.edit)] if isinstance(branch.edit, tuple) else branch.edit
        parts.append(_edit(edit, tokenizer))
    elif branch.prompt is not None:
        prompt = branch.prompt[row % len(branch.prompt)] if per_row(branch.prompt) else branch.prompt
        parts.append(_prompt(prompt, tokenizer))
    elif not branch.same_prompt:
        parts.append(empty)
    return ", ".join(parts) or same


def _view(view: View) -> str:
    if isinstance(view, EarlyExit):
        return f"early exit {_percent(view.depth) if isinstance(view.depth, float) else view.depth}"
    if isinstance(view, WithoutBlocks):
        return f"without {_percent(view.share)} of the layers"
    if isinstance(view, MaskedHeads):
        return f"without {view.count if view.heads is None else len(view.heads)} attention heads"
    return str(view)


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _edit(edit: Edit, tokenizer: Any) -> str:
    if isinstance(edit, Without):
        return f"without {_quoted(edit.passage)}"
    if isinstance(edit, Shuffled):
        return "shuffled prompt"
    if isinstance(edit, NoisedImage):
        return "the image under noise"
    if isinstance(edit, Unrelated):
        return _prompt(edit.text, tokenizer)
    if isinstance(edit, Prefixed):
        return f"prompt after {_prompt(edit.instruction, tokenizer)}"
    return str(edit)


def _prompt(prompt: Any, tokenizer: Any) -> str:
    if isinstance(prompt, str):
        return _quoted(prompt)
    if is_chat(prompt):
        return _quoted(" / ".join(turn.content for turn in prompt))
    return _quoted(tokenizer.decode(list(prompt)))


def _quoted(text: str) -> str:
    text = " ".join(text.split()) if text.strip() else text
    return repr(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…")
