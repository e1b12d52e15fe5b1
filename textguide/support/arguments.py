"""Checks of the arguments that every function with a model takes, before anything runs."""

from __future__ import annotations

from typing import Any


def check_model_and_tokenizer(model: Any, tokenizer: Any) -> None:
    """Refuse what is no model, and what is no tokenizer of texts.

    Args:
        model: must decode: have ``config`` and ``generate``, as every model of transformers, PEFT or torch.compile.
        tokenizer: must turn texts into token ids when called, and ids into texts by ``decode``.

    Raises:
        ValueError: one of them does not; the message names the argument and the remedy.
    """
    if not _decodes(model):
        if _decodes(tokenizer):
            raise ValueError(
                f"model={_kind(model)} and tokenizer={_kind(tokenizer)} are swapped; the model comes first"
            )
        if isinstance(model, str):
            raise ValueError(f"model={model!r} is a name; load it first: model, tokenizer = textguide.load({model!r})")
        raise ValueError(f"model={_kind(model)} is no language model of transformers; textguide.load gives one")
    if tokenizer is None:
        raise ValueError("tokenizer=None cannot decode texts; give the model's tokenizer, as textguide.load returns it")
    if hasattr(tokenizer, "image_processor") and hasattr(tokenizer, "tokenizer"):
        raise ValueError(
            f"tokenizer={_kind(tokenizer)} is a processor of images and texts; give its tokenizer, "
            "processor.tokenizer, or give images= too"
        )
    if not callable(tokenizer) or not callable(getattr(tokenizer, "decode", None)):
        raise ValueError(f"tokenizer={_kind(tokenizer)} does not encode and decode texts; give the model's tokenizer")


def _decodes(value: Any) -> bool:
    return hasattr(value, "config") and callable(getattr(value, "generate", None))


def _kind(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, (str, int, float)) else type(value).__name__
