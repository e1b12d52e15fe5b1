"""A hidden Markov model over tokens, small enough to be combined with an automaton."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from . import stored

STEP = 0.08
"""Nats between two of the 256 values of a stored log-probability; the smallest is 20 below the largest."""
KIND = "hidden-markov"
READ = 256
"""Number of tokens at the end of a prompt that are read."""


@dataclass(frozen=True, eq=False)
class HiddenMarkov:
    """``z_1 ~ initial``, ``z_{t+1} ~ transition[z_t]``, ``x_t ~ emission[z_t]``.

    Args:
        initial: (H,), float32.
        transition: rows that sum to 1, (H, H).
        emission: rows that sum to 1, (H, V).
    """

    initial: Tensor
    transition: Tensor
    emission: Tensor

    @property
    def states(self) -> int:
        """H, the number of hidden states."""
        return len(self.initial)

    @cached_property
    def columns(self) -> Tensor:
        """The emission by token, (V, H)."""
        return self.emission.T.contiguous()

    @cached_property
    def digest(self) -> str:
        """A hash that identifies the emissions."""
        return hashlib.sha256(self.emission.contiguous().numpy().data).hexdigest()

    def read(self, tokens: Sequence[int]) -> Tensor:
        """For each state the probability that it emits the *next* token after ``tokens``, (H,)."""
        belief = self.initial
        for token in tokens[-READ:]:
            belief = self.next(belief, token)
        return belief

    def next(self, belief: Tensor, token: int) -> Tensor:
        """The same after one more token."""
        joint = belief * self.columns[token]
        total = joint.sum()
        return (joint / total if total > 0 else belief) @ self.transition

    def log_likelihood(self, tokens: Sequence[int]) -> float:
        """log p(tokens)."""
        belief = self.initial
        total = 0.0
        for token in tokens:
            total += float(torch.log((belief * self.columns[token]).sum()))
            belief = self.next(belief, token)
        return total

    def save(self, path: str | os.PathLike[str], about: dict[str, object] | None = None) -> None:
        """Write a safetensors file, with one byte per emission.

        Args:
            path: the file.
            about: further values for the header of the file.
        """
        log = self.emission.clamp_min(1e-30).log()
        top = log.amax(0)
        codes = ((top - log) / STEP).round().clamp(0, 255).to(torch.uint8)
        tensors = {"initial": self.initial, "transition": self.transition, "top": top, "codes": codes}
        stored.write(path, KIND, tensors, about or {})

    @classmethod
    def of(cls, file: stored.Stored) -> HiddenMarkov:
        """The model that :meth:`save` wrote."""
        tensors = file.tensors
        emission = (tensors["top"] - STEP * tensors["codes"].float()).exp()
        emission = emission / emission.sum(-1, keepdim=True)
        return cls(tensors["initial"], tensors["transition"], emission)


def load(path: str | os.PathLike[str]) -> HiddenMarkov:
    """The model that :meth:`HiddenMarkov.save` wrote.

    Raises:
        ValueError: the file does not exist, or contains something else.
    """
    file = stored.read(path)
    if file.kind != KIND:
        raise ValueError(f"lookahead={file.path!r} contains a {file.kind}, not a {KIND}")
    return HiddenMarkov.of(file)
