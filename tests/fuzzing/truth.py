"""The truth about a case: the formula on full forward passes of single rows, and transformers' loop on the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationMixin, LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from textguide.guidance import split
from textguide.reference import decoding

from ..classifiers.test_reweighting import said
from .cases import Case
from .models import VOCAB, Letters


class Truth:
    """The guided distributions of one case.

    Args:
        case: what runs.
        model: the decoded model.
        guidance: the guidance, or None.
        models: further models.
    """

    def __init__(self, case: Case, model: Any, guidance: Any, models: dict[str, Any]) -> None:
        self.case = case
        self.model = model
        self.models = models
        parts = split(guidance)
        self.rule = parts.branching
        self.reweighting = list(parts.reweighting)
        self.horizon = case.new
        self._raw: dict[Any, torch.Tensor] = {}
        self._known: dict[Any, tuple[list[float], float]] = {}
        self.largest = 1.0

    def scores(self, row: int, written: Sequence[int], horizon: int | None = None) -> torch.Tensor:
        """Guided log-probabilities (V,) of the token after ``written``, plus the normaliser of the conditional ones."""
        distribution, normaliser = self._distribution(row, written, horizon or self.horizon)
        return torch.tensor(distribution, dtype=torch.float32) + normaliser

    def log_probs(self, row: int, written: Sequence[int], horizon: int | None = None) -> torch.Tensor:
        """Guided log-probabilities (V,)."""
        return torch.tensor(self._distribution(row, written, horizon or self.horizon)[0])

    def _distribution(self, row: int, written: Sequence[int], horizon: int) -> tuple[list[float], float]:
        key = row, tuple(written), horizon
        if key not in self._known:
            self._known[key] = self._computed(row, list(written), horizon)
        return self._known[key]

    def _computed(self, row: int, written: list[int], horizon: int) -> tuple[list[float], float]:
        case = self.case
        prompt = case.prompts[row]
        source: list[int] | None = None
        if case.is_encoder_decoder:
            source = prompt
            prompt = [self.model.config.decoder_start_token_id]
        progress = min(1.0, len(written) / (horizon - 1)) if horizon > 1 else 0.0
        logits = self._logits(self.model, [*prompt, *written], source)
        distribution = decoding.normalized(logits.tolist())
        if self.rule is not None and not self.rule.is_neutral:
            branches = [distribution, *self._others(row, prompt, written, source)]
            distribution = decoding.guided_distribution(self.rule, branches, progress)
        if self.reweighting:
            distribution = decoding.reweighed(
                self.reweighting, distribution, prompt, written, len(written), progress,
                text_of=Letters().decode, score=said,
            )  # fmt: skip
        return distribution, float(logits.logsumexp(-1))

    def _others(self, row: int, prompt: list[int], written: list[int], source: list[int] | None) -> list[list[float]]:
        distributions = []
        assert self.rule is not None
        for branch in self.rule.branches:
            model = self.models.get(branch.model, self.model)
            text = self._branch_prompt(branch, row)
            if branch.view is not None:
                distributions.append(decoding.part_log_probs(model, branch.view, [*text, *written]))
            elif source is None:
                distributions.append(decoding.normalized(self._logits(model, [*text, *written], None).tolist()))
            else:
                distributions.append(decoding.normalized(self._logits(model, [*prompt, *written], text).tolist()))
        return distributions

    def _branch_prompt(self, branch: Any, row: int) -> list[int]:
        case = self.case
        if branch.same_prompt:
            return case.prompts[row]
        if branch.prompt is not None and case.negatives is not None:
            return case.negatives[row if len(case.negatives) > 1 else 0]
        if not case.is_encoder_decoder:
            return case.prompts[row][-1:]
        return [1, 2] if case.model == "bart" else [2]

    def _logits(self, model: Any, ids: list[int], source: list[int] | None) -> torch.Tensor:
        """The logits (V,) after ``ids``: a forward pass of one row, without cache."""
        key = id(model), tuple(ids), None if source is None else tuple(source)
        if key not in self._raw:
            row = torch.tensor([ids])
            with torch.no_grad():
                if source is None:
                    logits = model(input_ids=row, use_cache=False).logits
                else:
                    logits = model(input_ids=torch.tensor([source]), decoder_input_ids=row, use_cache=False).logits
            self._raw[key] = logits[0, -1].double()
            self.largest = max(self.largest, float(logits[0, -1].masked_fill(logits[0, -1] < -1e20, 0).abs().max()))
        return self._raw[key]

    @property
    def tolerance(self) -> float:
        """The largest difference of a log-probability that rounding explains."""
        amplification = 4.0
        if self.rule is not None and hasattr(self.rule, "scale") and self.case.rule == "cfg":
            scale = self.rule.scale
            if self.rule.schedule != "constant":
                scale = 1 + 2 * (scale - 1)
            amplification = max(abs(scale), 1.0) + abs(scale - 1)
        if self.case.dtype == "bfloat16":
            return 0.01 * self.largest * amplification
        return 1e-4 * self.largest * amplification


class Oracle(PreTrainedModel, GenerationMixin):
    """A model whose logits are the guided ones, for transformers' own loops.

    Args:
        truth: computes them.
        width: columns of the prompts.
    """

    config_class = LlamaConfig
    main_input_name = "input_ids"

    def __init__(self, truth: Truth, width: int) -> None:
        model = truth.model
        super().__init__(LlamaConfig(vocab_size=VOCAB, hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
        self.truth = truth
        self.width = width
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self.generation_config = model.generation_config

    def prepare_inputs_for_generation(
        self, input_ids: Any, attention_mask: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The whole text, at every step."""
        return {"input_ids": input_ids}

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, **_: Any) -> Any:
        """Logits (R, 1, V)."""
        ends = self.truth.case.options.get("eos_token_id") or []
        prompts = len(self.truth.case.prompts)
        logits = []
        for number, ids in enumerate(input_ids[:, self.width :].tolist()):
            row = number * prompts // len(input_ids)
            if any(token in ends for token in ids):  # the row has ended
                logits.append(torch.zeros(VOCAB))
            else:
                logits.append(self.truth.scores(row, ids))
        return CausalLMOutputWithPast(logits=torch.stack(logits)[:, None])


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of log-probabilities; a token that only one of them allows counts 30 at most."""
    apart = (one.double().clamp(min=-30) - other.double().clamp(min=-30)).abs().max()
    return math.inf if bool(apart.isnan()) else float(apart)
