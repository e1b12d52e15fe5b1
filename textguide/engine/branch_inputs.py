"""Convert prompts to token ids: the user's prompts, and those that the branches of a guidance read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from ..forward.model_adapter import adapter
from ..guidance.base import SELF, Branch, BranchGuidance
from ..guidance.prompts import Chat, Message, Prompt, as_prompt, is_chat, per_row
from ..support.checks import brief
from ..support.errors import GuidanceHadNoEffectWarning

Rows = list[list[int]]
T = TypeVar("T")


def canonical_prompts(prompts: Any, system: str | None, tokenizer: Any) -> list[Prompt]:
    """The user's prompts in canonical form, one per row; with ``system`` they become chats.

    Args:
        prompts: a text, token ids or a chat, or a sequence with one of these per row; or what a tokenizer returns,
            ``{"input_ids", "attention_mask"}``, whose padding is left out. If all rows of ids have the same length and
            there is no mask, padding at their ends is removed, unless the tokenizer's padding token also begins or ends
            texts.
        system: a system prompt, put before every chat; texts become the user's turn after it.
        tokenizer: needs a chat template if there are chats.

    Raises:
        ValueError: ``prompts`` or one of its rows is not a prompt, or it is unclear whether tokens are padding.
    """
    has_mask = False
    if isinstance(prompts, Mapping) and "input_ids" in prompts:
        has_mask = prompts.get("attention_mask") is not None
        prompts = _encoded(prompts)
    single = as_prompt(prompts)
    if single is not None:
        canonical = [single]
    else:
        canonical = []
        for number, row in enumerate(_rows(prompts)):
            prompt = as_prompt(row)
            if prompt is None:
                raise ValueError(
                    f"prompts[{number}]={row!r} is not a prompt; pass a text, a list of token ids or a list of chat "
                    "messages"
                )
            canonical.append(prompt)
        if not canonical:
            raise ValueError("prompts is empty; give at least one prompt")
        if not has_mask:
            canonical = _strip_padding(canonical, tokenizer)
    return canonical if system is None else [with_system(prompt, system) for prompt in canonical]


def _rows(prompts: Any) -> Iterable[Any]:
    """The rows of several prompts."""
    rows = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    if isinstance(rows, (Mapping, bytes, bytearray)) or not isinstance(rows, Iterable):
        raise ValueError(
            f"prompts={prompts!r} is not a prompt; pass a text, token ids or chat messages, "
            "or a list with one of these per row"
        )
    return rows


def _encoded(encoding: Mapping[str, Any]) -> Any:
    """The token ids in the output of a tokenizer, without the tokens that its mask leaves out."""
    values = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in encoding.items()}
    others = sorted(values.keys() - {"input_ids", "attention_mask", "token_type_ids"})
    if others:
        raise ValueError(
            f"prompts has {', '.join(others)} in addition to input_ids and attention_mask, which would not be read; "
            "leave them out, or pass images as images="
        )
    ids = values["input_ids"]
    mask = values.get("attention_mask")
    if mask is None:
        return ids
    if ids and isinstance(ids[0], int):  # one prompt
        ids = [ids]
        mask = [mask]
    if [len(row) for row in ids] != [len(row) for row in mask]:
        raise ValueError("prompts: attention_mask must have the shape of input_ids")
    rows = []
    for number, (row, row_mask) in enumerate(zip(ids, mask, strict=True)):
        columns = [column for column, value in enumerate(row_mask) if value]
        if not columns or columns != list(range(columns[0], columns[-1] + 1)):
            raise ValueError(
                f"prompts[{number}]: attention_mask={row_mask} must be 1 for a run of tokens and 0 for the padding "
                "around it"
            )
        rows.append(tuple(row[columns[0] : columns[-1] + 1]))
    return rows


def _strip_padding(rows: list[Prompt], tokenizer: Any, name: str = "prompts") -> list[Prompt]:
    """Remove the padding at the ends of rows of token ids that are one batch of a tokenizer.

    Raises:
        ValueError: the padding token also begins or ends texts, and only some of the rows begin or end with it.
    """
    pad = getattr(tokenizer, "pad_token_id", None)
    one_length = len({len(row) for row in rows}) == 1
    if pad is None or not one_length or not all(_is_token_ids(row) for row in rows):
        return rows
    if pad in (getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None)):
        _check_ends(rows, pad, name)
        return rows
    stripped: list[Prompt] = []
    for number, row in enumerate(rows):
        columns = [column for column, token in enumerate(row) if token != pad]
        if not columns:
            raise ValueError(f"{name}[{number}] only consists of the padding token {pad}; add a token")
        stripped.append(row[columns[0] : columns[-1] + 1])
    return stripped


def _is_token_ids(prompt: Prompt) -> bool:
    return isinstance(prompt, tuple) and isinstance(prompt[0], int)


def _check_ends(rows: list[Prompt], pad: int, name: str) -> None:
    """Refuse rows if only some of them begin or end with ``pad``: the longest row of a padded batch has no padding."""
    for end, verb in ((0, "begins"), (-1, "ends")):
        padded = [number for number, row in enumerate(rows) if row[end] == pad]
        if padded and len(padded) < len(rows):
            raise ValueError(
                f"{name}[{padded[0]}] {verb} with token {pad}, which pads and also begins or ends texts; pass the "
                'whole encoding, {"input_ids": …, "attention_mask": …}, or rows without padding'
            )


def with_system(prompt: Prompt, system: str) -> Chat:
    """``prompt`` as a chat whose system prompt is ``system``.

    Raises:
        ValueError: the prompt is made of token ids, which have no turns.
    """
    if isinstance(prompt, str):
        turns: tuple[Any, ...] = (Message("user", prompt),)
    elif is_chat(prompt):
        turns = tuple(turn for turn in prompt if isinstance(turn, Message) and turn.role != "system")
    else:
        raise ValueError("system needs prompts that are texts or chats; prompts of token ids contain no turns")
    return (Message("system", system), *turns)


def encode(prompt: Prompt, tokenizer: Any, name: str) -> list[int]:
    """Token ids of one prompt; a chat that ends in a turn of the assistant is continued inside that turn.

    Args:
        name: the argument that an error names.

    Raises:
        ValueError: the prompt is empty and the tokenizer has no begin token that could replace it; or the prompt is a
            text or a chat, and the tokenizer is missing or has no chat template.
    """
    if isinstance(prompt, tuple) and prompt and isinstance(prompt[0], int):
        ids: list[int] = [int(i) for i in prompt]
    elif tokenizer is None:
        raise ValueError(f"{name}={prompt!r} is text and needs a tokenizer; pass tokenizer=, or pass token ids")
    elif isinstance(prompt, str):
        ids = tokenizer(prompt).input_ids
    else:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(f"{name} is a chat, but the tokenizer has no chat template; pass a text")
        messages = [{"role": turn.role, "content": turn.content} for turn in prompt]  # type: ignore[union-attr]
        template = {"add_generation_prompt": True}
        if messages[-1]["role"] == "assistant" and len(messages) > 1:
            if messages[-1]["content"].strip():
                template = {"continue_final_message": True}
            else:  # nothing to continue
                messages.pop()
        ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **template)["input_ids"]
    if not ids:
        begin = getattr(tokenizer, "bos_token_id", None)
        if begin is None:
            raise ValueError(f"{name}={prompt!r} is empty, and the tokenizer has no begin token; pass some text")
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
        tokenizer: needed if a branch contains text or a chat.
        prompts: the user's prompts in canonical form; needed if a branch replaces their system prompt.
        empty_source: what an encoder-decoder reads if there is no source; None for a decoder-only model.
        copies: rows of ``cond`` that are adjacent copies of one prompt, as ``num_return_sequences`` makes them.

    Raises:
        ValueError: the prompts of a branch do not fit the batch, or something it needs is missing.
    """
    return [rows_of(branch, cond, tokenizer, prompts, empty_source, copies) for branch in guidance.branches]


