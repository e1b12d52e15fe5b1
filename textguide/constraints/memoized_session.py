"""Sessions on checkers that answer questions about single texts, and remember the answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Generic, TypeVar

from .base import Session, not_allowed
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_VERDICTS = 1 << 17
Checker = TypeVar("Checker")


class VerdictCache:
    """Answers to yes-or-no questions, shared by all forks of a session.

    Attributes:
        calls: number of questions that had to be computed.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._answers: dict[Hashable, bool] = {}

    def get(self, question: Hashable, compute: Callable[[], bool]) -> bool:
        """The answer to ``question``, computed if it is not known."""
        answer = self._answers.get(question)
        if answer is None:
            self.calls += 1
            answer = compute()
            if len(self._answers) >= MAX_VERDICTS:  # drop the older half
                for old in list(self._answers)[: MAX_VERDICTS // 2]:
                    del self._answers[old]
            self._answers[question] = answer
        return answer


class MemoizedSession(Session, Generic[Checker]):
    """One text under a checker that is called for one text at a time.

    Args:
        checker: answers the questions.
        vocabulary: what each token adds.
        text: the bytes written so far.
        verdicts: the answers so far.
    """

    def __init__(self, checker: Checker, vocabulary: Vocabulary, text: bytes, verdicts: VerdictCache) -> None:
        self.text = text
        self._checker = checker
        self._vocabulary = vocabulary
        self._verdicts = verdicts

    @property
    def calls(self) -> int:
        """Number of texts that had to be checked."""
        return self._verdicts.calls

    def write(self, text: bytes) -> None:
        """As :meth:`Session.write`."""
        if not self.is_prefix(self.text + text):
            raise not_allowed(text, self.text)
        self.text += text

    def fork(self) -> Self:
        """As :meth:`Session.fork`."""
        return type(self)(self._checker, self._vocabulary, self.text, self._verdicts)
