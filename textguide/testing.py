"""``textguide.testing.check``: everything that decoding relies on in a guidance method, checked in one call.

Each check is one function below. If something is wrong, it raises :class:`MethodError` with a remedy. The checks run
on random log-probabilities of a few tokens, so that they need no model and take milliseconds. They do not show that a
rule computes the formula of its paper: compare it with a plain loop to check that (``textguide.reference.decoding``).
"""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor

from .guidance.algebra import log_softmax
from .guidance.base import About, Branch, BranchGuidance, Guidance, Step
from .guidance.scaled import Scaled
from .step.guided_step import combine_branches, guided_groups, guided_log_probs

ROWS = 4
TOKENS = 13
TOLERANCE = 1e-4


class MethodError(AssertionError):
    """A guidance method does something that decoding does not support."""


@dataclass
class _Method:
    """The method under test, with inputs for it."""

    guidance: BranchGuidance
    neutral: BranchGuidance | None
    generator: torch.Generator

    @property
    def name(self) -> str:
        return type(self.guidance).__name__

    def log_probs(self, rows: int = ROWS, tokens: int = TOKENS, spread: float = 2.0) -> Tensor:
        """Random log-probabilities of all branches, (n, rows, tokens)."""
        size = (1 + len(self.guidance.branches), rows, tokens)
        return log_softmax(spread * torch.randn(size, generator=self.generator))

    def step(self, rows: int = ROWS, progress: float | None = None) -> Step:
        """A step inside the guidance's window, with everything that the guidance reads."""
        size = (1 + len(self.guidance.branches), rows)
        likelihoods = -3.0 * torch.rand(size, generator=self.generator, dtype=torch.float64)
        class_log_probs = -2.0 * torch.rand(size, generator=self.generator)
        return Step(
            progress=self._open() if progress is None else progress,
            rows=tuple(range(rows)),
            batch=rows,
            likelihoods=likelihoods if self.guidance.reads_likelihoods else None,
            class_log_probs=class_log_probs if self.guidance.reads_class_log_probs else None,
        )

    def _open(self) -> float:
        """A progress at which the guidance is active; 0.5 if there is none."""
        for progress in (0.5, 0.0, 0.25, 0.75, 1.0):
            if self.guidance.active(Step(progress)):
                return progress
        return 0.5


def check(guidance: Guidance, *, neutral: Guidance | None = None, seed: int = 0) -> None:
    """Check that a guidance method keeps every rule that decoding relies on.

    It checks that the object is a frozen value that survives JSON, pickle and copies; that its rule is a pure function
    with the right shape and finite scores, even if tokens are nearly impossible or forbidden (−inf); that rows have the
    same results in a batch as on their own; that its neutral setting changes nothing; and that the declarations of the
    class about the rule (``ignores_shifts``, ``is_elementwise``, ``rule``, ``factors``) are true.

    Args:
        guidance: a setting of the method, such as ``TopCFG(2.0, k=20)``. Check one setting per branch of your code.
        neutral: the setting that changes nothing, such as ``TopCFG(1.0)``. None: a guidance with ``scale`` and
            ``off_at_one`` is checked at ``scale=1``, another one not at all.
        seed: of the random inputs.

    Raises:
        MethodError: a rule is broken; the message names the method, the rule and the remedy. It is an
            ``AssertionError``, so that a test framework shows it as a failed test.
        TypeError: ``guidance`` is not a guidance.
    """
    for name, value in (("guidance", guidance), ("neutral", neutral)):
        if value is not None and not isinstance(value, Guidance):
            raise TypeError(f"{name}={value!r} must be a guidance object, such as CFG(1.5)")
    for part in guidance.parts:
        for check_value in VALUE_CHECKS:
            check_value(part)
    if not isinstance(guidance, BranchGuidance):
        return
    assert neutral is None or isinstance(neutral, BranchGuidance)
    if neutral is None and getattr(guidance, "off_at_one", False):
        neutral = replace(guidance, scale=1.0, min_scale=None, max_scale=None)  # type: ignore[type-var]
    for number, check_rule in enumerate(RULE_CHECKS):
        check_rule(_Method(guidance, neutral, torch.Generator().manual_seed(seed + number)))


