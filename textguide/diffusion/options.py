"""How a canvas is filled: all options of ``generate``, ``infill`` and ``stream``, declared and checked in one place.

A new option is a field here, and a keyword of the public functions that accept it. Servers, the playground and lm-eval
read the fields from this class.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..serving.schema import SEED_LIMIT, RequestField
from ..support.checks import flag, is_number, is_whole_number, number_from, one_of, whole_number
from .caching import Caching, resolve_cache
from .samplers import EqualShares, Order, Threshold, Unmasking

POSITIONS = ("guided", "conditional", "unconditional")
Allowed = Tensor | Callable[[int, Tensor], Tensor]
"""A bool mask of tokens, or a function of a row and its target tokens that returns one."""

_NOT_HERE: dict[str, str] = {
    "do_sample": "temperature above 0 draws, 0 takes the most likely tokens",
    "num_return_sequences": "repeat the prompt, with a seed= for each",
    "observer": "use textguide.diffusion.stream, or keep_history=True",
    "speculation": "sampler= and threshold= fill several positions per step",
    "streamer": "use textguide.diffusion.stream",
    "system": "give the prompts as chats, with a system message",
    **dict.fromkeys(("top_k", "top_p", "min_p", "repetition_penalty"), "use allowed= to restrict the tokens"),
}
"""Options of :func:`textguide.generate` that a canvas does not have, with a remedy."""


def _requested(request: RequestField | None, *, infill: bool = True) -> dict[str, Any]:
    """Metadata of a field of :class:`CanvasOptions`.

    Args:
        request: what a request over HTTP may set the field to; None: nothing.
        infill: whether ``infill`` accepts the field too.
    """
    return {"request": request, "infill": infill}


_TEXT = RequestField((str,))
_LENGTH = RequestField((int,), 1, "canvas", label="masks after the prompt", aliases=("gen_length",))
_STEPS = RequestField((int,), 1, "canvas", times=4, label="empty: one per mask")
_BLOCK = RequestField((int,), 1, label="empty: the whole canvas at once")
_TEMPERATURE = RequestField((float,), 0, 100, label="0 or empty: the most likely tokens")
_THRESHOLD = RequestField((float,), label="fill every position that is at least this certain")
_CORRECTOR = RequestField((int,), 0, "canvas", label="tokens that are drawn again per step")
_SEED = RequestField((int,), -SEED_LIMIT, SEED_LIMIT, label="makes sampling reproducible")


@dataclass(frozen=True)
class CanvasOptions:
    """How a canvas is filled. :func:`textguide.diffusion.generate` documents the fields.

    Raises:
        ValueError: a field has a value that cannot work; the message names it, its value and the remedy.
    """

    max_new_tokens: int = field(default=256, metadata=_requested(_LENGTH, infill=False))
    steps: int | None = field(default=None, metadata=_requested(_STEPS))
    block_length: int | None = field(default=None, metadata=_requested(_BLOCK, infill=False))
    order: Order | str = field(default="confidence", metadata=_requested(_TEXT))
    sampler: Unmasking | str | None = field(default=None, metadata=_requested(_TEXT))
    temperature: float = field(default=0.0, metadata=_requested(_TEMPERATURE))
    threshold: float | None = field(default=None, metadata=_requested(_THRESHOLD))
    positions: str = field(default="guided", metadata=_requested(_TEXT))
    corrector: int = field(default=0, metadata=_requested(_CORRECTOR))
    allowed: Allowed | None = field(default=None, metadata=_requested(None))
    constraint: Any = field(default=None, metadata=_requested(RequestField((str, dict))))
    early_end: bool = field(default=True, metadata=_requested(RequestField((bool,)), infill=False))
    cache: Caching | str | bool | None = field(default=False, metadata=_requested(RequestField((bool, str))))
    seed: int | Sequence[int | None] | None = field(default=None, metadata=_requested(_SEED))

    def __post_init__(self) -> None:
        self._put("max_new_tokens", whole_number("max_new_tokens", self.max_new_tokens, 1))
        if self.steps is not None:
            self._put("steps", whole_number("steps", self.steps, 1))
        if self.block_length is not None:
            self._put("block_length", whole_number("block_length", self.block_length, 1))
        self._put("temperature", number_from("temperature", self.temperature, 0.0, "0 takes the most likely token"))
        self._put("corrector", whole_number("corrector", self.corrector, 0, "0 draws no token again"))
        self._put("seed", _seeds(self.seed))
        one_of("positions", self.positions, POSITIONS)
        flag("early_end", self.early_end)
        _check_allowed(self.allowed)
        self.unmasking.check(self.ranking)
        _ = self.caching  # resolved now, so that an unknown name is reported before a model runs

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @cached_property
    def ranking(self) -> Order:
        """``order`` as an object."""
        return Order.of(self.order)

    @cached_property
    def unmasking(self) -> Unmasking:
        """``sampler`` or ``threshold`` as an object."""
        if self.threshold is None:
            return Unmasking.of(EqualShares() if self.sampler is None else self.sampler)
        if self.sampler is not None:
            raise ValueError(
                f"threshold={self.threshold!r} is a sampler of its own and sampler={self.sampler!r} another; leave one "
                "of them out"
            )
        if not is_number(self.threshold) or not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"threshold={self.threshold!r} must lie in (0, 1], or be None for equal shares")
        return Threshold(float(self.threshold))

    @cached_property
    def caching(self) -> Caching | None:
        """``cache`` as an object; None: nothing is kept between passes."""
        return resolve_cache(self.cache)

    def check_rows(self, rows: int) -> None:
        """Check the options that have one value per row.

        Raises:
            ValueError: there are more or fewer values than rows.
        """
        if isinstance(self.allowed, Tensor) and self.allowed.dim() == 3 and len(self.allowed) != rows:
            raise ValueError(f"allowed has {len(self.allowed)} rows for {rows} texts; give one per text")
        if isinstance(self.seed, Sequence) and len(self.seed) != rows:
            raise ValueError(f"seed has {len(self.seed)} numbers for {rows} texts; give one per text")

    def of_rows(self, start: int, stop: int) -> CanvasOptions:
        """The options of the rows ``start`` to ``stop`` of a batch."""
        seed = self.seed[start:stop] if isinstance(self.seed, Sequence) else self.seed
        allowed = self.allowed
        if isinstance(allowed, Tensor):
            allowed = allowed[start:stop] if allowed.dim() == 3 else allowed
        elif allowed is not None:
            allowed = _of_later_rows(allowed, start)
        return replace(self, seed=seed, allowed=allowed)

    @classmethod
    def of_call(cls, function: str, arguments: Mapping[str, Any], *, infilling: bool = False) -> CanvasOptions:
        """The options among the arguments of a public function.

        Args:
            function: its name with the package, for messages.
            arguments: its ``locals()``; ``others`` holds the keywords that are not in its signature.
            infilling: whether it fills masks inside of given texts.
        """
        given = {one.name: arguments[one.name] for one in fields(cls) if one.name in arguments}
        keywords = [name for name in arguments if name != "others"]
        return cls.of({**given, **arguments["others"]}, function, keywords, infilling=infilling)

    @classmethod
    def of(
        cls, values: Mapping[str, Any], function: str, keywords: Sequence[str] = (), *, infilling: bool = False
    ) -> CanvasOptions:
        """The options in ``values``, by the names of the fields or their aliases.

        Args:
            function, infilling: as for :meth:`of_call`.
            keywords: further arguments of the function, which a misspelled name may mean.

        Raises:
            ValueError: one is unknown, or has a value that cannot work; the message suggests the option that was
                probably meant.
        """
        known = {one.name: one for one in fields(cls)}
        given: dict[str, Any] = {}
        for key, value in values.items():
            name = "max_new_tokens" if key == "gen_length" else key
            if name not in known:
                raise ValueError(unknown_option(key, function, [*dict.fromkeys([*known, *keywords]), "gen_length"]))
            if infilling and not known[name].metadata["infill"]:
                raise ValueError(f"{key}= is for text after a prompt; leave it out of {function}")
            if name == "max_new_tokens" and value is None:
                continue
            if name in given and given[name] != value:
                raise ValueError(f"{key}={value} is another name of {name}={given[name]}; give one of them")
            given[name] = value
        return cls(**given)

    @classmethod
    def request_fields(cls, *, infilling: bool = False) -> dict[str, RequestField]:
        """What a request over HTTP may set."""
        return {one.name: one.metadata["request"] for one in fields(cls) if _is_requestable(one, infilling)}


def _is_requestable(option: Field[Any], infilling: bool) -> bool:
    return option.metadata["request"] is not None and (option.metadata["infill"] or not infilling)


def unknown_option(name: str, function: str, known: Sequence[str]) -> str:
    """What is wrong with an unknown option, and what was probably meant."""
    message = f"{name}= is not an option of {function}"
    if name in _NOT_HERE:
        return f"{message}; {_NOT_HERE[name]}"
    close = difflib.get_close_matches(name, known, n=1)
    return f"{message}; did you mean {close[0]}=?" if close else f"{message}; known are {', '.join(known)}"


def _check_allowed(allowed: Any) -> None:
    if allowed is None or (callable(allowed) and not isinstance(allowed, Tensor)):
        return
    if not isinstance(allowed, Tensor):
        raise ValueError(f"allowed={allowed!r} must be a bool tensor, or a function of the row and its tokens")
    if allowed.dtype != torch.bool or allowed.dim() not in (1, 2, 3):
        raise ValueError(
            f"allowed has shape {tuple(allowed.shape)} and type {allowed.dtype}; give bool (V,), (G, V) or (B, G, V), "
            "or a function of the row and its tokens"
        )


def _of_later_rows(allowed: Callable[[int, Tensor], Tensor], start: int) -> Callable[[int, Tensor], Tensor]:
    return lambda row, tokens: allowed(row + start, tokens)


def _seeds(seed: Any) -> int | list[int | None] | None:
    seeds = list(seed) if isinstance(seed, (list, tuple)) else [seed]
    if not seeds or not all(one is None or is_whole_number(one) for one in seeds):
        raise ValueError(f"seed={seed!r} must be a whole number, a list with one per row, or None")
    numbers = [None if one is None else int(one) for one in seeds]
    return numbers if isinstance(seed, (list, tuple)) else numbers[0]
