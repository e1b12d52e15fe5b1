"""Language model arithmetic (Dekoninck et al., arXiv 2311.14479): formulas over prompts, models and classifiers."""

from __future__ import annotations

import ast
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..support.checks import LARGEST_FACTOR, factor
from .base import ROW, About, Branch, BranchGuidance, Guidance, Step
from .caif import CAIF
from .composed import together

_OPERATORS: dict[type[ast.AST], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2}
_USE = "write it with cond, last, P('prompt'), M('model'), M('model', 'prompt'), C('classifier', 'class'), max, min"


@dataclass(frozen=True)
class Term:
    """A part of a formula: a leaf, or an operation on other parts. Created by :data:`cond`, :func:`P` and arithmetic.

    Args:
        kind: ``number``, ``cond``, ``last``, ``P``, ``M``, ``C``, an operator, ``max`` or ``min``.
        parts: the operands, or the content of a leaf.
    """

    kind: str
    parts: tuple[Any, ...] = ()

    def __add__(self, other: Any) -> Term:
        return Term("+", (self, term(other)))

    def __radd__(self, other: Any) -> Term:
        return Term("+", (term(other), self))

    def __sub__(self, other: Any) -> Term:
        return Term("-", (self, term(other)))

    def __rsub__(self, other: Any) -> Term:
        return Term("-", (term(other), self))

    def __mul__(self, other: Any) -> Term:
        return Term("*", (self, term(other)))

    def __rmul__(self, other: Any) -> Term:
        return Term("*", (term(other), self))

    def __truediv__(self, other: Any) -> Term:
        return Term("/", (self, term(other)))

    def __neg__(self) -> Term:
        return Term("*", (term(-1), self))

    def __str__(self) -> str:
        if self.kind == "number":
            short = f"{self.parts[0]:g}"
            return short if float(short) == self.parts[0] else repr(self.parts[0])
        if self.kind in ("cond", "last"):
            return self.kind
        if self.kind in ("P", "M", "C"):
            return f"{self.kind}({', '.join(map(repr, self.parts))})"
        if self.kind in ("max", "min"):
            return f"{self.kind}({', '.join(map(str, self.parts))})"
        left, right = self.parts
        strength = _STRENGTH[self.kind]
        texts = [
            f"({part})" if _STRENGTH.get(part.kind, 3) < strength + (place and self.kind in "-/") else str(part)
            for place, part in enumerate((left, right))
        ]
        return f"{texts[0]} {self.kind} {texts[1]}" if strength == 1 else f"{texts[0]}{self.kind}{texts[1]}"


cond = Term("cond")
"""What the model says behind the prompt."""
last = Term("last")
"""What it says behind the last token of the prompt: the unconditional branch of classifier-free guidance."""


def P(prompt: str) -> Term:
    """What the model says behind another prompt."""
    return Term("P", (prompt,))


def M(model: str, prompt: str | None = None) -> Term:
    """What another model (of ``models=``) says behind the prompt, or behind another one."""
    return Term("M", (model,) if prompt is None else (model, prompt))


def C(classifier: str, target: str) -> Term:
    """What a classifier says of every candidate; a term of the sum, by itself or times a number."""
    return Term("C", (classifier, target))


def largest(*terms: Any) -> Term:
    """The union: for every token the largest of some log-probabilities."""
    return Term("max", tuple(map(term, terms)))


def smallest(*terms: Any) -> Term:
    """The intersection: for every token the smallest of some log-probabilities."""
    return Term("min", tuple(map(term, terms)))


def term(value: Any) -> Term:
    """A number as a term.

    Raises:
        ValueError: it is neither a term nor a finite number.
    """
    if isinstance(value, Term):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return Term("number", (float(value),))
    raise ValueError(f"{value!r} cannot stand in a formula; {_USE}")