# -- the object ------------------------------------------------------------------------------------------------------


def check_class(guidance: Guidance) -> None:
    """The class is a registered frozen dataclass."""
    kind = type(guidance)
    parameters = getattr(kind, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        _fail(guidance, "must be frozen; write @dataclass(frozen=True) above the class")
    if Guidance.registry.get(guidance.name) is not kind:
        _fail(guidance, f"name = {guidance.name!r} belongs to another class; choose another name")
    if not isinstance(getattr(kind, "about", None), About):
        _fail(guidance, "has no about; set about = About(paper, rule, passes, neutral, helps)")
    try:
        hash(guidance)
    except TypeError as error:
        _fail(guidance, f"cannot be hashed ({error}); use tuples instead of lists, and no dictionaries")


def check_json(guidance: Guidance) -> None:
    """JSON keeps every field."""
    try:
        text = guidance.to_json()
    except TypeError as error:
        _fail(guidance, f"cannot be written as JSON ({error}); its fields must be numbers, texts, tuples or None")
    try:
        read = Guidance.from_dict(json.loads(text))
    except (ValueError, TypeError) as error:
        _fail(guidance, f"cannot be read from its own JSON {text}: {error}")
    if read != guidance:
        _fail(guidance, f"becomes {read!r} through JSON; to_dict must contain every field, and __post_init__ accept it")
    if read.fingerprint != guidance.fingerprint:
        _fail(guidance, "has another fingerprint after JSON; to_dict must only depend on the fields")


def check_pickle(guidance: Guidance) -> None:
    """Pickle and ``dataclasses.replace`` keep the value: worker processes and other loops use both."""
    try:
        read = pickle.loads(pickle.dumps(guidance))
    except Exception as error:  # pickle raises whatever the object raises
        _fail(
            guidance,
            f"cannot be pickled ({error}); define the class at the top of a module, and use plain values for its "
            "fields, no functions or models",
        )
    copied = dataclasses.replace(guidance)  # type: ignore[type-var]
    for copy, how in ((read, "pickle"), (copied, "dataclasses.replace")):
        if copy != guidance:
            _fail(guidance, f"becomes {copy!r} through {how}; set everything in fields, with checks in __post_init__")


# -- the rule --------------------------------------------------------------------------------------------------------


def check_branches(method: _Method) -> None:
    """The branches are a fixed tuple."""
    branches = method.guidance.branches
    if not isinstance(branches, tuple) or not all(isinstance(branch, Branch) for branch in branches):
        _fail(method.guidance, f"branches={branches!r} must be a tuple of Branch objects")
    if method.guidance.branches != branches:
        _fail(method.guidance, "returns other branches when it is read again; derive them from the fields only")


def check_shape(method: _Method) -> None:
    """Float scores (B, V), for any number of rows and tokens."""
    for rows, tokens in ((ROWS, TOKENS), (1, TOKENS), (ROWS, 2), (1, 1)):
        if not _fits(method.guidance, tokens):
            continue
        scores = _combine(method, method.log_probs(rows, tokens), method.step(rows))
        if not isinstance(scores, Tensor) or scores.shape != (rows, tokens):
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else scores
            _fail(
                method.guidance,
                f"combine returns {shape} for {rows} rows and {tokens} tokens; return one score per row and token, "
                f"({rows}, {tokens}), and derive sizes from logp.shape: the number of tokens changes if some are "
                "forbidden",
            )
        if not scores.is_floating_point():
            _fail(method.guidance, f"combine returns {scores.dtype}; return float scores")


def _fits(guidance: Guidance, tokens: int) -> bool:
    """Whether the guidance works with a vocabulary of this size; a token prior has its own size."""
    check_vocabulary = getattr(guidance, "check_vocabulary", None)
    if check_vocabulary is None:
        return True
    try:
        check_vocabulary(tokens)
    except ValueError:
        return False
    return True


def check_finite(method: _Method) -> None:
    """No NaN and no +inf, even if a token is certain and all others are nearly impossible; −inf forbids a token."""
    for spread in (2.0, 60.0, 2000.0):
        scores = _combine(method, method.log_probs(spread=spread), method.step())
        if bool(scores.isnan().any()) or not bool(scores.amax(-1).isfinite().all()):
            _fail(
                method.guidance,
                "combine returns NaN or +inf, or no score above −inf, for log-probabilities down to about "
                f"{-5 * spread:g}; stay in log space (exp() of them is 0, and log(0) is −inf), and do not divide by "
                "what may be 0",
            )


def check_purity(method: _Method) -> None:
    """The same input gives the same output, inputs stay as they are, and no random number is drawn."""
    logp = method.log_probs()
    step = method.step()
    before = logp.clone()
    random_state = torch.get_rng_state()
    first = _combine(method, logp, step).clone()
    if not torch.equal(logp, before):
        _fail(method.guidance, "combine writes into logp; compute a new tensor, or clone it first")
    if not torch.equal(random_state, torch.get_rng_state()):
        _fail(method.guidance, "combine draws random numbers; a rule is a pure function of logp and step")
    _combine(method, method.log_probs(), method.step())
    if not torch.equal(_combine(method, logp, step), first):
        _fail(method.guidance, "combine returns another output for the same input; a rule must not keep state")


def check_rows(method: _Method) -> None:
    """The result of a row in a batch is the same as on its own, if rows do not depend on each other."""
    if method.guidance.across_rows:
        return
    logp = method.log_probs()
    step = method.step()
    together = _combine(method, logp, step).log_softmax(-1)
    for row in range(ROWS):
        number = torch.tensor([row])
        single = _combine(method, logp[:, number], step.pick(number)).log_softmax(-1)
        if not _close(together[number], single):
            _fail(
                method.guidance,
                f"combine returns other scores for row {row} in a batch than on its own; only reduce over the last "
                "dimension (the tokens), or set across_rows = True",
            )


def check_groups(method: _Method) -> None:
    """Rows at different positions, which servers compute together, have the same results as on their own."""
    guidance = method.guidance
    if guidance.across_rows or guidance.reads_likelihoods or guidance.reads_class_log_probs:
        return
    logp = method.log_probs(rows=3)
    steps = [Step(progress) for progress in (0.0, 0.4, 1.0)]
    expected = []
    for row, step in enumerate(steps):
        if guidance.active(step):
            expected.append(guided_log_probs(guidance, logp[:, [row]], step)[0].log_softmax(-1))
        else:
            expected.append(logp[0, row])
    extra = [logp[1:, row] for row in range(3)]
    for members, outcome in guided_groups(logp[0], extra, [guidance] * 3, steps, normalised=True, measure=False):
        scores = outcome.scores.log_softmax(-1)
        for number, row in enumerate(members):
            if not _close(scores[number], expected[row]):
                _fail(
                    guidance,
                    f"combine returns other scores at progress {steps[row].progress} if rows with different progress "
                    "are computed together; step.progress and the scale can be tensors (B, 1): use torch.where, not if",
                )


def check_forbidden(method: _Method) -> None:
    """Tokens that a branch forbids (−inf) stay out, and do not disturb the others."""
    guidance = method.guidance
    logp = method.log_probs()
    step = method.step()
    cases = [(branch, [2, 5]) for branch in range(len(logp))] + [(None, [0, 1, 7])]
    for branch, tokens in cases:
        forbidden = logp.clone()
        for number in range(len(logp)) if branch is None else [branch]:
            forbidden[number][:, tokens] = -torch.inf
        forbidden = forbidden.log_softmax(-1)
        scores = combine_branches(guidance, forbidden, step)
        if bool(scores.isnan().any()) or bool((scores == torch.inf).any()):
            _fail(guidance, f"returns NaN or +inf if branch {branch or 0} forbids tokens; see combine's docstring")
        if branch in (0, None) and not bool(scores[:, tokens].isneginf().all()):
            _fail(guidance, "allows a token that the conditional branch forbids")
        if not bool((scores > -torch.inf).any(-1).all()):
            _fail(guidance, f"leaves no token if branch {branch or 0} forbids some; check factors()")


def check_neutral(method: _Method) -> None:
    """The neutral setting changes nothing: it reports so, and then no branch runs, or its rule keeps ``logp[0]``."""
    neutral = method.neutral
    if neutral is not None and not neutral.is_neutral:
        tried = replace(method, guidance=neutral)
        logp = tried.log_probs()
        if not _close(guided_log_probs(neutral, logp, tried.step()).log_softmax(-1), logp[0]):
            _fail(neutral, "is the neutral setting, but combine changes the distribution; fix the rule, or is_neutral")
    guidance = method.guidance
    if isinstance(guidance, Scaled) and guidance.off_at_one:  # combine does not call mix at a scale of 1
        logp = method.log_probs()
        if not _close(guidance.mix(logp, 1.0, method.step()).log_softmax(-1), logp[0]):
            _fail(
                guidance,
                "declares off_at_one, but mix changes the distribution at scale 1; return False, or define the scale "
                "so that 1 is neutral (a weight w that is neutral at 0 is scale − 1)",
            )


def check_declarations(method: _Method) -> None:
    """What the class declares about its rule is true."""
    guidance = method.guidance
    if guidance.ignores_shifts:
        logp = method.log_probs()
        step = method.step()
        shifts = torch.randn(*logp.shape[:2], 1, generator=method.generator)
        shifted = _combine(method, logp + shifts, step)
        if not _close(shifted.log_softmax(-1), _combine(method, logp, step).log_softmax(-1)):
            _fail(guidance, "declares ignores_shifts, but a constant added to a branch changes the distribution")
    if guidance.is_elementwise:
        logp = method.log_probs()
        step = method.step()
        others = [2, 3, 5]
        kept = [token for token in range(logp.shape[-1]) if token not in others]
        changed = logp.clone()
        changed[..., others] -= torch.rand(*logp.shape[:2], len(others), generator=method.generator)
        if not _close(_combine(method, changed, step)[..., kept], _combine(method, logp, step)[..., kept]):
            _fail(guidance, "declares is_elementwise, but the score of a token depends on other tokens")
    step = method.step()
    if not isinstance(guidance.active(step), bool):
        _fail(guidance, f"active returns {guidance.active(step)!r}; return True or False")
    factors = guidance.factors(1 + len(guidance.branches))
    if not all(0 <= number <= len(guidance.branches) for number in factors):
        _fail(guidance, f"factors returns {factors}; return numbers of branches, 0 for the conditional one")
    hash(guidance.rule)


VALUE_CHECKS: tuple[Callable[[Guidance], None], ...] = (check_class, check_json, check_pickle)
RULE_CHECKS: tuple[Callable[[_Method], None], ...] = (
    check_branches,
    check_shape,
    check_purity,
    check_finite,
    check_rows,
    check_groups,
    check_forbidden,
    check_neutral,
    check_declarations,
)


def _combine(method: _Method, logp: Tensor, step: Step) -> Tensor:
    try:
        return method.guidance.combine(logp, step)
    except Exception as error:
        rows, tokens = logp.shape[1:]
        raise MethodError(
            f"{method.name}: combine fails for {rows} rows and {tokens} tokens: {type(error).__name__}: {error}"
        ) from error


def _close(scores: Tensor, expected: Tensor) -> bool:
    return torch.allclose(scores.exp(), expected.exp(), atol=TOLERANCE, rtol=TOLERANCE)


def _fail(guidance: Guidance, message: str) -> NoReturn:
    raise MethodError(f"{type(guidance).__name__}: {message}\n  checked: {guidance!r}")
