"""Hooks for the samplers that come with masked diffusion models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from textguide.diffusion.canvas import Canvas
from textguide.diffusion.denoisers import Denoiser, denoiser
from textguide.diffusion.guiding import Guide, checked_guidance
from textguide.step.effect import Effect
from textguide.support.checks import whole_number


class MaskedDiffusionCFGHook:
    """Guidance inside the sampling loop of Dream, LLaDA and similar models: a hook ``(step, x, logits) -> logits``.

    The loop keeps its own schedule, order and temperature. The hook runs the passes that guidance needs, and returns
    guided log-probabilities at masked positions. Use it for one batch at a time.

    Args:
        model: the model that the loop runs.
        tokenizer: its tokenizer.
        guidance: as for :func:`textguide.diffusion.generate`. Prompts of other branches replace the prompt in ``x``.
        prompt_length: number of prompt tokens in ``x``, including padding. None: everything that is not masked at the
            first call is the prompt.
        attention_mask: mask of ``x``, bool or 0/1, (B, L); None: there is no padding.
        kind, mask_id: as for :func:`textguide.diffusion.denoiser`.
        models: further denoisers, by the names that branches use.

    Raises:
        ValueError: an argument has a value that cannot work.

    Example:
        >>> hook = MaskedDiffusionCFGHook(model, tokenizer, ACFG(1.5))
        >>> model.diffusion_generate(ids, generation_logits_hook_func=hook, steps=256)          # Dream
        >>> logits = hook(step, x, model(x).logits)                                             # a loop of LLaDA's kind
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        guidance: Any,
        prompt_length: int | None = None,
        attention_mask: Tensor | None = None,
        *,
        kind: str | None = None,
        mask_id: int | None = None,
        models: Mapping[str, Any] | None = None,
    ) -> None:
        self.model: Denoiser = denoiser(model, tokenizer, kind=kind, mask_id=mask_id)
        self.guidance = checked_guidance(guidance)
        self.models = dict(models or {})
        if prompt_length is not None:
            whole_number("prompt_length", prompt_length, 0)
        self.prompt_length = prompt_length
        self.attention_mask = attention_mask
        self._guide: Guide | None = None
        self._canvas: Canvas | None = None

    @property
    def effect(self) -> Effect | None:
        """What guidance did in the current batch; None before the first call."""
        return None if self._guide is None else self._guide.meter.summary()

    def __call__(self, step: int | None, x: Tensor, logits: Tensor) -> Tensor:
        """Guided log-probabilities at the masked positions of ``x`` (B, L); ``logits`` at other positions.

        Args:
            step: number of the step; 0 or None begins a new batch.
            x: token ids of the canvas, (B, L).
            logits: logits of ``x``, (B, L, V), after the shift if the model shifts them.
        """
        if not step or self._canvas is None or self._canvas.ids.shape != x.shape:
            self._begin(x)
        guide = self._guide
        canvas = self._canvas
        assert guide is not None
        assert canvas is not None
        canvas.ids = x
        masked = canvas.masked(self.model.mask_id)
        if not masked.any() or guide.is_neutral:
            return logits
        distributions = guide.distributions(canvas, torch.arange(len(x), device=x.device), masked)
        out = logits.clone()
        out[masked] = distributions.guided.to(logits.dtype)
        return out

    def _begin(self, x: Tensor) -> None:
        attention = torch.ones_like(x, dtype=torch.bool)
        if self.attention_mask is not None:
            mask = self.attention_mask.to(x.device).bool()
            attention[:, : mask.shape[1]] = mask
        target = x == self.model.mask_id
        if self.prompt_length is not None:
            target = target & (torch.arange(x.shape[1], device=x.device) >= self.prompt_length)
        self._canvas = Canvas(x, attention, attention & ~target, target, torch.where(target, 0, -1))
        self._guide = Guide(self.model, self.guidance, self._canvas, models=self.models)


class AllowedTokensProcessor(LogitsProcessor):
    """Restricts a canvas to allowed tokens, for ``DiffusionGemma``'s ``generate`` and others that pass whole canvases.

    The processors of this model receive the prompt and the logits of the canvas, but not the canvas itself. Constraints
    per position therefore work, but CFG and A-CFG, which read the canvas a second time, do not. The canvas starts from
    random tokens, so that there are no masks that A-CFG could restore.

    Args:
        allowed: bool (V,) or (L, V): the tokens allowed at all positions, or at each position of the canvas.

    Raises:
        ValueError: ``allowed`` has another shape or type, or it allows no token at a position.
    """

    def __init__(self, allowed: Tensor) -> None:
        if not isinstance(allowed, Tensor) or allowed.dtype != torch.bool or allowed.dim() not in (1, 2):
            raise ValueError("allowed must be a bool tensor (V,) or (L, V), with L the length of a canvas")
        if not allowed.any(-1).all():
            raise ValueError("allowed forbids every token at a position; allow at least one at each")
        self.allowed = allowed

    def __call__(self, input_ids: Tensor, scores: Tensor, cur_step: Any = None) -> Tensor:
        """``scores`` (B, L, V) with −inf for tokens that are not allowed."""
        return scores.masked_fill(~self.allowed.to(scores.device), float("-inf"))
