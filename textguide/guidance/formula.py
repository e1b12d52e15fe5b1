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

from ..support.checks import LARGEST_FACTOR, brief, factor, flag
from .base import ROW, About, Branch, BranchGuidance, Guidance, Step
from .caif import CAIF
from .composed import together

_OPERATORS: dict[type[ast.AST], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2}
_ARGUMENTS = {"P": (1,), "M": (1, 2), "C": (2,)}
"""How many texts each kind of leaf may have."""
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
        # a - (b - c) needs its parentheses, and (a - b) - c does not.
        least_right = strength + 1 if self.kind in "-/" else strength
        operator = f" {self.kind} " if strength == 1 else self.kind
        return _in_parentheses(left, strength) + operator + _in_parentheses(right, least_right)


def _in_parentheses(part: Term, least: int) -> str:
    """The text of an operand, in parentheses if its operator is weaker than ``least``."""
    return f"({part})" if _STRENGTH.get(part.kind, 3) < least else str(part)


cond = Term("cond")
"""The model's log-probabilities after the prompt."""
last = Term("last")
"""Its log-probabilities after only the last token of the prompt: the unconditional branch of CFG."""


def P(prompt: str) -> Term:
    """The model's log-probabilities after another prompt."""
    return Term("P", (prompt,))


def M(model: str, prompt: str | None = None) -> Term:
    """The log-probabilities of another model (of ``models=``) after the prompt, or after another prompt."""
    return Term("M", (model,) if prompt is None else (model, prompt))


def C(classifier: str, target: str) -> Term:
    """A classifier's log-probability of a class for every candidate: a summand, on its own or times a number."""
    return Term("C", (classifier, target))


def largest(*terms: Any) -> Term:
    """The union: the largest of some log-probabilities, for every token."""
    return Term("max", tuple(map(term, terms)))


def smallest(*terms: Any) -> Term:
    """The intersection: the smallest of some log-probabilities, for every token."""
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
    raise ValueError(f"{value!r} cannot be part of a formula; {_USE}")


DEEPEST = 100
"""Formulas are read and computed by recursion, in the engine of a server too."""


