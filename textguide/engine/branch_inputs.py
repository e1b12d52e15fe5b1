"""From prompts to token ids: the user's own, and those that a guidance's branches ask for."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from ..forward.model_adapter import adapter
from ..guidance.base import SELF, Branch, BranchGuidance
from ..guidance.prompts import Chat, Message, Prompt, as_prompt, is_chat, per_row
from ..support.errors import GuidanceHadNoEffectWarning

Rows = list[list[int]]
T = TypeVar("T")


def canonical_prompts(prompts: Any, system: str | None, tokenizer: Any) -> list[Prompt]:
    """The user's prompts in canonical form, one per row; with ``system`` they become chats.

    Args:
        prompts: a text, token ids or a chat, or a sequence with one of these per row; or what a tokenizer returns,
            ``{"input_ids", "attention_mask"}``, whose padding is left out. Rows of ids of one length without a mask
            lose padding at their ends where the tokenizer's padding token means nothing else.
        system: a system prompt, put in front of every chat; texts become the user's turn behind it.
        tokenizer: needs a chat template where chats occur.

    Raises:
        ValueError: ``prompts`` or a row of it is no prompt, or it cannot be told whether tokens are padding.
    """
    masked = isinstance(prompts, Mapping) and "input_ids" in prompts and prompts.get("attention_mask") is not None
    if isinstance(prompts, Mapping) and "input_ids" in prompts:
        prompts = _encoded(prompts)
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
        canonical.append(prompt)
    if not canonical:
        raise ValueError("prompts is empty; give at least one prompt")
    if single is None and not masked:
        canonical = _strip_padding(canonical, tokenizer)
    return canonical if system is None else [with_system(prompt, system) for prompt in canonical]


def _encoded(encoding: Mapping[str, Any]) -> Any:
    """The token ids of what a tokenizer returned, without what its mask leaves out."""
    values = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in encoding.items()}
    others = sorted(values.keys() - {"input_ids", "attention_mask", "token_type_ids"})
    if others:
        raise ValueError(
            f"prompts has {', '.join(others)} beside input_ids and attention_mask, which would not be read; leave "
            "them out, or give images as images="
        )
    ids, mask = values["input_ids"], values.get("attention_mask")
    if mask is None:
        return ids
    if ids and isinstance(ids[0], int):
        ids, mask = [ids], [mask]
    if [len(row) for row in ids] != [len(row) for row in mask]:
        raise ValueError("prompts: attention_mask must have the shape of input_ids")
    kept = []
    for number, (row, keep) in enumerate(zip(ids, mask, strict=True)):
        read = [place for place, one in enumerate(keep) if one]
        if not read or read != list(range(read[0], read[-1] + 1)):
            raise ValueError(
                f"prompts[{number}]: attention_mask={keep} must be 1 on a run of tokens and 0 on the padding around it"
            )
        kept.append(tuple(row[read[0] : read[-1] + 1]))
    return kept


def _strip_padding(rows: list[Prompt], tokenizer: Any, name: str = "prompts") -> list[Prompt]:
    """Rows of token ids that are one batch of a tokenizer, without the padding at their ends.

    Raises:
        ValueError: the padding token begins or ends a text too, and only some of the rows have it there.
    """
    pad = getattr(tokenizer, "pad_token_id", None)
    lengths = {len(row) for row in rows}
    if pad is None or len(lengths) > 1 or not all(isinstance(row, tuple) and isinstance(row[0], int) for row in rows):
        return rows
    means = {getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None)}
    for place in (0, -1):
        padded = [number for number, row in enumerate(rows) if row[place] == pad]
        # Of a batch that was padded, the longest row has no padding.
        if pad in means and padded and len(padded) < len(rows):
            raise ValueError(
                f"{name}[{padded[0]}] {'begins' if place == 0 else 'ends'} with token {pad}, which pads and begins "
                'or ends texts too; give the whole encoding, {"input_ids": …, "attention_mask": …}, or rows without it'
            )
    if pad in means:
        return rows
    found: list[Prompt] = []
    for number, row in enumerate(rows):
        read = [place for place, token in enumerate(row) if token != pad]
        if not read:
            raise ValueError(f"{name}[{number}] holds the padding token {pad} alone; give it a token")
        found.append(row[read[0] : read[-1] + 1])
    return found


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
    """Token ids of one prompt; a chat that ends in a turn of the assistant is continued inside that turn.

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
        how = {"add_generation_prompt": True}
        if messages[-1]["role"] == "assistant" and len(messages) > 1:
            if messages[-1]["content"].strip():
                how = {"continue_final_message": True}
            else:  # nothing to continue
                messages.pop()
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **how)["input_ids"]
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
    copies: int = 1,
) -> list[Rows]:
    """Token ids that each extra branch of ``guidance`` reads, one list per branch and row.

    Args:
        cond: the user's prompts as token ids.
        tokenizer: needed where a branch names text or a chat.
        prompts: the user's prompts in canonical form, needed where a branch swaps their system prompt.
        empty_source: what an encoder-decoder reads for no source at all; None for a decoder-only model.
        copies: rows of ``cond`` that are copies of one prompt, side by side, as ``num_return_sequences`` makes them.

    Raises:
        ValueError: the prompts of a branch do not fit the batch, or something it needs is missing.
    """
    return [rows_of(branch, cond, tokenizer, prompts, empty_source, copies) for branch in guidance.branches]


