"""What :func:`textguide.generate` and :func:`textguide.score` return."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..guidance import Guidance
from ..guidance.spec import label
from ..smc import particles
from ..smc.population import Outcome
from ..step.effect import Effect
from ..step.effect import join as join_effects
from ..support.errors import EmptyTextWarning
from ..support.showing import Block, Facts, Line, Shown, figure, table
from .speculation import SpeculationReport
from .speculation.value import join as join_speculation


@dataclass(frozen=True)
class Ending:
    """What ends a text.

    Args:
        ends: end tokens.
        stop: stop texts.
        limit: the largest number of tokens of a text; None if unknown.
        include_stop: whether the stop text remains in the result.
    """

    ends: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    limit: int | None = None
    include_stop: bool = True

    def reason(self, tokens: Sequence[int], text: str, death: str | None = None) -> str:
        """Why a row ended; see :attr:`GenerateResult.finish_reasons`."""
        if tokens and tokens[-1] in self.ends:
            return "eos"
        if any(stop in text for stop in self.stop):
            return "stop"
        if self.limit is not None and len(tokens) < self.limit:
            return "stop" if death is None else "constraint"
        return "length"

    def shown(self, text: str) -> str:
        """``text`` as it is returned to the user."""
        return text if self.include_stop else before(text, self.stop)


def before(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first stop text in it."""
    starts = [text.find(one) for one in stop if one in text]
    return text[: min(starts)] if starts else text


def warn_of_empty_texts(texts: Sequence[str], ending: Ending) -> None:
    """Warn if nothing is visible of a text because its stop text came first."""
    first = []
    for text in texts:
        found = [stop for stop in ending.stop if stop in text]
        if found and not ending.shown(text).strip():
            first.append(min(found, key=text.find))
    if first:
        names = ", ".join(repr(one) for one in dict.fromkeys(first))
        warnings.warn(
            f"{len(first)} of {len(texts)} texts are empty: the model generated the stop text {names} first. Without a "
            "chat, many models start with a line break: pass the prompt as a chat, or another stop text",
            EmptyTextWarning,
            stacklevel=4,
        )


@dataclass
class Decoded:
    """The outcome of one run.

    Args:
        sequences: prompt and generated ids, (B, L + new), finished rows padded.
        lengths: how many tokens each row wrote, including its end token; the tokens after them are padding.
        effect: what guidance did.
        log_probs: guided log-probability of each generated token, (B, new), 0 after the end; None if they were not
            recorded.
        scores: processed scores per step, (B, V) each; None without ``output_scores``.
        logits: unprocessed conditional logits per step, (B, V) each; None without ``output_logits``.
        population: the outcome of a constrained or weighted run; None for other runs.
        speculation: what speculation did; None without speculation.
    """

    sequences: Tensor
    lengths: list[int]
    effect: Effect
    log_probs: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    population: Outcome | None = None
    speculation: SpeculationReport | None = None


def joined(tries: Sequence[Decoded], newest: Sequence[int], pad: int) -> Decoded:
    """Join several tries of one batch: for each row the text of try ``newest[row]``, with the effect of all tries."""
    longest = max(one.sequences.shape[1] for one in tries)
    sequences = []
    log_probs = []
    for row, number in enumerate(newest):
        decoded = tries[number]
        missing = longest - decoded.sequences.shape[1]
        sequences.append(F.pad(decoded.sequences[row], (0, missing), value=pad))
        if decoded.log_probs is not None:
            log_probs.append(F.pad(decoded.log_probs[row], (0, missing)))
    return Decoded(
        sequences=torch.stack(sequences),
        lengths=[tries[n].lengths[row] for row, n in enumerate(newest)],
        effect=join_effects([one.effect for one in tries]),
        log_probs=torch.stack(log_probs) if log_probs else None,
        population=tries[-1].population,
        speculation=tries[-1].speculation,
    )


