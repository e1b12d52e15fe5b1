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
            ``{"input_ids", "attention_mask"}``, whose padding is left out. If rows of ids have one length and no mask,
            padding at their ends is removed, unless the tokenizer's padding token also begins or ends texts.
        system: a system prompt, put before every chat; texts become the user's turn after it.
        tokenizer: needs a chat template if there are chats.

    Raises:
        ValueError: ``prompts`` or one of its rows is not a prompt, or it is not clear whether tokens are padding.
    """
    has_mask = False
    if isinstance(prompts, Mapping) and "input_ids" in prompts:
        has_mask = prompts.get("attention_mask") is not None
        prompts = _encoded(prompts)
    single = as_prompt(prompts)
    if single is not None:
        canonical = [single]
    else:
        canonical = [_canonical_row(number, row) for number, row in enumerate(_rows(prompts))]
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
            f"prompts={prompts!r} is not a prompt; give a text, token ids or chat messages, "
            "or a list with one of these per row"
        )
    return rows


def _canonical_row(number: int, row: Any) -> Prompt:
    prompt = as_prompt(row)
    if prompt is None:
        raise ValueError(
            f"prompts[{number}]={row!r} is not a prompt; give a text, a list of token ids or a list of chat messages"
        )
    return prompt


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
        ValueError: the padding token also begins or ends texts, and only some of the rows have it there.
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
            raise ValueError(f"{name}[{number}] only consists of the padding token {pad}; give it a token")
        stripped.append(row[columns[0] : columns[-1] + 1])
    return stripped


def _is_token_ids(prompt: Prompt) -> bool:
    return isinstance(prompt, tuple) and isinstance(prompt[0], int)


def _check_ends(rows: list[Prompt], pad: int, name: str) -> None:
    """Refuse rows of which only some begin or end with ``pad``: the longest row of a padded batch has no padding."""
    for end, verb in ((0, "begins"), (-1, "ends")):
        padded = [number for number, row in enumerate(rows) if row[end] == pad]
        if padded and len(padded) < len(rows):
            raise ValueError(
                f"{name}[{padded[0]}] {verb} with token {pad}, which pads and also begins or ends texts; give the "
                'whole encoding, {"input_ids": …, "attention_mask": …}, or rows without padding'
            )


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
        return _edited(branch, cond, tokenizer, prompts, copies)
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


def _edited(branch: Branch, cond: Rows, tokenizer: Any, prompts: Sequence[Prompt] | None, copies: int) -> Rows:
    """What a branch reads that changes the user's own prompt."""

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
        rows: token ids; of an encoder-decoder what its encoder reads, unless they are ``written``.
        name: the argument that an error names.
        new: tokens that are written after each row; the last of them is not read. None: lengths are not checked.
        written: the decoder of an encoder-decoder reads the rows.
        plain: as for :func:`check_lengths`.

    Raises:
        ValueError: an id lies outside the vocabulary, a row is too long for the positions of the model, or the model
            changes what it has read at a length that a row crosses.
    """
    size = adapter(model).vocab_size if written else _sizes(model)[0]
    for number, row in enumerate(rows):
        if size is not None and row and not 0 <= min(row) <= max(row) < size:
            wrong = next(token for token in row if not 0 <= token < size)
            raise ValueError(f"{name}[{number}] has token id {wrong}; the vocabulary has {size} tokens")
    if new is not None and not written:
        check_lengths(model, [len(row) for row in rows], name, new, plain=plain)


def check_lengths(model: Any, lengths: Sequence[int], name: str, new: int, *, plain: bool = False) -> None:
    """Refuse rows of some ``lengths`` that ``model`` cannot read together with ``new`` written tokens.

    Args:
        lengths: tokens of every row; of an encoder-decoder those that its encoder reads.
        name: the argument that an error names.
        new: tokens that are written after each row; the last of them is not read.
        plain: the run has no other branches. Transformers then decides what happens at a length at which the model
            changes what it has read.

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
    if not known.is_encoder_decoder and not plain:
        known.check_lengths(lengths, new)


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
        whole: also warn if this holds for all rows; a run that reports its effect warns of that at its end.
    """
    if guidance.is_neutral or not branches or any(map(_differs_by_model, guidance.branches)):
        return
    same = _rows_that_are_the_same(cond, branches)
    if not same or not guidance.keeps_equal_branches() or (len(same) == len(cond) and not whole):
        return
    shown = ", ".join(f"{name}[{number}]" for number in same[:5]) + (", …" if len(same) > 5 else "")
    cause = "every branch of it reads the same tokens as the prompt"
    if any(map(_reads_last_token, guidance.branches)) and all(len(cond[number]) == 1 for number in same):
        cause = "the other branch reads the last token of a prompt, and these prompts are one token"
    warnings.warn(
        f"{guidance} changes nothing for {len(same)} of {len(cond)} rows ({shown}): {cause}; give a negative prompt "
        "that differs, or begin the prompt with the tokenizer's begin token (BOS)",
        GuidanceHadNoEffectWarning,
        stacklevel=4,
    )


def _rows_that_are_the_same(cond: Rows, branches: Sequence[Rows]) -> list[int]:
    """Numbers of the rows that all branches read as the conditional branch does."""
    return [number for number, row in enumerate(cond) if all(branch[number] == row for branch in branches)]


def _differs_by_model(branch: Branch) -> bool:
    """Whether a branch runs another model, or a part of the model: it then differs, whatever it reads."""
    return branch.same_prompt or branch.model != SELF or branch.view is not None


def _reads_last_token(branch: Branch) -> bool:
    return branch.prompt is None and branch.edit is None and branch.system is None


def sees_images(model: Any, model_kwargs: Mapping[str, Any]) -> bool:
    """Whether a run of ``generate`` reads images."""
    encoded = bool((model_kwargs.get("mm_encoder_outputs") or {}).get("image"))
    seen = any(model_kwargs.get(name) is not None for name in ("pixel_values", "encoder_hidden_states"))
    return encoded or seen or is_vision_encoder_decoder(model)


def is_vision_encoder_decoder(model: Any) -> bool:
    """Whether the model's encoder reads pixels."""
    encoder = getattr(model, "encoder", None) if model.config.is_encoder_decoder else None
    return getattr(encoder, "main_input_name", None) == "pixel_values"
