"""The decoding loop: one forward pass per step for every row of every branch.

The loop replaces transformers' own sampling loop through ``generate(custom_generate=…)``: transformers prepares inputs,
processors and stopping criteria, this loop runs the branches, combines them and draws. Without guidance it computes
exactly what transformers computes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import MaxTimeCriteria

from ..classifiers.class_log_probs import ClassLogProbs
from ..classifiers.reweighting import Reweighter
from ..forward import caches
from ..forward.chunking import ONE_PASS, Chunking
from ..forward.model_adapter import adapter
from ..guidance.algebra import log_softmax
from ..guidance.base import BranchGuidance, Step
from ..guidance.unchanged import WithUnchanged
from ..smc.population import Population
from ..step.effect import EffectMeter
from ..step.guided_step import StepOutcome, compare, guided_step, refuse_invalid
from ..step.likelihoods import Likelihoods
from .branch_passes import BranchPasses, Source, StepLogits
from .model_views import movement_of
from .results import Decoded, joined
from .speculation import Speculation
from .speculation.passes import SpeculativePasses

Observer = Callable[["StepView"], None]


@dataclass(frozen=True)
class Moves:
    """Rows that continued another row's text before a step.

    Args:
        ancestors: the row whose text each row continues.
        rewritten: rows whose last token differs from that of the row that they continue, and that token.
    """

    ancestors: tuple[int, ...]
    rewritten: Mapping[int, int]


@dataclass(frozen=True)
class StepView:
    """One step, as passed to an observer.

    Args:
        index: the index of the token, from 0.
        samples: the rows that are in the batch, in the order of the tensors.
        cond: conditional log-probabilities, (B, V).
        extra: log-probabilities of the extra branches, (n, B, V); None if no row was guided.
        guided: the distribution that was sampled from, before processors and warpers, as log-probabilities (B, V).
        reweighed: rows whose candidates were reweighted by a classifier, bool (B,); None without a classifier.
        tokens: the tokens that were chosen, (B,).
        population: the rows that choose their tokens together, after this step; None if there are none.
        moves: which rows continued other rows' texts before this step; None if no row did.
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


class Recorder(Protocol):
    """Keeps steps of a run."""

    def observe(self, view: StepView, ids: Tensor, step: Step, writing: Tensor) -> None:
        """Called with every step, all ids before it, its position, and the rows that write, of all rows."""