def parse(text: str) -> Term:
    """Parse the text of a formula.

    Raises:
        ValueError: it is not a formula; the message shows the part that is not understood.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (RecursionError, MemoryError):
        raise ValueError(f"expression={brief(text)} is too long or nested too deeply; use fewer terms") from None
    except SyntaxError as error:
        raise ValueError(f"formula {text!r} is not understood ({error.msg}); {_USE}") from error
    if _depth(tree) > DEEPEST:
        raise ValueError(f"expression={brief(text)} has more than {DEEPEST} terms in one sum or product; use fewer")
    return _read(tree.body, text)


def _depth(tree: ast.AST) -> int:
    """The number of nodes from the root to the deepest leaf, counted without recursion."""
    deepest = 0
    left = [(tree, 1)]
    while left:
        node, depth = left.pop()
        deepest = max(deepest, depth)
        left += [(child, depth + 1) for child in ast.iter_child_nodes(node)]
    return deepest


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
        paper="2311.14479",
        rule="any sum, maximum or minimum of log-probabilities",
        passes=f"{ROW} per prompt, one pass per model",
        neutral="`cond`",
        helps="several goals at the same time",
        example="formula:2*cond - 0.5*last - 0.5*P('A dull text: ')",
    )

    def __post_init__(self) -> None:
        if isinstance(self.expression, Term):
            self._put(expression=str(self.expression))
        flag("renormalize", self.renormalize)
        _constant(self._tree, self.expression)
        for leaf in _leaves(self._tree):
            if leaf.kind == "C":
                raise ValueError(
                    f"formula {self.expression!r}: {leaf} is a classifier, which reweights the result; use "
                    "Formula.of(…), with the classifier as a term of the outermost sum"
                )

    @staticmethod
    def of(expression: str | Term) -> Guidance:
        """The guidance that a formula describes. Its classifier terms become :class:`textguide.CAIF` guidances.

        Example:
            >>> Formula.of("1.5*cond - 0.5*P('A dull text: ') + 5*C('sentiment', 'positive')")

        Raises:
            ValueError: it is not a formula, or a classifier is not a term of the outermost sum.
        """
        plain: list[tuple[float, Term]] = []
        classifiers = []
        for sign, part in _summands(expression if isinstance(expression, Term) else parse(expression), 1.0):
            weight, leaf = _classifier(part)
            if leaf is None:
                plain.append((sign, part))
            else:
                classifier, target = leaf.parts
                classifiers.append(CAIF(classifier, target, sign * weight))
        (sign, rest), *others = plain or [(1.0, cond)]
        rest = rest if sign > 0 else -rest
        for sign, part in others:
            rest = rest + part if sign > 0 else rest - part
        guidance = together([Formula(str(rest)), *classifiers])
        assert guidance is not None
        return guidance

    @cached_property
    def _tree(self) -> Term:
        return parse(self.expression)

    @cached_property
    def _terms(self) -> list[Term]:
        """The log-probabilities other than ``cond``, each once, in the order in which they occur."""
        return list(dict.fromkeys(leaf for leaf in _leaves(self._tree) if leaf.kind in ("last", "P", "M")))

    @property
    def is_neutral(self) -> bool:
        """Whether the formula is ``cond``."""
        return self._tree == cond

    @property
    def branches(self) -> tuple[Branch, ...]:
        """One for every term except ``cond``."""
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
    """The value of ``part`` if it is a constant; None if it depends on the models.

    Raises:
        ValueError: a number is too large a factor of log-probabilities, or something is divided by 0.
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
    """The weight and the classifier of a summand such as ``5*C(…)``; None instead of the classifier for all others."""
    if part.kind == "C":
        return 1.0, part
    if part.kind == "*":
        for number, leaf in (part.parts, part.parts[::-1]):
            if number.kind == "number" and leaf.kind == "C":
                return float(number.parts[0]), leaf
    return 0.0, None


def _read(node: ast.AST, text: str) -> Term:
    """The term of a node of Python's syntax tree of ``text``.

    Raises:
        ValueError: formulas have no such node.
    """
    result: Term | None = None
    if isinstance(node, ast.Constant) and not isinstance(node.value, str):
        result = term(node.value)
    elif isinstance(node, ast.Name) and node.id in ("cond", "last"):
        result = Term(node.id)
    elif isinstance(node, ast.UnaryOp):
        result = _read_sign(node, text)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        result = Term(_OPERATORS[type(node.op)], (_read(node.left, text), _read(node.right, text)))
    elif isinstance(node, ast.Call):
        result = _read_call(node, text)
    if result is None:
        raise ValueError(f"formula {text!r}: {ast.unparse(node)!r} is not understood; {_USE}")
    return result


def _read_sign(node: ast.UnaryOp, text: str) -> Term | None:
    """The term of ``+x`` or ``-x``; None for other operators."""
    if not isinstance(node.op, (ast.USub, ast.UAdd)):
        return None
    operand = _read(node.operand, text)
    if isinstance(node.op, ast.UAdd):
        return operand
    return term(-operand.parts[0]) if operand.kind == "number" else -operand


def _read_call(node: ast.Call, text: str) -> Term | None:
    """The term of ``max(…)``, ``min(…)``, ``P(…)``, ``M(…)`` or ``C(…)``; None for other calls."""
    if not isinstance(node.func, ast.Name) or node.keywords:
        return None
    name = node.func.id
    if name in ("max", "min") and len(node.args) > 1:
        return Term(name, tuple(_read(argument, text) for argument in node.args))
    texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    if len(texts) != len(node.args) or len(texts) not in _ARGUMENTS.get(name, ()):
        return None
    if not all(isinstance(argument, str) and argument for argument in texts):
        return None
    return Term(name, tuple(texts))