def without_padding(ids: Tensor, mask: Tensor | None) -> Rows:
    """The token ids of every row (B, L), without the tokens that its mask leaves out."""
    if mask is None:
        rows: Rows = ids.tolist()
        return rows
    return [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]


def empty_source(config: Any) -> list[int] | None:
    """What an encoder-decoder reads if there is no source: its end token, after its begin token if it uses one.

    None for a decoder-only model.

    Raises:
        ValueError: the model has no end token.
    """
    if not config.is_encoder_decoder:
        return None
    end: Any = getattr(config, "eos_token_id", None)
    end = end[0] if isinstance(end, (list, tuple)) else end
    if end is None:
        raise ValueError("the model has no end token to use as an empty source; pass negative_prompt")
    begin: Any = getattr(config, "bos_token_id", None)
    uses_begin = begin is not None and config.model_type in {"bart", "mbart", "blenderbot", "blenderbot-small", "led"}
    return [begin, end] if uses_begin else [end]


def expand(rows: list[T], size: int, name: str = "negative_prompt", copies: int = 1) -> list[T]:
    """Repeat one row for all, one row per prompt, or one per row, to ``size`` rows.

    The order is that in which ``generate`` repeats prompts.

    Args:
        copies: how often the batch contains each prompt.

    Raises:
        ValueError: the number of rows does not fit ``size``.
    """
    if len(rows) not in (1, size) and len(rows) * copies != size:
        prompts = f" and {size // copies} prompts" if copies > 1 else ""
        raise ValueError(
            f"{name} has {len(rows)} rows and the batch has {size}{prompts}; pass one for all rows, or one per prompt"
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
    """What one branch reads, one list per row. Arguments as for :func:`branch_rows`; errors mention ``name``."""
    if branch.same_prompt:
        return [list(row) for row in cond]
    if branch.edit is not None:
        return _edited(branch, cond, tokenizer, prompts, copies)
    if branch.system is not None:
        if prompts is None:
            raise ValueError(
                "negative_system needs the prompts as texts or chats; use textguide.generate or textguide.score, "
                "or pass negative_prompt"
            )
        chats = [with_system(prompt, branch.system) for prompt in prompts]
        check_templates(prompts, chats, "negative_system")
        return [encode(chat, tokenizer, "negative_system") for chat in chats]
    if branch.prompt is None:
        if empty_source is not None:
            return [list(empty_source) for _ in cond]
        return [row[-1:] for row in cond]
    branch_prompts: list[Any] = [branch.prompt]
    if per_row(branch.prompt):
        branch_prompts = _strip_padding(list(branch.prompt), tokenizer, name)  # type: ignore[arg-type]
    if prompts is not None:
        check_templates(prompts, expand(branch_prompts, len(cond), name, copies), name)
    rows = [encode(prompt, tokenizer, name) for prompt in branch_prompts]
    return expand(rows, len(cond), name, copies)


def check_templates(prompts: Sequence[Prompt], others: Sequence[Prompt], name: str) -> None:
    """Refuse rows whose prompt is a text if the other branch reads a chat: they would differ by the template as well.

    Args:
        prompts: the user's prompts in canonical form.
        others: what the other branch reads instead of each of them.
        name: the argument that defines it.

    Raises:
        ValueError: a prompt is a text and the other one a chat.
    """
    for prompt, other in zip(prompts, others, strict=True):
        if isinstance(prompt, str) and is_chat(other):
            raise ValueError(
                f"{name} makes a chat for the other branch, but the prompt {brief(prompt)} is a plain text, and the "
                "branches would differ by the chat template as well; pass the prompt as chat messages, or pass system= "
                "too, or a negative_prompt that is a text"
            )


def _edited(branch: Branch, cond: Rows, tokenizer: Any, prompts: Sequence[Prompt] | None, copies: int) -> Rows:
    """What a branch reads if it edits the user's prompt."""

    def read(prompt: Prompt) -> list[int]:
        return encode(prompt, tokenizer, "the prompt of a branch")

    originals = list(prompts) if prompts is not None else [None] * len(cond)
    edits: list[Any] = list(branch.edit) if isinstance(branch.edit, tuple) else [branch.edit]
    rows = []
    for edit, row, original in zip(expand(edits, len(cond), "context", copies), cond, originals, strict=True):
        rows.append(edit.apply(list(row), original, read))
    return rows


def check_rows(
    model: Any, rows: Rows, name: str, new: int | None = None, *, written: bool = False, plain: bool = False
) -> None:
    """Refuse rows that ``model`` cannot read.

    Args:
        rows: token ids; for an encoder-decoder, what its encoder reads, unless ``written`` is set.
        name: the argument, for error messages.
        new: tokens that are written after each row; the last of them is not read. None: lengths are not checked.
        written: whether the decoder of an encoder-decoder reads the rows.
        plain: as for :func:`check_lengths`.

    Raises:
        ValueError: an id is outside the vocabulary, a row is too long for the positions of the model, or a row crosses
            a length at which the model changes what it has read.
    """
    size = adapter(model).vocab_size if written else _sizes(model)[0]
    for number, row in enumerate(rows):
        if size is not None and row and not 0 <= min(row) <= max(row) < size:
            wrong = next(token for token in row if not 0 <= token < size)
            raise ValueError(f"{name}[{number}] has token id {wrong}; the vocabulary has {size} tokens")
    if new is not None and not written:
        check_lengths(model, [len(row) for row in rows], name, new, plain=plain)


def check_lengths(model: Any, lengths: Sequence[int], name: str, new: int, *, plain: bool = False) -> None:
    """Refuse rows that ``model`` cannot read together with ``new`` generated tokens.

    Args:
        lengths: number of tokens of every row; for an encoder-decoder, of what its encoder reads.
        name: the argument, for error messages.
        new: tokens that are written after each row; the last of them is not read.
        plain: whether the run has no other branches. If so, transformers decides what happens when a row crosses a
            length at which the model changes what it has read, unless it would read the text again.

    Raises:
        ValueError: a row is longer than the model has positions for, or crosses a length at which the model changes
            what it has read.
    """
    known = adapter(model)
    limit = positions(model)
    read = 0 if known.is_encoder_decoder else new - 1
    for number, length in enumerate(lengths):
        if limit is not None and length + read > limit:
            raise ValueError(
                f"{name}[{number}] has {length} tokens and max_new_tokens={new}, but the model has {limit} "
                "positions; shorten one of them"
            )
    if not known.is_encoder_decoder and (known.reads_again or not plain):
        known.check_lengths(lengths, new)


def positions(model: Any) -> int | None:
    """The longest text that ``model`` has positions for; for an encoder-decoder, the longest source. None: no limit."""
    return _sizes(model)[1]


def _sizes(model: Any) -> tuple[int | None, int | None]:
    """The vocabulary size and the number of positions of the part that reads a prompt; None if unknown."""
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
    """Warn about rows for which guidance does nothing, because every branch reads the prompt itself.

    Args:
        cond: what the conditional branch reads.
        branches: what each extra branch of ``guidance`` reads.
        name: the argument whose rows the warning lists.
        whole: also warn if this applies to all rows. Leave it off when a run reports its effect: the run then warns
            when it ends.
    """
    if guidance.is_neutral or not branches or any(map(_differs_by_model, guidance.branches)):
        return
    same = _unguided_rows(cond, branches)
    if not same or not guidance.keeps_equal_branches() or (len(same) == len(cond) and not whole):
        return
    shown = ", ".join(f"{name}[{number}]" for number in same[:5]) + (", …" if len(same) > 5 else "")
    cause = "every branch of it reads the same tokens as the prompt"
    if any(map(_reads_last_token, guidance.branches)) and all(len(cond[number]) == 1 for number in same):
        cause = "the other branch reads the last token of a prompt, and these prompts are one token"
    warnings.warn(
        f"{guidance} changes nothing for {len(same)} of {len(cond)} rows ({shown}): {cause}; pass a negative prompt "
        "that differs, or begin the prompt with the tokenizer's begin token (BOS)",
        GuidanceHadNoEffectWarning,
        stacklevel=4,
    )


def _unguided_rows(cond: Rows, branches: Sequence[Rows]) -> list[int]:
    """Numbers of the rows for which all branches read the same tokens as the conditional branch."""
    numbers = []
    for number, row in enumerate(cond):
        if all(branch[number] == row for branch in branches):
            numbers.append(number)
    return numbers


def _differs_by_model(branch: Branch) -> bool:
    """Whether a branch runs another model, or a part of the model: it then differs even if it reads the same tokens."""
    return branch.same_prompt or branch.model != SELF or branch.view is not None


def _reads_last_token(branch: Branch) -> bool:
    return branch.prompt is None and branch.edit is None and branch.system is None


def sees_images(model: Any, model_kwargs: Mapping[str, Any]) -> bool:
    """Whether a run of ``generate`` reads images."""
    if (model_kwargs.get("mm_encoder_outputs") or {}).get("image"):
        return True
    for name in ("pixel_values", "encoder_hidden_states"):
        if model_kwargs.get(name) is not None:
            return True
    return is_vision_encoder_decoder(model)


def is_vision_encoder_decoder(model: Any) -> bool:
    """Whether the model's encoder reads pixels."""
    encoder = getattr(model, "encoder", None) if model.config.is_encoder_decoder else None
    return getattr(encoder, "main_input_name", None) == "pixel_values"
