"""The values of an explanation: tokens with their probabilities, steps, and the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..guidance import Guidance
from ..guidance.spec import label
from ..step.effect import Effect
from ..support.showing import Block, Folded, Line, Shown, Token, Tokens, figure, table
from .token_texts import percent, readable, visible


@dataclass(frozen=True)
class TokenMove:
    """The probabilities of one token at one step, in [0, 1].

    Args:
        text: the token as text; bytes that are not a whole character are written ``\\xNN``.
        token: its id.
        plain: its probability in plain decoding, which is that of the conditional branch.
        guided: its probability under guidance.
        branches: its probability in each extra branch, in the order of :attr:`ExplainedText.branches`; empty at steps
            without extra branches.
        forbidden: whether the constraint of the run forbids the token at this step.
    """

    text: str
    token: int
    plain: float
    guided: float
    branches: tuple[float, ...] = ()
    forbidden: bool = False

    @property
    def change(self) -> float:
        """``guided − plain``: above 0 for tokens that guidance raised, below 0 for those that it lowered."""
        return self.guided - self.plain

    @property
    def log_ratio(self) -> float | None:
        """``log(guided / plain)`` in nats; None if one of the two is 0."""
        return math.log(self.guided / self.plain) if self.guided > 0 and self.plain > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "text": self.text,
            "token": self.token,
            "plain": self.plain,
            "guided": self.guided,
            "change": self.change,
            "log_ratio": self.log_ratio,
            "branches": list(self.branches),
            "forbidden": self.forbidden,
        }


@dataclass(frozen=True)
class ExplainedStep:
    """One step.

    Args:
        index: the number of the token, from 0.
        chosen: the token that was generated.
        plain_top: the most likely token in plain decoding.
        guided_top: the most likely token under guidance.
        kl: KL(guided‖plain) in nats.
        moved: the probability that guidance moved from some tokens to others, in [0, 1]: the sum of all positive
            changes, which is the total variation distance of the two distributions.
        raised: tokens with ``guided > plain``, sorted by how much they were raised.
        lowered: tokens with ``guided < plain``, sorted by how much they were lowered.
        guided: whether guidance acted at this step.
        allowed: the guided probability of all tokens that the constraint allows; None without a constraint.
        likeliest: tokens that are among the likeliest in plain decoding, in an extra branch or under guidance, sorted
            by their probability under guidance.
        scale: γ at this step; None for a guidance without one.
    """

    index: int
    chosen: TokenMove
    plain_top: TokenMove
    guided_top: TokenMove
    kl: float
    moved: float
    raised: tuple[TokenMove, ...]
    lowered: tuple[TokenMove, ...]
    guided: bool
    allowed: float | None = None
    likeliest: tuple[TokenMove, ...] = ()
    scale: float | None = None

    @property
    def changed(self) -> bool:
        """Whether another token is the most likely one under guidance."""
        return self.guided_top.token != self.plain_top.token

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "index": self.index,
            "chosen": self.chosen.to_dict(),
            "plain_top": self.plain_top.to_dict(),
            "guided_top": self.guided_top.to_dict(),
            "changed": self.changed,
            "kl": self.kl,
            "moved": self.moved,
            "raised": [move.to_dict() for move in self.raised],
            "lowered": [move.to_dict() for move in self.lowered],
            "guided": self.guided,
            "allowed": self.allowed,
            "likeliest": [move.to_dict() for move in self.likeliest],
            "scale": self.scale,
        }


@dataclass(frozen=True)
class ExplainedText(Shown):
    """A continuation, step by step.

    Args:
        prompt: the prompt as text.
        text: the continuation.
        guidance: the guidance that was explained; None for none.
        branches: a short description of each extra branch: what it reads, or which model runs it.
        steps: one entry per token.
        effect: the report of the run, about guidance only; it does not include the effect of a constraint.
        note: why guidance or one of its branches did nothing, in one sentence with the remedy; empty if all of them
            acted.
    """

    prompt: str
    text: str
    guidance: Guidance | None
    branches: tuple[str, ...]
    steps: tuple[ExplainedStep, ...]
    effect: Effect
    note: str = ""

    @property
    def summary(self) -> str:
        """The run in one line: :attr:`effect`, and the joint effect of guidance and constraint if there is one."""
        steps = [step for step in self.steps if step.guided]
        if all(step.allowed is None for step in steps):
            return str(self.effect)
        mean = sum(step.kl for step in steps) / len(steps)
        largest = max(step.kl for step in steps)
        changed = sum(step.changed for step in steps) / len(steps)
        joint = (
            f"KL {mean:.3f} nats per token (largest {largest:.2f}), top token changed at {changed:.0%} of "
            f"{len(steps)} steps"
        )
        if self.effect.changes_distributions:
            return f"guidance and constraint: {joint}; guidance alone: {self.effect}"
        return f"constraint: {joint}"

    def selected(self, first: int | None = None, changed: bool = False) -> tuple[ExplainedStep, ...]:
        """Some of the steps.

        Args:
            first: only the first ones, this many; None: all.
            changed: only those at which another token became the most likely one.
        """
        return tuple(step for step in self.steps if step.changed or not changed)[:first]

    def _shown(self) -> tuple[str, Sequence[Block]]:
        largest = max([step.kl for step in self.steps], default=0.0) or 1.0
        tokens = tuple(
            Token(readable(step.chosen.text), step.kl / largest, step.changed, _title(step)) for step in self.steps
        )
        rows = []
        for step in self.steps:
            rows.append(
                [
                    str(step.index + 1),
                    visible(step.chosen.text),
                    figure(step.kl),
                    visible(step.plain_top.text) if step.changed else "",
                    ", ".join(map(_probabilities, step.raised[:2])),
                    ", ".join(map(_probabilities, step.lowered[:2])),
                ]
            )
        header = ["#", "written", "KL", "plain decoding", "▲ raised", "▼ lowered"]
        blocks: list[Block] = [
            Tokens(readable(self.prompt), tokens),
            Line("tinted by KL(guided‖plain); underlined: another token became the likeliest", quiet=True),
            Folded("every step", (table(header, rows, "rlrlll"),)),
            Line(self.summary, quiet=True),
        ]
        if self.note:
            blocks.append(Line(self.note))
        return f"what {label(self.guidance)} did", blocks

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "prompt": self.prompt,
            "text": self.text,
            "guidance": None if self.guidance is None else self.guidance.to_dict(),
            "branches": list(self.branches),
            "note": self.note,
            "steps": [step.to_dict() for step in self.steps],
            "effect": self.effect.to_dict(),
        }


def _title(step: ExplainedStep) -> str:
    text = f"KL {step.kl:.3f}, {percent(step.chosen.plain)} → {percent(step.chosen.guided)}"
    return f"{text}; in plain decoding {visible(step.plain_top.text)}" if step.changed else text


def _probabilities(move: TokenMove) -> str:
    guided = "forbidden" if move.forbidden else percent(move.guided)
    return f"{visible(move.text)} {percent(move.plain)} → {guided}"