def without_padding(ids: Tensor, mask: Tensor | None) -> Rows:
    """The token ids of every row (B, L) without what its mask leaves out."""
    if mask is None:
        rows: Rows = ids.tolist()
        return rows
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def empty_source(config: Any) -> list[int] | None:
    """What an encoder-decoder reads for no source: its end token, after its begin token if it uses one. None for a
    decoder-only model.

    Raises:
        ValueError: the model has no end token.
    """
    if not config.is_encoder_decoder:
        return None
    end: Any = getattr(config, "eos_token_id", None)
    end = end[0] if isinstance(end, (list, tuple)) else end
    if end is None:
        raise ValueError("the model has no end token to stand for an empty source; pass negative_prompt")
    begin: Any = getattr(config, "bos_token_id", None)
    uses_begin = begin is not None and config.model_type in {"bart", "mbart", "blenderbot", "blenderbot-small", "led"}
    return [begin, end] if uses_begin else [end]


def expand(rows: list[T], size: int, name: str = "negative_prompt", copies: int = 1) -> list[T]:
    """One row for all, one per prompt, or one per row, as ``size`` rows in the order in which ``generate`` repeats
    prompts.

    Args:
        copies: how often the batch holds each prompt.

    Raises:
        ValueError: the number of rows does not fit ``size``.
    """
    if len(rows) not in (1, size) and len(rows) * copies != size:
        prompts = f" and {size // copies} prompts" if copies > 1 else ""
        raise ValueError(
            f"{name} has {len(rows)} rows and the batch has {size}{prompts}; give one for all rows, or one per prompt"
        )
    times = size // len(rows)
    return [row for row in rows for _ in range(times)]


def rows_of(
    branch: Branch,
    cond: Rows,
    tokenizer: Any,
    prompts: Sequence[Prompt] | None = None,
    empty_source: Sequence[int] | None = None,
    copies: int = 1,
    name: str = "negative_prompt",
) -> Rows:
    """What one branch reads, row by row; arguments as for :func:`branch_rows`, and ``name`` for errors."""
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
    given: list[Any] = [branch.prompt]
    if per_row(branch.prompt):
        given = _strip_padding(list(branch.prompt), tokenizer, name)  # type: ignore[arg-type]
    rows = [encode(prompt, tokenizer, name) for prompt in given]
    return expand(rows, len(cond), name, copies)


