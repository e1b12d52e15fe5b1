"""What is checked of a model: every way to decode it under guidance gives what the oracle gives."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import LogitsProcessor

import textguide
from textguide import CFG, CFGLogitsProcessor, guided_decoding
from textguide.engine.branch_inputs import empty_source
from textguide.reference import decoding

from ..architectures import Tokenizer
from .shrinking import PAD

PROMPTS = ((5, 9, 33, 7, 20, 41, 8, 12, 17), (11, 4, 52), (30, 31, 5, 6, 44))
NEGATIVES = ((17, 18, 19), (9, 9, 25, 7, 7, 13, 40, 21, 3, 6), (50,))
REPEATING = ((5, 6, 7, 8, 21, 5, 6, 7, 8, 30, 5, 6), (11, 4, 52, 11, 4, 52, 11))
"""Prompts in which prompt lookup finds guesses."""
NEW = 8
"""New tokens, and those of the run in which steps are skipped."""
TOLERANCE = 1e-4
"""Of log-probabilities and of near ties, in units of the largest logit."""

LAST_TOKEN = CFG(1.5)
NEGATIVE = CFG(2.0, negative_prompt=NEGATIVES)
TIMED = CFG(2.5, start=0.3, stop=0.7, schedule="cosine")


class Wrong(Exception):
    """A result differs from the oracle's."""


class CannotRun(Exception):
    """transformers itself does not write text with the model; the message says why."""


@dataclass
class Cell:
    """What one check found.

    Args:
        result: ``exact``, ``refused``, ``wrong``, ``error``, or ``needs an image``, where the
            model itself says so.
        detail: the reason of a refusal, or what went wrong.
    """

    result: str
    detail: str = ""


@dataclass
class Text:
    """Tokens and the distribution of each step, (steps, V)."""

    tokens: list[int]
    log_probs: list[list[float]]


@dataclass
class Reference:
    """The oracle of one model: the whole text is read again for every token, one row at a time.

    Where transformers' own cached decoding of a single row differs from reading again, it is that decoding.

    Args:
        cached: use transformers' own ``generate`` on one row in place of reading again.
        scale: the largest logit, in units of which differences are judged.
        note: what is special about the model.
    """

    model: Any
    cached: bool = False
    scale: float = 1.0
    note: str = ""
    known: dict[Any, Text] = field(default_factory=dict)

    @property
    def is_encoder_decoder(self) -> bool:
        return bool(self.model.config.is_encoder_decoder)

    def start(self) -> list[int]:
        return [self.model.generation_config.decoder_start_token_id]

    def next(self, prompt: Sequence[int], written: Sequence[int]) -> list[float]:
        """Log-probabilities of the token behind ``prompt`` and ``written``."""
        if self.cached:
            return decoding.normalized(_forced(self.model, prompt, written)[-1].double().tolist())
        if self.is_encoder_decoder:
            return decoding.next_log_probs(self.model, [*self.start(), *written], prompt)
        return decoding.next_log_probs(self.model, [*prompt, *written])

    def negative(self, guidance: CFG, row: int, prompt: Sequence[int]) -> Sequence[int]:
        if guidance.negative_prompt is not None:
            return NEGATIVES[row]
        return empty_source(self.model.config) if self.is_encoder_decoder else prompt[-1:]

    def distribution(
        self, guidance: CFG | None, row: int, prompt: Sequence[int], written: Sequence[int]
    ) -> list[float]:
        """The guided log-probabilities behind ``written``."""
        distributions = [self.next(prompt, written)]
        if guidance is not None:
            distributions.append(self.next(self.negative(guidance, row, prompt), written))
        return decoding.guided_distribution(guidance, distributions, min(1.0, len(written) / (NEW - 1)))

    def text(self, guidance: CFG | None, row: int, prompts: Sequence[Sequence[int]] = PROMPTS) -> Text:
        key = (guidance, prompts[row])
        if key not in self.known:
            tokens: list[int] = []
            distributions = []
            for _ in range(NEW):
                distribution = self.distribution(guidance, row, prompts[row], tokens)
                distributions.append(distribution)
                tokens.append(max(range(len(distribution)), key=distribution.__getitem__))
            self.known[key] = Text(tokens, distributions)
        return self.known[key]

    def compare(self, guidance: CFG | None, row: int, tokens: Sequence[int], log_probs: Any, what: str) -> None:
        """Hold a text and the log-probabilities of its tokens against the oracle's."""
        expected = self.text(guidance, row)
        for step, (token, right) in enumerate(zip(tokens, expected.tokens, strict=True)):
            distribution = expected.log_probs[step]
            if token != right:
                self.tie(distribution, token, right, f"{what}, row {row}, token {step}")
                return
            if log_probs is not None:
                self.close(float(log_probs[step]), distribution[token], f"{what}, row {row}, token {step}")

    def tie(self, distribution: Sequence[float], token: int, right: int, where: str) -> None:
        gap = distribution[right] - distribution[token]
        if not gap <= TOLERANCE * self.scale:
            raise Wrong(f"{where}: token {token} in place of {right} (log-probability {gap:.2g} lower)")

    def close(self, value: float, right: float, where: str) -> None:
        difference = abs(value - right)
        if not difference <= TOLERANCE * self.scale:
            raise Wrong(f"{where}: log-probability {value:.5f} in place of {right:.5f}")


