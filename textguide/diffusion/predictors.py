"""Predictors asked about canvases: by their texts, or by their tokens and masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..classifiers import RESOLVERS, CausalScorer, Scorer
from ..classifiers.base import FLOOR, in_batches
from ..classifiers.canvases import CanvasPredictor
from ..guidance.base import Step
from ..guidance.canvas_guidance import CanvasGuidance, CanvasReweighting
from .canvas import Canvas
from .denoisers import Denoiser


class Predictor:
    """What the predictor of a guidance says of canvases.

    Args:
        model: the denoiser.
        guidance: whose predictor it is.
        whole: the text is the whole row (``infill``); else it ends where its first end token is filled in.

    Attributes:
        asked: canvases or texts that it was asked about.

    Raises:
        ValueError: the predictor cannot be resolved, has no such class, or reads from left to right.
    """

    def __init__(self, model: Denoiser, guidance: CanvasGuidance, whole: bool = False) -> None:
        self.model, self.guidance, self.whole, self.asked = model, guidance, whole, 0
        given = guidance.predictor
        self._scorer: Scorer | None = None
        if isinstance(given, CanvasPredictor):
            if not guidance.include_prompt:
                raise ValueError(
                    f"include_prompt=False is for predictors of texts, and {given.name} reads canvases whole"
                )
            if guidance.target is None:
                raise ValueError(f"target=None: name a class of {given.name}: {', '.join(given.labels)}")
            self.reader, self.column = given, given.index(guidance.target)
            return
        scorer: Any = RESOLVERS["reward" if guidance.target is None else "classifier"](
            given, model.model, model.tokenizer
        )
        if isinstance(scorer, CausalScorer):
            raise ValueError(f"{scorer.name} reads texts that grow from left to right; use one that reads whole texts")
        if model.tokenizer is None:
            raise ValueError("tokenizer=None: a predictor of texts needs the tokenizer of the model")
        self._scorer = scorer
        self.column = 0 if guidance.target is None else int(scorer.index(guidance.target))

    @property
    def name(self) -> str:
        """Of the predictor."""
        return str(getattr(self._scorer or self.reader, "name", ""))

    def of(self, ids: Tensor, like: Canvas, rows: Tensor) -> Tensor:
        """``log f`` (n,) in float32 of canvases (n, L), each the row ``rows`` (n,) of ``like`` with other tokens."""
        self.asked += len(ids)
        if self._scorer is None:
            return self._of_canvases(ids, like.attention[rows])
        shown = like.target | like.given if self.guidance.include_prompt else like.target
        texts = self._texts(ids, shown[rows], like.target[rows])
        places = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        values = in_batches(self._scorer, list(places))[:, self.column].clamp(min=FLOOR)
        return values[torch.tensor([places[text] for text in texts], dtype=torch.long)].to(ids.device)

    def slope(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """``∂ log f / ∂ tokens`` (n, L, V) at tables (n, L, V).

        Raises:
            ValueError: the predictor reads text.
        """
        if self._scorer is not None:
            raise ValueError(
                f"{self.name} reads text, which has no derivative; give a textguide.classifiers.CanvasPredictor, or "
                "use what asks about tokens one by one"
            )
        self.asked += len(tokens)
        with torch.enable_grad():
            table = tokens.detach().requires_grad_(True)
            said = self.reader.read(table, attention)
            (found,) = torch.autograd.grad(said[:, self.column].sum(), table)
        return found

    def _of_canvases(self, ids: Tensor, attention: Tensor) -> Tensor:
        found = []
        with torch.no_grad():
            for part, mask in zip(
                ids.split(self.reader.batch_size), attention.split(self.reader.batch_size), strict=True
            ):
                said = self.reader.read(one_hot(part, self.model.size).float(), mask)
                if said.shape != (len(part), len(self.reader.labels)) or bool(said.isnan().any()):
                    raise ValueError(
                        f"predictor {self.name} returned shape {tuple(said.shape)} for {len(part)} canvases, or "
                        f"NaN; it must return log-probabilities ({len(part)}, {len(self.reader.labels)})"
                    )
                found.append(said[:, self.column].float().clamp(min=FLOOR))
        return torch.cat(found) if found else torch.zeros(0, device=ids.device)

    def _texts(self, ids: Tensor, shown: Tensor, target: Tensor) -> list[str]:
        rows = []
        for row, keep, mine in zip(ids.tolist(), shown.tolist(), target.tolist(), strict=True):
            text = []
            for token, kept, filled in zip(row, keep, mine, strict=True):
                if filled and token == self.model.end_id and not self.whole:
                    break
                if kept and token != self.model.mask_id:
                    text.append(token)
            rows.append(text)
        return list(self.model.tokenizer.batch_decode(rows, skip_special_tokens=True))


class Question:
    """Predictions at some masked positions; see :class:`textguide.guidance.canvas_guidance.CanvasPredictions`.

    Args:
        predictor: who is asked.
        canvas: the rows as they are.
        places: row and column of each position, (N, 2), in order.
        generator: of the run.
    """

    def __init__(self, predictor: Predictor, canvas: Canvas, places: Tensor, generator: torch.Generator | None) -> None:
        self.predictor, self.generator = predictor, generator
        used, self.rows = places[:, 0].unique(return_inverse=True)
        self.canvas, self.columns = canvas.pick(used), places[:, 1]

    def with_token(self, candidates: Tensor, wanted: Tensor) -> Tensor:
        """``log f`` (N, k), one token written into the canvas at a time."""
        asked = wanted.nonzero()
        position, tokens = asked[:, 0], candidates[wanted]
        ids = self.canvas.ids[self.rows[position]]
        ids[torch.arange(len(ids), device=ids.device), self.columns[position]] = tokens
        found = torch.zeros(candidates.shape, device=ids.device)
        found[wanted] = self.predictor.of(ids, self.canvas, self.rows[position])
        return found

    def with_all(self, tokens: Tensor) -> Tensor:
        """``log f`` (K, B), every position written."""
        count, size = len(tokens), len(self.canvas)
        ids = self.canvas.ids.expand(count, -1, -1).clone()
        ids[:, self.rows, self.columns] = tokens
        rows = torch.arange(size, device=ids.device).repeat(count)
        return self.predictor.of(ids.flatten(0, 1), self.canvas, rows).view(count, size)

    def gradient(self, weights: Tensor | None = None) -> Tensor:
        """The derivative at the positions, (N, V)."""
        table = one_hot(self.canvas.ids, self.predictor.model.size).float()
        if weights is not None:
            table[self.rows, self.columns] = weights.to(table)
        return self.predictor.slope(table, self.canvas.attention)[self.rows, self.columns]

    def mask_gradient(self) -> Tensor:
        """The derivative less its value for the mask, (N, V)."""
        slope = self.gradient()
        return slope - slope[:, self.predictor.model.mask_id, None]

    def uniform(self, draws: int) -> Tensor:
        """Uniform numbers (draws, N) in float64."""
        shape, device = (draws, len(self.rows)), self.canvas.ids.device
        return torch.rand(shape, generator=self.generator, device=device, dtype=torch.float64)


class Judged:
    """Applies a guidance that reweighs canvases at every masked position that is asked for."""

    def __init__(self, model: Denoiser, guidance: CanvasReweighting, whole: bool = False) -> None:
        self.guidance, self.predictor = guidance, Predictor(model, guidance, whole)
        self.generator: torch.Generator | None = None

    def __call__(self, logp: Tensor, canvas: Canvas, where: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
        """The reweighed distributions (N, V) and the positions that were acted upon, bool (N,).

        Args:
            logp: normalised log-probabilities at ``where``, (N, V).
            canvas: the rows as they are now.
            where: positions, bool (B, L). One that is filled keeps its distribution: the canvas that a predictor is
                asked about holds what stands there.
            progress: of each position's row, (N, 1).

        Raises:
            ValueError: the predictor rules out every token of a position.
        """
        share: Any = self.guidance.share_at(Step(progress))
        share = share if isinstance(share, Tensor) else torch.full_like(progress, share)
        acted = (share != 0)[:, 0] & (canvas.ids == self.predictor.model.mask_id)[where]
        if not acted.any():
            return logp, acted
        question = Question(self.predictor, canvas, where.nonzero()[acted], self.generator)
        changed = self.guidance.weigh(logp[acted], share[acted].to(logp), question)
        if bool(changed.isnan().any()):
            raise ValueError(f"{self.predictor.name} gave {self.guidance.name} nothing to draw from; lower the weight")
        return logp.masked_scatter(acted[:, None], changed), acted