def parse(text: str) -> Term:
    """The formula that ``text`` spells.

    Raises:
        ValueError: it is no formula; the message shows the part that is not understood.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise ValueError(f"formula {text!r} is not understood ({error.msg}); {_USE}") from error
    return _read(tree.body, text)


@dataclass(frozen=True)
class Formula(BranchGuidance):
    """Any arithmetic on log-probabilities, normalised: products of experts, contrasts, unions.

    ``log P ∝ F(l₁, …, lₙ)`` for a formula ``F`` of log-probabilities given prompts and of models (arXiv 2311.14479,
    Eq. 5–7): ``1.5*cond - 0.5*last`` is classifier-free guidance, ``cond + M('expert') - M('anti')`` uses experts,
    ``max(cond, P('…'))`` is a union, ``min`` an intersection. A token that ``cond`` forbids stays forbidden; a token
    that another term forbids keeps its conditional log-probability. Costs one row or pass for every term except
    ``cond``.

    Args:
        expression: the formula, with ``cond``, ``last``, ``P('prompt')``, ``M('model')``, ``M('model', 'prompt')``,
            numbers, ``+ - * /``, ``max`` and ``min``. Classifier terms need :meth:`of`.
        renormalize: return normalised log-probabilities. False returns the values of the formula, whose product over
            whole texts :class:`textguide.FeynmanKac` samples.

    Raises:
        ValueError: the formula cannot be parsed (the message shows the part that is not understood), it divides by 0,
            or a number lies outside ±1e6.
    """

    expression: str
    renormalize: bool = field(default=True, kw_only=True)

    name = "formula"
    about = About(
        "2311.14479", "any sum, maximum or minimum of log-probabilities", f"{ROW} per prompt, one pass per model",
        "`cond`", "several goals at the same time", "formula:2*cond - 0.5*last - 0.5*P('A dull text: ')",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if isinstance(self.expression, Term):
            self._put(expression=str(self.expression))
        if not isinstance(self.renormalize, bool):
            raise ValueError(f"renormalize={self.renormalize!r} must be True or False")
        _constant(self._tree, self.expression)
        for leaf in _leaves(self._tree):
            if leaf.kind == "C":
                raise ValueError(
                    f"formula {self.expression!r}: {leaf} is a classifier, which weighs what the formula gives; use "
                    "Formula.of(…), where it is a term of the outermost sum"
                )

    @staticmethod
    def of(expression: str | Term) -> Guidance:
        """The guidance that a formula describes; classifier terms become :class:`textguide.CAIF` beside it.

        Example:
            >>> Formula.of("1.5*cond - 0.5*P('A dull text: ') + 5*C('sentiment', 'positive')")

        Raises:
            ValueError: it is no formula, or a classifier stands elsewhere than in the outermost sum.
        """
        plain: list[tuple[float, Term]] = []
        weighing = []
        for sign, part in _summands(expression if isinstance(expression, Term) else parse(expression), 1.0):
            weight, leaf = _classifier(part)
            if leaf is None:
                plain.append((sign, part))
            else:
                classifier, target = leaf.parts
                weighing.append(CAIF(classifier, target, sign * weight))
        (sign, rest), *others = plain or [(1.0, cond)]
        rest = rest if sign > 0 else -rest
        for sign, part in others:
            rest = rest + part if sign > 0 else rest - part
        found = together([Formula(str(rest)), *weighing])
        assert found is not None
        return found

    @cached_property
    def _tree(self) -> Term:
        return parse(self.expression)

    @cached_property
    def _terms(self) -> list[Term]:
        """The log-probabilities beside ``cond``, each once, in the order in which they stand."""
        return list(dict.fromkeys(leaf for leaf in _leaves(self._tree) if leaf.kind in ("last", "P", "M")))

    @property
    def is_neutral(self) -> bool:
        """The formula is ``cond``."""
        return self._tree == cond

    @property
    def branches(self) -> tuple[Branch, ...]:
        """One for every term beside ``cond``; none where the formula is about ``cond`` alone."""
        return tuple(_branch(leaf) for leaf in self._terms)

    def combine(self, logp: Tensor, step: Step) -> Tensor:
        """The formula on ``logp`` (1 + terms, B, V)."""
        leaves = {cond: logp[0], **dict(zip(self._terms, logp[1:], strict=True))}
        value = torch.as_tensor(_evaluate(self._tree, leaves), device=logp.device)
        return value.expand_as(logp[0])


def _branch(leaf: Term) -> Branch:
    if leaf.kind == "last":
        return Branch()
    if leaf.kind == "P":
        return Branch(prompt=leaf.parts[0])
    if len(leaf.parts) == 2:
        return Branch(prompt=leaf.parts[1], model=leaf.parts[0])
    return Branch(same_prompt=True, model=leaf.parts[0])


def _evaluate(part: Term, logps: dict[Term, Tensor]) -> Any:
    if part in logps:
        return logps[part]
    if part.kind == "number":
        return part.parts[0]
    values = [_evaluate(inner, logps) for inner in part.parts]
    if part.kind in ("max", "min"):
        tensors = [torch.as_tensor(value, dtype=torch.float32, device=logps[cond].device) for value in values]
        return functools.reduce(torch.maximum if part.kind == "max" else torch.minimum, tensors)
    return _arithmetic(part.kind, values)


def _constant(part: Term, text: str) -> float | None:
    """The number that ``part`` stands for whatever the models say; None where it depends on them.

    Raises:
        ValueError: a number lies outside what log-probabilities may be multiplied by, or something is divided by 0.
    """
    if part.kind == "number":
        return factor(f"formula {text!r}: the number", part.parts[0])
    if not part.parts or part.kind in ("P", "M", "C"):
        return None
    values = [_constant(inner, text) for inner in part.parts]
    if part.kind == "/" and values[1] is not None and abs(values[1]) < 1 / LARGEST_FACTOR:
        raise ValueError(f"formula {text!r}: {part} divides by {values[1]:g}; divide by another number")
    if any(value is None for value in values):
        return None
    return factor(f"formula {text!r}: {part}", _arithmetic(part.kind, values))


def _arithmetic(kind: str, values: Sequence[Any]) -> Any:
    if kind in ("max", "min"):
        return max(values) if kind == "max" else min(values)
    left, right = values
    if kind == "+":
        return left + right
    if kind == "-":
        return left - right
    return left * right if kind == "*" else left / right


def _leaves(part: Term) -> list[Term]:
    if part.kind in ("number", "cond", "last", "P", "M", "C"):
        return [part]
    return [leaf for inner in part.parts for leaf in _leaves(inner)]


def _summands(part: Term, sign: float) -> list[tuple[float, Term]]:
    if part.kind in ("+", "-"):
        left, right = part.parts
        return _summands(left, sign) + _summands(right, sign if part.kind == "+" else -sign)
    return [(sign, part)]


def _classifier(part: Term) -> tuple[float, Term | None]:
    """The weight and the classifier of a summand such as ``5*C(…)``; None where it is another one."""
    if part.kind == "C":
        return 1.0, part
    if part.kind == "*":
        for number, leaf in (part.parts, part.parts[::-1]):
            if number.kind == "number" and leaf.kind == "C":
                return float(number.parts[0]), leaf
    return 0.0, None


def _read(node: ast.AST, text: str) -> Term:
    if isinstance(node, ast.Constant) and not isinstance(node.value, str):
        return term(node.value)
    if isinstance(node, ast.Name) and node.id in ("cond", "last"):
        return Term(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        inner = _read(node.operand, text)
        if isinstance(node.op, ast.UAdd):
            return inner
        return term(-inner.parts[0]) if inner.kind == "number" else -inner
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return Term(_OPERATORS[type(node.op)], (_read(node.left, text), _read(node.right, text)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        name = node.func.id
        if name in ("max", "min") and len(node.args) > 1:
            return Term(name, tuple(_read(argument, text) for argument in node.args))
        said = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        wanted = {"P": (1,), "M": (1, 2), "C": (2,)}.get(name, ())
        if len(said) == len(node.args) and len(said) in wanted and all(isinstance(s, str) and s for s in said):
            return Term(name, tuple(said))
    raise ValueError(f"formula {text!r}: {ast.unparse(node)!r} is not understood; {_USE}")
