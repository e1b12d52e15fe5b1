"""Constraints and models small enough to enumerate."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from textguide.constraints import Constraint, Session, Vocabulary

END = 0
PIECES = (b"", b"a", b"b", b"c", b"ab", b"ba", b"ca", b"cab", b"")
"""Token 0 ends a text, the last one is special."""

VOCABULARY = Vocabulary(PIECES, frozenset({END}))


@dataclass(frozen=True)
class Strings(Constraint):
    """A finite set of byte strings."""

    members: frozenset[bytes]
    masks: bool = False

    kind = "strings"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "members": sorted(m.decode("latin-1") for m in self.members), "masks": self.masks}

    def start(self, vocabulary: Vocabulary) -> Session:
        prefixes = frozenset(m[:n] for m in self.members for n in range(len(m) + 1))
        return _Strings(self, prefixes, vocabulary)


class _Strings(Session):
    def __init__(self, constraint: Strings, prefixes: frozenset[bytes], vocabulary: Vocabulary) -> None:
        self.constraint, self.prefixes, self._vocabulary = constraint, prefixes, vocabulary
        self.text = b""
        self.counter = [0]

    @property
    def calls(self) -> int:
        return self.counter[0]

    def is_prefix(self, text: bytes) -> bool:
        self.counter[0] += 1
        return text in self.prefixes

    def is_complete(self, text: bytes) -> bool:
        self.counter[0] += 1
        return text in self.constraint.members

    def mask(self) -> Tensor | None:
        if not self.constraint.masks:
            return None
        ends = self._vocabulary.ends
        return torch.tensor(
            [
                self.text in self.constraint.members if i in ends else bool(t) and self.text + t in self.prefixes
                for i, t in enumerate(self._vocabulary.tokens)
            ]
        )

    def write(self, text: bytes) -> None:
        self.text += text
        assert self.text in self.prefixes

    def fork(self) -> Session:
        twin = _Strings(self.constraint, self.prefixes, self._vocabulary)
        twin.text, twin.counter = self.text, self.counter
        return twin


def random_distribution(rng: random.Random, size: int, temperature: float = 1.5) -> Tensor:
    """A random next-token distribution, float32 log-probabilities (V,)."""
    return torch.tensor([rng.gauss(0, temperature) for _ in range(size)]).log_softmax(-1)


def random_strings(rng: random.Random, masks: bool = False, letters: str = "abc", longest: int = 4) -> Strings:
    """A random non-empty set of short texts."""
    count = rng.randint(1, 6)
    members = {"".join(rng.choice(letters) for _ in range(rng.randint(0, longest))) for _ in range(count)}
    return Strings(frozenset(m.encode() for m in members), masks)
