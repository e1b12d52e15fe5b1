"""Token reweighting on a canvas: what a classifier says of the text with a candidate filled in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..guidance.base import Step, TokenReweighting
from ..step.reweighting import Reweighter
from .canvas import Canvas
from .denoisers import Denoiser


@dataclass
class Hole:
    """A masked position of a row, as the text that a candidate for it makes.

    The text holds what is given and what is filled by now, in order, with the candidate in its place; positions that
    are still masked are left out, as are special tokens.

    Args:
        model: whose tokenizer makes the text.
        before: the tokens in front of the position, without masks.
        behind: those behind it.
        ends: an end token ends the text: what stands behind it is left out.
        closed: the text ended in front of the position, so that no candidate changes it.
    """

    model: Denoiser
    before: list[int]
    behind: list[int]
    ends: bool
    closed: bool = False

    def endings(self, candidates: Sequence[int]) -> tuple[str, list[str]]:
        """An empty beginning, and the text with each candidate."""
        rows = [
            self.before
            if self.closed or (self.ends and token == self.model.end_id)
            else [*self.before, token, *self.behind]
            for token in candidates
        ]
        return "", list(self.model.tokenizer.batch_decode(rows, skip_special_tokens=True))

    def append(self, token: int) -> None:
        """Not to be had: a canvas does not grow."""
        raise NotImplementedError

    def copy(self) -> Hole:
        """The hole itself, which never changes."""
        return self

    @property
    def text(self) -> str:
        """The text without a candidate."""
        return str(self.model.tokenizer.decode([*self.before, *self.behind], skip_special_tokens=True))


class Candidates:
    """Applies token reweightings at every masked position that is asked for.

    Args:
        model: the denoiser.
        guidances: what to apply; their weights add up.
        whole: the text is the whole row (``infill``); else it ends where its first end token is filled in.

    Raises:
        ValueError: a classifier cannot be resolved, has no class of the name that a guidance targets, or reads from
            left to right.
    """

    def __init__(self, model: Denoiser, guidances: Sequence[TokenReweighting], whole: bool = False) -> None:
        self.model, self.whole = model, whole
        self._reweighter = Reweighter(guidances, model.tokenizer, model.model, size=model.size)
        self._reweighter.show(lambda _: [])
        self._steps: Counter[int] = Counter()

    @property
    def texts_scored(self) -> int:
        """Candidates that classifiers were asked about."""
        return self._reweighter.texts_scored

    def __call__(
        self, logp: Tensor, canvas: Canvas, rows: Tensor, where: Tensor, progress: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The reweighed distributions (N, V) and the positions that were acted upon, bool (N,).

        Args:
            logp: normalised log-probabilities at ``where``, (N, V).
            canvas: the rows as they are now.
            rows: which rows of the batch they are, (B,).
            where: masked positions, bool (B, L).
            progress: of each position's row, (N, 1).
        """
        places = where.nonzero().tolist()
        texts = [
            _Row(*row) for row in zip(canvas.ids.tolist(), canvas.given.tolist(), canvas.target.tolist(), strict=True)
        ]
        self._reweighter.show(lambda with_given: [self._hole(texts[row], place, with_given) for row, place in places])
        numbers = rows.tolist()
        steps = [self._steps[numbers[row]] for row, _ in places]
        self._steps.update(numbers)
        return self._reweighter(logp, Step(progress), steps, range(len(places)))

    def _hole(self, row: _Row, place: int, with_given: bool) -> Hole:
        shown = [
            j
            for j, token in enumerate(row.ids)
            if (row.target[j] or (row.given[j] and with_given)) and token != self.model.mask_id
        ]
        end = len(row.ids)
        if not self.whole:
            end = next((j for j in shown if row.target[j] and row.ids[j] == self.model.end_id), end)
        before = [row.ids[j] for j in shown if j < min(place, end)]
        behind = [row.ids[j] for j in shown if place < j < end]
        return Hole(self.model, before, behind, not self.whole, closed=end < place)


class _Row(NamedTuple):
    ids: list[int]
    given: list[bool]
    target: list[bool]