@dataclass
class GenerateResult(Shown):
    """The result of :func:`generate`. Rows are prompts (times ``num_return_sequences``), in order.

    Args:
        texts: the continuations, without special tokens; an empty list if the run had no tokenizer.
        sequences: prompt and continuation ids, (B, prompt + new), prompts padded on the left.
        new_tokens: ids of each continuation up to and including its end token, one list per row.
        log_likelihood: guided log-probability of each continuation in nats, (B,), as :func:`textguide.score` computes
            it.
        log_probs: guided log-probability of each token before processors and warpers, (B, new), 0 after the end.
        effect: what guidance did.
        log_weights: log-weight of each row, float64 (B,): rows drawn in proportion to them follow the distribution
            given the constraint; −inf if a row did not finish. None if the guidance does not weigh its samples.
        log_evidence: log of the mean weight of each prompt's particles, float64 (populations,). The expectation of its
            exponential is the probability that a text satisfies the constraint and ends in time. None if
            ``log_weights`` is.
        ess: effective sample size of each prompt's particles, (populations,). It compares weights only; see
            ``ancestors`` and ``distinct_texts``. None if ``log_weights`` is.
        ancestors: number of particles of each prompt from whose first tokens its texts with a weight above 0 continue,
            (populations,): resampling replaces the others. None if ``log_weights`` is.
        rows_per_prompt: adjacent rows that continue the same prompt: ``num_return_sequences`` times particles.
        finish_reasons: why each row ended: ``"eos"`` (its end token), ``"stop"`` (a text of ``stop``, or stopping
            criteria), ``"length"`` (``max_new_tokens``) or ``"constraint"`` (the constraint allowed no further token).
            With an engine also ``"error"`` (its guidance did not return a distribution).
        finished: whether each row ended as a text that satisfies the constraint, bool (B,). None without a constraint.
        deaths: why each row did not finish; None for rows that did. None without a constraint.
        constraint_calls: how often the constraint checked a text, over all rows. None without a constraint.
        tries: how often each row was started, with ``sampler="cars"``; None with other samplers.
        particles: rows per population, N; the rows of a prompt are adjacent.
        origins: the row that each row forked from, and how many new tokens they share; None for rows that began with
            the prompt. None if texts do not fork.
        speculation: passes, guesses and how many of them were right. None without speculation.
    """

    texts: list[str]
    sequences: Tensor
    new_tokens: list[list[int]]
    log_likelihood: Tensor
    log_probs: Tensor
    effect: Effect
    log_weights: Tensor | None = None
    log_evidence: Tensor | None = None
    ess: Tensor | None = None
    finished: Tensor | None = None
    deaths: list[str | None] | None = None
    constraint_calls: int | None = None
    tries: list[int] | None = None
    particles: int = 1
    origins: list[tuple[int, int] | None] | None = None
    speculation: SpeculationReport | None = None
    finish_reasons: list[str] = field(default_factory=list)
    ancestors: Tensor | None = None
    rows_per_prompt: int = 1

    @property
    def grouped(self) -> list[list[str]]:
        """The texts by prompt: one list per prompt, in the order of the prompts."""
        size = self.rows_per_prompt
        return [self.texts[start : start + size] for start in range(0, len(self.texts), size)]

    @property
    def distinct_texts(self) -> Tensor | None:
        """Number of different texts of each prompt, without those of weight 0, (populations,). None without weights."""
        if self.log_weights is None:
            return None
        return particles.distinct(self._populations(), self.texts or list(map(tuple, self.new_tokens)))

    def weighted_sample(self, seed: int | None = None) -> list[int]:
        """Draw one row of every population in proportion to the weights.

        Args:
            seed: seed of the generator, which all populations share in order; None: torch's global generator.

        Returns:
            Indices into :attr:`texts`, one per population.

        Raises:
            ValueError: nothing was weighed, or every particle of a population is dead.
        """
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        rows = []
        for weights, indices in zip(self._populations(), self._indices(), strict=True):
            rows.append(int(particles.weighted_sample(weights, indices, generator)))
        return rows

    def weighted_sample_of(self, population: int, seed: int | None = None) -> int:
        """Draw a row of one population only, as :meth:`weighted_sample` would if there were no other."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        rows = self._indices()[population]
        return int(particles.weighted_sample(self._populations()[population], rows, generator))

    def expectation(self, function: Callable[[str], float]) -> list[float]:
        """Estimate the expectation of ``function(text)`` given the constraint from the weights, per population.

        Raises:
            ValueError: nothing was weighed, or every particle of a population is dead.
        """
        expectations = []
        for weights, rows in zip(self._populations(), self._indices(), strict=True):
            values = []
            for weight, row in zip(weights.tolist(), rows, strict=True):
                # An unfinished text has no weight, and `function` may not accept it.
                values.append(0.0 if weight == -math.inf else function(self.texts[row]))
            expectations.append(particles.expectation(weights, values))
        return expectations

    def _shown(self) -> tuple[str, Sequence[Block]]:
        header = ["#", "text", "tokens", "log-likelihood", "log weight", "unfinished because", "forked from"]
        rows = [self._shown_row(row) for row in range(len(self.new_tokens))]
        blocks: list[Block] = [table(header, rows, "rlrrrlr")]
        facts = self._shown_facts()
        if facts:
            blocks.append(Facts(tuple(facts)))
        if self.effect.changes_distributions or self.finished is None:
            blocks.append(Line(str(self.effect), quiet=True))
        if self.speculation is not None:
            blocks.append(Line(str(self.speculation), quiet=True))
        return f"{len(rows)} text{'s' * (len(rows) != 1)}", blocks

    def _shown_row(self, row: int) -> list[str]:
        tokens = self.new_tokens[row]
        text = self.texts[row] if self.texts else " ".join(map(str, tokens))
        weight = "" if self.log_weights is None else figure(float(self.log_weights[row]), 2)
        death = self.deaths[row] if self.deaths is not None else None
        origin = self.origins[row] if self.origins is not None else None
        forked = "" if origin is None else f"{origin[0] + 1}"
        likelihood = figure(float(self.log_likelihood[row]), 2)
        return [str(row + 1), text, str(len(tokens)), likelihood, weight, death or "", forked]

    def _shown_facts(self) -> list[tuple[str, str]]:
        facts = []
        if self.log_evidence is not None and self.ess is not None:
            facts.append(("log evidence", ", ".join(figure(value, 2) for value in self.log_evidence.tolist())))
            facts.append(("effective sample size", ", ".join(figure(value, 1) for value in self.ess.tolist())))
        if self.particles > 1:
            for name, counts in (("distinct texts", self.distinct_texts), ("ancestors", self.ancestors)):
                if counts is not None:
                    facts.append((name, ", ".join(f"{count} of {self.particles}" for count in counts.tolist())))
        if self.constraint_calls is not None:
            facts.append(("constraint calls", str(self.constraint_calls)))
        if self.tries is not None and self.finished is not None:
            facts.append(("tries", f"{sum(self.tries)} for {int(self.finished.sum())} texts"))
        return facts

    def _populations(self) -> Tensor:
        if self.log_weights is None:
            raise ValueError(
                "log_weights=None: these texts have no weights; generate them with textguide.AWRS or FeynmanKac"
            )
        return self.log_weights.view(-1, self.particles)

    def _indices(self) -> list[list[int]]:
        size = self.particles
        return [list(range(start, start + size)) for start in range(0, len(self.new_tokens), size)]


@dataclass
class ScoreResult(Shown):
    """The result of :func:`textguide.score` for ``S`` settings and ``N`` continuations.

    Args:
        log_likelihood: summed log-probability of each continuation, (S, N), in nats.
        is_greedy: whether every token of a continuation is the most likely one, (S, N).
        tokens: number of tokens of each continuation, (N,).
        log_probs: log-probability of each token, a list of N tensors (S, tokens).
        settings: the guidance of each setting, None for plain.
    """

    log_likelihood: Tensor
    is_greedy: Tensor
    tokens: Tensor
    log_probs: list[Tensor]
    settings: list[Guidance | None]

    def _shown(self) -> tuple[str, Sequence[Block]]:
        rows = []
        for item in range(len(self.tokens)):
            row = [str(item + 1), str(int(self.tokens[item]))]
            for setting in range(len(self.settings)):
                mark = " ✓" if self.is_greedy[setting, item] else ""
                row.append(figure(float(self.log_likelihood[setting, item]), 2) + mark)
            rows.append(row)
        blocks: list[Block] = [
            table(["#", "tokens", *map(label, self.settings)], rows, "r" * (2 + len(self.settings))),
            Line("log-likelihoods in nats; ✓ if every token is the most likely one", quiet=True),
        ]
        return f"{len(rows)} continuation{'s' * (len(rows) != 1)} scored", blocks


def constraint_fields(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The fields of :class:`GenerateResult` that a constraint sets, from the outcomes of all batches of a run."""
    first = outcomes[0]
    fields: dict[str, Any] = {
        "finished": torch.cat([outcome.finished for outcome in outcomes]),
        "deaths": [death for outcome in outcomes for death in outcome.deaths],
        "constraint_calls": sum(outcome.calls for outcome in outcomes),
    }
    if first.tries is not None:
        fields["tries"] = [count for outcome in outcomes for count in outcome.tries or []]
    if first.origins is not None:
        fields["origins"] = _joined_origins(outcomes)
    if first.log_weights is not None:
        for name in ("log_weights", "log_evidence", "ess", "ancestors"):
            fields[name] = torch.cat([getattr(outcome, name) for outcome in outcomes])
        fields["particles"] = len(fields["log_weights"]) // len(fields["ess"])
    return fields


