"""A guidance in a request: its JSON, and what its branches read there. Knows no vLLM."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from textguide.engine import branch_inputs
from textguide.guidance import BranchGuidance, Guidance, as_guidance, parts_of, split
from textguide.guidance.base import SELF
from textguide.guidance.composed import Parts
from textguide.guidance.places import check_place
from textguide.guidance.prompts import Prompt, as_prompt, is_chat

from .adapters import BASE, Adapter
from .images import NONE, Images

GUIDANCE = "guidance"
"""The argument with a guidance: JSON, or a line of text."""
BRANCH_IDS = "guidance_branch_token_ids"
"""The argument with what its branches read, in place of what it says itself."""


@dataclass(frozen=True)
class Given:
    """The prompt of a request.

    Args:
        ids: its token ids.
        prompt: the same as it was given, a text or a chat; None where that is not known.
        is_chat: whether it was a chat, known or not.
        adapter: the one that the request names.
        images: those of the prompt; None: it has none.
    """

    ids: tuple[int, ...] = ()
    prompt: Prompt | None = None
    is_chat: bool = False
    adapter: Adapter = BASE
    images: Images | None = None


class Reading(NamedTuple):
    """What a branch request reads.

    Args:
        ids: its token ids.
        adapter: the one that it runs with.
        sees: which images, as :mod:`~.images` has it.
    """

    ids: tuple[int, ...]
    adapter: Adapter = BASE
    sees: str = NONE


def described(value: Any, models: Collection[str] = ()) -> Parts:
    """The parts of the guidance that a request describes.

    Args:
        value: JSON of an object or of a list of them, as text or not, or a line such as ``cfg:scale=1.5``.
        models: names of the further models and of the adapters that the engine holds.

    Raises:
        ValueError: it is no guidance, or cannot run inside vLLM; the message names the field or the method.
    """
    try:
        guidance = as_guidance(_read(value))
    except (ValueError, TypeError, OverflowError, AttributeError, KeyError, RecursionError) as error:
        reason = str(error)
        raise ValueError(reason if reason.startswith(GUIDANCE) else f"{GUIDANCE}: {reason}") from None
    check(guidance, models)
    return split(guidance)


def _read(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"guidance={_brief(text)} is no JSON ({error})") from None
    if any(part.strip().endswith(".json") for part in text.split(" + ")):
        raise ValueError(f"guidance={_brief(text)}: files are not read for a request; send what is in it")
    return text


def check(guidance: Guidance | None, models: Collection[str] = ()) -> None:
    """Refuse a guidance that cannot run inside vLLM.

    Args:
        models: names of the further models and of the adapters that the engine holds.

    Raises:
        ValueError: the message names the method, the reason and the place that can.
    """
    for part in parts_of(guidance):
        if part.is_neutral:
            continue
        check_place(part, "vllm")
        for branch in getattr(part, "branches", ()):
            if branch.model not in (SELF, *models):
                held = f"{', '.join(models)} alone" if models else "none"
                raise ValueError(
                    f"guidance {part.name!r} asks the model {branch.model!r}, and of further models this engine has "
                    f"{held}; name it when the engine starts, textguide serve MODEL --with {branch.model}=PATH, or "
                    f"--enable-lora --lora-modules {branch.model}=FOLDER where it is an adapter"
                )


def branches_of(
    guidance: BranchGuidance | None,
    given: Given,
    tokenizer: Any,
    ids: Any = None,
    adapters: Mapping[str, Adapter] | None = None,
    unconditional: str = "blank",
) -> tuple[tuple[Reading, ...], tuple[tuple[int, str], ...]]:
    """What the branch requests of a request read, and which request and model each branch of ``guidance`` is.

    Branches that read the same share a request, whichever further model counts; those that read the prompt itself with
    the request's own adapter share the main request.

    Args:
        given: the prompt.
        tokenizer: for branches that name texts or chats.
        ids: token ids of every branch, in place of what the guidance says.
        adapters: those of the engine, which a branch may name as a model.
        unconditional: what a branch without a condition sees where the prompt has images.

    Raises:
        ValueError: a branch cannot be read; the message names the argument.
    """
    if guidance is None or not guidance.branches:
        return (), ()
    branches = guidance.branches
    if ids is not None:
        rows = _own(ids, len(branches))
    else:
        if given.images is not None:
            given.images.check(guidance)
        rows = _rows(guidance, given, tokenizer)
    places: dict[Reading, int] = {}
    readings = []
    for branch, row in zip(branches, rows, strict=True):
        named = (adapters or {}).get(branch.model)
        sees = NONE
        if given.images is not None and (ids is None or branch.same_prompt):
            row, sees = given.images.reading(branch, row, given.ids, unconditional)
        reading = Reading(row, given.adapter if named is None else named, sees)
        is_main = branch.same_prompt and reading.adapter == given.adapter
        place = 0 if is_main else places.setdefault(reading, len(places) + 1)
        readings.append((place, branch.model if named is None else SELF))
    return tuple(places), tuple(readings)


def _rows(guidance: BranchGuidance, given: Given, tokenizer: Any) -> list[tuple[int, ...]]:
    branches = guidance.branches
    if not given.ids:
        raise ValueError("guidance needs the token ids of the prompt; a prompt of embeddings has none")
    prompt = given.prompt
    if any(branch.edit is not None or branch.system is not None for branch in branches):
        if prompt is not None and not _is_encoding(prompt, given.ids, tokenizer):
            if is_chat(prompt):
                raise ValueError(
                    f"guidance {guidance.name!r} changes the chat, and the tokenizer's own template makes other tokens "
                    "of it than this request has; leave out options of the template, or send the prompt as text"
                )
            prompt = None
        if prompt is None and given.is_chat:
            raise ValueError(
                f"guidance {guidance.name!r} changes the chat, of which only the tokens are known here; use "
                "textguide serve or textguide.generate, or give the prompt as text"
            )
    prompts = None if prompt is None else [prompt]
    try:
        rows = branch_inputs.branch_rows(guidance, cond=[list(given.ids)], tokenizer=tokenizer, prompts=prompts)
    except ValueError as error:
        raise ValueError(f"guidance: {error}") from None
    return [tuple(row) for (row,) in rows]


def _is_encoding(prompt: Prompt, ids: Sequence[int], tokenizer: Any) -> bool:
    try:
        return tokenizer is not None and tuple(branch_inputs.encode(prompt, tokenizer, "the prompt")) == tuple(ids)
    except ValueError:
        return False


def _own(ids: Any, count: int) -> list[tuple[int, ...]]:
    if isinstance(ids, str):  # HTTP carries no lists of lists
        try:
            ids = json.loads(ids)
        except ValueError as error:
            raise ValueError(f"{BRANCH_IDS}={_brief(ids)} is no JSON ({error})") from None
    rows = [as_prompt(row) for row in ids] if isinstance(ids, (list, tuple)) else []
    if len(rows) != count or not all(isinstance(row, tuple) and row and isinstance(row[0], int) for row in rows):
        raise ValueError(
            f"{BRANCH_IDS}={_brief(ids)} must hold a list of token ids for each of the {count} branches of guidance"
        )
    return rows  # type: ignore[return-value]


def _brief(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
