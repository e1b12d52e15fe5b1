"""Checks of arguments and fields: each returns the value in a plain type, or raises an error that names the argument.

Numbers of numpy are numbers here (``np.float32(1.5)``, ``np.int64(3)``); ``True`` and ``False`` are not.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

LARGEST_FACTOR = 1e6
"""The largest factor of a log-probability. Differences of log-probabilities reach some thousands of nats; multiplied by
this and by the steepest schedule they are still far inside float32, whose largest number is 3.4e38."""


LARGEST_WHOLE_NUMBER = 2**63 - 1
"""The largest whole number that torch takes, and that messages between processes carry."""


def is_whole_number(value: Any) -> bool:
    """Whether ``value`` is an integer, and not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a real number, and not a bool; it may be infinite or NaN."""
    return isinstance(value, Real) and not isinstance(value, bool)


def whole_number(name: str, value: Any, least: int | None = None, remedy: str = "") -> int:
    """``value`` as an int.

    Args:
        name: the argument, for the message.
        value: the value to check.
        least: the smallest number that is allowed; None: no limit.
        remedy: a clause that ends the message, such as ``"0 keeps every token"``.

    Raises:
        ValueError: it is not a whole number, is below ``least``, or has more than 64 bits.
    """
    if is_whole_number(value) and abs(value) > LARGEST_WHOLE_NUMBER:
        raise ValueError(
            f"{name}={brief(value)} must be at most {LARGEST_WHOLE_NUMBER}{'; ' + remedy if remedy else ''}"
        )
    if is_whole_number(value) and (least is None or value >= least):
        return int(value)
    limit = "" if least is None else f" of {least} or more"
    raise ValueError(f"{name}={value!r} must be a whole number{limit}{'; ' + remedy if remedy else ''}")


def finite_number(name: str, value: Any) -> float:
    """``value`` as a float.

    Raises:
        ValueError: it is not a finite number.
    """
    if is_number(value):
        try:
            number = float(value)
        except OverflowError:  # an int beyond float64
            number = math.inf
        if math.isfinite(number):
            return number + 0.0  # turns −0 into 0: equal guidances have equal fingerprints
    raise ValueError(f"{name}={value!r} must be a finite number")


def number_from(name: str, value: Any, least: float, remedy: str = "") -> float:
    """``value`` as a finite float of at least ``least``.

    Raises:
        ValueError: it is not a finite number, or it is below ``least``.
    """
    if is_number(value) and least <= value < math.inf:
        return finite_number(name, value)
    raise ValueError(f"{name}={value!r} must be a number of {least:g} or more{'; ' + remedy if remedy else ''}")


def share(name: str, value: Any, remedy: str = "") -> float:
    """``value`` as a float in [0, 1].

    Raises:
        ValueError: it is not a number there.
    """
    if is_number(value) and 0.0 <= value <= 1.0:
        return finite_number(name, value)
    raise ValueError(f"{name}={value!r} must be a number in [0, 1]{'; ' + remedy if remedy else ''}")


def factor(name: str, value: Any) -> float:
    """``value`` as a float that log-probabilities may be multiplied by.

    Raises:
        ValueError: it is not a finite number within ±:data:`LARGEST_FACTOR`.
    """
    number = finite_number(name, value)
    if abs(number) > LARGEST_FACTOR:
        raise ValueError(
            f"{name}={value!r} is outside ±{LARGEST_FACTOR:g}, where products with log-probabilities may leave "
            "float32; use a smaller number"
        )
    return number


def flag(name: str, value: Any) -> bool:
    """``value`` as a bool.

    Raises:
        ValueError: it is neither True nor False.
    """
    if isinstance(value, bool):
        return value
    raise ValueError(f"{name}={value!r} must be True or False")


def one_of(name: str, value: Any, choices: Collection[Any]) -> Any:
    """``value``, if it is one of ``choices``.

    Raises:
        ValueError: it is not; the message lists the choices.
    """
    # Compared one by one, since an unhashable value is a mistake to report and not a TypeError.
    if any(value is choice or value == choice for choice in choices):
        return value
    raise ValueError(f"{name}={value!r} must be one of {', '.join(map(str, choices))}")


def window(start: Any, stop: Any) -> tuple[float, float]:
    """The progress at which a guidance starts to act and the progress at which it stops.

    Raises:
        ValueError: they are not a part of [0, 1].
    """
    first = finite_number("start", start)
    last = finite_number("stop", stop)
    if not 0.0 <= first <= last <= 1.0:
        raise ValueError(f"start={start} and stop={stop} must satisfy 0 <= start <= stop <= 1")
    return first, last


def brief(value: Any, limit: int = 60) -> str:
    """``value`` as code, cut off after ``limit`` characters, for messages about values of any size."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def check_model_and_tokenizer(model: Any, tokenizer: Any, needs_tokenizer: bool = True) -> None:
    """Refuse a model that cannot generate and a tokenizer that cannot encode and decode.

    Args:
        model: needs ``config`` and ``generate``, as every model of transformers, PEFT or torch.compile has.
        tokenizer: must turn texts into token ids when called, and ids into texts by ``decode``.
        needs_tokenizer: refuse None.

    Raises:
        ValueError: one of them does not; the message names the argument and the remedy.
    """
    if not _generates(model):
        if _generates(tokenizer):
            raise ValueError(
                f"model={_kind(model)} and tokenizer={_kind(tokenizer)} are swapped; the model comes first"
            )
        if isinstance(model, str):
            raise ValueError(f"model={model!r} is a name; load it first: model, tokenizer = textguide.load({model!r})")
        raise ValueError(f"model={_kind(model)} is not a language model of transformers; textguide.load returns one")
    if tokenizer is None and not needs_tokenizer:
        return
    if tokenizer is None:
        raise ValueError("tokenizer=None cannot decode texts; pass the model's tokenizer, as textguide.load returns it")
    if hasattr(tokenizer, "image_processor") and hasattr(tokenizer, "tokenizer"):
        raise ValueError(
            f"tokenizer={_kind(tokenizer)} is a processor of images and texts; pass its tokenizer, "
            "processor.tokenizer, or pass images= too"
        )
    if not callable(tokenizer) or not callable(getattr(tokenizer, "decode", None)):
        raise ValueError(f"tokenizer={_kind(tokenizer)} does not encode and decode texts; pass the model's tokenizer")


def _generates(value: Any) -> bool:
    return hasattr(value, "config") and callable(getattr(value, "generate", None))


def _kind(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, (str, int, float)) else type(value).__name__


def brief_message(message: str, most: int = 800) -> str:
    """``message``, without its middle if it is longer than ``most`` characters.

    It starts with an argument and its value, which a client chooses, and ends with the remedy.
    """
    if len(message) <= most:
        return message
    return f"{message[: most // 2]} […] {message[-most // 2 :]}"
