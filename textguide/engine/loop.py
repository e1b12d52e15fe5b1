"""The decoding loop: one forward pass a step for every row of every branch.

The loop stands in for transformers' own sampling loop behind ``generate(custom_generate=…)``: transformers prepares
inputs, processors and stopping criteria, this loop runs the branches and combines them. Without guidance it computes
exactly what transformers computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..guidance.algebra import kl_divergence, log_softmax
from ..guidance.base import BranchGuidance, Step
from ..smc.population import Outcome, Population
from .branch_passes import Law, Passes, Source
from .effect import Effect, EffectMeter
from .reweighting import Reweighter
from .skipping import Naps
from .speculation import Speculation, SpeculationReport
from .speculation.passes import SpeculativePasses

Observer = Callable[["StepView"], None]


@dataclass(frozen=True)
class StepView:
    """What an observer sees of one step.

    Args:
        index: number of the token, from 0.
        samples: the rows that are alive, in the order of the tensors.
        cond: conditional log-probabilities, (B, V).
        extra: log-probabilities of the extra branches, (n, B, V); None where no row was guided.
        guided: the law that was sampled from, before processors and warpers, (B, V).
        reweighed: rows whose candidates were weighed by a classifier, bool (B,); None where there is no classifier.
        tokens: the tokens that were chosen, (B,).
    """

    index: int
    samples: Sequence[int]
    cond: Tensor
    extra: Tensor | None
    guided: Tensor
    tokens: Tensor
    reweighed: Tensor | None = None


@dataclass
class Decoded:
    """The outcome of one run.

    Args:
        sequences: prompt and generated ids, (B, L + new), finished rows padded.
        effect: what guidance did.
        log_probs: guided log-probability of each generated token, (B, new), 0 behind the end; None unless asked for.
        scores: processed scores a step, (B, V) each, None unless ``output_scores``.
        logits: unprocessed conditional logits a step, (B, V) each, None unless ``output_logits``.
        constraint: what the constraint made of the rows; None where there was none.
        speculation: what speculation did; None where there was none.
    """

    sequences: Tensor
    effect: Effect
    log_probs: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    constraint: Outcome | None = None
    speculation: SpeculationReport | None = None


@dataclass
class Settings:
    """What :func:`decode` needs beside the inputs that transformers prepared.

    Args:
        guidance: None, or a guidance with branches that is not neutral.
        prompts: for each extra branch, the token ids of every row, or a :class:`textguide.engine.branch_passes.Source`.
        reweighter: weighs the candidates of the combined law; it has begun the batch.
        constraint: chooses the tokens, or rules some out, for the rows of this batch.
        models: further models by name.
        generator: randomness for sampling; None: torch's global generator.
        observer: called after every step.
        log_probs: record the log-probability of every token.
        speculation: guess tokens, and read the guesses in the same passes.
        static: use a cache of fixed shape; finished rows then stay in the batch.
        call: replaces the model's call from the second step on, such as a compiled one; None: the model itself.
    """

    guidance: BranchGuidance | None = None
    prompts: Sequence[Sequence[Sequence[int]] | Source] = ()
    reweighter: Reweighter | None = None
    constraint: Population | None = None
    models: Mapping[str, Any] = field(default_factory=dict)
    generator: torch.Generator | None = None
    observer: Observer | None = None
    log_probs: bool = False
    speculation: Speculation | None = None
    static: bool = False
    call: Any = None


@torch.no_grad()
def decode(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    settings: Settings,
    model_kwargs: dict[str, Any],
) -> Iterator[Tensor | Decoded]:
    """Decode, yielding the next tokens (B,) of every step and at last the :class:`Decoded`.

    Args:
        model: a transformers model.
        input_ids: (B, L), padded on the left.
        logits_processor: transformers processors and warpers, applied to the guided law.
        stopping_criteria: transformers stopping criteria.
        generation_config: read for sampling, outputs and the padding token.
        settings: guidance and everything else of ours.
        model_kwargs: what ``generate`` prepared for the model.
    """
    loop = _Loop(model, input_ids, logits_processor, stopping_criteria, generation_config, settings)
    law = loop.prefill(model_kwargs)
    while True:
        tokens = loop.write(law)
        yield tokens
        if loop.finished():
            break
        law = loop.read()
    yield loop.outcome()


class _Loop:
    def __init__(
        self, model: Any, ids: Tensor, processors: Any, criteria: Any, config: Any, settings: Settings
    ) -> None:
        self.ids, self.processors, self.criteria = ids, processors, criteria
        self.config, self.settings = config, settings
        self.guidance, self.reweighter = settings.guidance, settings.reweighter
        self.constraint = settings.constraint
        branches = self.guidance.branches if self.guidance is not None else ()
        copies = 1 if self.constraint is None else self.constraint.size
        self.prompt_length = ids.shape[1]
        self.horizon = (criteria.max_length or self.prompt_length + 1) - self.prompt_length
        runs = (model, branches, settings.prompts, settings.models, copies)
        self.passes = (
            Passes(*runs)
            if settings.speculation is None
            else SpeculativePasses(
                *runs, speculation=settings.speculation, guidance=self.guidance, horizon=self.horizon
            )
        )
        self.meter = EffectMeter(len(branches), ids.device)
        self.naps = Naps(self.guidance, self.horizon, ids.shape[0], self.meter) if self.guidance is not None else None
        self.pad = config._pad_token_tensor.to(ids.device) if config._pad_token_tensor is not None else None
        self.pads = self.pad is not None and any(hasattr(c, "eos_token_id") for c in criteria)
        self.unfinished = torch.ones(ids.shape[0], dtype=torch.long, device=ids.device)
        self.index = 0
        self.waking: list[int] = []
        self.worst_slept: dict[int, Tensor] = {}
        self.kl: Tensor | None = None
        self.log_probs: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.logits: list[Tensor] = []
        self._alive_index: Tensor | None = None
        self._live = list(range(ids.shape[0]))
        self._guided_samples: list[int] = []

    # -- one step --------------------------------------------------------------------------------------------------

    def prefill(self, model_kwargs: dict[str, Any]) -> Law:
        law = self.passes.prefill(self.ids, model_kwargs)
        if self.settings.static:
            self.passes.make_static(self.horizon)
        self.passes.replace_call(self.settings.call)
        if self.naps is not None and not self.naps.active(0):
            self.passes.sleep(self.passes.alive)
            law = Law(law.cond, None, torch.empty(0, dtype=torch.long, device=self.ids.device), [])
        return law

    def write(self, law: Law) -> Tensor:
        """Choose the next token of every row from the law of this step."""
        cond, guided, extra = self._combine(law)
        constraint = self.constraint
        if constraint is not None:
            guided = constraint.see(guided, self.passes.alive, cond is not None)
        # Processors such as the repetition penalty depend on where logits lie, not on their differences alone: with the
        # conditional branch's normaliser put back, γ → 1 tends to plain decoding under them too.
        scores = guided if extra is None and cond is None else guided + law.cond.float().logsumexp(-1, keepdim=True)
        reweighed = None
        if self.reweighter is not None:
            scores, guided, reweighed = self._reweigh(law, guided, scores)
        full = self._full(scores)
        last = self.index == self.horizon - 1
        if constraint is not None and not constraint.chooses:
            full = constraint.mask(full)
        processed = self.processors(self.ids, full)
        if constraint is not None and constraint.chooses:
            tokens = constraint.choose(processed, last)
        elif self.config.do_sample:
            probs = torch.softmax(processed, dim=-1)
            tokens = torch.multinomial(probs, num_samples=1, generator=self.settings.generator).squeeze(1)
        else:
            tokens = torch.argmax(processed, dim=-1)
        if self.pads and self.pad is not None:
            tokens = tokens * self.unfinished + self.pad * (1 - self.unfinished)
        if constraint is not None:
            tokens = self._advance(tokens, last)
        self._record(law, guided, processed, tokens)
        if self.settings.observer is not None:
            chosen = tokens if self._alive_index is None else tokens[self._alive_index]
            law_of = guided if extra is not None else log_softmax(guided)
            cond = cond if cond is not None else log_softmax(law.cond)
            view = StepView(self.index, tuple(self.passes.alive), cond, extra, law_of, chosen, reweighed)
            self.settings.observer(view)
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=-1)
        self.unfinished = self.unfinished & ~self.criteria(self.ids, processed)
        if constraint is not None:
            self._settle(constraint)
        return tokens

    def finished(self) -> bool:
        """The one place of a step where the host waits for the device; finished rows leave here."""
        if self.constraint is not None:
            self._resample(self.constraint)
        alive = self.passes.alive
        flags = [self.unfinished.float()]
        guided = [] if self.kl is None else self._guided_samples
        slept = list(self.worst_slept)
        if self.naps is not None and self.naps.reads_kl:
            if guided:
                flags.append(self.kl.float())  # type: ignore[union-attr]
            flags += [self.worst_slept[sample].float()[None] for sample in slept]
        values = torch.cat(flags).tolist()
        going = [sample for sample in alive if values[sample]]
        if self.naps is not None and self.naps.reads_kl:
            kls = values[len(self.unfinished) :]
            self._end_naps([sample for sample in alive if sample not in set(going)])
            self.naps.observe(
                self.index,
                dict(zip(guided, kls, strict=False)),
                dict(zip(slept, kls[len(guided) :], strict=True)),
            )
        self._live = going
        if not going:
            return True
        settings = self.settings
        ours = (settings.guidance, settings.reweighter, settings.constraint, settings.speculation)
        steers = any(part is not None for part in ours)
        if not settings.static and steers and len(going) < len(alive):
            self.passes.drop([sample for sample in alive if sample not in set(going)])
            self._alive_index = torch.tensor(going, device=self.ids.device)
        return False

    def read(self) -> Law:
        """Run the forward pass of the next step."""
        self.index += 1
        waking = self.naps.settle(self.passes, self.index) if self.naps is not None else []
        measure = self.naps is not None and self.naps.reads_kl
        return self.passes.step(self.ids, self.index, waking, measure)

    def outcome(self) -> Decoded:
        if self.reweighter is not None:
            self.meter.classified = self.reweighter.texts_scored
        return Decoded(
            sequences=self.ids,
            effect=self.meter.summary(),
            log_probs=torch.stack(self.log_probs, dim=1) if self.log_probs else None,
            scores=tuple(self.scores) if self.config.return_dict_in_generate and self.config.output_scores else None,
            logits=tuple(self.logits) if self.config.return_dict_in_generate and self.config.output_logits else None,
            constraint=self.constraint.outcome() if self.constraint is not None else None,
            speculation=self.passes.report() if isinstance(self.passes, SpeculativePasses) else None,
        )

    # -- parts -----------------------------------------------------------------------------------------------------

    def _combine(self, law: Law) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Conditional log-probabilities, the law to sample from, and the extra branches' log-probabilities."""
        self.kl, self.worst_slept = None, {}
        # A copy, since the processors of transformers may write into what they get.
        cond = law.cond.to(torch.float32, copy=True)
        if self.guidance is None or self.naps is None:
            return None, cond, None
        alive = self.passes.alive
        if law.woken:
            self.worst_slept = self.naps.measure(law.woken, self.index, last_is_current=True)
        if self.naps.reads_kl:
            self.naps.remember(self.index, law, alive)
        step = Step.at(self.index, self.horizon, alive, len(self.unfinished))
        if law.extra is None and (self.guidance.branches or not self.guidance.active(step)):
            self.naps.count(self.index, self._live)
            return None, cond, None
        laws = [cond[None] if law.awake is None or law.extra is None else cond[law.awake][None]]
        logp = log_softmax(torch.cat(laws if law.extra is None else [*laws, law.extra.float()]))
        guided = self.guidance.combine(logp, step)
        if self.reweighter is None:
            self.kl = self.meter.add(guided, logp[0], self._weights(guided.shape[0]))
        else:  # measured when the candidates have been weighed too
            self.kl = kl_divergence(log_softmax(guided), logp[0])
        if law.awake is None or law.extra is None:
            self._guided_samples = list(alive)
            return logp[0], guided, logp[1:]
        resting = self.passes.sleepers()
        self._guided_samples = [sample for sample in alive if sample not in set(resting)]
        self.naps.count(self.index, resting)
        everywhere = log_softmax(cond)
        return everywhere.clone(), everywhere.index_copy(0, law.awake, guided), None

    def _reweigh(self, law: Law, guided: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and law with the candidates weighed, and the rows where they were."""
        assert self.reweighter is not None
        alive = self.passes.alive
        if self.index:
            self.reweighter.append(self.ids[:, -1].tolist())
        law_before = log_softmax(guided)
        step = Step.at(self.index, self.horizon)
        changed, acted = self.reweighter(law_before, step, self.index, alive)
        normaliser = law.cond.float().logsumexp(-1, keepdim=True)
        if bool(acted.all()):
            scores, guided = changed + normaliser, changed
        elif bool(acted.any()):  # the rows that were left alone keep their bits
            scores = torch.where(acted[:, None], changed + normaliser, scores)
            guided = torch.where(acted[:, None], changed, guided)
        branched = torch.zeros_like(acted)
        if law.extra is not None:
            branched[slice(None) if law.awake is None else law.awake] = True
        counts = acted | branched
        live = self._weights(len(alive))
        if live is not None:
            counts &= live.bool()
        cond = law_before if law.extra is None else log_softmax(law.cond)
        self.meter.add(changed, cond, counts.float(), branched & counts, acted & counts)
        unguided = len(self._live) - int(counts.sum())
        resting = len(self._live) - int((branched & counts).sum()) if self.guidance is not None else 0
        self.meter.unguided += unguided - resting  # the resting ones were counted by the naps
        return scores, guided, acted

    def _advance(self, tokens: Tensor, last: bool) -> Tensor:
        """Write the tokens under the constraint; rows that it gave up write padding and end."""
        assert self.constraint is not None
        writing = torch.tensor(self.constraint.open, device=tokens.device).long()
        tokens = tokens * writing + (0 if self.pad is None else self.pad) * (1 - writing)
        self.constraint.advance(tokens, last)
        self.unfinished = self.unfinished * writing
        return tokens

    def _settle(self, constraint: Population) -> None:
        """Rows that ended for a reason of their own are closed; rows that the constraint closed end."""
        constraint.stop(self.unfinished.tolist())
        self.unfinished = self.unfinished * torch.tensor(constraint.open, device=self.ids.device).long()

    def _resample(self, constraint: Population) -> None:
        """Let rows go on from others, where a population needs it: ids, caches, and what was recorded of them."""
        ancestors = constraint.resample()
        if ancestors is None:
            return
        sources = ancestors.tolist()
        index = ancestors.to(self.ids.device)
        self.ids, self.unfinished = self.ids[index], self.unfinished[index]
        for record in (self.log_probs, self.scores, self.logits):
            record[:] = [values[index] for values in record]
        for row, (token, log_prob) in constraint.rewritten().items():
            self.ids[row, -1], self.unfinished[row] = token, int(constraint.open[row])
            if self.log_probs:
                self.log_probs[-1][row] = log_prob
        if self.reweighter is not None:
            self.reweighter.select(sources)
        going = [row for row, opened in enumerate(constraint.open) if opened]
        self.passes.reindex({row: sources[row] for row in going})
        self._alive_index = None if len(going) == len(sources) else torch.tensor(going, device=self.ids.device)

    def _weights(self, rows: int) -> Tensor | None:
        """1 for rows that still write, where finished rows stay in the batch (fixed shapes); else None."""
        return self.unfinished.float() if rows == len(self.unfinished) and len(self._live) < rows else None

    def _full(self, guided: Tensor) -> Tensor:
        """Scores for every row of the batch; rows that left get a uniform law, whose token is replaced by padding."""
        if self._alive_index is None:
            return guided
        full = guided.new_zeros(self.ids.shape[0], guided.shape[-1])
        return full.index_copy(0, self._alive_index, guided)

    def _record(self, law: Law, guided: Tensor, processed: Tensor, tokens: Tensor) -> None:
        if self.settings.log_probs:
            normal = guided
            if self.guidance is None or self.guidance.renormalize or law.extra is None:
                normal = log_softmax(guided)
            chosen = tokens if self._alive_index is None else tokens[self._alive_index]
            picked = normal.gather(-1, chosen[:, None]).squeeze(-1)
            if self._alive_index is not None:
                picked = picked.new_zeros(self.ids.shape[0]).index_copy(0, self._alive_index, picked)
            self.log_probs.append(torch.where(self.unfinished.bool(), picked, 0.0))
        if self.config.return_dict_in_generate and self.config.output_scores:
            self.scores.append(processed)
        if self.config.return_dict_in_generate and self.config.output_logits:
            self.logits.append(self._full(law.cond.float()))

    def _end_naps(self, leaving: list[int]) -> None:
        """Re-read what finished rows napped through to their end, so that the report covers it."""
        napping = [sample for sample in leaving if sample in set(self.passes.sleepers())]
        if napping and self.naps is not None:
            woken = self.passes.reread(napping, self.ids[:, :-1], self.index)
            self.naps.measure(woken, self.index, last_is_current=False)
