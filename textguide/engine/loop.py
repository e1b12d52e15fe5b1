"""The decoding loop: one forward pass a step for every row of every branch.

The loop stands in for transformers' own sampling loop behind ``generate(custom_generate=…)``: transformers prepares
inputs, processors and stopping criteria, this loop runs the branches and combines them. Without guidance it computes
exactly what transformers computes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import MaxTimeCriteria

from ..forward import caches
from ..guidance.algebra import kl_divergence, log_softmax
from ..guidance.base import BranchGuidance, Step
from ..smc.population import Population
from .branch_passes import BranchPasses, Source, StepLogits
from .effect import EffectMeter
from .opinions import Opinions
from .results import Decoded, joined
from .reweighting import Reweighter
from .skipping import Skipping
from .speculation import Speculation
from .speculation.passes import SpeculativePasses
from .steps import Steps

Observer = Callable[["StepView"], None]


@dataclass(frozen=True)
class Moves:
    """How rows went on from others in front of a step.

    Args:
        ancestors: the row that each row goes on from.
        rewritten: rows whose last token is another one than that of the row that they go on from, and that token.
    """

    ancestors: tuple[int, ...]
    rewritten: Mapping[int, int]


@dataclass(frozen=True)
class StepView:
    """What an observer sees of one step.

    Args:
        index: number of the token, from 0.
        samples: the rows that are in the batch, in the order of the tensors.
        cond: conditional log-probabilities, (B, V).
        extra: log-probabilities of the extra branches, (n, B, V); None where no row was guided.
        guided: the distribution that was sampled from, before processors and warpers, as log-probabilities (B, V).
        reweighed: rows whose candidates were weighed by a classifier, bool (B,); None where there is no classifier.
        tokens: the tokens that were chosen, (B,).
        population: rows that choose their tokens together, as they stand behind this step; None where they do not.
        moves: how rows moved in front of this step; None where all stayed.
    """

    index: int
    samples: Sequence[int]
    cond: Tensor
    extra: Tensor | None
    guided: Tensor
    tokens: Tensor
    reweighed: Tensor | None = None
    population: Population | None = None
    moves: Moves | None = None


@dataclass
class Settings:
    """What :func:`decode` needs beside the inputs that transformers prepared.

    Args:
        guidance: None, or a guidance with branches that is not neutral.
        prompts: for each extra branch, the token ids of every row, or a :class:`textguide.engine.branch_passes.Source`.
        reweighter: weighs the candidates of the combined distribution; it has begun the batch.
        opinions: what the guidance's classifier says of the text so far; it has begun the batch.
        constraint: chooses the tokens, or rules some out, for the rows of this batch.
        models: further models by name.
        generator: randomness for sampling, or one a row; None: torch's global generator.
        observer: called after every step.
        log_probs: record the log-probability of every token.
        speculation: guess tokens, and read the guesses in the same passes.
        fast: use this machine's faster matrix products in unguided runs too, which then differ by rounding.
        static: use a cache of fixed shape; finished rows then stay in the batch, and every step runs all branches.
        begin: lets classifiers begin the batch once more, for rows that begin again.
        call: replaces the model's call from the second step on, such as a compiled one; None: the model itself.
    """

    guidance: BranchGuidance | None = None
    prompts: Sequence[Sequence[Sequence[int]] | Source] = ()
    reweighter: Reweighter | None = None
    opinions: Opinions | None = None
    constraint: Population | None = None
    models: Mapping[str, Any] = field(default_factory=dict)
    generator: torch.Generator | tuple[torch.Generator, ...] | None = None
    observer: Observer | None = None
    log_probs: bool = False
    speculation: Speculation | None = None
    fast: bool = False
    static: bool = False
    call: Any = None
    begin: Callable[[], None] | None = None


@torch.no_grad()
def decode(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    settings: Settings,
    model_kwargs: dict[str, Any],
) -> Iterator[tuple[Tensor, Tensor] | Decoded]:
    """Decode, yielding the next tokens (B,) of every step with the rows that wrote them, bool (B,), and at last the
    :class:`Decoded`.

    Args:
        model: a transformers model.
        input_ids: (B, L), padded on the left.
        logits_processor: transformers processors and warpers, applied to the guided distribution.
        stopping_criteria: transformers stopping criteria.
        generation_config: read for sampling, outputs and the padding token.
        settings: guidance and everything else of ours.
        model_kwargs: what ``generate`` prepared for the model.
    """
    constraint = settings.constraint
    tries: list[Decoded] = []
    newest = [0] * len(input_ids)  # the try that counts, for each row
    again = list(range(len(input_ids)))
    repeats = constraint is not None and constraint.repeats
    while again:
        processors = _as_new(logits_processor) if repeats else logits_processor
        loop = _Loop(model, input_ids, processors, stopping_criteria, generation_config, settings)
        yield loop.write(loop.prefill(_fresh(model_kwargs) if repeats else model_kwargs)), loop.wrote
        while not loop.finished():
            yield loop.write(loop.read()), loop.wrote
        for row in again:
            newest[row] = len(tries)
        tries.append(loop.outcome())
        again = constraint.again() if constraint is not None and not _is_over(stopping_criteria, loop.ids) else []
        if again and settings.begin is not None:
            settings.begin()
    yield tries[0] if len(tries) == 1 else joined(tries, newest, int(loop.pad))


def _fresh(model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs with caches that can be written into."""
    return {name: copy.deepcopy(value) if name in caches.ARGUMENTS else value for name, value in model_kwargs.items()}


