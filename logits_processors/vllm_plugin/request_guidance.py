"""The guidance of a request: its JSON, and what the branch requests that it needs have to read. Knows no vLLM."""

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
from textguide.support.checks import brief

from .adapters import BASE, Adapter
from .images import NONE, Images

GUIDANCE = "guidance"
"""The argument with a guidance: JSON, or a line of text."""
BRANCH_IDS = "guidance_branch_token_ids"
"""The argument with the token ids of its branches, instead of the prompts that the guidance itself defines."""


@dataclass(frozen=True)
class RequestPrompt:
    """The prompt of a request.

    Args:
        ids: its token ids.
        prompt: the text or chat that they encode; None if it is not known.
        is_chat: whether it was a chat, even if its messages are not known.
        adapter: the one that the request names.
        images: those of the prompt; None without images.
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
        sees: which images it sees, one of the values of :mod:`~.images`.
    """

    ids: tuple[int, ...]
    adapter: Adapter = BASE
    sees: str = NONE


def parse_guidance(value: Any, models: Collection[str] = ()) -> Parts:
    """The parts of the guidance that a request describes.

    Args:
        value: an object or a list of them, its JSON, or a line such as ``cfg:scale=1.5``.
        models: names of the further models and of the adapters that the engine has.

    Raises:
        ValueError: it is not a guidance, or it cannot run inside vLLM; the message names the field or the method.
    """
    try:
        decoded = without_json(value)
        if decoded in ([], ()):
            raise ValueError(f"{GUIDANCE}={brief(value)} names no method; name one, or leave it out")
        guidance = as_guidance(decoded)
    except (ValueError, TypeError, OverflowError, AttributeError, KeyError, RecursionError) as error:
        reason = str(error)
        raise ValueError(reason if reason.startswith(GUIDANCE) else f"{GUIDANCE}: {reason}") from None
    check_guidance(guidance, models)
    return split(guidance)


