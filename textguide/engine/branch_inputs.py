"""From prompts to token ids: the user's own, and those that a guidance's branches ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ..guidance.base import Branch, BranchGuidance
from ..guidance.prompts import Chat, Message, Prompt, as_prompt, is_chat, per_row

Rows = list[list[int]]
T = TypeVar("T")


def canonical_prompts(prompts: Any, system: str | None, tokenizer: Any) -> list[Prompt]:
    """The user's prompts in canonical form, one per row; with ``system`` they become chats.

    Args:
        prompts: a text, token ids or a chat, or a sequence with one of these per row.
        system: a system prompt, put in front of every chat; texts become the user's turn behind it.
        tokenizer: needs a chat template where chats occur.

    Raises:
        ValueError: ``prompts`` or a row of it is no prompt.
    """
    single = as_prompt(prompts)
    given = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    if single is None and (isinstance(given, (Mapping, bytes, bytearray)) or not isinstance(given, Iterable)):
        raise ValueError(
            f"prompts={prompts!r} is no prompt; give a text, token ids or chat messages, "
            "or a list with one of these a row"
        )
    rows: Sequence[Any] = list(given) if single is None else [single]
    canonical = []
    for number, row in enumerate(rows):
        prompt = as_prompt(row)
        if prompt is None:
            raise ValueError(
                f"prompts[{number}]={row!r} is no prompt; give a text, a list of token ids or a list of chat messages"
            )
        canonical.append(prompt if system is None else with_system(prompt, system))
    if not canonical:
        raise ValueError("prompts is empty; give at least one prompt")
    return canonical


def with_system(prompt: Prompt, system: str) -> Chat:
    """``prompt`` as a chat whose system prompt is ``system``.

    Raises:
        ValueError: the prompt is made of token ids, which hold no turns.
    """
    if isinstance(prompt, str):
        turns: tuple[Any, ...] = (Message("user", prompt),)
    elif is_chat(prompt):
        turns = tuple(turn for turn in prompt if isinstance(turn, Message) and turn.role != "system")
    else:
        raise ValueError("system needs prompts that are texts or chats, and a prompt made of token ids was given")
    return (Message("system", system), *turns)


def encode(prompt: Prompt, tokenizer: Any, name: str) -> list[int]:
    """Token ids of one prompt.

    Args:
        name: the argument that an error names.

    Raises:
        ValueError: the prompt has no token and the tokenizer no begin token to stand for it; a text or a chat meets
            a tokenizer that is missing or has no chat template; an id lies outside the vocabulary.
    """
    if isinstance(prompt, tuple) and prompt and isinstance(prompt[0], int):
        ids: list[int] = [int(i) for i in prompt]
    elif tokenizer is None:
        raise ValueError(f"{name}={prompt!r} is text and needs a tokenizer; pass tokenizer=, or give token ids")
    elif isinstance(prompt, str):
        ids = tokenizer(prompt).input_ids
    else:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(f"{name} is a chat, but the tokenizer has no chat template; give a text")
        messages = [{"role": turn.role, "content": turn.content} for turn in prompt]  # type: ignore[union-attr]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)[
            "input_ids"
        ]
    if not ids:
        begin = getattr(tokenizer, "bos_token_id", None)
        if begin is None:
            raise ValueError(f"{name}={prompt!r} has no token and the tokenizer has no begin token; give some text")
        ids = [begin]
    return ids


def branch_rows(
    guidance: BranchGuidance,
    *,
    cond: Rows,
    tokenizer: Any = None,
    prompts: Sequence[Prompt] | None = None,
    empty_source: Sequence[int] | None = None,
    copies: bool = False,
) -> list[Rows]:
    """Token ids that each extra branch of ``guidance`` reads, one list per branch and row.

    Args:
        cond: the user's prompts as token ids.
        tokenizer: needed where a branch names text or a chat.
        prompts: the user's prompts in canonical form, needed where a branch swaps their system prompt.
        empty_source: what an encoder-decoder reads for no source at all; None for a decoder-only model.
        copies: rows of ``cond`` may be copies of one prompt side by side, as ``num_return_sequences`` makes
            them.

    Raises:
        ValueError: the prompts of a branch do not fit the batch, or something it needs is missing.
    """
    return [rows_of(branch, cond, tokenizer, prompts, empty_source, copies) for branch in guidance.branches]


def expand(rows: list[T], size: int, name: str = "negative_prompt", copies: bool = True) -> list[T]:
    """One row for all, or one per prompt, brought to ``size`` rows in the order in which ``generate`` repeats prompts.

    Args:
        copies: the batch may hold each prompt several times.

    Raises:
        ValueError: the number of rows does not fit ``size``.
    """
    if len(rows) not in (1, size) and (not copies or size % len(rows)):
        raise ValueError(
            f"{name} has {len(rows)} rows and the batch has {size}; give one for all rows, or one per prompt"
        )
    times = size // len(rows)
    return [row for row in rows for _ in range(times)]


def rows_of(
    branch: Branch,
    cond: Rows,
    tokenizer: Any,
    prompts: Sequence[Prompt] | None = None,
    empty_source: Sequence[int] | None = None,
    copies: bool = True,
) -> Rows:
    """What one branch reads, row by row; arguments as for :func:`branch_rows`."""
    if branch.same_prompt:
        return [list(row) for row in cond]
    if branch.edit is not None:

        def read(prompt: Prompt) -> list[int]:
            return encode(prompt, tokenizer, "the prompt of a branch")

        whole = list(prompts) if prompts is not None else [None] * len(cond)
        edits = list(branch.edit) if isinstance(branch.edit, tuple) else [branch.edit]
        each = expand(edits, len(cond), "context", copies)
        return [edit.apply(list(row), prompt, read) for edit, row, prompt in zip(each, cond, whole, strict=True)]
    if branch.system is not None:
        if prompts is None:
            raise ValueError(
                "negative_system needs the prompts as texts or chats; use textguide.generate or textguide.score, "
                "or give negative_prompt"
            )
        return [encode(with_system(prompt, branch.system), tokenizer, "negative_system") for prompt in prompts]
    if branch.prompt is None:
        if empty_source is not None:
            return [list(empty_source) for _ in cond]
        return [row[-1:] for row in cond]
    given: Sequence[Any] = branch.prompt if per_row(branch.prompt) else (branch.prompt,)
    rows = [encode(prompt, tokenizer, "negative_prompt") for prompt in given]
    return expand(rows, len(cond), copies=copies)


def sees_images(model: Any, model_kwargs: Mapping[str, Any]) -> bool:
    """Whether a run of ``generate`` reads images."""
    encoded = bool((model_kwargs.get("mm_encoder_outputs") or {}).get("image"))
    seen = any(model_kwargs.get(name) is not None for name in ("pixel_values", "encoder_hidden_states"))
    return encoded or seen or is_vision_encoder_decoder(model)


def is_vision_encoder_decoder(model: Any) -> bool:
    """Whether the model's encoder reads pixels."""
    encoder = getattr(model, "encoder", None) if model.config.is_encoder_decoder else None
    return getattr(encoder, "main_input_name", None) == "pixel_values"