@dataclass
class Settings:
    """What :func:`decode` needs in addition to the inputs that transformers prepared.

    Args:
        guidance: None, or a guidance with branches that is not neutral.
        prompts: for each extra branch, the token ids of every row, or a :class:`textguide.engine.branch_passes.Source`.
        reweighter: reweights the candidates of the combined distribution; its batch has started.
        class_log_probs: the classifier that the guidance reads; its batch has started.
        population: chooses the tokens of the rows, or rules some out.
        sampler: name of the guidance that the population belongs to.
        models: further models by name.
        generator: random generator for sampling, or one per row; None: torch's global generator.
        observer: called after every step.
        log_probs: record the log-probability of every token.
        speculation: guess tokens, and verify the guesses in the same passes.
        fast: also use this machine's faster matrix products in unguided runs, which then differ by rounding.
        chunking: how long prompts are cut when they are read.
        static: use a cache of fixed shape; finished rows then stay in the batch, and every step runs all branches.
        restart_classifiers: restarts the batch of the classifiers when rows start again.
        verifier: keeps some steps, to read them again after the run.
        call: replaces the model's call from the second step on, such as a compiled one; None: the model itself.
    """

    guidance: BranchGuidance | None = None
    prompts: Sequence[Sequence[Sequence[int]] | Source] = ()
    reweighter: Reweighter | None = None
    class_log_probs: ClassLogProbs | None = None
    population: Population | None = None
    sampler: str = ""
    models: Mapping[str, Any] = field(default_factory=dict)
    generator: torch.Generator | tuple[torch.Generator, ...] | None = None
    observer: Observer | None = None
    log_probs: bool = False
    speculation: Speculation | None = None
    fast: bool = False
    chunking: Chunking = ONE_PASS
    static: bool = False
    call: Any = None
    restart_classifiers: Callable[[], None] | None = None
    verifier: Recorder | None = None

    @property
    def steers(self) -> bool:
        """Whether anything changes what transformers would compute or the rows that take part in it."""
        return (self.guidance, self.reweighter, self.population, self.speculation) != (None,) * 4


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
    """Decode; yield the next tokens (B,) of every step with the rows that wrote them, bool (B,), and finally the
    :class:`Decoded`.

    Args:
        model: a transformers model.
        input_ids: (B, L), padded on the left.
        logits_processor: transformers processors and warpers, applied to the guided distribution.
        stopping_criteria: transformers stopping criteria.
        generation_config: read for sampling, outputs and the padding token.
        settings: the guidance and all other settings of textguide.
        model_kwargs: the inputs that ``generate`` prepared for the model.
    """
    population = settings.population
    restarts = population is not None and population.repeats
    tries: list[Decoded] = []
    newest = [0] * len(input_ids)  # for each row, the try that counts
    again = list(range(len(input_ids)))
    while again:
        processors = logits_processor
        inputs = model_kwargs
        if restarts:  # processors and caches keep state of a try, which must not reach the next one
            processors = _copied_processors(logits_processor)
            inputs = _copied_caches(model_kwargs)
        loop = _Loop(model, input_ids, processors, stopping_criteria, generation_config, settings)
        yield loop.write(loop.prefill(inputs)), loop.wrote
        while not loop.finished():
            yield loop.write(loop.read()), loop.wrote
        for row in again:
            newest[row] = len(tries)
        tries.append(loop.outcome())
        again = []
        if population is not None and not _is_out_of_time(stopping_criteria, loop.ids):
            again = population.again()
        if again and settings.restart_classifiers is not None:
            settings.restart_classifiers()
    yield tries[0] if len(tries) == 1 else joined(tries, newest, int(loop.pad))


def _is_out_of_time(criteria: Any, ids: Tensor) -> bool:
    """Whether the time for the whole run has passed."""
    timers = [criterion for criterion in criteria if isinstance(criterion, MaxTimeCriteria)]
    return any(bool(timer(ids, None).all()) for timer in timers)