def without_json(value: Any) -> Any:
    """``value``, decoded if it is JSON text."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"guidance={brief(text)} is not JSON ({error})") from None
    if any(part.strip().endswith(".json") for part in text.split(" + ")):
        # A client must not make the server read its files.
        raise ValueError(f"guidance={brief(text)}: files are not read for a request; send the content of the file")
    return text


def check_guidance(guidance: Guidance | None, models: Collection[str] = ()) -> None:
    """Refuse a guidance that cannot run inside vLLM.

    Args:
        guidance: the guidance; None: nothing to check.
        models: names of the further models and of the adapters that the engine has.

    Raises:
        ValueError: the message names the method, the reason and where it can run.
    """
    for part in parts_of(guidance):
        if part.is_neutral:
            continue
        check_place(part, "vllm")
        for branch in getattr(part, "branches", ()):
            if branch.model not in (SELF, *models):
                available = f"only {', '.join(models)}" if models else "none"
                raise ValueError(
                    f"guidance {part.name!r} needs the model {branch.model!r}, and this engine has {available} besides "
                    f"the served one; name it when the engine starts, textguide serve MODEL --with {branch.model}=PATH,"
                    f" or --enable-lora --lora-modules {branch.model}=FOLDER if it is an adapter"
                )


def branches_of(
    guidance: BranchGuidance | None,
    prompt: RequestPrompt,
    tokenizer: Any,
    ids: Any = None,
    adapters: Mapping[str, Adapter] | None = None,
    without_images: str = "blank",
) -> tuple[tuple[Reading, ...], tuple[tuple[int, str], ...]]:
    """What branch requests read, and where the logits of each branch of ``guidance`` come from.

    Branches that read the same share a request, even if different further models count for them. Branches that read the
    prompt itself with the request's own adapter share the main request.

    Args:
        guidance: the guidance; None needs no branch requests.
        prompt: of the request.
        tokenizer: for branches that name texts or chats.
        ids: token ids of every branch, instead of the prompts that the guidance defines.
        adapters: those of the engine, which a branch may name as a model.
        without_images: what a branch without a condition sees if the prompt has images.

    Returns:
        What each branch request reads; and for each branch the place of its request (0: the main one) with the name of
        the model whose logits count.

    Raises:
        ValueError: a branch cannot be read; the message names the argument.
    """
    if guidance is None or not guidance.branches:
        return (), ()
    if ids is not None:
        rows = _given_rows(ids, len(guidance.branches))
    else:
        if prompt.images is not None:
            prompt.images.check(guidance)
        rows = _rows(guidance, prompt, tokenizer)
    places: dict[Reading, int] = {}
    sources = []
    for branch, row in zip(guidance.branches, rows, strict=True):
        adapter = (adapters or {}).get(branch.model)
        sees = NONE
        if prompt.images is not None and (ids is None or branch.same_prompt):
            row, sees = prompt.images.reading(branch, row, prompt.ids, without_images)
        reading = Reading(row, prompt.adapter if adapter is None else adapter, sees)
        is_main = branch.same_prompt and reading.adapter == prompt.adapter
        place = 0 if is_main else places.setdefault(reading, len(places) + 1)
        sources.append((place, branch.model if adapter is None else SELF))
    return tuple(places), tuple(sources)


def _rows(guidance: BranchGuidance, prompt: RequestPrompt, tokenizer: Any) -> list[tuple[int, ...]]:
    """Token ids of every branch, as the guidance defines them."""
    if not prompt.ids:
        raise ValueError("guidance needs the token ids of the prompt; a prompt of embeddings has none")
    text = prompt.prompt
    if any(branch.edit is not None or branch.system is not None for branch in guidance.branches):
        text = _editable(guidance, prompt, tokenizer)
    prompts = None if text is None else [text]
    try:
        rows = branch_inputs.branch_rows(guidance, cond=[list(prompt.ids)], tokenizer=tokenizer, prompts=prompts)
    except ValueError as error:
        raise ValueError(f"guidance: {error}") from None
    return [tuple(row) for (row,) in rows]


def _editable(guidance: BranchGuidance, prompt: RequestPrompt, tokenizer: Any) -> Prompt | None:
    """The prompt as a branch may edit it; None leaves the text that the token ids decode to.

    Raises:
        ValueError: it was a chat whose messages are not known, or that was rendered in another way.
    """
    text = prompt.prompt
    if text is not None:
        if _encodes_to(text, prompt.ids, tokenizer):
            return text
        if is_chat(text):
            raise ValueError(
                f"guidance {guidance.name!r} changes the chat, and the tokenizer's own template makes other tokens of "
                "it than this request has; leave out options of the template, or send the prompt as text"
            )
    if prompt.is_chat:
        raise ValueError(
            f"guidance {guidance.name!r} changes the chat, of which only the tokens are known here; use textguide "
            "serve or textguide.generate, or give the prompt as text"
        )
    return None


def _encodes_to(prompt: Prompt, ids: Sequence[int], tokenizer: Any) -> bool:
    try:
        return tokenizer is not None and tuple(branch_inputs.encode(prompt, tokenizer, "the prompt")) == tuple(ids)
    except ValueError:
        return False


def _given_rows(ids: Any, count: int) -> list[tuple[int, ...]]:
    """Token ids of every branch, as the client sent them."""
    if isinstance(ids, str):  # HTTP carries no lists of lists
        try:
            ids = json.loads(ids)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{BRANCH_IDS}={brief(ids)} is not JSON ({error})") from None
    rows = [as_prompt(row) for row in ids] if isinstance(ids, (list, tuple)) else []
    if len(rows) != count or not all(isinstance(row, tuple) and row and isinstance(row[0], int) for row in rows):
        raise ValueError(
            f"{BRANCH_IDS}={brief(ids)} must be a list with the token ids of each of the {count} branches of guidance"
        )
    return rows  # type: ignore[return-value]