def _as_new(processors: Any) -> Any:
    """Copies that what one try leaves in a processor does not reach; models and generators stay the same ones."""
    shared = (torch.nn.Module, torch.Generator)
    values = (value for one in processors for value in getattr(one, "__dict__", {}).values())
    return copy.deepcopy(processors, {id(value): value for value in values if isinstance(value, shared)})


def _is_over(criteria: Any, ids: Tensor) -> bool:
    """Whether the time for the whole run has passed."""
    return any(isinstance(one, MaxTimeCriteria) and bool(one(ids, None).all()) for one in criteria)


class _Loop:
    def __init__(
        self, model: Any, ids: Tensor, processors: Any, criteria: Any, config: Any, settings: Settings
    ) -> None:
        self.ids, self.processors, self.criteria = ids, processors, criteria
        self.config, self.settings = config, settings
        self.guidance, self.reweighter, self.constraint = settings.guidance, settings.reweighter, settings.constraint
        branches = self.guidance.branches if self.guidance is not None else ()
        copies = 1 if self.constraint is None else self.constraint.size
        self.horizon = (criteria.max_length or ids.shape[1] + 1) - ids.shape[1]
        view = self.guidance.view if self.guidance is not None else None
        run = (model, branches, settings.prompts, settings.models, copies, settings.fast, view)
        guess = settings.speculation
        self.passes = (
            SpeculativePasses(guess, self.guidance, self.horizon, *run) if guess is not None else BranchPasses(*run)
        )
        self.meter = EffectMeter(len(branches), ids.device)
        self.skipping = Skipping(self.guidance, self.horizon, self.meter, self.passes, settings.static)
        pad = config._pad_token_tensor
        self.pad = pad.to(ids.device) if pad is not None else torch.zeros((), dtype=torch.long, device=ids.device)
        self.index = 0
        # Whether a row still writes is known here alone; rows that do not may stay in the batch for a while.
        self.writing = torch.ones(ids.shape[0], dtype=torch.long, device=ids.device)
        self.wrote = self.writing.bool()  # the same before this step's end
        self.lengths = torch.zeros_like(self.writing)
        asked, each = settings.opinions, config.num_return_sequences or 1
        self.steps = Steps(self.guidance, asked, self.passes, len(ids), self.horizon, each, ids.device)
        self.kl: Tensor | None = None  # the largest of this step
        self.moves: Moves | None = None  # of rows, in front of this step
        self.log_probs: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.logits: list[Tensor] = []

    # -- one step --------------------------------------------------------------------------------------------------

    def prefill(self, model_kwargs: dict[str, Any]) -> StepLogits:
        logits = self.passes.prefill(self.ids, model_kwargs, self.horizon)
        if self.settings.static:
            self.passes.make_static(self.horizon)
        self.passes.replace_call(self.settings.call)
        return self.skipping.begin(logits)

    def read(self) -> StepLogits:
        """Run the forward pass of the next step."""
        self.index += 1
        return self.skipping.read(self.ids, self.index)

    def write(self, logits: StepLogits) -> Tensor:
        """Choose the next token of every row from the distribution of this step."""
        cond, guided, extra = self._combine(logits)
        constraint = self.constraint
        if constraint is not None:
            guided = constraint.see(guided, self.passes.alive, cond is not None)
        scores, reweighed = guided, None
        if self.reweighter is not None:
            guided, reweighed = self._reweigh(logits, guided, cond is not None)
        if cond is not None or reweighed is not None:
            # Processors such as the repetition penalty depend on where logits lie, not on their differences alone: with
            # the conditional branch's normaliser put back, γ → 1 tends to plain decoding under them too.
            scores = guided + logits.cond.float().logsumexp(-1, keepdim=True)
            if cond is None and reweighed is not None:  # the rows that were left alone keep their bits
                scores = torch.where(reweighed[:, None], scores, guided)
        full = self.passes.spread(scores)
        last = self.index == self.horizon - 1
        if constraint is not None and not constraint.chooses:
            full = constraint.mask(full)
        processed = self.processors(self.ids, full)
        if constraint is not None and constraint.chooses:
            tokens = constraint.choose(processed, last)
        elif self.config.do_sample:
            probs = torch.softmax(processed, dim=-1)
            tokens = _drawn(probs, self.settings.generator)
        else:
            tokens = torch.argmax(processed, dim=-1)
        if constraint is not None:  # rows that the constraint gave up write padding and end
            self.writing = self.writing * torch.tensor(constraint.open, device=tokens.device)
        tokens = torch.where(self.writing.bool(), tokens, self.pad)
        if constraint is not None:
            constraint.advance(tokens, last)
        self.steps.add(cond, extra, tokens)
        self._record(logits, guided, processed, tokens, cond is not None)
        if self.settings.observer is not None:
            shown = guided if cond is not None else log_softmax(guided)
            cond = cond if cond is not None else log_softmax(logits.cond)
            chosen = self.passes.pick(tokens)
            alive = tuple(self.passes.alive)
            view = StepView(self.index, alive, cond, extra, shown, chosen, reweighed, constraint, self.moves)
            self.settings.observer(view)
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=-1)
        self.wrote = self.writing.bool()
        self.lengths = self.lengths + self.writing
        self.writing = self.writing & ~self.criteria(self.ids, processed)
        if constraint is not None:  # rows that ended for a reason of their own are closed, and the other way round
            constraint.stop(self.writing.tolist())
            self.writing = self.writing * torch.tensor(constraint.open, device=self.ids.device)
        return tokens

    def finished(self) -> bool:
        """The one place of a step where the host waits for the device; finished rows leave here."""
        if self.constraint is not None:
            self._resample(self.constraint)
        kls = [] if self.kl is None else [kl.float()[None] for kl in (self.kl, self.skipping.kl) if kl is not None]
        values = torch.cat([self.writing.float(), *kls]).tolist()
        if kls:
            self.skipping.observe(self.index, *values[len(self.writing) :])
        alive = self.passes.alive
        ended = [sample for sample in alive if not values[sample]]
        if len(ended) == len(alive):
            self.skipping.close(self.ids[:, :-1], self.index)
            return True
        steers = (self.guidance, self.reweighter, self.constraint, self.settings.speculation) != (None,) * 4
        if ended and steers and not self.settings.static and not self.skipping.end(self.index + 1):
            self.passes.drop(ended)
        return False

    def outcome(self) -> Decoded:
        if self.reweighter is not None:
            self.meter.classified = self.reweighter.texts_scored
        returns = self.config.return_dict_in_generate
        return Decoded(
            sequences=self.ids,
            lengths=self.lengths.tolist(),
            effect=self.meter.summary(),
            log_probs=torch.stack(self.log_probs, dim=1) if self.log_probs else None,
            scores=tuple(self.scores) if returns and self.config.output_scores else None,
            logits=tuple(self.logits) if returns and self.config.output_logits else None,
            constraint=self.constraint.outcome() if self.constraint is not None else None,
            speculation=self.passes.report() if isinstance(self.passes, SpeculativePasses) else None,
        )

    # -- parts -----------------------------------------------------------------------------------------------------

    def _combine(self, logits: StepLogits) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Conditional log-probabilities, the scores to sample from, and the extra branches' log-probabilities."""
        self.kl = None
        # A copy, since the processors of transformers may write into what they get.
        cond = logits.cond.to(torch.float32, copy=True)
        if self.guidance is None:
            return None, cond, None
        step = self.steps.at(self.index, self.ids)
        writing = self.passes.pick(self.writing)
        if not self.guidance.active(step) or (logits.extra is None and self.guidance.branches):
            self.skipping.record(self.index, cond, writing)
            return None, cond, None
        parts = [cond[None]] if logits.extra is None else [cond[None], logits.extra.float()]
        logp = log_softmax(torch.cat(parts))
        guided = self.guidance.combine(logp, step)
        if self.reweighter is None:
            self.kl = self.meter.add(guided, logp[0], writing).max()
        else:  # measured when the candidates have been weighed too
            self.kl = torch.where(writing.bool(), kl_divergence(log_softmax(guided), logp[0]), 0.0).max()
        return logp[0], guided, logp[1:]

    def _reweigh(self, logits: StepLogits, guided: Tensor, combined: bool) -> tuple[Tensor, Tensor]:
        """The distribution with the candidates weighed, and the rows where they were; others keep their bits."""
        assert self.reweighter is not None
        if self.index:
            self.reweighter.append(self.ids[:, -1].tolist())
        before = log_softmax(guided)
        step = Step.at(self.index, self.horizon)
        changed, acted = self.reweighter(before, step, self.index, self.passes.alive)
        writing = self.passes.pick(self.writing).bool()
        branched = writing & combined
        counts = (acted & writing) | branched
        self.meter.add(changed, log_softmax(logits.cond) if combined else before, counts, branched, acted & counts)
        if self.guidance is None:
            self.meter.add_unguided(writing & ~counts)
        elif not combined:  # all rows were counted as unguided when the branches were left out
            self.meter.add_unguided(counts, taken_back=True)
        return torch.where(acted[:, None], changed, guided), acted

    def _resample(self, constraint: Population) -> None:
        """Let rows go on from others, where a population needs it: ids, caches, and what was recorded of them."""
        ancestors, self.moves = constraint.resample(), None
        if ancestors is None:
            return
        sources = ancestors.tolist()
        index = ancestors.to(self.ids.device)
        self.ids, self.writing, self.lengths = self.ids[index], self.writing[index], self.lengths[index]
        for record in (self.log_probs, self.scores, self.logits):
            record[:] = [values[index] for values in record]
        rewritten = constraint.rewritten()
        self.moves = Moves(tuple(sources), {row: token for row, (token, _) in rewritten.items()})
        self.steps.move(sources, rewritten)
        for row, (token, log_prob) in rewritten.items():
            self.ids[row, -1], self.writing[row] = token, int(constraint.open[row])
            if self.log_probs:
                self.log_probs[-1][row] = log_prob
        if self.reweighter is not None:
            self.reweighter.select(sources)
        going = [row for row, opened in enumerate(constraint.open) if opened]
        self.passes.reindex({row: sources[row] for row in going})

    def _record(self, logits: StepLogits, guided: Tensor, processed: Tensor, tokens: Tensor, combined: bool) -> None:
        if self.settings.log_probs:
            is_normal = combined and self.guidance is not None and not self.guidance.renormalize
            normal = guided if is_normal else log_softmax(guided)
            picked = self.passes.spread(normal.gather(-1, self.passes.pick(tokens)[:, None]).squeeze(-1))
            self.log_probs.append(torch.where(self.writing.bool(), picked, 0.0))
        if self.config.return_dict_in_generate and self.config.output_scores:
            self.scores.append(processed)
        if self.config.return_dict_in_generate and self.config.output_logits:
            self.logits.append(self.passes.spread(logits.cond.float()))


def _drawn(probs: Tensor, generator: torch.Generator | tuple[torch.Generator, ...] | None) -> Tensor:
    """A token of every row, (B,); with a generator a row what each row draws where it stands alone."""
    if not isinstance(generator, tuple):
        return torch.multinomial(probs, num_samples=1, generator=generator).squeeze(1)
    rows = zip(probs.split(1), generator, strict=True)
    return torch.cat([torch.multinomial(row, num_samples=1, generator=own)[0] for row, own in rows])