def _joined_origins(outcomes: Sequence[Outcome]) -> list[tuple[int, int] | None]:
    """The origins of all batches, with rows counted over all of them."""
    joined_origins: list[tuple[int, int] | None] = []
    for outcome in outcomes:
        start = len(joined_origins)
        for origin in outcome.origins or []:
            joined_origins.append(None if origin is None else (origin[0] + start, origin[1]))
    return joined_origins


def collect(
    done: Sequence[Decoded],
    effect: Effect,
    tokenizer: Any,
    pad: int,
    ending: Ending | None = None,
    rows_per_prompt: int = 1,
) -> GenerateResult:
    """Collect the batches of one run into one result.

    Args:
        done: the batches, in order.
        effect: the effect over all batches.
        tokenizer: decodes the texts; None: the result has no texts.
        pad: the token that pads rows to the same length.
        ending: what ends a text.
        rows_per_prompt: adjacent rows that continue the same prompt.
    """
    ending = ending or Ending()
    sequences, log_probs, tokens = _joined_rows(done, pad)
    outcomes = [run.population for run in done if run.population is not None]
    reports = [run.speculation for run in done if run.speculation is not None]
    texts = [""] * len(tokens)
    shown: list[str] = []
    if tokenizer is not None:
        texts = [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
        warn_of_empty_texts(texts, ending)
        shown = [ending.shown(text) for text in texts]
    deaths: list[str | None] = [death for outcome in outcomes for death in outcome.deaths]
    if not deaths:
        deaths = [None] * len(tokens)
    return GenerateResult(
        texts=shown,
        finish_reasons=[ending.reason(*row) for row in zip(tokens, texts, deaths, strict=True)],
        sequences=sequences,
        new_tokens=tokens,
        log_likelihood=log_probs.sum(-1),
        log_probs=log_probs,
        effect=effect,
        speculation=join_speculation(reports) if reports else None,
        rows_per_prompt=rows_per_prompt,
        **(constraint_fields(outcomes) if outcomes else {}),
    )


def _joined_rows(done: Sequence[Decoded], pad: int) -> tuple[Tensor, Tensor, list[list[int]]]:
    """The sequences, log-probabilities and new tokens of all batches, padded to the same length."""
    prompt = 0
    new = 0
    for run in done:
        assert run.log_probs is not None
        prompt = max(prompt, run.sequences.shape[1] - run.log_probs.shape[1])
        new = max(new, run.log_probs.shape[1])
    sequences = []
    log_probs = []
    tokens = []
    for run in done:
        assert run.log_probs is not None
        missing = new - run.log_probs.shape[1]
        start = run.sequences.shape[1] - run.log_probs.shape[1]
        sequences.append(F.pad(run.sequences, (prompt - start, missing), value=pad))
        log_probs.append(F.pad(run.log_probs, (0, missing)))
        for row, length in zip(run.sequences[:, start:].tolist(), run.lengths, strict=True):
            tokens.append(row[:length])
    return torch.cat(sequences), torch.cat(log_probs), tokens
