"""Token reweighting on a canvas: a classifier scores the text with each candidate token filled in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..classifiers.reweighting import Reweighter
from ..guidance.base import Step, TokenReweighting
from .canvas import Canvas
from .denoisers import Denoiser


@dataclass
class MaskedPosition:
    """A masked position of a row, as the texts that candidate tokens make of the row.

    Such a text consists of what is given and what is filled by now, in order, with the candidate at its position;
    positions that are still masked are left out, and so are special tokens.

    Args:
        model: whose tokenizer decodes the text.
        before: the tokens before the position, without masks.
        after: the tokens after it.
        ends: an end token ends the text: what comes after it is left out.
        closed: the text ended before the position, so that no candidate changes it.
    """

    model: Denoiser
    before: list[int]
    after: list[int]
    ends: bool
    closed: bool = False

    def endings(self, candidates: Sequence[int]) -> tuple[str, list[str]]:
        """An empty beginning, and the text with each candidate."""
        rows = [self._with(token) for token in candidates]
        return "", list(self.model.tokenizer.batch_decode(rows, skip_special_tokens=True))

    def _with(self, token: int) -> list[int]:
        if self.closed or (self.ends and token == self.model.end_id):
            return self.before
        return [*self.before, token, *self.after]

    def append(self, token: int) -> None:
        """Not supported: a canvas does not grow."""
        raise NotImplementedError

    def copy(self) -> MaskedPosition:
        """The object itself, which never changes."""
        return self

    @property
    def text(self) -> str:
        """The text without a candidate."""
        return str(self.model.tokenizer.decode([*self.before, *self.after], skip_special_tokens=True))


class CandidateReweighting:
    """Applies token reweightings at the masked positions of a canvas.

    Args:
        model: the denoiser.
        guidances: what to apply; their weights add up.
        whole: the text is the whole row (``infill``); else it ends at its first end token.

    Raises:
        ValueError: a classifier cannot be resolved, does not have the class that a guidance targets, or reads from
            left to right.
    """

    def __init__(self, model: Denoiser, guidances: Sequence[TokenReweighting], whole: bool = False) -> None:
        self.model = model
        self.whole = whole
        self._reweighter = Reweighter(guidances, model.tokenizer, model.model, size=model.size)
        self._reweighter.show(lambda _: [])
        self._steps: Counter[int] = Counter()  # by row of the batch

    @property
    def texts_scored(self) -> int:
        """How many candidates classifiers have scored."""
        return self._reweighter.texts_scored

    def __call__(
        self, logp: Tensor, canvas: Canvas, rows: Tensor, positions: Tensor, progress: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Reweighted log-probabilities (N, V), and the positions that were reweighted, bool (N,).

        Args:
            logp: normalised log-probabilities at ``positions``, (N, V).
            canvas: the rows as they are now.
            rows: the numbers of these rows in the batch, (B,).
            positions: masked positions, bool (B, L).
            progress: of the row of each position, (N, 1).
        """
        places = positions.nonzero().tolist()
        texts = [
            _RowTokens(*row)
            for row in zip(canvas.ids.tolist(), canvas.given.tolist(), canvas.target.tolist(), strict=True)
        ]

        def masked_positions(include_prompt: bool) -> list[MaskedPosition]:
            return [self._masked_position(texts[row], place, include_prompt) for row, place in places]

        self._reweighter.show(masked_positions)
        numbers = rows.tolist()
        steps = [self._steps[numbers[row]] for row, _ in places]
        self._steps.update(numbers)
        return self._reweighter(logp, Step(progress), steps, range(len(places)))

    def _masked_position(self, row: _RowTokens, place: int, include_prompt: bool) -> MaskedPosition:
        shown = [
            j
            for j, token in enumerate(row.ids)
            if (row.target[j] or (row.given[j] and include_prompt)) and token != self.model.mask_id
        ]
        end = len(row.ids)
        if not self.whole:
            end = next((j for j in shown if row.target[j] and row.ids[j] == self.model.end_id), end)
        before = [row.ids[j] for j in shown if j < min(place, end)]
        after = [row.ids[j] for j in shown if place < j < end]
        return MaskedPosition(self.model, before, after, ends=not self.whole, closed=end < place)


@dataclass(frozen=True)
class _RowTokens:
    ids: list[int]
    given: list[bool]
    target: list[bool]
