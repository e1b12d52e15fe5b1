"""Regular constraints on a canvas: exact marginals, draws and most likely texts of a step's distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...guidance.algebra import log_softmax
from ..canvas import Canvas
from ..denoisers import Denoiser
from ..orders import gumbel
from . import lattice
from .base import Asked, Form, Uniform
from .lattice import BEST, LOG, SUM, Lines
from .token_classes import Letters


class RegularForm(Form):
    """Dynamic programming over the positions of a row and the states of an automaton.

    At temperature 0 this is DINGO (arXiv 2505.23061, algorithm 1) with no position left masked: the most likely text
    that the automaton takes. Above, an exact draw from the product of the positions' distributions, given that the
    automaton takes the text: weights are summed from the end, and tokens drawn from the front.

    Args:
        letters: the automaton.
        fewest: tokens of its shortest text, where that is known.

    Raises:
        ValueError: a row has no text in form of its length.
    """

    def __init__(
        self, model: Denoiser, canvas: Canvas, whole: bool, name: str, letters: Letters, fewest: int | None = None
    ) -> None:
        super().__init__(model, canvas, whole, name)
        self.letters = letters
        self._known: tuple[Tensor, Tensor, Tensor, Tensor, str] | None = None
        masked = canvas.masked(model.mask_id)
        everything = torch.zeros(int(masked.sum()), letters.count, dtype=torch.float64, device=masked.device)
        asked = Asked(canvas, torch.arange(len(canvas), device=masked.device), masked, masked, everything)
        ahead = lattice.backward(letters, self.there, self._weights(asked, everything), BEST)
        for row in ahead[0, letters.start].isneginf().nonzero()[:, 0].tolist():
            have = f"row {row} has {int(masked[row].sum())} masks to fill"
            what = "around what is given" if whole else f"and it takes {fewest} tokens at least" if fewest else ""
            raise ValueError(f"constraint={name} has no text that fits: {have} {what}; give it more, or another form")

    def posterior(self, asked: Asked) -> Tensor:
        lines = self._lines(asked)
        wanted = asked.where.gather(1, lines.places) & lines.there
        _, weights, behind, kind = self._table(asked, lines)
        before = lattice.forward(self.letters, lines.there, weights.exp() if kind == SUM else weights, kind)
        ahead = lattice.around(self.letters, before, behind, wanted, kind)[wanted]
        ahead = (ahead - ahead.amax(-1, keepdim=True)).to(asked.logp.dtype)
        return log_softmax(asked.logp + ahead.index_select(1, self.letters.of.to(ahead.device)))

    def draw(self, asked: Asked, temperature: float, uniform: Uniform) -> Tensor:
        logp = self._open(asked)
        logp = logp / temperature if temperature else logp
        lines = self._lines(asked)
        if temperature == 1.0:
            masses, _, behind, kind = self._table(asked, lines)
        else:
            masses = lattice.masses(self.letters, logp, LOG if temperature else BEST)
            behind, kind = self._behind(asked, lines, self._weights(asked, masses), None if temperature else BEST)
        within = None
        if temperature:
            noise = uniform(asked.rows.tolist(), asked.masked.sum(-1).tolist(), self.letters.count + 1)
            masses, within = masses + gumbel(noise[:, :-1]), noise[:, -1]
        open_ = asked.masked.gather(1, lines.places) & lines.there
        logarithms = lattice.logarithms(behind, kind)
        chosen = lattice.walk(self.letters, lines.there, logarithms, masses, self._fixed(asked, lines), open_)
        return lattice.tokens_of(self.letters, logp, chosen, within)

    def _table(self, asked: Asked, lines: Lines) -> tuple[Tensor, Tensor, Tensor, str]:
        """The masses and weights of the distributions as they are, and what :meth:`_behind` makes of them: once for
        each step."""
        if self._known is None or self._known[0] is not asked.logp:
            masses = lattice.masses(self.letters, self._open(asked))
            weights = self._weights(asked, masses)
            self._known = (asked.logp, masses, weights, *self._behind(asked, lines, weights))
        return self._known[1:]

    def _behind(self, asked: Asked, lines: Lines, weights: Tensor, kind: str | None = None) -> tuple[Tensor, str]:
        """Ways to the end, summed, and how they are counted: as logarithms where a sum of some row is too small."""
        for way in (SUM, LOG) if kind is None else (kind,):
            behind = lattice.backward(self.letters, lines.there, weights.exp() if way == SUM else weights, way)
            none = behind[0, self.letters.start] == (0.0 if way == SUM else -math.inf)
            if not none.any():
                return behind, way
        raise self.nothing(int(asked.rows[none][0]))

    def _open(self, asked: Asked) -> Tensor:
        return asked.logp[asked.masked[asked.where]]

    def _lines(self, asked: Asked) -> Lines:
        return Lines(self.places[asked.rows], self.there[asked.rows])

    def _fixed(self, asked: Asked, lines: Lines) -> Tensor:
        """The letter of the token at each position, (B, J)."""
        return self.letters.of.to(lines.places.device)[asked.canvas.ids.gather(1, lines.places)]

    def _weights(self, asked: Asked, open_: Tensor) -> Tensor:
        """The log-weights of letters, (J, C, B), from those of the open positions, (M, C), whose largest are made 0: a
        filled position has its own letter."""
        lines = self._lines(asked)
        weights = open_.new_full((*lines.places.shape, self.letters.count), -math.inf)
        weights.scatter_(2, self._fixed(asked, lines)[..., None], 0.0)
        weights[asked.masked.gather(1, lines.places) & lines.there] = open_ - open_.amax(-1, keepdim=True)
        return weights.permute(1, 2, 0).contiguous()