def _copied_caches(model_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The same inputs with caches that can be written into."""
    return {name: copy.deepcopy(value) if name in caches.ARGUMENTS else value for name, value in model_kwargs.items()}


def _copied_processors(processors: Any) -> Any:
    """Copies of processors; models and generators in them stay the same objects."""
    shared: dict[int, Any] = {}  # deepcopy takes objects in its memo as they are
    for processor in processors:
        for value in getattr(processor, "__dict__", {}).values():
            if isinstance(value, (torch.nn.Module, torch.Generator)):
                shared[id(value)] = value
    return copy.deepcopy(processors, shared)


class _Loop:
    """One try of one batch, step by step."""

    def __init__(
        self, model: Any, ids: Tensor, processors: Any, criteria: Any, config: Any, settings: Settings
    ) -> None:
        self.ids = ids
        self.processors = processors
        self.criteria = criteria
        self.config = config
        self.settings = settings
        self.guidance = settings.guidance
        self.population = settings.population
        self.horizon = (criteria.max_length or ids.shape[1] + 1) - ids.shape[1]
        self.index = 0
        branches = self.guidance.branches if self.guidance is not None else ()
        copies = 1 if self.population is None else self.population.size
        view = self.guidance.view if self.guidance is not None else None
        run = (model, branches, settings.prompts, settings.models, copies, settings.fast, view, settings.chunking)
        self.passes: BranchPasses
        if settings.speculation is None:
            self.passes = BranchPasses(*run)
        else:
            self.passes = SpeculativePasses(settings.speculation, self.guidance, self.horizon, *run)
        self.likelihoods: Likelihoods | None = None
        if self.guidance is not None and self.guidance.reads_likelihoods:
            self.likelihoods = Likelihoods(1 + len(branches), len(ids), self.passes, ids.device)
        self.step = Step()  # the step that is being computed, and whether the guidance is active at it
        self.is_active = False
        self.meter = EffectMeter(len(branches), ids.device)
        pad = config._pad_token_tensor
        self.pad = pad.to(ids.device) if pad is not None else torch.zeros((), dtype=torch.long, device=ids.device)
        # Rows that still write. `passes.alive` can differ, because finished rows may stay in the batch for a while.
        self.writing = torch.ones(ids.shape[0], dtype=torch.long, device=ids.device)
        self.wrote = self.writing.bool()  # the rows that wrote in the newest step
        self.lengths = torch.zeros_like(self.writing)
        self.valid: Tensor | None = None  # of the newest step, for the rows in the batch
        self.moves: Moves | None = None  # of rows, before this step
        # Records of every step.
        self.log_probs: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.logits: list[Tensor] = []

    # -- one step --------------------------------------------------------------------------------------------------

    def prefill(self, model_kwargs: dict[str, Any]) -> StepLogits:
        """Read the prompts of all branches."""
        logits = self.passes.prefill(self.ids, model_kwargs, self.horizon)
        if self.settings.static:
            self.passes.make_static(self.horizon)
        self.passes.replace_call(self.settings.call)
        self._begin_step()
        if not self._runs_branches():
            # The prompts are read nonetheless, so that the branches can join at a later step.
            self.passes.rest()
            logits.extra = None
        return logits

    def read(self) -> StepLogits:
        """Run the forward pass of the next step."""
        self.index += 1
        self._begin_step()
        return self.passes.step(self.ids, self.index, self._runs_branches())

    def write(self, logits: StepLogits) -> Tensor:
        """Choose the next token of every row from the distribution of this step."""
        outcome = self._guided(logits)
        last = self.index == self.horizon - 1
        tokens, processed = self._chosen(outcome, last)
        if self.likelihoods is not None and outcome.branches is not None:
            self.likelihoods.add(outcome.branches, tokens)
        self._record(logits, outcome, processed, tokens)
        if self.settings.observer is not None:
            self.settings.observer(self._view(logits, outcome, tokens))
        if self.settings.verifier is not None:
            self.settings.verifier.observe(self._view(logits, outcome, tokens), self.ids, self._now(), self.writing)
        self.ids = torch.cat([self.ids, tokens[:, None]], dim=-1)
        self.wrote = self.writing.bool()
        self.lengths = self.lengths + self.writing
        self.writing = self.writing & ~self.criteria(self.ids, processed)
        if self.population is not None:  # the criteria may end rows, and so may the population
            self.population.stop(self.writing.tolist())
            self.writing = self.writing * torch.tensor(self.population.open, device=self.ids.device)
        return tokens

    def finished(self) -> bool:
        """Remove finished rows from the batch; return whether all rows have ended.

        This is the only part of a step that waits for the device.
        """
        if self.population is not None:
            self._resample(self.population)
        checks = self.writing.bool()
        if self.valid is not None:
            checks = torch.cat([checks, self.valid])
        flags = checks.tolist()
        if not all(flags[len(self.writing) :]):
            wrong = [row for row, valid in zip(self._rows, flags[len(self.writing) :], strict=True) if not valid]
            refuse_invalid(self.guidance or self.settings.reweighter, wrong)
        ended = [row for row in self.passes.alive if not flags[row]]
        if len(ended) == len(self.passes.alive):
            return True
        if ended and self.settings.steers and not self.settings.static:
            self.passes.drop(ended)
        return False

    def outcome(self) -> Decoded:
        """The result of the try."""
        if self.settings.reweighter is not None:
            self.meter.classified = self.settings.reweighter.texts_scored
        written = int(self.lengths.sum())
        view = self.guidance.view if self.guidance is not None else None
        if view is not None:
            module = self.passes.parts[self.passes.own]
            self.meter.inside = view.change(adapter(module).text_config.num_hidden_layers)
            self.meter.inside_steps = written
            self.meter.moved = movement_of(module)
        if self.population is not None:
            self.meter.sampler = self.settings.sampler
            self.meter.sampled_steps = written
        returns = self.config.return_dict_in_generate
        return Decoded(
            sequences=self.ids,
            lengths=self.lengths.tolist(),
            effect=self.meter.summary(),
            log_probs=torch.stack(self.log_probs, dim=1) if self.log_probs else None,
            scores=tuple(self.scores) if returns and self.config.output_scores else None,
            logits=tuple(self.logits) if returns and self.config.output_logits else None,
            population=self.population.outcome() if self.population is not None else None,
            speculation=self.passes.report() if isinstance(self.passes, SpeculativePasses) else None,
        )

    # -- parts of a step -------------------------------------------------------------------------------------------

    def _begin_step(self) -> None:
        """Determine what the guidance reads at this step, and whether it is active."""
        guidance = self.guidance
        if guidance is None:
            return
        class_log_probs = None
        if self.settings.class_log_probs is not None:
            if self.index:
                self.settings.class_log_probs.append(self.ids[:, -1].tolist())
            class_log_probs = self.settings.class_log_probs.of(self.passes.alive).to(self.ids.device)
        self.step = Step.at(
            self.index,
            self.horizon,
            self.passes.alive,
            len(self.ids),
            self.config.num_return_sequences or 1,
            None if self.likelihoods is None else self.likelihoods.of_batch(),
            class_log_probs,
        )
        self.is_active = guidance.active(self.step)

    def _runs_branches(self) -> bool:
        """Whether the extra branches take part in this step."""
        # A cache of fixed shape cannot catch up later: its branches run at every step.
        return self.is_active or self.settings.static or self.guidance is None or not self.guidance.branches

    def _guided(self, logits: StepLogits) -> StepOutcome:
        """The guided distribution of the rows in the batch."""
        reweighter = self.settings.reweighter
        guidance = self.guidance if self.is_active else None
        if reweighter is not None and self.index:
            reweighter.append(self.ids[:, -1].tolist())
        corrects = self.population is not None and self.population.corrects
        outcome = guided_step(
            logits.cond,
            logits.extra if guidance is not None else None,
            guidance,
            self.step,
            reweight=None if reweighter is None else self._reweight,
            weigh=guidance is not None and corrects,
        )
        self.valid = outcome.valid
        self._rows = tuple(self.passes.alive)
        if reweighter is not None or (self.guidance is not None and not _only_inside(self.guidance)):
            measured = outcome
            if isinstance(guidance, WithUnchanged):
                assert logits.extra is not None
                measured = compare(outcome, logits.extra[-1])
            self.meter.add(measured, self.passes.pick(self.writing).bool(), is_read=self.passes.is_read)
        if self.population is not None:
            self._inform(self.population, outcome)
        return outcome

    def _inform(self, population: Population, outcome: StepOutcome) -> None:
        """Give the population the weights of its texts, and the distribution at which it may fork."""
        if outcome.normaliser is not None:
            population.weigh(outcome.normaliser, self._rows)
        population.observe(outcome.scores if outcome.log_probs is None else outcome.log_probs, self._rows)

    def _reweight(self, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        assert self.settings.reweighter is not None
        return self.settings.reweighter(log_probs, self._now(), self.index, self.passes.alive)

    def _now(self) -> Step:
        """The step that is being computed, which a run without guidance does not keep."""
        return Step.at(self.index, self.horizon) if self.guidance is None else self.step

    def _chosen(self, outcome: StepOutcome, last: bool) -> tuple[Tensor, Tensor]:
        """The token of every row, and the processed scores; rows that do not write get padding."""
        population = self.population
        scores = self.passes.spread(outcome.scores)
        if population is not None and not population.chooses:
            scores = population.mask(scores)
        processed = self.processors(self.ids, scores)
        if population is not None and population.chooses:
            tokens = population.choose(processed, last)
        elif self.config.do_sample:
            tokens = _drawn(torch.softmax(processed, dim=-1), self.settings.generator)
        else:
            tokens = torch.argmax(processed, dim=-1)
        if population is not None:  # rows that the population has given up write padding and end
            self.writing = self.writing * torch.tensor(population.open, device=tokens.device)
        tokens = torch.where(self.writing.bool(), tokens, self.pad)
        if population is not None:
            population.advance(tokens, last)
        return tokens, processed

    def _record(self, logits: StepLogits, outcome: StepOutcome, processed: Tensor, tokens: Tensor) -> None:
        if self.settings.log_probs:
            log_probs = log_softmax(outcome.scores) if outcome.log_probs is None else outcome.log_probs
            picked = log_probs.gather(-1, self.passes.pick(tokens)[:, None]).squeeze(-1)
            self.log_probs.append(torch.where(self.writing.bool(), self.passes.spread(picked), 0.0))
        if self.config.return_dict_in_generate and self.config.output_scores:
            self.scores.append(processed)
        if self.config.return_dict_in_generate and self.config.output_logits:
            self.logits.append(self.passes.spread(logits.cond.float()))

    def _view(self, logits: StepLogits, outcome: StepOutcome, tokens: Tensor) -> StepView:
        return StepView(
            index=self.index,
            samples=self._rows,
            cond=log_softmax(logits.cond) if outcome.cond is None else outcome.cond,
            extra=None if outcome.branches is None else outcome.branches[1:],
            guided=log_softmax(outcome.scores) if outcome.log_probs is None else outcome.log_probs,
            tokens=self.passes.pick(tokens),
            reweighed=outcome.reweighted,
            population=self.population,
            moves=self.moves,
        )

    def _resample(self, population: Population) -> None:
        """Let rows continue the texts of others if the population resamples: ids, caches and records."""
        ancestors = population.resample()
        self.moves = None
        if ancestors is None:
            return
        sources = ancestors.tolist()
        index = ancestors.to(self.ids.device)
        self.ids = self.ids[index]
        self.writing = self.writing[index]
        self.lengths = self.lengths[index]
        for record in (self.log_probs, self.scores, self.logits):
            record[:] = [values[index] for values in record]
        rewritten = population.rewritten()
        self.moves = Moves(tuple(sources), {row: token for row, (token, _) in rewritten.items()})
        if self.likelihoods is not None:
            self.likelihoods.move(sources, rewritten)
        if self.settings.class_log_probs is not None:
            self.settings.class_log_probs.select(sources)
        for row, (token, log_prob) in rewritten.items():
            self.ids[row, -1] = token
            self.writing[row] = int(population.open[row])
            if self.log_probs:
                self.log_probs[-1][row] = log_prob
        if self.settings.reweighter is not None:
            self.settings.reweighter.select(sources)
        going = [row for row, is_open in enumerate(population.open) if is_open]
        self.passes.reindex({row: sources[row] for row in going})


def _only_inside(guidance: BranchGuidance) -> bool:
    """Whether it only changes the model, so that there is no other distribution to measure it against."""
    return guidance.view is not None and not guidance.branches


def _drawn(probs: Tensor, generator: torch.Generator | tuple[torch.Generator, ...] | None) -> Tensor:
    """Draw a token for every row, (B,); with one generator per row, each row draws on its own."""
    if not isinstance(generator, tuple):
        return torch.multinomial(probs, num_samples=1, generator=generator).squeeze(1)
    rows = zip(probs.split(1), generator, strict=True)
    return torch.cat([torch.multinomial(row, num_samples=1, generator=row_generator)[0] for row, row_generator in rows])
