"""Setting a constraint up for a run of a model, and what has to be said about its outcome."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..constraints import After, Constraint, Session, Vocabulary, resolve
from ..guidance import AWRS, EAGer, FeynmanKac
from ..support.errors import NoParticleLeftWarning
from .branching import Branching
from .constrained import Constrained
from .learning import Learning
from .lessons import current_lessons
from .lookahead import lookahead_of
from .population import Corrected, Outcome, Population


@dataclass(frozen=True)
class Anything(Constraint):
    """Every text: what a critic alone weighs."""

    kind = "anything"

    def to_dict(self) -> dict[str, Any]:
        """The kind."""
        return {"kind": self.kind}

    def start(self, vocabulary: Vocabulary) -> Session:
        """A session that allows all tokens with bytes, and the end tokens."""
        allowed = torch.tensor([bool(text) or token in vocabulary.ends for token, text in enumerate(vocabulary.tokens)])
        return _Anything(vocabulary, allowed)


class _Anything(Session):
    calls = 0

    def __init__(self, vocabulary: Vocabulary, allowed: Tensor, text: bytes = b"") -> None:
        self._vocabulary, self.allowed, self.text = vocabulary, allowed, text

    def is_prefix(self, text: bytes) -> bool:
        return True

    def is_complete(self, text: bytes) -> bool:
        return True

    def mask(self) -> Tensor:
        return self.allowed

    def write(self, text: bytes) -> None:
        self.text += text

    def fork(self) -> Session:
        return _Anything(self._vocabulary, self.allowed, self.text)


def check_run(guidance: Any, config: Any, streamer: Any = None) -> None:
    """Refuse what a run under ``guidance`` cannot do.

    Args:
        guidance: the constraint of the run.
        config: transformers' generation configuration.
        streamer: a transformers streamer.

    Raises:
        ValueError: an option does not work with it; the message names the option and the remedy.
    """
    if not isinstance(guidance, (AWRS, EAGer, FeynmanKac)):
        raise ValueError(f"guidance={guidance!r} is no constraint that this loop knows; pass textguide.AWRS(...)")
    name = type(guidance).__name__
    many = f"{guidance.rows_field}={guidance.particles}"
    copies = config.num_return_sequences or 1
    if guidance.weighs and not config.do_sample:
        mask = ", or AWRS(..., sampler='mask') to take the most likely token that the constraint allows"
        raise ValueError(
            f"do_sample=False: {name} draws its tokens; pass do_sample=True{mask if name == 'AWRS' else ''}"
        )
    if copies % guidance.particles and not guidance.forks:
        raise ValueError(
            f"num_return_sequences={copies} must be a multiple of {many}, since each is a row of the output; pass "
            f"num_return_sequences={guidance.particles}"
        )
    if isinstance(guidance, AWRS) and guidance.learns:
        _check_learning(guidance, config, streamer)
    if guidance.particles == 1:
        return
    if config.cache_implementation == "static":
        raise ValueError(
            f"cache_implementation='static' keeps every row in its place, and {many} move between rows; leave "
            "cache_implementation out"
        )
    if streamer is not None:
        raise ValueError(f"a streamer writes texts that {many} may still drop, or fork; leave it out, or use one")


def _check_learning(guidance: AWRS, config: Any, streamer: Any) -> None:
    sampler = f"sampler={guidance.sampler!r}"
    if guidance.sampler == "asap":
        return
    if streamer is not None:
        raise ValueError(f"a streamer writes texts that {sampler} may begin again; leave it out, or use sampler='asap'")
    if config.return_dict_in_generate and (config.output_scores or config.output_logits):
        raise ValueError(
            f"output_scores= and output_logits= hold one try, and texts of {sampler} begin again; leave them out"
        )
    if config.cache_implementation == "static":
        raise ValueError(
            f"cache_implementation='static' is filled once, and texts of {sampler} begin again; leave it out"
        )


def constraint_of(guidance: AWRS) -> Constraint:
    """The constraint that ``guidance`` names.

    Raises:
        ValueError: it names none; the message says what does.
    """
    constraint = Anything() if guidance.constraint is None else resolve(guidance.constraint)
    return constraint if guidance.after is None else After(guidance.after, constraint)


def start(
    guidance: Any,
    model: Any,
    ids: Tensor,
    config: Any,
    tokenizer: Any,
    vocabulary: Vocabulary | None,
    generator: torch.Generator | None,
    keys: Sequence[Hashable] = (),
    prompts: Sequence[Sequence[int]] | None = None,
) -> Population:
    """The rows of a run in front of their first token.

    Args:
        guidance: an :class:`AWRS`, :class:`FeynmanKac` or :class:`EAGer`.
        model: the model that is decoded.
        ids: prompts, (rows, L).
        config: transformers' generation configuration, whose end tokens end texts.
        tokenizer: its tokenizer; not needed with ``vocabulary``.
        vocabulary: what each token adds to a text.
        generator: the randomness.
        keys: of each row, what the next-token distributions behind it depend on; needed where the guidance learns.
        prompts: token ids of each row without its padding; None: ``ids`` have none.

    Raises:
        ValueError: the constraint cannot be built, or nothing satisfies it.
    """
    ends = config.eos_token_id
    tokens = frozenset(ends if isinstance(ends, (list, tuple)) else () if ends is None else (ends,))
    if isinstance(guidance, EAGer):
        size = guidance.max_branches
        if len(ids) % size or any(not torch.equal(row, ids[n - n % size]) for n, row in enumerate(ids)):
            raise ValueError(
                f"max_branches={size} needs that many rows of each prompt behind each other; use textguide.eager, or "
                f"num_return_sequences={size}"
            )
        return Branching(guidance, ids.shape[0], generator, tokens, config.do_sample)
    corrects = isinstance(guidance, FeynmanKac)
    if corrects and guidance.constraint is None:
        size, threshold = guidance.particles, guidance.ess_threshold
        return Corrected(ids.shape[0], size, threshold, guidance.resampling, generator, tokens)
    awrs = guidance.constrained if corrects else guidance
    if vocabulary is None:
        vocabulary = vocabulary_of(model, config, tokenizer)
    constraint = constraint_of(awrs)
    session = constraint.start(vocabulary)
    given: dict[str, Any] = {
        "limit": None if config.max_length is None else config.max_length - ids.shape[1],
        "lookahead": lookahead_of(awrs.lookahead, constraint, vocabulary),
        "prompts": ids.tolist() if prompts is None else prompts,
    }
    if awrs.learns:
        given["keys"] = [(constraint, vocabulary, keys[row]) for row in range(0, len(ids), awrs.particles)]
        return Learning(
            awrs, session, vocabulary, ids.shape[0], generator, ids.device, lessons=current_lessons(), **given
        )  # fmt: skip
    return Constrained(awrs, session, vocabulary, ids.shape[0], generator, ids.device, corrects, **given)


def vocabulary_of(model: Any, config: Any, tokenizer: Any) -> Vocabulary:
    """What each token of ``model`` adds to a text."""
    if tokenizer is None:
        raise ValueError("tokenizer=None: a constraint speaks of bytes; give the tokenizer of the model")
    size = model.config.get_text_config(decoder=True).vocab_size
    # A model that names no end token would have no way to end a text; the tokenizer's serves.
    return Vocabulary.of(tokenizer, size, config.eos_token_id)


def warn_of_deaths(outcomes: Sequence[Outcome]) -> None:
    """Warn where every particle of a population was given up."""
    dead, total, reasons = 0, 0, Counter[str]()
    for outcome in outcomes:
        if outcome.origins is not None:  # rows that no text forked into are no loss
            continue
        populations = outcome.finished[:, None] if outcome.ess is None else outcome.finished.view(len(outcome.ess), -1)
        size = populations.shape[1]
        for number, rows in enumerate(populations.tolist()):
            total += 1
            if not any(rows):
                dead += 1
                reasons.update(r for r in outcome.deaths[number * size : (number + 1) * size] if r is not None)
    if dead:
        why = "; ".join(f"{reason} ({count} times)" for reason, count in reasons.most_common())
        warnings.warn(
            f"no text finished for {dead} of {total} prompts: {why}. Their weights are 0: raise max_new_tokens, use "
            "more particles, or loosen the constraint",
            NoParticleLeftWarning,
            stacklevel=3,
        )
