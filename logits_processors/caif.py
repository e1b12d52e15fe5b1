"""Classifiers and rewards as a logits processor."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor

from textguide.classifiers.reweighting import Reweighter, reweighter
from textguide.engine.caller import running_generate_call
from textguide.guidance import CAIF, Step, TokenReweighting, as_guidance, split
from textguide.step.effect import Effect, EffectMeter
from textguide.step.guided_step import guided_step

from .branches import prompt_rows
from .runs import Runs

_ONE_AT_A_TIME = threading.Lock()
"""A classifier keeps the texts of one call, but threads can share it, in one processor or in several."""


@dataclass
class _Run:
    """One ``generate`` call: the length of its prompts, and what reweighting did."""

    prompt: int
    meter: EffectMeter


class CAIFLogitsProcessor(LogitsProcessor):
    """Reweights the candidates for the next token with a classifier or a reward; see :class:`textguide.CAIF`.

    Use it for loops that cannot be replaced, such as beam search. It keeps no text between steps: every row is decoded
    again, so that rows may be reordered and tokens removed. If ``custom_generate=textguide.guided_decoding(...)``
    works, it is faster: its texts grow by one token per step, and a causal classifier keeps its cache.

    The processor receives the scores of the processors before it in the list: transformers applies its own penalties
    first, and its warpers (temperature, top-k, top-p) last. One object can be used by any number of ``generate`` calls.

    Args:
        model: the model that decodes.
        tokenizer: its tokenizer.
        classifier: as for :class:`textguide.CAIF`.
        target: as for :class:`textguide.CAIF`.
        weight: as for :class:`textguide.CAIF`.
        guidance: a :class:`textguide.CAIF` or :class:`textguide.Reward`, or a sequence of them, instead of
            ``classifier``, ``target`` and ``weight``.
        horizon: ``max_new_tokens`` of the run; needed if there is a schedule or a window, whose progress it defines.
        **options: further fields of :class:`textguide.CAIF`, such as ``top_k``.

    Raises:
        ValueError: an argument has a value that cannot work; the message names it.

    Example:
        >>> caif = CAIFLogitsProcessor(model, tokenizer, "sentiment", "positive", 5.0)
        >>> model.generate(**inputs, num_beams=4, logits_processor=[caif])
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        classifier: Any = None,
        target: str | int | None = None,
        weight: float | None = None,
        *,
        guidance: TokenReweighting | Sequence[TokenReweighting] | None = None,
        horizon: int | None = None,
        **options: Any,
    ) -> None:
        arguments = {"classifier": classifier, "target": target, "weight": weight, **options}
        fields = {name: value for name, value in arguments.items() if value is not None}
        if guidance is not None and fields:
            raise ValueError(f"guidance= already contains {', '.join(fields)}; pass one or the other")
        if guidance is None:
            missing = [name for name in ("classifier", "target") if name not in fields]
            if missing:
                raise ValueError(f"{' and '.join(missing)} must be passed, or a guidance= that contains them")
            guidance = CAIF(**fields)
        parts = split(as_guidance(guidance))
        if parts.branching is not None or parts.sampling is not None:
            raise ValueError(f"guidance={guidance!r} must be textguide.CAIF or Reward, or a sequence of them")
        if horizon is None and any(part.is_timed for part in parts.reweighting):
            raise ValueError("a schedule or a window needs horizon=, the max_new_tokens of the run")
        self.horizon = horizon
        self.guidances = parts.reweighting
        self._reweighter: Reweighter | None = reweighter(parts.reweighting, tokenizer, model)
        self._special = model.generation_config
        self._runs: Runs[_Run] = Runs()
        self._last: _Run | None = None

    @property
    def effect(self) -> Effect:
        """What reweighting did in the latest run; rows that finished early still count."""
        return Effect() if self._last is None else self._last.meter.summary()

    def reset(self) -> None:
        """Forget every run. Custom loops call this before a new run, because ids are ambiguous if a prompt continues an
        earlier text."""
        self._runs.reset()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Reweight scores (R, V) for ids (R, T); the dtype stays, and so do the scores of rows that do not change."""
        if self._reweighter is None:
            return scores
        size = input_ids.shape[1]
        call = running_generate_call()
        run = self._runs.of(call, lambda run: size > run.prompt, lambda: _Run(size, EffectMeter(0, scores.device)))
        self._last = run
        prompt = run.prompt
        rows = input_ids.tolist()
        prompts = prompt_rows(input_ids[:, :prompt], call, self._special)
        index = size - prompt
        step = Step.at(index, self.horizon) if self.horizon else Step()
        with _ONE_AT_A_TIME:
            self._reweighter.begin(prompts, [row[prompt:] for row in rows])
            reweight = partial(self._reweighter, step=step, index=index, rows=range(len(rows)))
            before = self._reweighter.texts_scored
            outcome = guided_step(scores, None, None, step, reweight=reweight)
            run.meter.classified += self._reweighter.texts_scored - before
        run.meter.add(outcome)
        return outcome.scores.to(scores.dtype)
