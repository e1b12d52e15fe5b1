"""Constrained sampling with weights as a processor for transformers' ``generate``."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from textguide.constraints import Vocabulary
from textguide.engine.caller import running_generate_call
from textguide.guidance import AWRS
from textguide.smc.constrained import Constrained
from textguide.smc.lookahead import lookahead_of
from textguide.smc.population import Outcome
from textguide.smc.starting import constraint_of
from textguide.support.checks import whole_number

from .runs import Runs


class AWRSLogitsProcessor(LogitsProcessor):
    """Draws every token by adaptive weighted rejection sampling, inside the loop of ``generate``.

    The scores that it returns only allow the drawn token, so that ``generate`` writes it, whether it samples or not.
    The token is drawn from the distribution that the processors before it in the list return. Put temperature and
    similar processors there, because ``generate`` applies its own ones later. Rows are single particles: for
    resampling, use ``custom_generate=textguide.guided_decoding(AWRS(..., particles=N))``.

    One object can be used by any number of ``generate`` calls, one after the other or interleaved.

    Args:
        constraint: a constraint, as for :class:`textguide.AWRS`, or an ``AWRS`` with ``particles=1``.
        tokenizer: the tokenizer of the model; not needed with ``vocabulary``.
        vocabulary: the bytes of each token; default: read from ``tokenizer``.
        eos_token_id: tokens that end a text; default: those of the tokenizer.
        horizon: ``max_new_tokens`` of the run. At its last token the end is forced, and the weight changes accordingly.
            If None, texts that reach the limit are unfinished.
        generator: random generator; None: torch's global generator.

    Raises:
        ValueError: an argument has a value that cannot work, or rows are reordered (beam search, speculation).

    Example:
        >>> awrs = AWRSLogitsProcessor("regex:[0-9]{4}", tokenizer, horizon=8)
        >>> model.generate(**inputs, max_new_tokens=8, logits_processor=[awrs])
        >>> awrs.log_weights
    """

    def __init__(
        self,
        constraint: Any,
        tokenizer: Any = None,
        *,
        vocabulary: Vocabulary | None = None,
        eos_token_id: Any = None,
        horizon: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        guidance = constraint if isinstance(constraint, AWRS) else AWRS(constraint)
        if guidance.particles > 1:
            raise ValueError(
                f"particles={guidance.particles} move between rows, which a processor cannot do; use custom_generate="
                "textguide.guided_decoding(AWRS(...)), or particles=1"
            )
        if guidance.sampler != "awrs":
            raise ValueError(
                f"sampler={guidance.sampler!r} does not work in a processor, which draws each token once; use "
                "sampler='awrs', or custom_generate=textguide.guided_decoding(AWRS(...))"
            )
        if tokenizer is None and vocabulary is None:
            raise ValueError(
                "tokenizer=None: a constraint needs the bytes of tokens; pass the tokenizer, or vocabulary="
            )
        if horizon is not None:
            whole_number("horizon", horizon, 1, "pass max_new_tokens of the run")
        self.guidance = replace(guidance, particles=1)
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.eos_token_id = eos_token_id
        self.horizon = horizon
        self.generator = generator
        self._runs: Runs[_Run] = Runs()
        self._latest: _Run | None = None

    @property
    def outcome(self) -> Outcome | None:
        """The outcome of the latest run; None before the first one."""
        return None if self._latest is None else self._latest.outcome()

    @property
    def log_weights(self) -> Tensor | None:
        """Log-weights of the rows of the latest run, float64 (rows,); −inf if a row is not finished."""
        outcome = self.outcome
        return None if outcome is None else outcome.log_weights

    @property
    def drawn(self) -> int:
        """Tokens that the latest run drew, over all rows."""
        return 0 if self._latest is None else self._latest.drawn

    def reset(self) -> None:
        """Forget every run. Custom loops call this before a new run, because ids are ambiguous if a prompt continues an
        earlier text."""
        self._runs.reset()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Draw a token for each row, and return scores (R, V) that only allow it."""
        if self.guidance.is_neutral:
            return scores
        call = running_generate_call()

        def follows(run: _Run) -> bool:
            if not run.continues(input_ids) and call is not None:
                raise ValueError(
                    "rows were reordered or tokens were removed, as beam search and speculation do; AWRS only draws "
                    "rows that grow by one token per step: leave num_beams, prompt lookup and assistant_model out"
                )
            return run.continues(input_ids)

        self._latest = self._runs.of(call, follows, lambda: self._start(input_ids, scores))
        return self._latest.draw(input_ids, scores)

    def _start(self, ids: Tensor, scores: Tensor) -> _Run:
        if self.vocabulary is None:
            self.vocabulary = Vocabulary.of(self.tokenizer, scores.shape[-1], self.eos_token_id)
        constraint = constraint_of(self.guidance)
        self.vocabulary = constraint.vocabulary(self.vocabulary)
        rows = Constrained(
            self.guidance,
            constraint.start(self.vocabulary),
            self.vocabulary,
            ids.shape[0],
            self.generator,
            scores.device,
            limit=self.horizon,
            prompts=ids.tolist(),
            lookahead=lookahead_of(self.guidance.lookahead, constraint, self.vocabulary),
        )
        return _Run(rows, self.vocabulary, self.horizon)


class _Run:
    """The rows of one ``generate`` call."""

    def __init__(self, rows: Constrained, vocabulary: Vocabulary, horizon: int | None) -> None:
        self.rows = rows
        self.horizon = horizon
        self.index = 0
        self.end = min(vocabulary.ends, default=0)
        self.written: Tensor | None = None
        self.drawing: list[bool] = []
        self.drawn = 0

    def continues(self, ids: Tensor) -> bool:
        """Whether ``ids`` are the ids of the last step with the tokens that were drawn."""
        written = self.written
        if written is None or ids.shape != written.shape:
            return False
        is_drawing = torch.tensor(self.drawing, device=ids.device)
        # Rows that ended may be padded with any token.
        return bool(((ids == written).all(-1) | ~is_drawing).all())

    def draw(self, ids: Tensor, scores: Tensor) -> Tensor:
        last = self.horizon is not None and self.index == self.horizon - 1
        self.drawn += sum(self.rows.open)
        tokens = self.rows.choose(scores, last)
        self.drawing = self.rows.open
        self.rows.advance(tokens, last)
        is_drawing = torch.tensor(self.drawing, device=scores.device)
        tokens = torch.where(is_drawing, tokens, self.end)
        self.index += 1
        self.written = torch.cat([ids, tokens[:, None].to(ids.device)], dim=-1)
        return torch.full_like(scores, -math.inf).scatter_(-1, tokens[:, None], 0.0)

    def outcome(self) -> Outcome:
        outcome = self.rows.outcome()
        assert outcome.log_weights is not None
        # A text that was cut off may still become invalid, so that it has no weight.
        weights = torch.where(outcome.finished, outcome.log_weights, -math.inf)
        return replace(outcome, log_weights=weights, log_evidence=weights.clone())
