"""Classifiers and rewards as a logits processor."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor

from textguide.engine.caller import running_generate_call
from textguide.guidance import CAIF, Step, TokenReweighting, as_guidance, split
from textguide.step.guided_step import guided_step
from textguide.step.reweighting import Reweighter, reweighter

from .branches import prompt_rows
from .runs import Runs

_ONE_AT_A_TIME = threading.Lock()
"""A classifier holds the texts of one call; threads may share it, in one processor or in several."""


class CAIFLogitsProcessor(LogitsProcessor):
    """A classifier weighs the candidates for the next token; see :class:`textguide.CAIF`. Rewards do as well.

    For loops that cannot be replaced, such as beam search. It keeps no text between steps: every row is decoded anew,
    so that rows may be reordered and tokens taken back. Where ``custom_generate=textguide.guided_decoding(...)``
    works it is faster: texts grow there by a token a step, and a causal classifier keeps its cache.

    It sees the scores that stand in front of it in the list: transformers puts its own penalties first, and its
    warpers (temperature, top-k, top-p) behind. One object may serve any number of ``generate`` calls.

    Args:
        model: the model that decodes.
        tokenizer: its tokenizer.
        classifier: as for :class:`textguide.CAIF`.
        target: as for :class:`textguide.CAIF`.
        weight: as for :class:`textguide.CAIF`.
        guidance: a :class:`textguide.CAIF` or :class:`textguide.Reward`, or a sequence of them, in place of the three.
        horizon: ``max_new_tokens`` of the run; needed for a schedule or a window, whose progress it defines.
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
        named = {"classifier": classifier, "target": target, "weight": weight, **options}
        given = {name: value for name, value in named.items() if value is not None}
        if guidance is not None and given:
            raise ValueError(f"guidance= already holds {', '.join(given)}; give one or the other")
        if guidance is None:
            missing = [name for name in ("classifier", "target") if name not in given]
            if missing:
                raise ValueError(f"{' and '.join(missing)} must be given, or a guidance= that holds them")
            guidance = CAIF(**given)
        parts = split(as_guidance(guidance))
        if parts.branching is not None or parts.sampling is not None:
            raise ValueError(f"guidance={guidance!r} must be textguide.CAIF or Reward, or a sequence of them")
        if horizon is None and any(part.is_timed for part in parts.reweighting):
            raise ValueError("a schedule or a window needs horizon=, the max_new_tokens of the run")
        self.horizon = horizon
        self.guidances = parts.reweighting
        self._reweighter: Reweighter | None = reweighter(parts.reweighting, tokenizer, model)
        self._special = model.generation_config
        self._prompt_lengths: Runs[int] = Runs()

    def reset(self) -> None:
        """Forget every run. Loops that call this object by hand begin a new run with it: ids alone do not always tell
        a run whose prompt continues an earlier text from the next step of the earlier one."""
        self._prompt_lengths.reset()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (R, V) for ids (R, T), in the dtype they came in; rows that are left alone keep their scores."""
        if self._reweighter is None:
            return scores
        size = input_ids.shape[1]
        call = running_generate_call()
        prompt = self._prompt_lengths.of(call, lambda length: size > length, lambda: size)
        rows = input_ids.tolist()
        prompts = prompt_rows(input_ids[:, :prompt], call, self._special)
        index = size - prompt
        step = Step.at(index, self.horizon) if self.horizon else Step()
        with _ONE_AT_A_TIME:
            self._reweighter.begin(prompts, [row[prompt:] for row in rows])
            reweight = partial(self._reweighter, step=step, index=index, rows=range(len(rows)))
            return guided_step(scores, None, None, step, reweight=reweight, measure=False).scores.to(scores.dtype)