class _Force(LogitsProcessor):
    def __init__(self, start: int, written: Sequence[int]) -> None:
        self.start, self.written = start, written

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.start
        if step < len(self.written):
            scores = torch.full_like(scores, -torch.inf)
            scores[:, self.written[step]] = 0
        return scores


def _forced(model: Any, prompt: Sequence[int], written: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """The logits (V,) of every step of transformers' own cached decoding of one row that writes ``written``."""
    start = 1 if model.config.is_encoder_decoder else len(prompt)
    out = model.generate(
        input_ids=torch.tensor([list(prompt)]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=len(written) + 1, do_sample=False, logits_processor=[_Force(start, written)],
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return tuple(logits[0].float() for logits in out.logits)


def reference(model: Any) -> Reference:
    """The oracle of ``model``, once it is known whether it can be trusted.

    Raises:
        CannotRun: transformers' own ``generate`` does not write text with the model.
    """
    if not hasattr(model, "generate") or not model.can_generate():
        raise CannotRun("the class has no generate")
    oracle = Reference(model)
    try:
        logits = []
        for prompt in (*PROMPTS, NEGATIVES[1]):
            tokens: list[int] = []
            # Written by the model itself, so that all that its own decoding does is seen.
            own = model.generate(input_ids=torch.tensor([list(prompt)]), max_new_tokens=NEW, do_sample=False)
            tokens = own[0, -NEW:].tolist()
            logits.append((prompt, tokens, _forced(model, prompt, tokens[:-1])))
    except Exception as error:
        raise CannotRun(f"transformers' own generate raises {_line(error)}") from error
    finite = torch.cat([torch.cat(steps) for *_, steps in logits])
    finite = finite[finite.abs() < 1e20]
    oracle.scale = max(1.0, float(finite.abs().max()))
    worst = 0.0
    try:
        for prompt, tokens, steps in logits:
            for step, seen in enumerate(steps):
                again = torch.tensor(oracle.next(prompt, tokens[:step]))
                right = torch.tensor(decoding.normalized(seen.double().tolist()))
                apart = torch.where(torch.isfinite(right), (again - right).abs(), 0.0)
                worst = max(worst, float(apart.max()))
    except Exception as error:
        return replace(oracle, cached=True, note=f"cannot be read without a cache: {_line(error)}")
    if not worst <= TOLERANCE * oracle.scale:
        note = f"transformers' own cached decoding of one row differs from reading it again (by {worst:.2g} nats)"
        return replace(oracle, cached=True, note=note)
    return oracle


# -- the checks ------------------------------------------------------------------------------------------------------


def _for_rows(guidance: CFG, rows: Sequence[int]) -> CFG:
    if guidance.negative_prompt is None:
        return guidance
    return replace(guidance, negative_prompt=tuple(NEGATIVES[row] for row in rows))


def _generate(
    oracle: Reference, guidance: CFG, rows: Sequence[int] = (0, 1, 2), steps: int = NEW, **options: Any
) -> Any:
    prompts = [list(PROMPTS[row]) for row in rows]
    return textguide.generate(
        oracle.model, Tokenizer(), prompts, _for_rows(guidance, rows), max_new_tokens=steps, **options
    )


def _padded(oracle: Reference, rows: Sequence[int]) -> dict[str, torch.Tensor]:
    width = max(len(PROMPTS[row]) for row in rows)
    ids, mask = [], []
    for row in rows:
        missing, prompt = width - len(PROMPTS[row]), list(PROMPTS[row])
        fill, kept = [PAD] * missing, [1] * len(prompt)
        left = not oracle.is_encoder_decoder
        ids.append(fill + prompt if left else prompt + fill)
        mask.append([0] * missing + kept if left else kept + [0] * missing)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def check_batch(oracle: Reference) -> None:
    """Rows of unlike length in one batch, with negative prompts of unlike length, are what each is alone."""
    for guidance in (NEGATIVE, LAST_TOKEN):
        together = _generate(oracle, guidance)
        for row in range(len(PROMPTS)):
            alone = _generate(oracle, guidance, (row,))
            oracle.compare(guidance, row, alone.new_tokens[0], alone.log_probs[0], "alone")
            oracle.compare(guidance, row, together.new_tokens[row], together.log_probs[row], "in a batch")


def check_padding(oracle: Reference) -> None:
    """Padded rows given to transformers' ``generate`` with ``custom_generate`` are what each is without padding."""
    out = oracle.model.generate(
        **_padded(oracle, (0, 1, 2)), max_new_tokens=NEW, do_sample=False, custom_generate=guided_decoding(NEGATIVE)
    )
    for row, tokens in enumerate(out[:, -NEW:].tolist()):
        oracle.compare(NEGATIVE, row, tokens, None, "padded")


def check_one_pass(oracle: Reference) -> None:
    """Every step's whole distribution is the oracle's."""
    for guidance in (NEGATIVE, LAST_TOKEN):
        distributions: list[list[torch.Tensor]] = [[] for _ in PROMPTS]

        def keep(view: Any, distributions: list[list[torch.Tensor]] = distributions) -> None:
            for row, distribution in zip(view.samples, view.guided, strict=True):
                distributions[row].append(distribution)

        out = _generate(oracle, guidance, observer=keep)
        for row, tokens in enumerate(out.new_tokens):
            expected = oracle.text(guidance, row)
            oracle.compare(guidance, row, tokens, out.log_probs[row], "one pass")
            for step, (distribution, right) in enumerate(zip(distributions[row], expected.log_probs, strict=True)):
                if tokens[:step] != expected.tokens[:step]:
                    break
                difference = (distribution.double() - torch.tensor(right, dtype=torch.double)).abs()
                worst = float(difference[torch.tensor(right) > -30].max())
                if not worst <= TOLERANCE * oracle.scale:
                    raise Wrong(f"one pass, row {row}, step {step}: the distribution differs by {worst:.2g} nats")


def check_drop_in(oracle: Reference) -> None:
    """``CFGLogitsProcessor`` in transformers' own loop, row by row."""
    for row, prompt in enumerate(PROMPTS):
        guidance = _for_rows(NEGATIVE, (row,))
        out = oracle.model.generate(
            **_padded(oracle, (row,)), max_new_tokens=NEW, do_sample=False,
            logits_processor=[CFGLogitsProcessor(oracle.model, guidance=guidance, horizon=NEW)],
        )  # fmt: skip
        oracle.compare(NEGATIVE, row, out[0, -NEW:].tolist(), None, f"drop-in on {len(prompt)} tokens")


def check_score(oracle: Reference) -> None:
    """``score`` gives the oracle's log-probability of every token of the oracle's texts, in one batch."""
    for guidance in (NEGATIVE, LAST_TOKEN):
        texts = [oracle.text(guidance, row) for row in range(len(PROMPTS))]
        scored = textguide.score(
            oracle.model, Tokenizer(), [list(p) for p in PROMPTS], [text.tokens for text in texts], guidance,
            horizon=NEW, batch_size=3,
        )  # fmt: skip
        for row, (text, log_probs) in enumerate(zip(texts, scored.log_probs, strict=True)):
            oracle.compare(guidance, row, text.tokens, log_probs[0], "score")


def check_schedule(oracle: Reference) -> None:
    """A schedule and a window: the extra branch acts in some of the steps alone."""
    out = _generate(oracle, TIMED)
    for row, tokens in enumerate(out.new_tokens):
        oracle.compare(TIMED, row, tokens, out.log_probs[row], "schedule")


def check_speculation(oracle: Reference) -> None:
    """Guessed tokens, read in the same pass, change nothing."""
    prompts = [list(p) for p in (*REPEATING, PROMPTS[1])]
    out = textguide.generate(
        oracle.model, Tokenizer(), prompts, LAST_TOKEN, max_new_tokens=NEW, speculation="prompt-lookup"
    )
    for row, tokens in enumerate(out.new_tokens):
        expected = oracle.text(LAST_TOKEN, row, tuple(map(tuple, prompts)))
        for step, (token, right) in enumerate(zip(tokens, expected.tokens, strict=True)):
            where = f"speculation, row {row}, token {step}"
            if token != right:
                oracle.tie(expected.log_probs[step], token, right, where)
                break
            oracle.close(float(out.log_probs[row][step]), expected.log_probs[step][token], where)


CHECKS: dict[str, Callable[[Reference], None]] = {
    "batch": check_batch,
    "padding": check_padding,
    "one pass": check_one_pass,
    "drop-in": check_drop_in,
    "score": check_score,
    "schedule": check_schedule,
    "speculation": check_speculation,
}


def run(oracle: Reference, check: str) -> Cell:
    """One cell of the table."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            CHECKS[check](oracle)
    except Wrong as error:
        return Cell("wrong", str(error))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        ours = any(f"/{room}/" in frame.filename for room in ("textguide", "logits_processors"))
        if isinstance(error, ValueError) and ours and "site-packages" not in frame.filename:
            return Cell("refused", str(error))
        if isinstance(error, ValueError) and "pixel_values" in str(error) and not ours:
            return Cell("needs an image", f"transformers says: {error}")
        return Cell("error", f"{_line(error)} ({frame.filename.split('/')[-1]}:{frame.lineno})")
    return Cell("exact")


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"
