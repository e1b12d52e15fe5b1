"""Predictors that score canvases: by their texts, or by their tokens and masks."""

from __future__ import annotations

from collections.abc import Callable
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
    """The predictor ``f`` of a guidance, applied to canvases.

    Args:
        model: the denoiser.
        guidance: whose predictor it is.
        whole: the text is the whole row (``infill``); else it ends at its first end token.

    Attributes:
        queries: how many canvases or texts it has scored.

    Raises:
        ValueError: the predictor cannot be resolved, does not have the class, or reads from left to right.
    """

    def __init__(self, model: Denoiser, guidance: CanvasGuidance, whole: bool = False) -> None:
        self.model = model
        self.guidance = guidance
        self.whole = whole
        self.queries = 0
        predictor = guidance.predictor
        self._scorer: Scorer | None = None
        if isinstance(predictor, CanvasPredictor):
            if not guidance.include_prompt:
                raise ValueError(
                    f"include_prompt=False is for predictors of texts, and {predictor.name} reads canvases whole"
                )
            if guidance.target is None:
                raise ValueError(f"target=None: name a class of {predictor.name}: {', '.join(predictor.labels)}")
            self.reader = predictor
            self.column = predictor.index(guidance.target)
            return
        resolve: Callable[..., Any] = RESOLVERS["reward" if guidance.target is None else "classifier"]
        scorer = resolve(predictor, model.model, model.tokenizer)
        if isinstance(scorer, CausalScorer):
            raise ValueError(f"{scorer.name} reads texts that grow from left to right; use one that reads whole texts")
        if model.tokenizer is None:
            raise ValueError("tokenizer=None: a predictor of texts needs the tokenizer of the model")
        self._scorer = scorer
        self.column = 0 if guidance.target is None else int(scorer.index(guidance.target))

    @property
    def name(self) -> str:
        """Name of the predictor."""
        return str(getattr(self._scorer or self.reader, "name", ""))

    def log_prob(self, ids: Tensor, canvas: Canvas, rows: Tensor) -> Tensor:
        """``log f`` (n,) in float32 of canvases with the tokens ``ids`` (n, L), each in place of the tokens of the row
        ``rows`` (n,) of ``canvas``."""
        self.queries += len(ids)
        if self._scorer is None:
            return self._log_prob_of_canvases(ids, canvas.attention[rows])
        shown = canvas.target | canvas.given if self.guidance.include_prompt else canvas.target
        texts = self._texts(ids, shown[rows], canvas.target[rows])
        # Many canvases have the same text, which is scored once.
        number_of = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        values = in_batches(self._scorer, list(number_of))[:, self.column].clamp(min=FLOOR)
        return values[torch.tensor([number_of[text] for text in texts], dtype=torch.long)].to(ids.device)

    def slope(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """``∂ log f / ∂ tokens`` (n, L, V) at tables of token weights (n, L, V).

        Raises:
            ValueError: the predictor reads text, which has no derivative.
        """
        if self._scorer is not None:
            raise ValueError(
                f"{self.name} reads text, which has no derivative; give a textguide.classifiers.CanvasPredictor, or "
                "use what asks about tokens one by one"
            )
        self.queries += len(tokens)
        with torch.enable_grad():
            table = tokens.detach().requires_grad_(True)
            log_probs = self.reader.read(table, attention)
            (slope,) = torch.autograd.grad(log_probs[:, self.column].sum(), table)
        return slope

    def _log_prob_of_canvases(self, ids: Tensor, attention: Tensor) -> Tensor:
        size = self.reader.batch_size
        found = []
        with torch.no_grad():
            for part, mask in zip(ids.split(size), attention.split(size), strict=True):
                log_probs = self.reader.read(one_hot(part, self.model.size).float(), mask)
                if log_probs.shape != (len(part), len(self.reader.labels)) or bool(log_probs.isnan().any()):
                    raise ValueError(
                        f"predictor {self.name} returned shape {tuple(log_probs.shape)} for {len(part)} canvases, or "
                        f"NaN; it must return log-probabilities ({len(part)}, {len(self.reader.labels)})"
                    )
                found.append(log_probs[:, self.column].float().clamp(min=FLOOR))
        return torch.cat(found) if found else torch.zeros(0, device=ids.device)

    def _texts(self, ids: Tensor, shown: Tensor, target: Tensor) -> list[str]:
        """The text of each canvas: the ``shown`` tokens without masks, up to the end token."""
        rows = []
        for row, row_shown, row_target in zip(ids.tolist(), shown.tolist(), target.tolist(), strict=True):
            text = []
            for token, is_shown, is_target in zip(row, row_shown, row_target, strict=True):
                if is_target and token == self.model.end_id and not self.whole:
                    break
                if is_shown and token != self.model.mask_id:
                    text.append(token)
            rows.append(text)
        return list(self.model.tokenizer.batch_decode(rows, skip_special_tokens=True))


class CanvasQueries:
    """Predictions at some masked positions; see :class:`textguide.guidance.canvas_guidance.CanvasPredictions`.

    Args:
        predictor: the predictor.
        canvas: the rows as they are now.
        places: row and column of each position, (N, 2), in order.
        generator: of the run.
    """

    def __init__(self, predictor: Predictor, canvas: Canvas, places: Tensor, generator: torch.Generator | None) -> None:
        self.predictor = predictor
        self.generator = generator
        used, self.rows = places[:, 0].unique(return_inverse=True)
        self.canvas = canvas.pick(used)
        self.columns = places[:, 1]

    def with_token(self, candidates: Tensor, wanted: Tensor) -> Tensor:
        """``log f`` (N, k) with one token at a time written into the canvas."""
        position = wanted.nonzero()[:, 0]
        ids = self.canvas.ids[self.rows[position]]
        ids[torch.arange(len(ids), device=ids.device), self.columns[position]] = candidates[wanted]
        found = torch.zeros(candidates.shape, device=ids.device)
        found[wanted] = self.predictor.log_prob(ids, self.canvas, self.rows[position])
        return found

    def with_all(self, tokens: Tensor) -> Tensor:
        """``log f`` (K, B) with all positions written."""
        count = len(tokens)
        size = len(self.canvas)
        ids = self.canvas.ids.expand(count, -1, -1).clone()
        ids[:, self.rows, self.columns] = tokens
        rows = torch.arange(size, device=ids.device).repeat(count)
        return self.predictor.log_prob(ids.flatten(0, 1), self.canvas, rows).view(count, size)

    def gradient(self, weights: Tensor | None = None) -> Tensor:
        """The derivative at the positions, (N, V)."""
        table = one_hot(self.canvas.ids, self.predictor.model.size).float()
        if weights is not None:
            table[self.rows, self.columns] = weights.to(table)
        return self.predictor.slope(table, self.canvas.attention)[self.rows, self.columns]

    def mask_gradient(self) -> Tensor:
        """The derivative minus its value for the mask token, (N, V)."""
        slope = self.gradient()
        return slope - slope[:, self.predictor.model.mask_id, None]

    def uniform(self, draws: int) -> Tensor:
        """Uniform numbers (draws, N) in float64."""
        shape = (draws, len(self.rows))
        device = self.canvas.ids.device
        return torch.rand(shape, generator=self.generator, device=device, dtype=torch.float64)


class PredictorReweighting:
    """Applies a guidance that reweights tokens by a predictor of canvases.

    Attributes:
        generator: draws the texts that the guidance samples; None: PyTorch's global generator.
    """

    def __init__(self, model: Denoiser, guidance: CanvasReweighting, whole: bool = False) -> None:
        self.guidance = guidance
        self.predictor = Predictor(model, guidance, whole)
        self.generator: torch.Generator | None = None

    def __call__(self, logp: Tensor, canvas: Canvas, positions: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
        """Reweighted log-probabilities (N, V), and the positions that were reweighted, bool (N,).

        Args:
            logp: normalised log-probabilities at ``positions``, (N, V).
            canvas: the rows as they are now.
            positions: bool (B, L). A filled position keeps its distribution: predictors score canvases that contain
                its token.
            progress: of the row of each position, (N, 1).

        Raises:
            ValueError: the predictor rules out every token of a position.
        """
        share: Any = self.guidance.share_at(Step(progress))
        share = share if isinstance(share, Tensor) else torch.full_like(progress, share)
        acts = (share != 0)[:, 0] & (canvas.ids == self.predictor.model.mask_id)[positions]
        if not acts.any():
            return logp, acts
        queries = CanvasQueries(self.predictor, canvas, positions.nonzero()[acts], self.generator)
        changed = self.guidance.weigh(logp[acts], share[acts].to(logp), queries)
        if bool(changed.isnan().any()):
            raise ValueError(f"{self.predictor.name} gave {self.guidance.name} nothing to draw from; lower the weight")
        return logp.masked_scatter(acts[:, None], changed), acts
