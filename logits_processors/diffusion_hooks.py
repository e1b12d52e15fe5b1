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


class MaskedDiffusionCFGHook:
    """Guidance inside the sampling loop of Dream, LLaDA and their kin, as a hook ``(step, x, logits) -> logits``.

    The loop keeps its own schedule, order and temperature; the hook runs the passes that guidance needs and gives back
    guided log-probabilities at masked positions. Use it for one batch at a time.

    Args:
        model: the model that the loop runs.
        tokenizer: its tokenizer.
        guidance: as for :func:`textguide.diffusion.generate`; other prompts stand in place of the tokens of ``x`` that
            are given.
        prompt_length: tokens of the prompt in ``x``, padding included: an integer, or None to take what is not masked
            at the first call.
        attention_mask: bool or 0/1 (B, L) of ``x``; None: nothing is padded.
        kind, mask_id: as for :func:`textguide.diffusion.denoiser`.
        models: further denoisers by the name that branches use.

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
        if prompt_length is not None and prompt_length < 0:
            raise ValueError(f"prompt_length={prompt_length} must be 0 or more tokens, or None")
        self.prompt_length = prompt_length
        self.attention_mask = attention_mask
        self._guide: Guide | None = None
        self._canvas: Canvas | None = None

    @property
    def effect(self) -> Effect | None:
        """What guidance did in the current batch; None before the first call."""
        return None if self._guide is None else self._guide.meter.summary()

    def __call__(self, step: int | None, x: Tensor, logits: Tensor) -> Tensor:
        """Guided log-probabilities at the masked positions of ``x`` (B, L); other positions of ``logits`` as they were.

        Args:
            step: number of the step; 0 or None begins a new batch.
            logits: (B, L, V), in place (behind the shift, for models that shift).
        """
        if not step or self._canvas is None or self._canvas.ids.shape != x.shape:
            self._begin(x)
        guide, canvas = self._guide, self._canvas
        assert guide is not None
        assert canvas is not None
        canvas.ids = x
        where = canvas.masked(self.model.mask_id)
        if not where.any() or guide.is_neutral:
            return logits
        distributions = guide.distributions(canvas, torch.arange(len(x), device=x.device), where)
        out = logits.clone()
        out[where] = distributions.guided.to(logits.dtype)
        return out

    def _begin(self, x: Tensor) -> None:
        attention = torch.ones_like(x, dtype=torch.bool)
        if self.attention_mask is not None:
            known = self.attention_mask.to(x.device).bool()
            attention[:, : known.shape[1]] = known
        target = x == self.model.mask_id
        if self.prompt_length is not None:
            target = target & (torch.arange(x.shape[1], device=x.device) >= self.prompt_length)
        given = attention & ~target
        self._canvas = Canvas(x, attention, given, target, torch.where(target, 0, -1))
        self._guide = Guide(self.model, self.guidance, self._canvas, models=self.models)


class AllowedTokensProcessor(LogitsProcessor):
    """Keeps a canvas to allowed tokens, for ``DiffusionGemma``'s ``generate`` and others that pass whole canvases.

    That model's processors see the prompt and the logits of the canvas and not the canvas itself, so constraints by
    position work, and CFG and A-CFG, which need a second reading of the canvas, do not. Its canvas starts from random
    tokens: there are no masks that A-CFG could put back.

    Args:
        allowed: bool (V,) or (L, V): tokens that may stand anywhere, or at each position of the canvas.

    Raises:
        ValueError: ``allowed`` has another shape or type, or leaves a position without a token.
    """

    def __init__(self, allowed: Tensor) -> None:
        if not isinstance(allowed, Tensor) or allowed.dtype != torch.bool or allowed.dim() not in (1, 2):
            raise ValueError("allowed must be a bool tensor (V,) or (L, V), with L the length of a canvas")
        if not allowed.any(-1).all():
            raise ValueError("allowed leaves a position without any token; allow one at every position")
        self.allowed = allowed

    def __call__(self, input_ids: Tensor, scores: Tensor, cur_step: Any = None) -> Tensor:
        """``scores`` (B, L, V) with −inf where a token is not allowed."""
        return scores.masked_fill(~self.allowed.to(scores.device), float("-inf"))
