"""Regular constraints on a canvas: exact marginals, draws and most likely texts of a step's distributions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...guidance.algebra import log_softmax
from ..canvas import Canvas
from ..denoisers import Denoiser
from ..draws import gumbel
from . import lattice
from .base import CanvasConstraint, StepDistributions, Uniform
from .lattice import BEST, LOG, SUM, Lines
from .token_classes import ClassAutomaton


@dataclass(frozen=True)
class _Table:
    """What a step's distributions give in the automaton.

    Attributes:
        masses: log-probability of each class at each masked position, (M, C).
        weights: the same for all positions of the texts, (J, C, B).
        after: weight of all paths to the end, (J + 1, S, B).
        kind: how ``after`` counts paths.
    """

    masses: Tensor
    weights: Tensor
    after: Tensor
    kind: str


class RegularConstraint(CanvasConstraint):
    """Dynamic programming over the positions of a row and the states of an automaton.

    At temperature 0 this is DINGO (arXiv 2505.23061, algorithm 1) with no position left masked: the most likely text
    that the automaton accepts. Above 0 it is an exact draw from the product of the positions' distributions, given that
    the automaton accepts the text: weights are summed from the end, and tokens are drawn from the beginning.

    Args:
        automaton: accepts the texts that satisfy the constraint.
        fewest: tokens of its shortest text, if that is known.

    Raises:
        ValueError: no text of a row's length satisfies the constraint, or none that the model can write.
    """

    def __init__(
        self,
        model: Denoiser,
        canvas: Canvas,
        whole: bool,
        name: str,
        automaton: ClassAutomaton,
        fewest: int | None = None,
    ) -> None:
        super().__init__(model, canvas, whole, name)
        self.automaton = automaton
        self._computed: tuple[Tensor, _Table] | None = None  # the table of these log-probabilities
        self._check_feasible(canvas, fewest)

    def _check_feasible(self, canvas: Canvas, fewest: int | None) -> None:
        """Refuse rows of which no text of their length is accepted, whatever the model's distributions are."""
        if self.automaton.start == self.automaton.dead:
            raise ValueError(
                f"constraint={self.name} has no text that fits: the tokens of this model cannot write any; use "
                "characters that are in its vocabulary"
            )
        masked = canvas.masked(self.model.mask_id)
        device = masked.device
        anything = torch.zeros(int(masked.sum()), self.automaton.classes, dtype=torch.float64, device=device)
        step = StepDistributions(canvas, torch.arange(len(canvas), device=device), masked, masked, anything)
        paths = lattice.backward(self.automaton, self.is_text, self._weights(step, anything), BEST)
        for row in paths[0, self.automaton.start].isneginf().nonzero()[:, 0].tolist():
            have = f"row {row} has {int(masked[row].sum())} masks to fill"
            if self.whole:
                have += " around what is given"
            elif fewest:
                have += f" and it takes {fewest} tokens at least"
            raise ValueError(
                f"constraint={self.name} has no text that fits: {have}; give it more masks, or another constraint"
            )

    def posterior(self, step: StepDistributions) -> Tensor:
        lines = self._lines(step)
        needed = step.positions.gather(1, lines.positions) & lines.is_text
        table = self._table(step, lines)
        weights = table.weights.exp() if table.kind == SUM else table.weights
        before = lattice.forward(self.automaton, lines.is_text, weights, table.kind)
        around = lattice.around(self.automaton, before, table.after, needed, table.kind)[needed]
        around = (around - around.amax(-1, keepdim=True)).to(step.logp.dtype)
        return log_softmax(step.logp + around.index_select(1, self.automaton.class_of.to(around.device)))

    def draw(self, step: StepDistributions, temperature: float, uniform: Uniform) -> Tensor:
        logp = step.masked_logp()
        logp = logp / temperature if temperature else logp
        lines = self._lines(step)
        if temperature == 1.0:
            table = self._table(step, lines)
            masses = table.masses
            after = table.after
            kind = table.kind
        else:
            masses = lattice.masses(self.automaton, logp, LOG if temperature else BEST)
            weights = self._weights(step, masses)
            after, kind = self._paths_to_end(step, lines, weights, None if temperature else BEST)
        within = None
        if temperature:
            noise = uniform(step.rows.tolist(), step.masked.sum(-1).tolist(), self.automaton.classes + 1)
            masses = masses + gumbel(noise[:, :-1])
            within = noise[:, -1]
        masked = step.masked.gather(1, lines.positions) & lines.is_text
        after = lattice.logarithms(after, kind)
        chosen = lattice.walk(self.automaton, lines.is_text, after, masses, self._fixed(step, lines), masked)
        return lattice.tokens_of(self.automaton, logp, chosen, within)

    def _table(self, step: StepDistributions, lines: Lines) -> _Table:
        """The table of a step's distributions, computed once: a draw and the marginals of one step share it."""
        if self._computed is not None and self._computed[0] is step.logp:
            return self._computed[1]
        masses = lattice.masses(self.automaton, step.masked_logp())
        weights = self._weights(step, masses)
        table = _Table(masses, weights, *self._paths_to_end(step, lines, weights))
        self._computed = (step.logp, table)
        return table

    def _paths_to_end(
        self, step: StepDistributions, lines: Lines, weights: Tensor, kind: str | None = None
    ) -> tuple[Tensor, str]:
        """The weight of all paths to the end, and how they are counted: as sums, or as logarithms if a sum of some row
        underflows."""
        for way in (SUM, LOG) if kind is None else (kind,):
            after = lattice.backward(self.automaton, lines.is_text, weights.exp() if way == SUM else weights, way)
            impossible = after[0, self.automaton.start] == (0.0 if way == SUM else -math.inf)
            if not impossible.any():
                return after, way
        raise self.impossible(int(step.rows[impossible][0]))

    def _lines(self, step: StepDistributions) -> Lines:
        return Lines(self.text_positions[step.rows], self.is_text[step.rows])

    def _fixed(self, step: StepDistributions, lines: Lines) -> Tensor:
        """The class of the token at each position of the texts, (B, J)."""
        class_of = self.automaton.class_of.to(lines.positions.device)
        return class_of[step.canvas.ids.gather(1, lines.positions)]

    def _weights(self, step: StepDistributions, masses: Tensor) -> Tensor:
        """Log-weights of the classes at all positions, (J, C, B), from those at the masked positions, (M, C), which are
        scaled so that the largest is 0. A filled position has weight 0 for its own class only."""
        lines = self._lines(step)
        weights = masses.new_full((*lines.positions.shape, self.automaton.classes), -math.inf)
        weights.scatter_(2, self._fixed(step, lines)[..., None], 0.0)
        masked = step.masked.gather(1, lines.positions) & lines.is_text
        weights[masked] = masses - masses.amax(-1, keepdim=True)
        return weights.permute(1, 2, 0).contiguous()
