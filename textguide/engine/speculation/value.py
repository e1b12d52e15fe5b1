"""The settings of speculation, and the report on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...support.checks import number_from, share, whole_number
from ...support.showing import Block, Line, Shown

DRAFTS = ("prompt-lookup", "recycling", "both")


@dataclass(frozen=True)
class Speculation:
    """Guess the next tokens from earlier ones, and verify the guesses in one pass of all branches.

    Guesses make a pass longer, but do not change the text: the token at every position is drawn from the guided
    distribution of that position, and if it equals the guess, the distribution of the next position is already known.
    For a deterministic guess this is the rule of speculative sampling (Leviathan et al., arXiv 2211.17192, section 2.3:
    accept the guess ``d`` with probability ``p(d)``, else draw from ``p`` without ``d``), with the random numbers of
    ordinary decoding: the same seed writes the same text, up to rounding.

    Args:
        draft: ``prompt-lookup`` guesses the tokens that followed the last words when they occurred before (Saxena 2023,
            as in transformers). ``recycling`` guesses the token that the guided distribution last preferred after the
            same token (Luo et al., arXiv 2408.08696, but as a chain instead of a tree, because not every architecture
            accepts the attention masks of a tree). ``both`` looks up first, and recycles if nothing is found.
        tokens: the largest number of guesses per pass. Default: 8.
        ngram: the largest number of tokens that are looked up. Default: 3.
        least: a guess is read if the probability that it and all guesses before it are right, estimated from earlier
            guesses of its kind, is at least this. Set it to about the cost of one more token in a pass, in passes.
        worth: guesses are read if at least this many of them are expected to be right. Set it to about the additional
            cost of a pass with guesses, in passes; 0 if longer passes cost nothing, as on a GPU.

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
            object.__setattr__(self, name, whole_number(name, value, 1))
        object.__setattr__(self, "least", share("least", self.least, "it is a probability"))
        object.__setattr__(self, "worth", number_from("worth", self.worth, 0.0, "it is a number of guesses"))


def as_speculation(value: Any) -> Speculation | None:
    """Convert the argument ``speculation=``: None, the name of a draft, or a :class:`Speculation`.

    Raises:
        ValueError: ``value`` is none of these.
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
        steps: steps after the first token, which is the number of passes that decoding without speculation needs.
        passes: passes that were run after the one that read the prompt.
        drafted: guesses that were read, over all rows.
        accepted: guesses that were right in every row of the batch, and so saved a pass.
    """

    steps: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float:
        """Share of the guesses that were accepted; 0 if there were no guesses."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens per pass; 1 without speculation."""
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
