"""Set up the rows of a run from its guidance and model, and warn about its outcome."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..constraints import After, Constraint, Session, UnsatisfiableError, Vocabulary, resolve
from ..constraints.automata import automaton_of
from ..constraints.automata.expressions import TooLargeError
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
    """Every text; for runs in which only a critic weighs."""

    kind = "anything"

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def start(self, vocabulary: Vocabulary) -> Session:
        """A session that allows all tokens with bytes, and the end tokens."""
        allowed = torch.tensor([bool(text) or token in vocabulary.ends for token, text in enumerate(vocabulary.tokens)])
        return _Anything(vocabulary, allowed)


class _Anything(Session):
    calls = 0

    def __init__(self, vocabulary: Vocabulary, allowed: Tensor, text: bytes = b"") -> None:
        self._vocabulary = vocabulary
        self.allowed = allowed
        self.text = text

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
    """Refuse options that do not work with ``guidance``.

    Args:
        guidance: the constraint of the run.
        config: transformers' generation configuration.
        streamer: a transformers streamer.

    Raises:
        ValueError: an option does not work; the message names the option and the remedy.
    """
    if not isinstance(guidance, (AWRS, EAGer, FeynmanKac)):
        raise ValueError(f"guidance={guidance} is not a constraint that this loop supports; pass textguide.AWRS(...)")
    name = type(guidance).__name__
    many = f"{guidance.rows_field}={guidance.particles}"
    copies = config.num_return_sequences or 1
    if guidance.weighs and not config.do_sample:
        remedy = "pass do_sample=True"
        if isinstance(guidance, AWRS):
            remedy += ", or AWRS(..., sampler='mask') to choose the most likely token that the constraint allows"
        raise ValueError(f"do_sample=False: {name} draws its tokens; {remedy}")
    if copies % guidance.particles and not guidance.forks:
        raise ValueError(
            f"num_return_sequences={copies} must be a multiple of {many}, because each is a row of the output; pass "
            f"num_return_sequences={guidance.particles}"
        )
    if isinstance(guidance, AWRS) and guidance.learns:
        _check_learning(guidance, config, streamer)
    if guidance.particles == 1:
        return
    if config.cache_implementation == "static":
        raise ValueError(
            f"cache_implementation='static' cannot move rows, but {many} move between rows; leave "
            "cache_implementation out"
        )
    if streamer is not None:
        raise ValueError(f"a streamer shows texts that {many} may still drop or fork; leave it out, or use one row")


def _check_learning(guidance: AWRS, config: Any, streamer: Any) -> None:
    sampler = f"sampler={guidance.sampler!r}"
    if guidance.sampler == "asap":
        return
    if streamer is not None:
        raise ValueError(f"a streamer shows texts that {sampler} may restart; leave it out, or use sampler='asap'")
    if config.return_dict_in_generate and (config.output_scores or config.output_logits):
        raise ValueError(
            f"output_scores= and output_logits= contain a single try, but {sampler} restarts texts; leave them out"
        )
    if config.cache_implementation == "static":
        raise ValueError(
            f"cache_implementation='static' is filled only once, but {sampler} restarts texts; leave it out"
        )


def constraint_of(guidance: AWRS) -> Constraint:
    """The constraint of ``guidance``.

    Raises:
        ValueError: its ``constraint`` is not a constraint; the message names what is.
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
    """The rows of a run before their first token.

    Args:
        guidance: an :class:`AWRS`, :class:`FeynmanKac` or :class:`EAGer`.
        model: the model.
        ids: prompts, (rows, L).
        config: transformers' generation configuration; its end tokens end texts.
        tokenizer: its tokenizer; not needed with ``vocabulary``.
        vocabulary: what each token adds to a text; None: that of the tokenizer.
        generator: the randomness.
        keys: for each row everything that its next-token distributions depend on; required if the guidance learns.
        prompts: token ids of each row without its padding; None: ``ids`` have none.

    Raises:
        ValueError: the constraint cannot be built, or nothing satisfies it.
    """
    end_tokens = _end_tokens(config)
    if isinstance(guidance, EAGer):
        size = guidance.max_branches
        if len(ids) % size or any(not torch.equal(row, ids[n - n % size]) for n, row in enumerate(ids)):
            raise ValueError(
                f"max_branches={size} needs that many rows of each prompt in a row; use textguide.eager, or "
                f"num_return_sequences={size}"
            )
        return Branching(guidance, ids.shape[0], generator, end_tokens, config.do_sample)
    corrects = isinstance(guidance, FeynmanKac)
    if corrects and guidance.constraint is None:
        return Corrected(
            ids.shape[0], guidance.particles, guidance.ess_threshold, guidance.resampling, generator, end_tokens
        )
    awrs = guidance.constrained if corrects else guidance
    if vocabulary is None:
        vocabulary = vocabulary_of(model, config, tokenizer)
    constraint = constraint_of(awrs)
    vocabulary = constraint.vocabulary(vocabulary)
    session = constraint.start(vocabulary)
    limit = None if config.max_length is None else config.max_length - ids.shape[1]
    _check_limit(awrs, constraint, vocabulary, limit)
    options: dict[str, Any] = {
        "limit": limit,
        "lookahead": lookahead_of(awrs.lookahead, constraint, vocabulary),
        "prompts": ids.tolist() if prompts is None else prompts,
    }
    if awrs.learns:
        options["keys"] = [(constraint, vocabulary, keys[row]) for row in range(0, len(ids), awrs.particles)]
        return Learning(
            awrs, session, vocabulary, ids.shape[0], generator, ids.device, lessons=current_lessons(), **options
        )
    return Constrained(awrs, session, vocabulary, ids.shape[0], generator, ids.device, corrects, **options)


