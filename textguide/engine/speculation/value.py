"""What to guess and how far, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...support.checks import finite_number
from ...support.showing import Block, Line, Shown

DRAFTS = ("prompt-lookup", "recycling", "both")


@dataclass(frozen=True)
class Speculation:
    """Guess the next tokens from what was seen, and let one pass of all branches read the guesses.

    The guesses cost rows in a pass, and change nothing in what is written: the token of every position is drawn from
    the guided distribution of that position, and the distribution of the next one is at hand where that token is the
    guessed one. For a guess that was not drawn at random this is the rule of speculative sampling (Leviathan et al.,
    arXiv 2211.17192, section 2.3: keep the guess ``d`` with probability ``p(d)``, else draw from ``p`` without
    ``d``), with the random
    numbers of ordinary decoding: the same seed writes the same text, up to rounding.

    Args:
        draft: ``prompt-lookup`` guesses what followed the last words where they stood before (Saxena 2023, as in
            transformers); ``recycling`` guesses the token that the guided distribution last preferred behind the same
            token (Luo et al., arXiv 2408.08696, as a chain in place of a tree: a tree needs attention masks that not
            every architecture takes); ``both`` looks up first and recycles where nothing is found.
        tokens: most guesses a pass.
        ngram: longest run of tokens that is looked up.
        least: a guess is read while the chance that it and all before it are right, estimated from the guesses of its
            kind so far, is this much or more. About the price of one more token in a pass, in passes.
        worth: guesses are read where this many of them are expected to be right, or more. About the price of a pass
            with guesses beyond one without, in passes; 0 where rows of a pass cost nothing, as on a GPU.

    Raises:
        ValueError: a field has a value that cannot work; the message names it.
    """

    draft: str = "prompt-lookup"
    tokens: int = 8
    ngram: int = 3
    least: float = 0.25
    worth: float = 0.9

    def __post_init__(self) -> None:
        if self.draft not in DRAFTS:
            raise ValueError(f"speculation={self.draft!r} must be one of {', '.join(DRAFTS)}, or a Speculation")
        for name in ("tokens", "ngram"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of 1 or more")
        object.__setattr__(self, "least", finite_number("least", self.least))
        if not 0.0 <= self.least <= 1.0:
            raise ValueError(f"least={self.least} must lie in [0, 1], a probability")
        object.__setattr__(self, "worth", finite_number("worth", self.worth))
        if self.worth < 0.0:
            raise ValueError(f"worth={self.worth} must be 0 or more, a number of guesses")


def as_speculation(value: Any) -> Speculation | None:
    """What a user passed as ``speculation=``: None, the name of a draft, or a :class:`Speculation`.

    Raises:
        ValueError: it is none of these.
    """
    if value is None or isinstance(value, Speculation):
        return value
    if isinstance(value, str):
        return Speculation(value)
    raise ValueError(f"speculation={value!r} must be one of {', '.join(DRAFTS)}, or a Speculation")


@dataclass(frozen=True)
class SpeculationReport(Shown):
    """What speculation did in a run.

    Args:
        steps: tokens written behind the first, a batch counted once: the passes that decoding without it takes.
        passes: passes that were run behind the prompt's.
        drafted: guesses that were read, over all rows.
        accepted: those of them that were right in every row of the batch, and so spared a pass.
    """

    steps: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float:
        """Share of the guesses that were accepted; 0 where none was made."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that a pass yields, 1 without speculation."""
        return self.steps / self.passes if self.passes else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "acceptance": self.acceptance, "tokens_per_pass": self.tokens_per_pass}

    def _shown(self) -> tuple[str, Sequence[Block]]:
        return "what speculation did", [Line(str(self))]

    def __str__(self) -> str:
        return (
            f"{self.passes} passes for {self.steps} tokens, {self.accepted} of {self.drafted} guesses accepted "
            f"({self.acceptance:.0%})"
        )


def join(reports: Sequence[SpeculationReport]) -> SpeculationReport:
    """The report on several runs together."""
    return SpeculationReport(
        sum(r.steps for r in reports),
        sum(r.passes for r in reports),
        sum(r.drafted for r in reports),
        sum(r.accepted for r in reports),
    )
