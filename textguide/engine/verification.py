"""Some steps of a run again, each by a full forward pass of every branch on its own.

The loop keeps random steps: what each row had read, and the log-probabilities that it got. After the run, every branch
of such a step is read again as one row without padding, cache or other rows, and combined again.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..forward import caches
from ..forward.model_adapter import adapter
from ..guidance.algebra import log_softmax
from ..guidance.base import Step
from ..step.effect import Verification
from ..step.guided_step import guided_step
from ..support.errors import VerificationWarning
from .branch_inputs import Rows, sees_images, without_padding
from .loop import Settings, StepView
from .model_views import model_parts

FLOOR = -30.0
"""Log-probabilities below count as this one: the differences of impossible tokens mean nothing."""
_ROUNDING = {torch.float16: 0.008, torch.bfloat16: 0.05}
"""Largest difference of a branch by rounding, relative to its largest logit; for other dtypes :data:`_EXACT`."""
_EXACT = 1e-4
_READ = {
    "attention_mask", "decoder_attention_mask", "encoder_outputs", "position_ids", "cache_position", "use_cache",
    "logits_to_keep",
}  # fmt: skip
"""Inputs of a run that its token ids determine."""


@dataclass(frozen=True)
class _Batch:
    """What the rows of one batch read.

    Args:
        model: the decoded model.
        settings: the settings of the loop.
        prompts: what the conditional branch starts with, without padding; for an encoder-decoder, its decoder.
        sources: for an encoder-decoder, what its encoder reads.
        columns: width of the padded prompts.
    """

    model: Any
    settings: Settings
    prompts: Rows
    sources: Rows | None
    columns: int


@dataclass(frozen=True)
class _Record:
    """One step of one row, as the loop computed it.

    Args:
        batch: what the rows of its batch read.
        row: its number in the batch.
        written: the tokens that it had written before.
        token: the token that it wrote.
        step: the position in the text.
        is_active: whether the guidance combined the branches.
        branches: log-probabilities of the branches, (n, V).
        guided: guided log-probabilities, (V,).
    """

    batch: _Batch
    row: int
    written: list[int]
    token: int
    step: Step
    is_active: bool
    branches: Tensor
    guided: Tensor


@dataclass
class Verifier:
    """Keeps random steps of a run, and reads them again when it has ended.

    Args:
        steps: number of steps, each of one row.
        seed: seed of the choice of the steps.
        sources: for an encoder-decoder, what its encoder reads in the next batch; None: unknown.
    """

    steps: int
    seed: int = 0
    sources: Rows | None = None
    _records: list[_Record] = field(default_factory=list)
    _seen: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def begin(self, model: Any, ids: Tensor, settings: Settings, model_kwargs: Mapping[str, Any]) -> None:
        """Start a batch.

        Args:
            ids: (B, L), padded on the left.
            settings: the settings of the loop; what the branches read is complete.
            model_kwargs: the inputs that ``generate`` prepared.

        Raises:
            ValueError: the steps of this run cannot be read again; the message names the reason.
        """
        _check(model, settings, model_kwargs)
        name = "attention_mask"
        sources = self.sources
        if model.config.is_encoder_decoder:
            name = "decoder_attention_mask"
            if sources is None:
                raise ValueError(
                    "verify= reads the source of an encoder-decoder again, and generate only passes its encoded form "
                    "to a custom loop; use textguide.generate"
                )
            copies = len(ids) // len(sources)
            sources = [source for source in sources for _ in range(copies)]
        prompts = without_padding(ids, model_kwargs.get(name))
        self._batch = _Batch(model, settings, prompts, sources, ids.shape[1])

    def observe(self, view: StepView, ids: Tensor, step: Step, writing: Tensor) -> None:
        """Keep the step of some rows.

        Args:
            view: the step.
            ids: all ids before it, (rows at the start, T).
            step: the position in the text, for the rows in the batch.
            writing: the rows that write, (rows at the start,).
        """
        writes = writing.tolist()
        for number, row in enumerate(view.samples):
            if not writes[row]:
                continue
            self._seen += 1
            place = self._seen - 1 if self._seen <= self.steps else self._random.randrange(self._seen)
            if place >= self.steps:
                continue
            branches = view.cond[None, number]
            if view.extra is not None:
                branches = torch.cat([branches, view.extra[:, number]])
            record = _Record(
                batch=self._batch,
                row=row,
                written=ids[row, self._batch.columns :].tolist(),
                token=int(view.tokens[number]),
                step=step.pick(torch.tensor([number])),
                is_active=view.extra is not None,
                branches=branches.clone(),
                guided=view.guided[number].clone(),
            )
            self._records[place : place + 1] = [record]

    @torch.no_grad()
    def report(self) -> Verification:
        """Read the steps again; warn if rounding does not explain the difference."""
        worst: tuple[float, _Record | None] = (-1.0, None)
        token = distribution = branches = tolerance = 0.0
        for record in self._records:
            again, logits = _read_branches(record)
            guided = _combine(record, logits)
            apart = _difference(again, record.branches)
            token = _larger(token, abs(float(guided[record.token] - record.guided[record.token])))
            distribution = _larger(distribution, _difference(guided, record.guided))
            branches = _larger(branches, apart)
            tolerance = max(tolerance, _tolerance(record.batch.model, logits))
            if not apart <= worst[0]:
                worst = (apart, record)
        verification = Verification(len(self._records), token, distribution, branches, tolerance)
        self._records = []
        if worst[1] is not None and not verification.holds:
            warnings.warn(_message(verification, worst[1]), VerificationWarning, stacklevel=4)
        return verification


def _check(model: Any, settings: Settings, model_kwargs: Mapping[str, Any]) -> None:
    """Refuse runs whose steps depend on more than the token ids of one row."""
    guidance = settings.guidance
    if guidance is not None and guidance.across_rows:
        raise ValueError(
            f"verify= reads rows one by one, and {guidance.name!r} combines the rows of a batch; leave verify out"
        )
    if sees_images(model, model_kwargs) or any(hasattr(prompts, "prefill") for prompts in settings.prompts):
        raise ValueError("verify= reads token ids again, and this run reads images too; leave verify out")
    given = {name for name, value in model_kwargs.items() if value is not None}
    others = sorted(given - _READ - set(caches.ARGUMENTS))
    if others:
        raise ValueError(
            f"verify= reads token ids again, and this run passes {', '.join(others)} to the model too; leave verify out"
        )
    if not _counts_from_zero(model_kwargs.get("position_ids"), model_kwargs.get("attention_mask")):
        raise ValueError("verify= reads texts from position 0, and position_ids= differs; leave one of them out")


def _counts_from_zero(positions: Tensor | None, mask: Tensor | None) -> bool:
    """Whether the positions of a prompt are those of its tokens without padding."""
    if positions is None or mask is None or positions.shape != mask.shape:
        return True
    usual = (mask.cumsum(-1) - 1).clamp(min=0)
    return bool(((positions - usual) * mask == 0).all())


def _read_branches(record: _Record) -> tuple[Tensor, Tensor]:
    """Log-probabilities and logits of the branches, (n, V) each."""
    logits = _branch_logits(record, record.written)
    return log_softmax(logits), logits


def _branch_logits(record: _Record, written: Sequence[int]) -> Tensor:
    """The logits (n, V) after ``written``, one forward pass per branch."""
    batch = record.batch
    guidance = batch.settings.guidance
    view = guidance.view if guidance is not None else None
    branches = guidance.branches if guidance is not None and record.is_active else ()
    parts = model_parts(batch.model, batch.settings.models, branches, view)
    prompt = batch.prompts[record.row]
    source = None if batch.sources is None else batch.sources[record.row]
    logits = [_read(parts["", view], [*prompt, *written], source)]
    for branch, prompts in zip(branches, batch.settings.prompts, strict=False):
        text = prompts[record.row]  # type: ignore[index]
        if source is None:
            logits.append(_read(parts[branch.model_part], [*text, *written], None))
        else:
            logits.append(_read(parts[branch.model_part], [*prompt, *written], text))
    return torch.stack([one.to(record.guided.device) for one in logits])


def _read(model: Any, ids: Sequence[int], source: Sequence[int] | None) -> Tensor:
    """The logits (V,) after ``ids``: one row, without cache and mask."""
    device = adapter(model).device
    row = torch.tensor([list(ids)], device=device)
    if source is None:
        logits = model(input_ids=row, use_cache=False, return_dict=True).logits
    else:
        encoder_row = torch.tensor([list(source)], device=device)
        logits = model(input_ids=encoder_row, decoder_input_ids=row, use_cache=False, return_dict=True).logits
    last: Tensor = logits[0, -1].float()
    return last


def _combine(record: _Record, logits: Tensor) -> Tensor:
    """The guided log-probabilities (V,) of the branches that were read again."""
    settings = record.batch.settings
    guidance = settings.guidance if record.is_active else None
    prompt = [record.batch.prompts[record.row]]
    step = replace(record.step, rows=None)
    if step.likelihoods is not None:
        step = replace(step, likelihoods=_likelihoods(record))
    if settings.class_log_probs is not None and step.class_log_probs is not None:
        settings.class_log_probs.begin(prompt, [record.written])
        step = replace(step, class_log_probs=settings.class_log_probs.of([0]).to(logits.device))
    reweight = None
    if settings.reweighter is not None:
        settings.reweighter.begin(prompt, [record.written])
        reweight = partial(settings.reweighter, step=step, index=len(record.written), rows=range(1))
    extra = logits[1:, None] if guidance is not None and guidance.branches else None
    corrects = settings.population is not None and settings.population.corrects
    outcome = guided_step(
        logits[:1], extra, guidance, step, reweight=reweight, measure=False, weigh=guidance is not None and corrects
    )
    guided = log_softmax(outcome.scores) if outcome.log_probs is None else outcome.log_probs
    return guided[0]


def _likelihoods(record: _Record) -> Tensor:
    """The log-probability that each branch gives to the text so far, (n, 1)."""
    total = torch.zeros(len(record.branches), device=record.guided.device)
    for index, token in enumerate(record.written):
        total += log_softmax(_branch_logits(record, record.written[:index]))[:, token]
    return total[:, None]


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.clamp(min=FLOOR) - other.clamp(min=FLOOR)).abs().max())


def _larger(one: float, other: float) -> float:
    """The larger number; NaN is larger than all."""
    return one if one >= other or one != one else other


def _tolerance(model: Any, logits: Tensor) -> float:
    """What the rounding of the model's dtype may change in a log-probability, in nats."""
    possible = logits[logits.abs() < 1e20]
    largest = float(possible.abs().max()) if possible.numel() else 1.0
    dtype: Any = getattr(model, "dtype", None)
    return _ROUNDING.get(dtype, _EXACT) * max(1.0, largest)


def _message(verification: Verification, record: _Record) -> str:
    name = type(record.batch.model).__name__
    return (
        f"verify={verification.steps}: row {record.row}, token {len(record.written)} of {name} differs from a full "
        f"forward pass by {verification.branches:.2g} nats in a branch, and rounding explains "
        f"{verification.tolerance:.2g}: the cache, padding or batching of this run changes the result (or the model is "
        "in training mode); try batch_size=1, another attn_implementation or dtype float32, and report it"
    )
