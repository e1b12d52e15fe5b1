"""What every constrained task is."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from textguide.constraints import Constraint

Message = dict[str, str]


@dataclass(frozen=True)
class Item:
    """One thing to write.

    Args:
        name: names it within its task, always the same.
        messages: the conversation whose next turn is the answer: instruction, worked examples, what is asked.
        answer: what the task's checker compares with, of a type that the task chooses.
    """

    name: str
    messages: tuple[Message, ...] = field(hash=False)
    answer: Any = field(hash=False, compare=False)

    @property
    def text(self) -> str:
        """The conversation as plain text, for models without a chat template; the answer starts on a line of its
        own, so that it has no space in front."""
        marks = {"system": "", "user": "### Task\n", "assistant": "### Answer\n"}
        turns = [f"{marks[message['role']]}{message['content']}\n\n" for message in self.messages]
        return "".join(turns) + marks["assistant"]


class ConstrainedTask(ABC):
    """Texts under a constraint that can be right or wrong.

    Args:
        data: the folder of the data files; default: the one that TEXTGUIDE_DATA names.

    Attributes:
        name: names the task.
        measures: what :meth:`check` gives, the one to be reported first.
        max_new_tokens: a limit that leaves room for the longest answer that is reasonable.
    """

    name: ClassVar[str]
    measures: ClassVar[tuple[str, ...]]
    max_new_tokens: ClassVar[int]

    def __init__(self, data: str | os.PathLike[str] | None = None) -> None:
        self.data = None if data is None else os.fspath(data)

    @abstractmethod
    def items(self) -> Sequence[Item]:
        """What to write, always in the same order.

        Raises:
            ValueError: the data is missing or damaged; the message names the file.
        """

    @abstractmethod
    def constraint(self, item: Item) -> Constraint:
        """The constraint on an answer."""

    @abstractmethod
    def check(self, item: Item, text: str) -> dict[str, float]:
        """How good an answer is, by means that do not share code with the constraint: each of :attr:`measures`, from
        0 to 1."""

    def reference(self) -> dict[str, float]:
        """What texts that people wrote reach, where there are such; else empty."""
        return {}


def conversation(instruction: str, examples: Sequence[tuple[str, str]], question: str) -> tuple[Message, ...]:
    """Instruction, worked examples as turns, and the question."""
    turns: list[Message] = [{"role": "system", "content": instruction}]
    for asked, answered in examples:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return (*turns, {"role": "user", "content": question})