def check_rows(model: Any, rows: Rows, name: str, new: int | None = None, *, written: bool = False) -> None:
    """Refuse rows that ``model`` cannot read.

    Args:
        rows: token ids; of an encoder-decoder what its encoder reads, unless they are ``written``.
        name: the argument that an error names.
        new: tokens that are written behind each row; the last of them is not read. None: lengths are not checked.

    Raises:
        ValueError: an id lies outside the vocabulary, or a row is too long for the positions of the model.
    """
    size, limit = _sizes(model) if not written else (adapter(model).vocab_size, None)
    behind = 0 if new is None or model.config.is_encoder_decoder else new - 1
    for number, row in enumerate(rows):
        if size is not None and row and not 0 <= min(row) <= max(row) < size:
            wrong = next(token for token in row if not 0 <= token < size)
            raise ValueError(f"{name}[{number}] has token id {wrong}; the vocabulary has {size} tokens")
        if new is not None and limit is not None and len(row) + behind > limit:
            raise ValueError(
                f"{name}[{number}] has {len(row)} tokens and max_new_tokens={new}, but the model has {limit} "
                "positions; shorten one of them"
            )


def positions(model: Any) -> int | None:
    """The longest text that ``model`` has positions for; of an encoder-decoder the longest source. None: no limit."""
    return _sizes(model)[1]


def _sizes(model: Any) -> tuple[int | None, int | None]:
    """Tokens in the vocabulary of what reads a prompt, and its positions; None where they are not known."""
    sizes = adapter(model)
    encoder = getattr(sizes.base.config, "encoder", None) if sizes.is_encoder_decoder else None
    if encoder is None:
        return sizes.vocab_size, sizes.max_positions
    return getattr(encoder, "vocab_size", None), getattr(encoder, "max_position_embeddings", None)


def check_branches(
    model: Any, guidance: BranchGuidance, branches: Sequence[Rows], new: int, models: Mapping[str, Any] | None = None
) -> None:
    """:func:`check_rows` for what each extra branch of ``guidance`` reads, on the model that runs it.

    Args:
        models: further models by name.
    """
    for branch, rows in zip(guidance.branches, branches, strict=True):
        check_rows((models or {}).get(branch.model, model), rows, "negative_prompt", new)


def warn_of_same(
    guidance: BranchGuidance, cond: Rows, branches: Sequence[Rows], name: str = "prompts", *, whole: bool = False
) -> None:
    """Warn of rows for which guidance does nothing, since every branch reads the prompt itself.

    Args:
        cond: what the conditional branch reads.
        branches: what each extra branch of ``guidance`` reads.
        name: the argument whose rows the warning names.
        whole: warn also where this holds for all rows, of which a run that reports its effect warns at its end.
    """
    if guidance.is_neutral or not branches:
        return
    # Another model, or a part of the model, differs by itself.
    if any(branch.same_prompt or branch.model != SELF or branch.view is not None for branch in guidance.branches):
        return
    if not guidance.keeps_equal_branches():
        return
    same = [number for number, row in enumerate(cond) if all(branch[number] == row for branch in branches)]
    if not same or (len(same) == len(cond) and not whole):
        return
    shown = ", ".join(f"{name}[{number}]" for number in same[:5]) + (", …" if len(same) > 5 else "")
    short = any(branch.prompt is None and branch.edit is None and branch.system is None for branch in guidance.branches)
    cause = "every branch of it reads the same tokens as the prompt"
    if short and all(len(cond[number]) == 1 for number in same):
        cause = "the other branch reads the last token of a prompt, and these prompts are one token"
    warnings.warn(
        f"{guidance} changes nothing for {len(same)} of {len(cond)} rows ({shown}): {cause}; give a negative prompt "
        "that differs, or begin the prompt with the tokenizer's begin token (BOS)",
        GuidanceHadNoEffectWarning,
        stacklevel=4,
    )


def sees_images(model: Any, model_kwargs: Mapping[str, Any]) -> bool:
    """Whether a run of ``generate`` reads images."""
    encoded = bool((model_kwargs.get("mm_encoder_outputs") or {}).get("image"))
    seen = any(model_kwargs.get(name) is not None for name in ("pixel_values", "encoder_hidden_states"))
    return encoded or seen or is_vision_encoder_decoder(model)


def is_vision_encoder_decoder(model: Any) -> bool:
    """Whether the model's encoder reads pixels."""
    encoder = getattr(model, "encoder", None) if model.config.is_encoder_decoder else None
    return getattr(encoder, "main_input_name", None) == "pixel_values"
