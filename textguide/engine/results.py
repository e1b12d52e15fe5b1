"""What :func:`textguide.generate` and :func:`textguide.score` return."""

from __future__ import annotations

import math
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
from ..support.showing import Block, Facts, Line, Shown, figure, table
from .speculation import SpeculationReport
from .speculation.value import join as join_speculation


@dataclass(frozen=True)
class Ending:
    """What ends a text.

    Args:
        ends: end tokens.
        stop: texts.
        limit: tokens of a text, at most; None: not known.
        include_stop: whether the text that ended it stays.
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
        """``text`` as the user gets it."""
        return text if self.include_stop else before(text, self.stop)


def before(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first of the texts ``stop`` in it."""
    places = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(places)] if places else text


@dataclass
class Decoded:
    """The outcome of one run.

    Args:
        sequences: prompt and generated ids, (B, L + new), finished rows padded.
        lengths: how many tokens each row wrote, its end token included; what stands behind them is padding.
        effect: what guidance did.
        log_probs: guided log-probability of each generated token, (B, new), 0 behind the end; None unless asked for.
        scores: processed scores a step, (B, V) each, None unless ``output_scores``.
        logits: unprocessed conditional logits a step, (B, V) each, None unless ``output_logits``.
        population: what came of a constrained or weighted run; None for others.
        speculation: what speculation did; None where there was none.
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
    """Several tries of one batch as one: of each row the try that ``newest`` names, and what all of them did."""
    longest = max(one.sequences.shape[1] for one in tries)
    kept = [(tries[n].sequences[row], longest - tries[n].sequences.shape[1]) for row, n in enumerate(newest)]
    sequences = [F.pad(ids, (0, missing), value=pad) for ids, missing in kept]
    log_probs = None
    if tries[0].log_probs is not None:
        found = [tries[n].log_probs[row] for row, n in enumerate(newest)]  # type: ignore[index]
        log_probs = torch.stack([F.pad(one, (0, missing)) for one, (_, missing) in zip(found, kept, strict=True)])
    return Decoded(
        sequences=torch.stack(sequences),
        lengths=[tries[n].lengths[row] for row, n in enumerate(newest)],
        effect=join_effects([one.effect for one in tries]),
        log_probs=log_probs,
        population=tries[-1].population,
        speculation=tries[-1].speculation,
    )


@dataclass
class GenerateResult(Shown):
    """What :func:`generate` returns; rows are prompts (times ``num_return_sequences``), in order.

    Args:
        texts: the continuations, without special tokens; empty if the run had no tokenizer.
        sequences: prompt and continuation ids, (B, prompt + new), prompts padded on the left.
        new_tokens: ids of each continuation up to and including its end token, a list per row.
        log_likelihood: guided log-probability of each continuation, (B,): what :func:`textguide.score` gives.
        log_probs: guided log-probability of each token before processors and warpers, (B, new), 0 behind the end.
        effect: what guidance did.
        log_weights: log-weight of each row, float64 (B,): rows drawn in proportion to them follow the distribution
            given the constraint; −inf where a row did not finish. None unless the guidance weighs its samples.
        log_evidence: log of the mean weight of each prompt's particles, float64 (populations,): in expectation (of its
            exponential) the probability that a text satisfies the constraint and ends in time. None likewise.
        ess: effective sample size of each prompt's particles, (populations,). None likewise.
        finish_reasons: why each row ended: ``"eos"`` (its end token), ``"stop"`` (a text of ``stop``, or stopping
            criteria), ``"length"`` (``max_new_tokens``) or ``"constraint"`` (nothing of the constraint was left); of an
            engine also ``"error"`` (its guidance gave no distribution).
        finished: whether each row ended as a text that satisfies the constraint, bool (B,). None without a constraint.
        deaths: why a row did not finish, None where it did. None without a constraint.
        constraint_calls: how often the constraint was asked about a text, over all rows. None without a constraint.
        tries: how often each row was begun, by ``sampler="cars"``; None elsewhere.
        particles: rows of one population, N; those of a prompt stand together.
        origins: the row that each row forked from, and how many new tokens they share; None for rows that began with
            the prompt. None where texts do not fork.
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

    def weighted_sample(self, seed: int | None = None) -> list[int]:
        """One row of every population, drawn in proportion to the weights: indices into :attr:`texts`.

        Args:
            seed: of one generator for all populations, in their order.

        Raises:
            ValueError: nothing was weighed, or every particle of a population is dead.
        """
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return [
            int(particles.weighted_sample(weights, rows, generator))
            for weights, rows in zip(self._populations(), self._indices(), strict=True)
        ]

    def weighted_sample_of(self, population: int, seed: int | None = None) -> int:
        """Likewise a row of one population alone, as if there were no other."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        rows = self._indices()[population]
        return int(particles.weighted_sample(self._populations()[population], rows, generator))

    def expectation(self, function: Callable[[str], float]) -> list[float]:
        """The expectation of ``function(text)`` given the constraint, one a population, from the weights.

        Raises:
            ValueError: nothing was weighed, or every particle of a population is dead.
        """
        return [
            particles.expectation(weights, [0.0 if w == -math.inf else function(self.texts[r]) for w, r in pairs])
            for weights, rows in zip(self._populations(), self._indices(), strict=True)
            for pairs in [list(zip(weights.tolist(), rows, strict=True))]
        ]

    def _shown(self) -> tuple[str, Sequence[Block]]:
        header = ["#", "text", "tokens", "log-likelihood", "log weight", "unfinished because", "forked from"]
        rows = [self._shown_row(row) for row in range(len(self.new_tokens))]
        blocks: list[Block] = [table(header, rows, "rlrrrlr")]
        facts = self._shown_facts()
        if facts:
            blocks.append(Facts(tuple(facts)))
        if self.effect.guided_steps or self.finished is None:
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
        if self.constraint_calls is not None:
            facts.append(("constraint calls", str(self.constraint_calls)))
        if self.tries is not None and self.finished is not None:
            facts.append(("tries", f"{sum(self.tries)} for {int(self.finished.sum())} texts"))
        return facts

    def _populations(self) -> Tensor:
        if self.log_weights is None:
            raise ValueError(
                "log_weights=None: nothing weighed these texts; generate them under textguide.AWRS or FeynmanKac"
            )
        return self.log_weights.view(-1, self.particles)

    def _indices(self) -> list[list[int]]:
        size = self.particles
        return [list(range(start, start + size)) for start in range(0, len(self.new_tokens), size)]


@dataclass
class ScoreResult(Shown):
    """What :func:`textguide.score` returns for ``S`` settings and ``N`` continuations.

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
        rows = [
            [
                str(item + 1),
                str(int(self.tokens[item])),
                *(
                    figure(value, 2) + (" ✓" if greedy else "")
                    for value, greedy in zip(
                        self.log_likelihood[:, item].tolist(), self.is_greedy[:, item].tolist(), strict=True
                    )
                ),
            ]
            for item in range(len(self.tokens))
        ]
        blocks: list[Block] = [
            table(["#", "tokens", *map(label, self.settings)], rows, "r" * (2 + len(self.settings))),
            Line("log-likelihoods in nats; ✓ where every token is the most likely one", quiet=True),
        ]
        return f"{len(rows)} continuation{'s' * (len(rows) != 1)} scored", blocks


def constraint_fields(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The fields of :class:`GenerateResult` that a constraint sets, from the outcomes of the batches of a run."""
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
        for name in ("log_weights", "log_evidence", "ess"):
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
    done: Sequence[Decoded], effect: Effect, tokenizer: Any, pad: int, ending: Ending | None = None
) -> GenerateResult:
    """The batches of one run as one result.

    Args:
        tokenizer: decodes the texts; None: there are none.
        pad: the token that fills rows up to one length.
        ending: what ends a text.
    """
    ending = ending or Ending()
    sequences, log_probs, tokens = _joined_rows(done, pad)
    outcomes = [run.population for run in done if run.population is not None]
    reports = [run.speculation for run in done if run.speculation is not None]
    texts = [""] * len(tokens)
    shown: list[str] = []
    if tokenizer is not None:
        texts = [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
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
        **(constraint_fields(outcomes) if outcomes else {}),
    )


def _joined_rows(done: Sequence[Decoded], pad: int) -> tuple[Tensor, Tensor, list[list[int]]]:
    """The sequences, log-probabilities and new tokens of all batches, filled up to one length."""
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
