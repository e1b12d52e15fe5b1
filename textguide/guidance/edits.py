"""Changes to the user's prompt, for extra branches: values that map token ids to token ids, and one for images."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..support.checks import whole_number
from .needs import Need
from .prompts import Message, Prompt, TokenIds, to_json

Encode = Callable[[Prompt], list[int]]
"""From a text or a chat to token ids. Raises an error if there is no tokenizer."""


class Edit(ABC):
    """A change to the user's prompt."""

    need: ClassVar[Need] = Need.EDIT

    @abstractmethod
    def apply(self, ids: list[int], prompt: Prompt | None, encode: Encode) -> list[int]:
        """The token ids that the branch reads.

        Args:
            ids: the user's prompt, as token ids.
            prompt: the same prompt as the user passed it: a text, a chat, or token ids. None if that is not known.
            encode: the tokenizer of the run.

        Raises:
            ValueError: the prompt does not contain the part to change.
        """

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {field.name: to_json(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class Without(Edit):
    """The prompt without a passage, such as the document that an answer should follow.

    Args:
        passage: the passage to remove, wherever it occurs.
    """

    passage: str

    def apply(self, ids: list[int], prompt: Prompt | None, encode: Encode) -> list[int]:
        """Remove the passage from a text or a chat as text, or from token ids as tokens."""
        if isinstance(prompt, str):
            if self.passage not in prompt:
                raise ValueError(_absent(self.passage))
            return encode(prompt.replace(self.passage, ""))
        turns = [turn for turn in prompt or () if isinstance(turn, Message)]
        if turns:
            if not any(self.passage in turn.content for turn in turns):
                raise ValueError(_absent(self.passage))
            return encode(tuple(Message(t.role, t.content.replace(self.passage, "")) for t in turns))
        # Token ids: a tokenizer may split the passage differently inside the prompt, and it is then not found.
        removed = encode(self.passage)
        for start in range(len(ids) - len(removed) + 1):
            if ids[start : start + len(removed)] == removed:
                rest = ids[:start] + ids[start + len(removed) :]
                return rest or ids[-1:]
        raise ValueError(
            _absent(self.passage) + " (the prompt's tokens do not contain its tokens; give the prompt as text)"
        )


@dataclass(frozen=True)
class Shuffled(Edit):
    """The prompt with its tokens in another order. The last token stays, because the text continues from it.

    Args:
        seed: seed of the order, which also depends on the prompt.
    """

    seed: int = 0

    def apply(self, ids: list[int], prompt: Prompt | None, encode: Encode) -> list[int]:
        """A permutation that only depends on the ids and the seed."""
        body = list(ids[:-1])
        random.Random(f"{self.seed} {ids}").shuffle(body)
        return [*body, *ids[-1:]]


@dataclass(frozen=True)
class Unrelated(Edit):
    """Another text with the same number of tokens.

    Args:
        text: the other text, or its token ids; repeated or cut to the length of the prompt.
    """

    text: str | TokenIds

    def apply(self, ids: list[int], prompt: Prompt | None, encode: Encode) -> list[int]:
        """The first ``len(ids)`` tokens of the text, which is repeated if it is shorter."""
        other = encode(self.text)
        return [other[i % len(other)] for i in range(len(ids))]


@dataclass(frozen=True)
class Prefixed(Edit):
    """The prompt after an instruction that disturbs it.

    Args:
        instruction: a text, or token ids.
    """

    instruction: str | TokenIds

    def apply(self, ids: list[int], prompt: Prompt | None, encode: Encode) -> list[int]:
        """Insert the instruction before a text, before the last turn of a chat, or before token ids."""
        if isinstance(self.instruction, str):
            if isinstance(prompt, str):
                return encode(f"{self.instruction}{prompt}")
            turns = [turn for turn in prompt or () if isinstance(turn, Message)]
            if turns:
                last = Message(turns[-1].role, f"{self.instruction}{turns[-1].content}")
                return encode((*turns[:-1], last))
        return [*encode(self.instruction), *ids]


@dataclass(frozen=True)
class NoisedImage(Edit):
    """The prompt with noise added to its image: √ᾱ x + √(1 − ᾱ) ε after a number of steps of a diffusion model.

    The rates of the steps rise as a sigmoid from 1e-5 to 5e-3, as in the code of visual contrastive decoding.

    Args:
        steps: number of steps, from 0 to 999.
    """

    steps: int = 500

    need: ClassVar[Need] = Need.IMAGE

    def __post_init__(self) -> None:
        whole_number("steps", self.steps, 0)
        if self.steps > 999:
            raise ValueError(f"steps={self.steps} must lie between 0 and 999")

    @property
    def share(self) -> float:
        """√(1 − ᾱ): the standard deviation of the noise; the image is multiplied by √ᾱ."""
        rates = (1 / (1 + math.exp(6 - 12 * step / 999)) * (5e-3 - 1e-5) + 1e-5 for step in range(self.steps + 1))
        return math.sqrt(1 - math.prod(1 - rate for rate in rates))

    def apply(self, ids: list[int], prompt: Prompt | None, encode: Encode) -> list[int]:
        """Raise a ValueError: token ids have no pixels."""
        raise ValueError(
            "this guidance changes the image, and this run only reads text; use textguide.caption, or images= of "
            "textguide.generate"
        )


def _absent(passage: str) -> str:
    short = passage if len(passage) <= 40 else passage[:39] + "…"
    return f"context={short!r} is not in the prompt, so it cannot be left out; copy it character by character"