def _end_tokens(config: Any) -> frozenset[int]:
    """The tokens that end texts."""
    ends = config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset(ends if isinstance(ends, (list, tuple)) else (ends,))


def _check_limit(guidance: AWRS, constraint: Constraint, vocabulary: Vocabulary, limit: int | None) -> None:
    """Refuse a limit of tokens that no text of the constraint fits into, if its automaton knows that.

    Raises:
        UnsatisfiableError: the shortest text has more tokens.
    """
    if limit is None or not guidance.weighs or guidance.lookahead is None:
        return
    automaton = automaton_of(constraint, vocabulary)
    end = 1 if vocabulary.ends else 0
    # With few bytes there is room. Otherwise tokens are counted, which takes longer.
    if automaton is None or int(automaton.bytes.distances[automaton.bytes.start]) + end <= limit:
        return
    try:
        needed = int(automaton.distances[automaton.begin]) + end
    except TooLargeError:
        return
    if limit < needed < 1 << 30:
        raise UnsatisfiableError(
            f"max_new_tokens={limit} is too few for constraint={constraint!r}, whose shortest text needs {needed} "
            "tokens with the end token; raise max_new_tokens"
        )


def vocabulary_of(model: Any, config: Any, tokenizer: Any) -> Vocabulary:
    """What each token of ``model`` adds to a text."""
    if tokenizer is None:
        raise ValueError("tokenizer=None: a constraint needs the bytes of tokens; pass the tokenizer of the model")
    size = model.config.get_text_config(decoder=True).vocab_size
    # Without an end token in the configuration, that of the tokenizer is used, or no text could end.
    return Vocabulary.of(tokenizer, size, config.eos_token_id)


def warn_of_deaths(outcomes: Sequence[Outcome]) -> None:
    """Warn if every particle of a population was given up."""
    dead = 0
    total = 0
    reasons = Counter[str]()
    for outcome in outcomes:
        if outcome.origins is not None:  # unused rows for forks are not failures
            continue
        populations = outcome.finished[:, None] if outcome.ess is None else outcome.finished.view(len(outcome.ess), -1)
        size = populations.shape[1]
        for number, rows in enumerate(populations.tolist()):
            total += 1
            if not any(rows):
                dead += 1
                deaths = outcome.deaths[number * size : (number + 1) * size]
                reasons.update(reason for reason in deaths if reason is not None)
    if dead:
        summary = "; ".join(f"{reason} ({count} times)" for reason, count in reasons.most_common())
        warnings.warn(
            f"no text finished for {dead} of {total} prompts: {summary}. Their weights are 0: raise max_new_tokens, "
            "use more particles, or loosen the constraint",
            NoParticleLeftWarning,
            stacklevel=3,
        )
